"""Code that the benchmark programs share: timing, workloads, and the PyTorch network of `peers`."""
