"""Code that the ablations share."""
