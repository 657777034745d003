"""Example configs, one for each launcher."""
