"""Ways between CPUs, for which vLLM has none."""
