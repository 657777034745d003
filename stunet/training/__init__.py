"""Training: stages, the update step, checkpoints, the device mesh and metrics."""
