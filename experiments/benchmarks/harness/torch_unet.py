"""The text-to-image U-Net of `stunet.models.unet` in PyTorch, for lumiere-pytorch to inflate.

Built from the same `UNetConfig` with the same blocks, widths and attention, so that the two sides
of `peers` differ only in how they inflate and compute.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from stunet.models.unet_config import UNetConfig


class ResBlock(nn.Module):
    """Residual block with optional resampling: `resample` is None, "up" or "down"."""

    def __init__(self, c_in: int, c_out: int, embedding: int, groups: int, resample=None):
        super().__init__()
        self.resample = resample
        self.norm_1, self.conv_1 = nn.GroupNorm(groups, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm_2, self.conv_2 = (
            nn.GroupNorm(groups, c_out),
            nn.Conv2d(c_out, c_out, 3, padding=1),
        )
        self.embedding = nn.Linear(embedding, 2 * c_out)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Applies the block to `x` [N, C, H, W] with `embedding` [N, E]."""
        h = functional.gelu(self.norm_1(x))
        if self.resample == "down":
            x, h = functional.avg_pool2d(x, 2), functional.avg_pool2d(h, 2)
        elif self.resample == "up":
            x, h = (functional.interpolate(a, scale_factor=2.0) for a in (x, h))
        h = self.conv_1(h)
        scale, shift = self.embedding(functional.gelu(embedding))[:, :, None, None].chunk(2, 1)
        h = functional.gelu(self.norm_2(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv_2(h)


class TextAttention(nn.Module):
    """Spatial attention whose keys and values are those of the text and of the frame itself."""

    def __init__(self, channels: int, text_dim: int, head_dim: int, groups: int):
        super().__init__()
        self.head_dim = head_dim
        self.text_norm, self.norm = nn.GroupNorm(groups, text_dim), nn.GroupNorm(groups, channels)
        self.text_kv, self.qkv = (
            nn.Linear(text_dim, 2 * channels),
            nn.Linear(channels, 3 * channels),
        )
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Adds attention to `x` [N, C, H, W] with `text` [N, L, D]."""
        n, c, height, width = x.shape
        text = self.text_norm(text.transpose(1, 2)).transpose(1, 2)
        text_kv = self.text_kv(text).chunk(2, -1)
        q, *self_kv = self.qkv(self.norm(x).flatten(2).transpose(1, 2)).chunk(3, -1)
        k, v = (torch.cat(pair, 1) for pair in zip(text_kv, self_kv, strict=True))
        q, k, v = (a.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for a in (q, k, v))
        h = functional.scaled_dot_product_attention(q, k, v)
        h = self.out(h.transpose(1, 2).flatten(2))
        return x + h.transpose(1, 2).reshape(n, c, height, width)


class Layer(nn.Module):
    """Residual block, followed by attention if `attend`. Inflation adds one block after it."""

    def __init__(self, c_in: int, c_out: int, embedding: int, config: UNetConfig, attend: bool):
        super().__init__()
        self.res = ResBlock(c_in, c_out, embedding, config.norm_groups)
        self.attn = (
            TextAttention(c_out, config.cross_attention_dim, config.head_dim, config.norm_groups)
            if attend
            else None
        )

    def forward(self, x: Tensor, embedding: Tensor, text: Tensor) -> Tensor:
        """Applies the layer to `x` [N, C, H, W], `embedding` [N, E], `text` [N, L, D]."""
        x = self.res(x, embedding)
        return x if self.attn is None else self.attn(x, text)


class TextPooling(nn.Module):
    """Attention pooling of text states [N, L, D] to [N, E]."""

    def __init__(self, dim: int, heads: int, out_dim: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(out_dim)
        self.position = nn.Parameter(torch.randn(1, dim) / dim**0.5)
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, out_dim)

    def forward(self, states: Tensor) -> Tensor:
        """Pools `states` [N, L, D] to [N, E]."""
        states = self.norm_1(states)
        token = states.mean(1, keepdim=True) + self.position
        states = torch.cat([token, states], 1)
        q, k, v = self.q(token), self.k(states), self.v(states)
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in (q, k, v))
        pooled = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)
        return self.norm_2(self.proj(pooled))


class TorchUNet(nn.Module):
    """Text-to-image U-Net of a `UNetConfig`."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths, coarsest = config.channels, len(config.channels) - 1
        width = config.time_embedding_dim or 4 * widths[0]
        self.time = nn.Sequential(nn.Linear(widths[0], width), nn.GELU(), nn.Linear(width, width))
        self.text_pooling = TextPooling(config.text_dim, config.pooling_heads, width)
        self.text_proj = nn.Linear(config.text_dim, config.cross_attention_dim)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down, self.down_resample = nn.ModuleDict(), nn.ModuleDict()
        self.up, self.up_resample = nn.ModuleDict(), nn.ModuleDict()
        groups, c, skips = config.norm_groups, widths[0], [widths[0]]
        for level, features in enumerate(widths):
            for j in range(config.layers_per_block[level]):
                attend = config.attention_levels[level]
                self.down[f"{level}_{j}"] = Layer(c, features, width, config, attend)
                c = features
                skips.append(c)
            if level != coarsest:
                self.down_resample[str(level)] = ResBlock(c, c, width, groups, "down")
                skips.append(c)
        self.mid_0 = Layer(c, c, width, config, True)
        self.mid_1 = ResBlock(c, c, width, groups)
        for level in reversed(range(len(widths))):
            for j in range(config.layers_per_block[level] + 1):
                attend, features = config.attention_levels[level], widths[level]
                self.up[f"{level}_{j}"] = Layer(c + skips.pop(), features, width, config, attend)
                c = features
            if level != 0:
                self.up_resample[str(level)] = ResBlock(c, c, width, groups, "up")
        self.norm_out = nn.GroupNorm(groups, c)
        self.conv_out = nn.Conv2d(c, config.out_channels, 3, padding=1)

    def forward(self, images: Tensor, time: Tensor, text: Tensor | None = None) -> Tensor:
        """Predicts from `images` [N, 3, H, W], `time` [N] and `text` [N, L, D].

        `text` None stands for zeros: lumiere-pytorch probes the network without text.
        """
        if text is None:
            text = images.new_zeros(len(images), 1, self.config.text_dim)
        half = self.config.channels[0] // 2
        frequencies = torch.exp(
            -math.log(10000) * torch.arange(half, device=images.device, dtype=torch.float32) / half
        )
        angles = time[:, None].float() * frequencies
        features = torch.cat([angles.cos(), angles.sin()], -1).to(images.dtype)
        embedding = self.time(features) + self.text_pooling(text)
        text = self.text_proj(text)
        h = self.conv_in(images)
        skips = [h]
        levels = range(len(self.config.channels))
        for level in levels:
            for j in range(self.config.layers_per_block[level]):
                h = self.down[f"{level}_{j}"](h, embedding, text)
                skips.append(h)
            if str(level) in self.down_resample:
                h = self.down_resample[str(level)](h, embedding)
                skips.append(h)
        h = self.mid_1(self.mid_0(h, embedding, text), embedding)
        for level in reversed(levels):
            for j in range(self.config.layers_per_block[level] + 1):
                h = self.up[f"{level}_{j}"](torch.cat([h, skips.pop()], 1), embedding, text)
            if str(level) in self.up_resample:
                h = self.up_resample[str(level)](h, embedding)
        return self.conv_out(functional.gelu(self.norm_out(h)))


def make_lumiere(config: UNetConfig, size: int) -> nn.Module:
    """Returns lumiere-pytorch's `Lumiere` of a `TorchUNet`, inflated as `config.temporal` says.

    Its temporal blocks follow the same layers as ours, and its temporal attention has the same
    number of layers, heads and channels per head. Call it with video [B, 3, T, size, size], `time`
    [B] and `text` [B, L, D].
    """
    from lumiere_pytorch import Lumiere

    unet, coarsest = TorchUNet(config), len(config.channels) - 1
    layers = [f"{part}.{name}" for part in ("down", "up") for name in getattr(unet, part)]
    attending = [name for name in layers if name.split(".")[1].startswith(f"{coarsest}_")]
    resized = [i for i, on in enumerate(config.temporal.resample) if on]
    head_dim = config.temporal.head_dim
    attention = {"dim_head": head_dim, "heads": config.channels[-1] // head_dim}
    return Lumiere(
        unet,
        image_size=size,
        unet_time_kwarg="time",
        conv_module_names=[name for name in layers if name not in attending],
        attn_module_names=[*attending, "mid_0"],
        downsample_module_names=[f"down_resample.{i}" for i in resized],
        upsample_module_names=[f"up_resample.{i + 1}" for i in resized],
        attn_inflation_kwargs={"depth": config.temporal.attention_layers, **attention},
    )
