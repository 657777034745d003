"""Starting experiments on Cloud TPU pods, by xpk or by queued resources: `docs/pods.md`."""
