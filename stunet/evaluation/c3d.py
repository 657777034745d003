"""C3D (Tran et al., 1412.0767) in Flax Linen, trained on Sports-1M and fine-tuned on UCF-101.

The Inception Score of videos uses its softmax over 101 classes (TGAN, 1611.06624). Parameters have
the names

    conv1, conv2, conv3a, conv3b, conv4a, conv4b, conv5a, conv5b, fc6, fc7, fc8  .weight and .bias

with axes in PyTorch's order; the inputs of fc6 are ordered by (channels, rows, columns). The file
also contains `mean`, [3, 16, 112, 112]: the centre crop of the mean clip of Sports-1M that comes
with the weights, in BGR and 0..255, as TGAN crops it:

    mean = numpy.load("mean2.npz")["mean"].reshape(3, 16, 128, 171)[:, :, 8:120, 29:141].copy()
    safetensors.torch.save_file({**state, "mean": torch.tensor(mean).float()}, "c3d.safetensors")

The last pooling pads a row and a column at the end, as Caffe does, for which the weights were
trained. PyTorch ports that pad both sides shift the pooling windows.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from stunet.evaluation.features import Extractor, Resize
from stunet.evaluation.torch_weights import (
    leading_size,
    load_parameters,
    open_torch_weights,
    sha256,
)
from stunet.paths import AnyPath, user_path

FRAMES, CROP = 16, 112
RESIZED = 128  # size before the centre crop
WIDTH, CLASSES = 64, 101

# Width relative to the first layer, and the window of the pooling that follows (or None).
_LAYERS = {
    "conv1": (1, (1, 2, 2)),
    "conv2": (2, (2, 2, 2)),
    "conv3a": (4, None),
    "conv3b": (4, (2, 2, 2)),
    "conv4a": (8, None),
    "conv4b": (8, (2, 2, 2)),
    "conv5a": (8, None),
    "conv5b": (8, (2, 2, 2)),
}

_ORIGIN_HINTS = {
    "conv3d.": "these are I3D weights",
    "conv1a.": "these are C3D weights with Caffe's names, expected conv1 for conv1a",
    "text_model.": "these are CLIP weights",
}


class C3D(nn.Module):
    """The network.

    Attributes:
      width: Width of the first layer; all others are multiples of it.
      classes: Number of classes.
    """

    width: int = WIDTH
    classes: int = CLASSES

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps clips `[B, 16, 128, 128, 3]` in [-1, 1] to logits `[B, classes]`."""
        mean = self.param("mean", nn.initializers.zeros, (3, FRAMES, CROP, CROP))
        edge = (RESIZED - CROP) // 2
        x = 127.5 * (x[:, :, edge:-edge, edge:-edge, ::-1] + 1)  # BGR, 0..255
        x = x - mean.transpose(1, 2, 3, 0)
        for name, (multiple, window) in _LAYERS.items():
            x = nn.relu(nn.Conv(multiple * self.width, (3, 3, 3), name=name)(x))
            if window is not None:
                x = nn.max_pool(x, window, window, padding="SAME")
        x = x.transpose(0, 4, 1, 2, 3).reshape(len(x), -1)
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(64 * self.width, name=name)(x))
        return nn.Dense(self.classes, name="fc8")(x)


def load_c3d(path: str | AnyPath) -> Extractor:
    """Loads an extractor of class probabilities `[B, classes]`.

    The width and the number of classes are inferred from the first and last layer.

    Raises:
      UserError: the file is missing, not safetensors, or of another network.
    """
    path = user_path(path)
    tensors = open_torch_weights(path)
    network = C3D(
        leading_size(tensors, "conv1.weight", WIDTH), leading_size(tensors, "fc8.weight", CLASSES)
    )
    video = jnp.zeros((1, FRAMES, RESIZED, RESIZED, 3))
    params = load_parameters(
        lambda: network.init(jax.random.key(0), video)["params"], tensors, path, _ORIGIN_HINTS
    )
    return Extractor(
        name="C3D",
        features=functools.partial(_probabilities, network, params),
        resize=Resize(RESIZED, "bilinear"),
        min_frames=FRAMES,
        max_frames=FRAMES,
        weights_sha256=sha256([path]),
    )


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(network: C3D, params: dict, videos: jax.Array) -> jax.Array:
    return nn.softmax(network.apply({"params": params}, videos))
