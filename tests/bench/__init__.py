"""Benchmarks: `make bench`, or `python -m tests.bench NAME...`. Ratios within one run; none of them is a test."""
