"""Architecture of the U-Net, as stored under "architecture" in the config of a model folder."""

from dataclasses import dataclass, replace
from typing import Annotated

from stunet.errors import UserError
from stunet.models.temporal import RESAMPLER_INITS
from stunet.schema import Range, check_fields

DTYPES = ("float32", "bfloat16")
Width = Annotated[int, Range(1, 2**16)]
Depth = Annotated[int, Range(1, 100)]
BLOCKS = ("factorised", "conv1d", "conv3d")  # `stunet.models.additions.CONVOLUTIONS`


@dataclass(frozen=True)
class TemporalConfig:
    """Temporal modules that inflate the text-to-image U-Net.

    The first five configure the paper's modules (`stunet.models.temporal`), the others switch on
    our additions (`stunet.models.additions`).

    Attributes:
      resample: For each spatial resize, finest first: whether it also halves time.
      resampler_init: Initialisation of the temporal resamplers: "identity" or "he".
      attention_levels: For each level, finest first: whether its inflation blocks are temporal
        attention instead of convolutions. The block in the middle is one of the coarsest level.
        None, as in the paper, means the coarsest level only.
      attention_layers: Stacked temporal attention layers in each attention-based block.
      head_dim: Width of a temporal attention head.
      block: Type of the convolution-based blocks: "factorised", as in the paper (2-D spatial, then
        1-D temporal convolution), "conv1d" (temporal only) or "conv3d".
      hidden: Width multiplier of the hidden layers of convolution-based blocks (to compare block
        types at equal parameter counts), rounded to whole norm groups.
      text_modulation: Modulates temporal blocks by the text and the timestep.
      frame_modulation: Modulates temporal blocks by the frame index. Disable it for models that
        are run in windows over longer clips, where the index has no meaning.
      position_encoding: Adds 2-D positional features, so that words such as "left" can refer to
        absolute position. Disable it when training on crops.
      feed_forward: Adds a feed-forward layer after each temporal attention layer.
      relative: Scales residual branches by the RMS of their input.
    """

    resample: tuple[bool, ...]
    resampler_init: str = "identity"
    block: str = "factorised"
    hidden: Annotated[float, Range(0, 64, above_low=True)] = 1.0
    attention_layers: Depth = 2
    head_dim: Width = 64
    text_modulation: bool = False
    frame_modulation: bool = False
    position_encoding: bool = False
    feed_forward: bool = False
    relative: bool = False
    attention_levels: tuple[bool, ...] | None = None

    def __post_init__(self):
        check_fields(self)
        for field, choices in (("resampler_init", RESAMPLER_INITS), ("block", BLOCKS)):
            if (value := getattr(self, field)) not in choices:
                raise UserError(f"{field}: {value!r}, expected one of {', '.join(choices)}")

    @property
    def stride(self) -> int:
        """Number of input frames per frame of the coarsest level."""
        return 2 ** sum(self.resample)

    @property
    def modulated(self) -> bool:
        """Whether temporal blocks are modulated by the text or the frame index."""
        return self.text_modulation or self.frame_modulation


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of the U-Net; per-level fields go from the finest level to the coarsest.

    Attributes:
      channels: Width of each level (`block_out_channels` in diffusers).
      layers_per_block: Residual blocks of each level in the encoder; the decoder has one more.
      attention_levels: Whether each residual block of a level is followed by spatial attention.
      head_dim: Width of a spatial attention head.
      text_dim: Width of the text encoder's states.
      cross_attention_dim: Width that text states are projected to for keys and values.
      pooling_heads: Heads of the attention pooling of text.
      in_channels: 3, or 6 for a super-resolution model (stage II), whose input concatenates the
        noisy and the upsampled low-resolution frames.
      out_channels: 3, or 6 with a learned-range variance.
      time_embedding_dim: Width of the embedding. None means 4 * channels[0].
      norm_groups: Groups of every group norm.
      self_attention: False means that spatial attention has text keys only (stage II).
      noise_level_embedding: Whether to embed the noise level of the low-resolution input
        (stage II).
      guidance_embedding: Whether the timestep's embedding includes the guidance scale: a model
        distilled to predict what guidance makes of two predictions (2210.03142, section 3.1).
      activate_embedding_once: Whether to apply GELU to the summed embedding once instead of in
        every block (stage II).
      output_scale_factor: Divisor of the sum in a residual block (stage II: sqrt 2, rounded).
      mid_output_scale_factor: The same for the residual blocks in the middle.
      dtype: Compute dtype, "float32" or "bfloat16". Norm statistics, softmax and initial
        parameters are float32 in either case; imported parameters keep their dtype.
      temporal: Temporal modules. None means a text-to-image network.
      cond_channels: Channels of the conditioning input of a conditional model, known pixels and
        mask (`stunet.diffusion.conditioning`: 4). 0 means no such input.
      cond_in_blocks: Whether temporal blocks also read the conditioning input, averaged to the
        size of their level. The paper adds it to the first convolution only.
    """

    channels: tuple[Width, ...]
    layers_per_block: tuple[Depth, ...]
    attention_levels: tuple[bool, ...]
    head_dim: Width = 64
    text_dim: Width = 4096
    cross_attention_dim: Width = 768
    pooling_heads: Width = 64
    in_channels: Width = 3
    out_channels: Width = 6
    time_embedding_dim: Width | None = None
    norm_groups: Width = 32
    self_attention: bool = True
    noise_level_embedding: bool = False
    guidance_embedding: bool = False
    activate_embedding_once: bool = False
    output_scale_factor: float = 1.0
    mid_output_scale_factor: float = 1.0
    dtype: str = "float32"
    temporal: TemporalConfig | None = None
    cond_channels: Annotated[int, Range(0, 2**16)] = 0
    cond_in_blocks: bool = False

    def __post_init__(self):
        check_fields(self)
        levels = len(self.channels)
        if not levels:
            raise UserError("channels: empty, expected at least one level")
        lengths = [
            ("layers_per_block", self.layers_per_block, levels),
            ("attention_levels", self.attention_levels, levels),
        ]
        if self.temporal is not None:
            lengths += [("temporal.resample", self.temporal.resample, levels - 1)]
            if self.temporal.attention_levels is not None:
                flags = self.temporal.attention_levels
                lengths += [("temporal.attention_levels", flags, levels)]
        for name, entries, expected in lengths:
            if len(entries) != expected:
                raise UserError(
                    f"{name}: {len(entries)} entries, expected {expected} (channels has {levels})"
                )
        if self.cond_channels and self.temporal is None:
            raise UserError(
                f"cond_channels: {self.cond_channels}, expected 0 for a network without temporal "
                "modules"
            )
        if self.cond_in_blocks and not self.cond_channels:
            raise UserError("cond_in_blocks: True, expected False if cond_channels is 0")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype: {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        attended = [c for c, on in zip(self.channels, self.attention_levels, strict=True) if on]
        divisors = [("norm_groups", self.norm_groups, (*self.channels, self.cross_attention_dim))]
        divisors += [("head_dim", self.head_dim, (*attended, self.channels[-1]))]
        divisors += [("pooling_heads", self.pooling_heads, (self.text_dim,))]
        if self.temporal is not None:
            flags = self.temporal_attention_levels
            attended = [c for c, on in zip(self.channels, flags, strict=True) if on]
            divisors += [("temporal.head_dim", self.temporal.head_dim, attended)]
        for name, divisor, widths in divisors:
            for width in widths:
                if width % divisor:
                    raise UserError(f"{name}: {divisor}, expected a divisor of the width {width}")

    @property
    def temporal_attention_levels(self) -> tuple[bool, ...]:
        """For each level: whether its inflation blocks are temporal attention."""
        if self.temporal is None or self.temporal.attention_levels is None:
            return (False,) * (len(self.channels) - 1) + (True,)
        return self.temporal.attention_levels

    @property
    def temporal_stride(self) -> int:
        """The number of frames must be 1 or a multiple of this."""
        return 1 if self.temporal is None else self.temporal.stride

    @property
    def spatial_stride(self) -> int:
        """Height and width must be multiples of this."""
        return 2 ** (len(self.channels) - 1)

    def text_to_image(self) -> "UNetConfig":
        """Returns the architecture of the text-to-image network that this one contains."""
        return replace(
            self, temporal=None, cond_channels=0, cond_in_blocks=False, guidance_embedding=False
        )


def check_video_shape(config: UNetConfig, num_frames: int, height: int, width: int) -> None:
    """Checks that the network can process videos of this size.

    Raises:
      UserError: The number of frames or the frame size does not match the network's strides.
    """
    stride = config.temporal_stride
    if num_frames != 1 and (num_frames < 1 or num_frames % stride):
        raise UserError(
            f"num_frames: {num_frames}, expected 1 (an image) or a multiple of {stride} (the "
            "temporal stride)"
        )
    stride = config.spatial_stride
    if height % stride or width % stride:
        raise UserError(f"frame size: {height}x{width}, expected multiples of {stride}")


def check_training_shape(config: UNetConfig, num_frames: int, height: int, width: int) -> None:
    """Checks that videos of this size train every parameter of the network.

    A level of one frame gives no gradient to queries and keys of temporal attention, nor to the
    outer taps of temporal convolutions. A level of one pixel does the same to spatial layers.
    Sampling such videos remains possible (`check_video_shape`).

    Raises:
      UserError: A level has fewer than two frames, rows or columns, or `check_video_shape` fails.
    """
    check_video_shape(config, num_frames, height, width)
    if config.temporal is not None and num_frames < 2 * config.temporal_stride:
        resample = config.temporal.resample
        frames = [num_frames // 2 ** sum(resample[:level]) for level in range(len(config.channels))]
        level = next(level for level, count in enumerate(frames) if count < 2)
        raise UserError(
            f"data.num_frames: {num_frames}, of which temporal.resample {resample} leaves "
            f"{frames[level]} at level {level}, expected at least {2 * config.temporal_stride} "
            "frames (2 at every level) or fewer levels that resample"
        )
    smallest = 2 * config.spatial_stride
    if min(height, width) < smallest:
        raise UserError(
            f"frame size: {height}x{width} leaves {height // config.spatial_stride}x"
            f"{width // config.spatial_stride} pixels at level {len(config.channels) - 1}, "
            f"expected at least {smallest}x{smallest}"
        )
