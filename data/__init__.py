"""Datasets (TFDS builders) and the Grain input pipeline. Needs the extra `train`."""
