"""Experiments: configs and the programs that run them, from a checkout."""

import sys

from stunet import signals

# `python -m experiments.NAME` imports this package first, before JAX, which takes seconds.
if sys.argv[:1] == ["-m"]:
    signals.watch(sys.orig_argv[sys.orig_argv.index("-m") + 1])
