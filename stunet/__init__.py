"""stunet: a Space-Time U-Net for text-to-video generation, in JAX and Flax."""

__version__ = "0.1.0"
