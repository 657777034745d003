"""I3D and C3D in PyTorch, written from their papers and public state dicts; CLIP of transformers.

Shares no code with `stunet.evaluation`.
"""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional

from tests.parity import metric_cases as cases


def _pad_same(x, kernel, stride):
    """Pads as TensorFlow does: ceil(size / stride) outputs, an odd zero goes to the end."""
    pads = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        pads.append((total // 2, total - total // 2))
    return functional.pad(x, [p for pair in reversed(pads) for p in pair])


class SamePool(nn.Module):
    def __init__(self, kernel, stride):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x):
        padded = _pad_same(x, self.kernel, self.stride)
        return functional.max_pool3d(padded, self.kernel, self.stride)


class Unit(nn.Module):
    def __init__(self, inputs, outputs, kernel=1, stride=1):
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3)

    def forward(self, x):
        x = _pad_same(x, self.conv3d.kernel_size, self.conv3d.stride)
        return torch.relu(self.bn(self.conv3d(x)))


class Inception(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        a, b, c, d, e, f = outputs
        self.b0 = Unit(inputs, a)
        self.b1a, self.b1b = Unit(inputs, b), Unit(b, c, 3)
        self.b2a, self.b2b = Unit(inputs, d), Unit(d, e, 3)
        self.b3a, self.b3b = SamePool((3, 3, 3), (1, 1, 1)), Unit(inputs, f)

    def forward(self, x):
        parts = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x)))
        return torch.cat(parts, 1)


class Classifier(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, classes, 1)

    def forward(self, x):
        return self.conv3d(x)


class I3D(nn.Module):
    """I3D (1705.07750) with all widths divided by `divisor`."""

    def __init__(self, divisor=1, classes=400):
        super().__init__()

        def n(*widths):
            return [width // divisor for width in widths]

        def mixed(inputs, *outputs):
            return Inception(*n(inputs), n(*outputs))

        c64, c192 = n(64, 192)
        self.Conv3d_1a_7x7 = Unit(3, c64, 7, 2)
        self.MaxPool3d_2a_3x3 = SamePool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(c64, c64)
        self.Conv3d_2c_3x3 = Unit(c64, c192, 3)
        self.MaxPool3d_3a_3x3 = SamePool((1, 3, 3), (1, 2, 2))
        self.Mixed_3b = mixed(192, 64, 96, 128, 16, 32, 32)
        self.Mixed_3c = mixed(256, 128, 128, 192, 32, 96, 64)
        self.MaxPool3d_4a_3x3 = SamePool((3, 3, 3), (2, 2, 2))
        self.Mixed_4b = mixed(480, 192, 96, 208, 16, 48, 64)
        self.Mixed_4c = mixed(512, 160, 112, 224, 24, 64, 64)
        self.Mixed_4d = mixed(512, 128, 128, 256, 24, 64, 64)
        self.Mixed_4e = mixed(512, 112, 144, 288, 32, 64, 64)
        self.Mixed_4f = mixed(528, 256, 160, 320, 32, 128, 128)
        self.MaxPool3d_5a_2x2 = SamePool((2, 2, 2), (2, 2, 2))
        self.Mixed_5b = mixed(832, 256, 160, 320, 32, 128, 128)
        self.Mixed_5c = mixed(832, 384, 192, 384, 48, 128, 128)
        self.pool = nn.AvgPool3d((2, 7, 7), 1)
        self.logits = Classifier(*n(1024), classes)

    def forward(self, x):
        """Maps [B, 3, T, H, W] to logits [B, classes]; modules run in order of definition."""
        for module in self.children():
            x = module(x)
        assert x.shape[3:] == (1, 1)
        return x[..., 0, 0].mean(2)


class C3D(nn.Module):
    """C3D (1412.0767); `width` is the width of the first layer, 64 in the paper."""

    def __init__(self, width=64, classes=101):
        super().__init__()
        widths = [3] + [width * m for m in (1, 2, 4, 4, 8, 8, 8, 8)]
        names = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")
        for name, inputs, outputs in zip(names, widths, widths[1:], strict=False):
            setattr(self, name, nn.Conv3d(inputs, outputs, 3, padding=1))
        self.fc6 = nn.Linear(8 * width * 16, 64 * width)
        self.fc7 = nn.Linear(64 * width, 64 * width)
        self.fc8 = nn.Linear(64 * width, classes)
        self.mean = nn.Parameter(torch.zeros(3, 16, 112, 112))

    def forward(self, x):
        """Maps RGB clips [B, 3, 16, 128, 128] in [-1, 1] to logits [B, classes]."""
        x = (x + 1) / 2 * 255
        x = x[..., 8:120, 8:120].flip(1) - self.mean

        def pool(x, frames):
            return functional.max_pool3d(x, (frames, 2, 2), ceil_mode=True)  # Caffe's rounding

        x = pool(torch.relu(self.conv1(x)), 1)
        x = pool(torch.relu(self.conv2(x)), 2)
        for level in "345":
            for part in "ab":
                x = torch.relu(getattr(self, f"conv{level}{part}")(x))
            x = pool(x, 2)
        x = torch.relu(self.fc6(x.flatten(1)))
        return self.fc8(torch.relu(self.fc7(x)))


def set_weights(module):
    """Sets all parameters and statistics to `cases.weight` and returns the module."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and name != "logit_scale":
                drawn = cases.weight(name, tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(np.asarray(drawn, np.float32)))
    return module.eval()


def _channels_first(video):
    return torch.from_numpy(np.moveaxis(video, -1, 1).copy())


@torch.no_grad()
def i3d():
    """Returns logits [2, 400] of the narrow network."""
    return set_weights(I3D(64 // cases.I3D_STEM))(
        _channels_first(cases.video("i3d", cases.I3D_SHAPE))
    ).numpy()


@torch.no_grad()
def c3d():
    """Returns logits [2, 101] of the narrow network."""
    network = set_weights(C3D(cases.C3D_WIDTH))
    return network(_channels_first(cases.video("c3d", cases.C3D_SHAPE))).numpy()


@torch.no_grad()
def clip(activation):
    """Returns unit-length embeddings [7, 20] of 3 images and 4 texts."""
    model = set_weights(transformers.CLIPModel(transformers.CLIPConfig(**cases.clip(activation))))
    images, ids, _ = cases.clip_inputs()
    output = model(
        input_ids=torch.from_numpy(ids), pixel_values=_channels_first(images), return_loss=False
    )
    return torch.cat([output.image_embeds, output.text_embeds]).numpy()


def clip_picture():
    """Returns the image preprocessed by transformers, [28, 28, 3]."""
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    pixels = processor(cases.picture(), return_tensors="np")["pixel_values"][0]
    return np.moveaxis(np.asarray(pixels), 0, -1)


def clip_tokenizer():
    """Returns tokenizer.json of the small vocabulary, and token ids of the sentences."""
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab.write_text(json.dumps(cases.vocabulary()))
        merges.write_text("\n".join(["#version: 0.2", *cases.MERGES, ""]))
        tokenizer = transformers.CLIPTokenizer(
            vocab=str(vocab), merges=str(merges), model_max_length=16
        )
        ids = tokenizer(
            list(cases.SENTENCES), truncation=True, max_length=16, padding="max_length"
        )["input_ids"]
        tokenizer.save_pretrained(folder)
        return (Path(folder) / "tokenizer.json").read_bytes(), ids


OUTPUTS = {
    "i3d": i3d,
    "c3d": c3d,
    "clip_quick_gelu": lambda: clip("quick_gelu"),
    "clip_gelu": lambda: clip("gelu"),
    "clip_picture": clip_picture,
}
