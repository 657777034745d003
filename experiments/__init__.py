"""Experiments: configs and the programs that run them, from a checkout."""
