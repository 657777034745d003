"""Settings that every training run has, whatever its stage."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from stunet.diffusion import SamplingDefaults, Schedule
from stunet.errors import UserError
from stunet.schema import Range, Seed, check_fields


@dataclass(frozen=True)
class DiffusionConfig:
    """Prediction target, loss and noise schedule.

    Attributes:
      prediction: Output of the network: "eps", "x0" or "v".
      loss: "simple", or "min_snr" (arXiv:2303.09556 with gamma 5).
      variance: "fixed_small", or "learned_range", which adds the variational term of
        arXiv:2102.09672, weighted by 0.001, to train the variance channels of a network with six
        output channels. "fixed_small" leaves such channels untrained; the model is then sampled
        with a fixed variance.
      schedule: Noise levels.

    Raises:
      UserError: `variance` is "learned_range" and the schedule is not "cosine".
    """

    prediction: Literal["eps", "x0", "v"] = "eps"
    loss: Literal["simple", "min_snr"] = "simple"
    variance: Literal["fixed_small", "learned_range"] = "fixed_small"
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self):
        if self.variance == "learned_range" and self.schedule.kind != "cosine":
            raise UserError(
                f"schedule.kind: {self.schedule.kind!r}, expected 'cosine' (discrete time), which "
                "variance 'learned_range' is defined for"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, learning rate schedule and moving average of the parameters.

    Attributes:
      name: "adamw", "adafactor" (the paper's choice), or "muon" (arXiv:2502.16982), which
        orthogonalises the update of each kernel and uses Adam for vectors: fewer steps, more work
        per step.
      learning_rate: Constant rate between warm-up and cool-down.
      warmup_steps: Steps of linear warm-up.
      cooldown_steps: Steps of linear decay to 0 at the end of the run.
      weight_decay: Decoupled weight decay of matrices and kernels.
      clip_norm: Global norm that gradients are clipped to.
      ema_decay: Decay of the exponential moving average of the parameters, which is the exported
        model.
    """

    name: Literal["adamw", "adafactor", "muon"] = "adamw"
    learning_rate: Annotated[float, Range(0)] = 1e-4
    warmup_steps: Annotated[int, Range(0)] = 100
    cooldown_steps: Annotated[int, Range(0)] = 0
    weight_decay: Annotated[float, Range(0)] = 0.0
    clip_norm: float = 1.0
    ema_decay: Annotated[float, Range(0, 1)] = 0.9999

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of two axes of the device mesh; the axis `data` has the remaining devices.

    Attributes:
      fsdp: Devices that share each parameter (and split the batch).
      frames: Devices that split the frames of each video.
    """

    fsdp: int = 1
    frames: int = 1

    def __post_init__(self):
        check_fields(self)


class DataFormat(Protocol):
    """Properties of the training data that training depends on; `data.DataConfig` has them."""

    @property
    def num_frames(self) -> int:
        """Frames of a clip, 1 for images."""

    @property
    def resolution(self) -> int:
        """Height and width of a frame in pixels, before the crop."""

    @property
    def fps(self) -> float:
        """Frames per second."""

    @property
    def crop(self) -> int | None:
        """Height and width of the random crops of a batch, None for whole frames."""

    @property
    def video_dtype(self) -> str:
        """Type of the pixels of a batch, "uint8" or "float32"."""

    @property
    def text_states(self) -> bool:
        """Whether batches contain cached text encoder states instead of tokens."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The fields of a training config that every stage has.

    Attributes:
      batch_size: Global batch size, over all devices and processes.
      total_steps: Steps of the whole run.
      gradient_accumulation: Number of parts that a batch is split into for one update. Activations
        of one part at a time are in memory; the result is the same up to rounding.
      diffusion: Prediction target, loss and noise schedule.
      sampling: Sampler, steps and guidance scale that the model is sampled with by default. None
        keeps those of `init_from`; a new model gets the defaults of `SamplingDefaults`.
      optimizer: Optimizer, learning rate schedule and moving average.
      mesh: Layout of the devices.
      dtype: Compute type of the U-Net, "float32" or "bfloat16"; norm statistics, softmax and the
        loss are float32 with both. None keeps that of `unet` or of the model in `init_from`.
      remat: Rematerialisation in the backward pass, which trades time for memory at equal results:
        "none"; "elementwise" recomputes everything except convolutions and matrix products;
        "convolutions" recomputes everything except the first convolution of residual blocks, and
        therefore no convolution of frozen ones; "blocks" recomputes everything inside a block. All
        store the means of group norms and the output of attention kernels.
      attention: Backend of spatial attention: "einsum", "flash" (TPU) or "cudnn" (GPU). None
        chooses by device and size.
      seed: Seed of the initial parameters and of noise. (`data.seed` is that of the data's order
        and of caption dropout.)
      log_every: Steps between two writes of metrics.
      checkpoint_every: Steps between two checkpoints.
      checkpoint_minutes: Minutes after which a checkpoint is saved when metrics are written next,
        even if `checkpoint_every` steps have not passed.
      keep_checkpoints: Number of checkpoints to keep.
      sample_every: Steps between two sheets of samples. 0 draws one at the end only.

    Raises:
      UserError: A field has the wrong type or is out of range, or `gradient_accumulation` does not
        divide `batch_size`.
    """

    batch_size: int
    total_steps: int
    gradient_accumulation: int = 1
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sampling: SamplingDefaults | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    dtype: Literal["float32", "bfloat16"] | None = None
    remat: Literal["none", "elementwise", "convolutions", "blocks"] = "none"
    attention: Literal["einsum", "flash", "cudnn"] | None = None
    seed: Seed = 0
    log_every: int = 20
    checkpoint_every: int = 500
    checkpoint_minutes: float = 15.0
    keep_checkpoints: int = 2
    sample_every: Annotated[int, Range(0)] = 0

    def __post_init__(self):
        check_fields(self)
        if self.batch_size % self.gradient_accumulation:
            raise UserError(
                f"batch_size: {self.batch_size}, expected a multiple of gradient_accumulation "
                f"({self.gradient_accumulation})"
            )
