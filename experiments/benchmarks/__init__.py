"""Benchmarks: each module is a program, `python -m experiments.benchmarks.NAME`."""
