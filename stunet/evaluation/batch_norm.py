"""Batch normalisation of pre-trained networks."""

import flax.linen as nn
import jax

EPSILON = 1e-3  # TensorFlow's default, which I3D and EfficientNet were trained with


class BatchNorm(nn.Module):
    """Batch normalisation with running statistics, under PyTorch's parameter names."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis."""
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, x.shape[-1:]
        weight = self.param("weight", ones, shape)
        bias = self.param("bias", zeros, shape)
        mean = self.param("running_mean", zeros, shape)
        variance = self.param("running_var", ones, shape)
        scale = weight * jax.lax.rsqrt(variance + EPSILON)
        return x * scale + (bias - mean * scale)
