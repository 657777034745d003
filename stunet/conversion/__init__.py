"""Import and export of DeepFloyd IF and T5 v1.1 checkpoints in the Hugging Face layout."""
