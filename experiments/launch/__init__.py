"""Launches training on Cloud TPU pods by JobSet and Kueue, queued resources or xpk (docs/pods.md).

`__main__.py` is the program. `configs/` has examples of its config file.
"""
