"""Checkpoints of other projects: DeepFloyd IF, T5 v1.1 and files in the Hugging Face layout."""
