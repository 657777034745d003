"""Benchmark programs, run as `python -m experiments.benchmarks.NAME`.

Every module here is a program. Code that they share is in `harness/` and `experiments/common`.
docs/benchmarks.md has results.
"""
