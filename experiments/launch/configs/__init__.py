"""What to launch where, an example for each launcher."""
