"""Stage "t2v": a text-to-image model inflated to a text-to-video model (2401.12945, section 3)."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from stunet.errors import UserError
from stunet.models.unet_config import TemporalConfig, UNetConfig
from stunet.schema import to_dict
from stunet.training.initial_model import (
    StartModel,
    check_module_names,
    check_network,
    continued_model,
    read_start_model,
    with_dtype,
)
from stunet.training.settings import DataFormat, RunConfig
from stunet.training.stages.stage import (
    Stage,
    check_init_from,
    check_trained_part,
    in_trained_part,
)
from stunet.weights.inflation import with_new_parameters
from stunet.weights.model_folder import ModelFolder
from stunet.weights.trees import cast_spatial_kernels, flatten


@dataclass(frozen=True, kw_only=True)
class TextToVideo(Stage):
    """Inflates a text-to-image model, or continues an inflated one, such as at more frames.

    Attributes:
      init_from: Text-to-image model, or text-to-video model with the same `temporal`.
      temporal: Temporal modules to add.
      trained: "added" trains the temporal modules (the paper keeps the text-to-image model as it
        is), "unet" all of the U-Net.
      frozen: Names of U-Net modules that are not trained even if `trained` includes them.
      frozen_dtype: Type that the text-to-image model's kernels are kept in and saved as, "float32"
        or "bfloat16". Norms and biases keep theirs. None keeps that of `init_from`.
      sample_prompts: Prompts of the samples drawn during training.

    Raises:
      UserError: `init_from` is empty, or `frozen_dtype` is set but all of the U-Net is trained.
    """

    name: ClassVar[str] = "t2v"
    init_from: str = field()
    temporal: TemporalConfig
    trained: Literal["added", "unet"] = "added"
    frozen: tuple[str, ...] = ()
    frozen_dtype: Literal["float32", "bfloat16"] | None = None
    sample_prompts: tuple[str, ...] = ()

    def __post_init__(self):
        check_init_from(self)
        check_trained_part(self.trained, self.frozen_dtype)

    def architecture(self, start: UNetConfig | None) -> UNetConfig:
        """See `Stage.architecture`."""
        return replace(start, temporal=self.temporal)

    def initial_model(
        self, run: RunConfig, data: DataFormat, captions: Callable[[], list[str]]
    ) -> ModelFolder:
        """See `Stage.initial_model`."""
        sampled = "sample_prompts" if self.sample_prompts else None
        start = read_start_model(self.init_from, run, data, sampled)
        self._check_temporal(start)
        unet = with_dtype(self.architecture(start.model.unet), run)
        check_network(unet, start.model.text_encoder, None, run, data)
        params = with_new_parameters(start.unet_params, unet)
        check_module_names(self.frozen, params, start.folder)
        params = cast_spatial_kernels(self.frozen_dtype, params)
        return continued_model(self.name, start, unet, params, run, data)

    def is_trained(self, path: str) -> bool:
        """See `Stage.is_trained`."""
        return in_trained_part(path, self.trained, self.frozen)

    def _check_temporal(self, start: StartModel) -> None:
        if start.model.unet.temporal in (None, self.temporal):
            return
        stored, configured = (
            flatten(to_dict(temporal)) for temporal in (start.model.unet.temporal, self.temporal)
        )
        name = next(name for name in stored if stored[name] != configured[name])
        raise UserError(
            f"temporal.{name}: {configured[name]!r}, expected {stored[name]!r}, that of init_from "
            f"{start.folder}, or a text-to-image model in init_from"
        )
