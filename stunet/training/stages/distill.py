"""Stage "distill": a model that needs fewer network calls than the one that it learns from."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import jax

from stunet.diffusion import MaskMixture, SuperResolution
from stunet.errors import UserError
from stunet.models.unet_config import UNetConfig
from stunet.schema import GuidanceScale, Range
from stunet.training.distillation import Teacher, guidance_loss, step_loss
from stunet.training.initial_model import (
    StartModel,
    check_network,
    continued_model,
    read_start_model,
    with_dtype,
)
from stunet.training.losses import (
    Batch,
    MakeInputs,
    masked_inputs,
    super_resolution_inputs,
    text_to_video_inputs,
)
from stunet.training.networks import Networks
from stunet.training.settings import DataFormat, DiffusionConfig, RunConfig
from stunet.training.stages.stage import Stage, check_init_from, in_trained_part
from stunet.weights.inflation import with_new_parameters
from stunet.weights.model_folder import ModelFolder
from stunet.weights.trees import Tree, merge

_TEACHER = "teacher"  # key of its parameters among the frozen ones


@dataclass(frozen=True, kw_only=True)
class Distill(Stage):
    """Distils guidance, or halves the number of sampling steps of a model with distilled guidance.

    The teacher is the model in `init_from`: text-to-video, conditional or super-resolution. The
    student starts as a copy and keeps the teacher's sampling settings. First distil guidance
    (`steps=None`), then to half of the steps again and again: from a model of any number of steps
    to 8, from that to 4, to 2 and to 1.

    Attributes:
      init_from: The teacher.
      steps: Sampling steps of the student, half of the teacher's. None distils guidance. A model
        that predicts eps gets inaccurate in few steps (2202.00512 section 4).
      scales: Lowest and highest guidance scale that the student is trained for.
      conditioning: Weights of the kinds of masks; for a conditional teacher only.
      super_resolution: The teacher's settings; for a super-resolution teacher only.
      trained: "added" trains the temporal modules, the new embedding of the guidance scale and the
        conditioning convolution, "unet" all of the U-Net.
      sample_prompts: Prompts of the samples drawn during training.

    Raises:
      UserError: `init_from` is empty, or the scales are not ascending.
    """

    name: ClassVar[str] = "distill"
    init_from: str = field()
    steps: Annotated[int, Range(1, 512)] | None = None
    scales: tuple[GuidanceScale, GuidanceScale] = (1.0, 8.0)
    conditioning: MaskMixture | None = None
    super_resolution: SuperResolution | None = None
    trained: Literal["added", "unet"] = "added"
    sample_prompts: tuple[str, ...] = ()

    def __post_init__(self):
        check_init_from(self)
        low, high = self.scales
        if not low <= high:
            raise UserError(f"scales: {low:g} to {high:g}, expected the lower scale first")

    def check_data(self, data: DataFormat) -> None:
        """See `Stage.check_data`. Guidance needs the states of the empty prompt as well."""
        super().check_data(data)
        if self.steps is None and data.text_states:
            raise UserError(
                "data.text_states: True, expected False, because distilling guidance encodes the "
                "empty prompt"
            )

    def architecture(self, start: UNetConfig | None) -> UNetConfig:
        """See `Stage.architecture`."""
        return replace(start, guidance_embedding=True)

    def initial_model(
        self, run: RunConfig, data: DataFormat, captions: Callable[[], list[str]]
    ) -> ModelFolder:
        """See `Stage.initial_model`."""
        sampled = "sample_prompts" if self.sample_prompts else None
        start = read_start_model(
            self.init_from, run, data, sampled, conditional=True, distilled=True
        )
        self._check_steps(start)
        model = start.model
        if model.unet.temporal is None:
            raise UserError(f"init_from: {start.folder} makes images, expected a model of videos")
        if run.sampling is not None:
            raise UserError("sampling: given, expected None, because the student has its teacher's")
        if (self.conditioning is not None) != bool(model.unet.cond_channels):
            expected = "weights of masks" if model.unet.cond_channels else "None"
            raise UserError(
                f"conditioning: {self.conditioning}, expected {expected} for the model in "
                f"{start.folder}"
            )
        for name, found, expected in (
            ("super_resolution", self.super_resolution, model.super_resolution),
            ("diffusion.schedule", run.diffusion.schedule, model.schedule),
        ):
            if found != expected:
                raise UserError(f"{name}: {found}, expected that of {start.folder}: {expected}")
        unet = self.architecture(with_dtype(model.unet, run))
        check_network(unet, model.text_encoder, model.super_resolution, run, data)
        params = with_new_parameters(start.unet_params, unet)
        sampling = replace(model.sampling, guidance_scales=self.scales)
        if self.steps is not None:
            sampling = replace(sampling, sampler="few_steps", steps=self.steps, only=True)
        start = replace(start, model=replace(model, sampling=sampling))
        return continued_model(self.name, start, unet, params, run, data, model.super_resolution)

    def _check_steps(self, start: StartModel) -> None:
        sampling, distilled = start.model.sampling, start.model.unet.guidance_embedding
        if self.steps is None:
            if distilled:
                raise UserError(
                    f"init_from: guidance of {start.folder} is distilled already, expected "
                    "`steps`, or a model that is not distilled"
                )
        elif not distilled:
            raise UserError(
                f"init_from: guidance of {start.folder} is not distilled, expected a model of "
                "stage 'distill' with steps=None, which comes first"
            )
        elif sampling.only and sampling.steps != 2 * self.steps:
            if sampling.steps % 2:
                raise UserError(
                    f"init_from: {start.folder} has {sampling.steps} steps, expected an even number"
                )
            raise UserError(
                f"steps: {self.steps}, expected {sampling.steps // 2}, half of those of "
                f"{start.folder}"
            )

    def is_trained(self, path: str) -> bool:
        """See `Stage.is_trained`."""
        return in_trained_part(path, self.trained)

    def split(self, params: Tree, seed: int) -> tuple[Tree, Tree]:
        """Splits parameters into (trained, frozen); the latter include the teacher's own."""
        trained, frozen = super().split(params, seed)
        return trained, merge(frozen, {_TEACHER: self._teachers_part(trained["unet"])})

    def join(self, trained: Tree, frozen: Tree) -> Tree:
        """See `Stage.join`."""
        return super().join(trained, {k: v for k, v in frozen.items() if k != _TEACHER})

    def loss_params(self, trained: Tree, frozen: Tree) -> Tree:
        """Returns the parameters of all networks, and of the teacher's U-Net."""
        teacher = merge(frozen.get("unet", {}), frozen[_TEACHER])
        return {**self.join(trained, frozen), _TEACHER: teacher}

    def _teachers_part(self, unet: Tree) -> Tree:
        if self.steps is not None:
            return unet
        return {name: module for name, module in unet.items() if name != "guidance_embedding"}

    def loss(
        self, networks: Networks, diffusion: DiffusionConfig, params: Tree, batch: Batch, seed: int
    ) -> jax.Array:
        """Computes the loss `[B]` of imitating the teacher; see `stunet.training.distillation`."""
        unet = replace(networks.unet, guidance_embedding=self.steps is not None)
        teacher = Teacher(replace(networks, unet=unet), params[_TEACHER])
        common = (networks, teacher, diffusion, params, batch, seed, self._make_inputs, self.scales)
        return guidance_loss(*common) if self.steps is None else step_loss(*common, self.steps)

    @property
    def _make_inputs(self) -> MakeInputs:
        if self.super_resolution is not None:
            return functools.partial(super_resolution_inputs, self.super_resolution)
        if self.conditioning is not None:
            return functools.partial(masked_inputs, self.conditioning)
        return text_to_video_inputs
