"""Launches training on Cloud TPU pods by xpk or queued resources (docs/pods.md).

`__main__.py` is the program. `configs/` has examples of its config file.
"""
