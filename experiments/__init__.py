"""Experiments: configs and the programs that run them, from a checkout."""

import sys

from stunet import signals

# `python -m experiments.NAME` imports this package first, before JAX, which takes seconds.
if sys.argv[:1] == ["-m"]:
    signals.watch(next((a for a in sys.orig_argv if a.startswith("experiments.")), "experiments"))
