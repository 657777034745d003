"""Datasets (TFDS builders) and the Grain input pipeline; run from a checkout."""
