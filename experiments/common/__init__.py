"""Code that the programs in `experiments` share."""
