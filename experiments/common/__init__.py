"""Code that several programs in `experiments` use."""
