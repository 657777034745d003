"""Model folders, safetensors files, parameter trees, and operations on a model's weights."""
