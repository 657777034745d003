"""C3D (Tran et al., 1412.0767), trained on Sports-1M and tuned to UCF-101, in Flax Linen.

Its softmax over 101 classes is what the Inception Score of video is taken over since TGAN
(1611.06624). Parameters are named

    conv1, conv2, conv3a, conv3b, conv4a, conv4b, conv5a, conv5b, fc6, fc7, fc8  .weight and .bias

in PyTorch's axes, fc6 by (channels, rows, columns). The file also holds `mean`, [3, 16, 112, 112]:
the middle of the mean clip of Sports-1M that comes with the weights, blue first and in 0..255, as
TGAN cuts it:

    mean = numpy.load("mean2.npz")["mean"].reshape(3, 16, 128, 171)[:, :, 8:120, 29:141].copy()
    safetensors.torch.save_file({**state, "mean": torch.tensor(mean).float()}, "c3d.safetensors")

The last pooling takes a row and a column more than there are at the end, as Caffe's does, for which
the weights were trained; PyTorch ports that pad by one on both sides shift its windows.
"""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from stunet.evaluation.features import Extractor, Resize
from stunet.evaluation.torch_weights import leading, parameters, read_file, sha256

FRAMES, CROP = 16, 112
RESIZED = 128  # before the middle is cut out
WIDTH, CLASSES = 64, 101

# A layer's width in those of the first, and the windows of pooling after it.
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

_FAMILIES = {
    "conv3d.": "these weights are I3D's",
    "conv1a.": "the layers are named as in Caffe; conv1a and conv2a are conv1 and conv2 here",
    "text_model.": "these weights are CLIP's",
}


class C3D(nn.Module):
    """The network; `width` is that of its first layer, of which all others are multiples."""

    width: int = WIDTH
    classes: int = CLASSES

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, 16, 128, 128, 3]` in [-1, 1] -> logits `[B, classes]`."""
        mean = self.param("mean", nn.initializers.zeros, (3, FRAMES, CROP, CROP))
        edge = (RESIZED - CROP) // 2
        x = 127.5 * (x[:, :, edge:-edge, edge:-edge, ::-1] + 1)  # blue first, 0..255
        x = x - mean.transpose(1, 2, 3, 0)
        for name, (multiple, window) in _LAYERS.items():
            x = nn.relu(nn.Conv(multiple * self.width, (3, 3, 3), name=name)(x))
            if window is not None:
                x = nn.max_pool(x, window, window, padding="SAME")
        x = x.transpose(0, 4, 1, 2, 3).reshape(len(x), -1)
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(64 * self.width, name=name)(x))
        return nn.Dense(self.classes, name="fc8")(x)


def load_c3d(path: str | Path) -> Extractor:
    """The extractor whose features are the probabilities of the classes, `[B, classes]`.

    The widths and the number of classes are those of its first and last layers.

    Raises:
      UserError: the file is missing, no safetensors file, or another network's.
    """
    path = Path(path)
    tensors = read_file(path)
    network = C3D(leading(tensors, "conv1.weight", WIDTH), leading(tensors, "fc8.weight", CLASSES))
    video = jnp.zeros((1, FRAMES, RESIZED, RESIZED, 3))
    params = parameters(
        lambda: network.init(jax.random.key(0), video)["params"], tensors, path, _FAMILIES
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
