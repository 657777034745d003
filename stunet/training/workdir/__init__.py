"""The folder of a run: claim, checkpoints, models, and what may change on resuming."""
