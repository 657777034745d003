"""Stage "ssr": spatial super-resolution of short windows of videos (2401.12945, section 3.2)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import jax
import numpy as np

from stunet.diffusion import SuperResolution, downsample, upsample
from stunet.errors import UserError
from stunet.models.t5 import TextEncoderConfig
from stunet.models.unet_config import TemporalConfig, UNetConfig
from stunet.schema import Range
from stunet.training.initial_model import (
    check_module_names,
    check_network,
    continued_model,
    new_model,
    read_start_model,
    with_dtype,
)
from stunet.training.losses import Batch, joint_loss, super_resolution_inputs
from stunet.training.networks import Networks
from stunet.training.settings import DataFormat, DiffusionConfig, RunConfig
from stunet.training.stages.stage import (
    SampleTools,
    Stage,
    check_new_or_continued,
    check_trained_part,
    in_trained_part,
)
from stunet.weights.inflation import with_new_parameters
from stunet.weights.model_folder import ModelFolder
from stunet.weights.trees import Tree, cast_spatial_kernels


@dataclass(frozen=True, kw_only=True)
class SpatialSuperResolution(Stage):
    """Inflates a super-resolution model of images, or trains a new one of videos from scratch.

    Attributes:
      super_resolution: Enlargement factor, augmentation noise and residual scale.
      temporal: Temporal modules to add.
      init_from: Super-resolution model of images to inflate. "" trains a new model.
      unet: Architecture of a new U-Net, None with `init_from`.
      text_encoder: Architecture of a new text encoder, None with `init_from`. A tokenizer with its
        `vocab_size` is trained on the captions. Or the folder of a text encoder, which stays
        frozen.
      text_denoising: Weight of `text_denoising_loss` for a new text encoder.
      trained: With `init_from`, "added" trains the temporal modules, "unet" all of the U-Net.
      frozen: Names of U-Net modules of `init_from` that are not trained even if `trained` includes
        them.
      frozen_dtype: Type that the kernels of `init_from` are kept in and saved as, "float32" or
        "bfloat16". Norms and biases keep theirs. None keeps that of `init_from`.
      sample_videos: Number of clips of the data that are enlarged as samples during training.

    Raises:
      UserError: fields of a new model and of one in `init_from` are mixed, or `frozen_dtype` is set
        but all of the U-Net is trained.
    """

    name: ClassVar[str] = "ssr"
    super_resolution: SuperResolution = field()
    temporal: TemporalConfig
    init_from: str = ""
    unet: UNetConfig | None = None
    text_encoder: TextEncoderConfig | str | None = None
    text_denoising: Annotated[float, Range(0)] = 0.0
    trained: Literal["added", "unet"] = "added"
    frozen: tuple[str, ...] = ()
    frozen_dtype: Literal["float32", "bfloat16"] | None = None
    sample_videos: Annotated[int, Range(0, 1000)] = 2

    def __post_init__(self):
        only_new = ("unet", "text_encoder", "text_denoising")
        check_new_or_continued(self, only_new, ("frozen", "frozen_dtype"))
        if not self.init_from and self.trained != "added":
            raise UserError(f"trained: {self.trained!r}, expected 'added' for a new model")
        check_trained_part(self.trained, self.frozen_dtype)

    def check_data(self, data: DataFormat) -> None:
        """See `Stage.check_data`."""
        super().check_data(data)
        if data.crop and self.super_resolution.align_corners:
            raise UserError(
                "super_resolution.align_corners: True, expected False with crops (data.crop is "
                f"{data.crop})"
            )

    def architecture(self, start: UNetConfig | None) -> UNetConfig:
        """See `Stage.architecture`."""
        return replace(start if self.init_from else self.unet, temporal=self.temporal)

    def initial_model(
        self, run: RunConfig, data: DataFormat, captions: Callable[[], list[str]]
    ) -> ModelFolder:
        """See `Stage.initial_model`."""
        if not self.init_from:
            unet = with_dtype(self.architecture(None), run)
            return new_model(
                self.name, unet, self.text_encoder, run, data, captions, self.super_resolution
            )
        sampled = "sample_videos" if self.sample_videos else None
        start = read_start_model(self.init_from, run, data, sampled)
        if start.model.unet.temporal is not None:
            raise UserError(
                f"init_from: {start.folder} is a model of videos, expected one of images"
            )
        unet = self.architecture(with_dtype(start.model.unet, run))
        check_network(unet, start.model.text_encoder, self.super_resolution, run, data)
        params = with_new_parameters(start.unet_params, unet)
        check_module_names(self.frozen, params, start.folder)
        params = cast_spatial_kernels(self.frozen_dtype, params)
        return continued_model(self.name, start, unet, params, run, data, self.super_resolution)

    def is_trained(self, path: str) -> bool:
        """Whether a parameter is trained: all are in a new model, except a frozen text encoder."""
        if self.init_from:
            return in_trained_part(path, self.trained, self.frozen)
        return self.trains_text_encoder or in_trained_part(path, "unet")

    def loss(
        self, networks: Networks, diffusion: DiffusionConfig, params: Tree, batch: Batch, seed: int
    ) -> jax.Array:
        """Computes the loss `[B]` given a noised low-resolution video."""
        make_inputs = functools.partial(super_resolution_inputs, self.super_resolution)
        return joint_loss(
            self.text_denoising, networks, diffusion, params, batch, seed, make_inputs
        )

    @property
    def num_samples(self) -> int:
        """See `Stage.num_samples`."""
        return self.sample_videos

    def draw_samples(self, tools: SampleTools) -> tuple[list[str], np.ndarray]:
        """Enlarges clips of the data.

        Returns:
          Captions, and videos `[N, T, 2 H, W, 3]`: enlarged bilinearly above, by the model below.
        """
        videos, captions = tools.examples(self.sample_videos)
        factor = self.super_resolution.factor
        low = downsample(videos, factor)
        enlarged = tools.upscale(low, captions)
        return captions, np.concatenate([upsample(low, factor), enlarged], axis=2)
