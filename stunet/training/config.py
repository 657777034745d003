"""What a training run is made of: the schema that every experiment's config is read into."""

from dataclasses import dataclass, field
from typing import Literal

from stunet.diffusion import MaskMixture, Schedule, SuperResolution
from stunet.errors import UserError
from stunet.models.t5 import TextEncoderConfig
from stunet.models.temporal import TemporalConfig
from stunet.models.unet import UNetConfig


@dataclass(frozen=True)
class DiffusionConfig:
    """What the network predicts and what it is trained for.

    Attributes:
      prediction: "eps", "x0" or "v".
      loss: "simple", or "min_snr" (gamma 5).
      variance: "fixed_small", or "learned_range", which trains the variance channels of a
        6-channel network by the 0.001 variational term. A stage that says "fixed_small"
        leaves such channels untrained and its model is sampled with fixed variance.
      schedule: the noise levels.
    """

    prediction: Literal["eps", "x0", "v"] = "eps"
    loss: Literal["simple", "min_snr"] = "simple"
    variance: Literal["fixed_small", "learned_range"] = "fixed_small"
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self):
        if self.variance == "learned_range" and self.schedule.kind != "cosine":
            raise UserError(
                "variance 'learned_range' is trained on the discrete schedule only: set "
                f"schedule.kind to 'cosine' (it is {self.schedule.kind!r}), or fix the variance"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and the moving average of its parameters.

    Attributes:
      name: "adamw"; "adafactor" as the paper's; or "muon", which makes each kernel's step an
        orthogonal matrix (arXiv:2502.16982) and leaves vectors to Adam: more work a step, and
        fewer of them.
      learning_rate: reached after `warmup_steps`, constant from there to `cooldown_steps`.
      warmup_steps: steps of linear warm-up.
      cooldown_steps: of the run's last steps, over which the rate falls linearly to 0.
      weight_decay: decoupled, on matrices and kernels only.
      clip_norm: global norm that gradients are clipped to.
      ema_decay: of the parameters' moving average, which is what is sampled from and saved.
    """

    name: Literal["adamw", "adafactor", "muon"] = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 100
    cooldown_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.9999


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes; the `data` axis takes the devices that are left."""

    fsdp: int = 1
    frames: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training.

    Attributes:
      stage: "t2i" trains a text-to-image network and its text encoder on single frames; "style"
        tunes the network of such a model, `init_from`, to a handful of pictures;
        "t2v" inflates the model in `init_from` and trains the new parameters only, or goes on with
        those of one that is inflated already, such as at more frames; "conditional"
        teaches a model of stage "t2v" to fill in around given pixels, by its temporal parameters
        and a convolution that shows them; "ssr" trains
        a super-resolution network on short windows of clips, of `init_from` as "t2v" does, or
        without it a new one as "t2i" does, its temporal parameters included.
      data: the fields that `data.pipeline` documents.
      batch_size: over all devices and processes.
      total_steps: steps of the whole run.
      gradient_accumulation: parts that a batch is taken in, one after the other, for one update:
        the memory of one part's activations, the same result to rounding.
      init_from: a model folder or training workdir to start from; "" for none.
      unet: the architecture, where there is no `init_from`.
      text_encoder: likewise; a tokenizer of its vocab_size is trained on the captions.
      text_denoising: weight of restoring captions with hidden words, for "t2i"; it keeps words in
        the text encoder's states that single frames do not show, which "t2v" then learns.
      temporal: what to add, for "t2v" and "ssr".
      super_resolution: for "ssr".
      adapter_rank: for "style": the rank of adapters to train in place of the whole network, which
        are part of the saved model's weights; 0 for none.
      conditioning: for "conditional": which pixels are given, how often.
      cond_in_blocks: for "conditional": whether to show them to every temporal block, too
        (`UNetConfig.cond_in_blocks`).
      dtype: the U-Net's compute type, "float32" or "bfloat16" (norm statistics, softmax and the
        loss are float32 either way); None for what `unet`, or the model in `init_from`, has.
      trained: of a model that starts from `init_from`, for "t2v", "conditional" and "ssr": "added",
        what the stage adds to it (the paper keeps the image model as it is), or "unet", all of it.
      frozen: names of modules of the model in `init_from`, wherever in its U-Net they are, that
        stay as they are although `trained` has them.
      frozen_dtype: for a stage that leaves an image model as it is: what that model's kernels are
        kept in and saved as, "float32" or "bfloat16"; None for what they are in `init_from`. (Norms
        and biases keep their type: few, and computed with in float32.)
      remat: what the backward pass recomputes instead of keeping: "none"; "elementwise", all but
        convolutions and matrix products; or "blocks", everything inside a block. Less memory
        for more time, the same result.
      seed: of initial parameters and noise (the data's order and drops have `data.seed`).
      log_every, checkpoint_every, sample_every: in steps; sample_every 0 samples at the end only.
      keep_checkpoints: how many are kept.
      sample_prompts: what the sampled videos show.
      sample_videos: for "ssr", how many of the data's clips are enlarged instead.
    """

    stage: Literal["t2i", "style", "t2v", "conditional", "ssr"]
    data: dict
    batch_size: int
    total_steps: int
    gradient_accumulation: int = 1
    init_from: str = ""
    unet: UNetConfig | None = None
    text_encoder: TextEncoderConfig | None = None
    text_denoising: float = 0.0
    temporal: TemporalConfig | None = None
    super_resolution: SuperResolution | None = None
    adapter_rank: int = 0
    conditioning: MaskMixture | None = None
    cond_in_blocks: bool = False
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    dtype: Literal["float32", "bfloat16"] | None = None
    trained: Literal["added", "unet"] = "added"
    frozen: tuple[str, ...] = ()
    frozen_dtype: Literal["float32", "bfloat16"] | None = None
    remat: Literal["none", "elementwise", "blocks"] = "none"
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    sample_every: int = 0
    sample_prompts: tuple[str, ...] = ()
    sample_videos: int = 2

    def __post_init__(self):
        new = () if self.init_from else ("unet", "text_encoder")
        needed = {
            "t2i": ("unet", "text_encoder"),
            "style": ("init_from",),
            "t2v": ("temporal", "init_from"),
            "conditional": ("conditioning", "init_from"),
            "ssr": ("temporal", "super_resolution", *new),
        }[self.stage]
        for name in needed:
            if not getattr(self, name):
                raise UserError(f"stage {self.stage!r} needs the field '{name}'")
        for name, stages in (
            ("init_from", ("style", "t2v", "conditional", "ssr")),
            ("adapter_rank", ("style",)),
            ("super_resolution", ("ssr",)),
            ("conditioning", ("conditional",)),
            ("cond_in_blocks", ("conditional",)),
            ("temporal", ("t2v", "ssr")),
            ("frozen_dtype", ("t2v", "conditional", "ssr")),
        ):
            if getattr(self, name) and self.stage not in stages:
                raise UserError(f"stage {self.stage!r} has no use for the field '{name}'")
        if self.data.get("crop") and self.super_resolution and self.super_resolution.align_corners:
            raise UserError("super_resolution.align_corners does not go with data.crop")
        if self.init_from and self.unet is not None:
            raise UserError("init_from says what the U-Net is; leave out 'unet'")
        if not self.init_from and self.frozen_dtype:
            raise UserError(
                f"frozen_dtype is {self.frozen_dtype!r}, but without init_from all of the U-Net is "
                "trained; leave it out"
            )
        if not self.init_from and self.frozen:
            raise UserError(
                f"frozen is {', '.join(self.frozen)}, but without init_from all parameters are "
                "random at first; leave it out"
            )
        if self.trained == "unet":
            if not self.init_from or self.stage in ("t2i", "style"):
                raise UserError(
                    "trained is 'unet', which is a choice for stages 't2v', 'conditional' and "
                    "'ssr' that start from a model in init_from; leave it out"
                )
            if self.frozen_dtype:
                raise UserError(
                    "trained is 'unet', which leaves nothing for frozen_dtype; drop one"
                )
        if not self.init_from and self.data.get("text_states"):
            raise UserError("the run trains the text encoder, so data.text_states must be off")
        if self.init_from and self.text_denoising:
            raise UserError(
                f"text_denoising is {self.text_denoising}, but the run does not train the text "
                "encoder; leave it 0"
            )
        counts = (
            "batch_size",
            "total_steps",
            "gradient_accumulation",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.adapter_rank < 0:
            raise UserError(f"adapter_rank is {self.adapter_rank}; it must be at least 0")
        if self.batch_size % self.gradient_accumulation:
            raise UserError(
                f"batch_size is {self.batch_size}; gradient_accumulation "
                f"{self.gradient_accumulation} does not divide it"
            )

    @property
    def trains(self) -> str:
        """What of the parameters: "all", "unet" or "added" (to the model in `init_from`)."""
        if not self.init_from:
            return "all"
        return "unet" if self.stage == "style" else self.trained
