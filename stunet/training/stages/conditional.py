"""Stage "conditional": a text-to-video model given known pixels (2401.12945, section 4.2)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import jax

from stunet.diffusion import COND_CHANNELS, MaskMixture
from stunet.errors import UserError
from stunet.models.unet_config import UNetConfig
from stunet.training.initial_model import (
    check_module_names,
    check_network,
    continued_model,
    read_start_model,
    with_dtype,
)
from stunet.training.losses import Batch, denoising_loss, masked_inputs
from stunet.training.networks import Networks
from stunet.training.settings import DataFormat, DiffusionConfig, RunConfig
from stunet.training.stages.stage import (
    Stage,
    check_init_from,
    check_trained_part,
    in_trained_part,
)
from stunet.weights.inflation import with_new_parameters
from stunet.weights.model_folder import ModelFolder
from stunet.weights.trees import Tree, cast_spatial_kernels


@dataclass(frozen=True, kw_only=True)
class Conditional(Stage):
    """Adds inputs for known pixels and their mask to a text-to-video model, and trains it on masks.

    Attributes:
      init_from: Text-to-video model.
      conditioning: Weights of the kinds of masks.
      cond_in_blocks: Whether every temporal block reads the known pixels too, not only the first
        convolution (`UNetConfig.cond_in_blocks`).
      trained: "added" trains the temporal modules and the new inputs, "unet" all of the U-Net.
      frozen: Names of U-Net modules that are not trained even if `trained` includes them.
      frozen_dtype: Type that the text-to-image model's kernels are kept in and saved as, "float32"
        or "bfloat16". Norms and biases keep theirs. None keeps that of `init_from`.
      sample_prompts: Prompts of the samples drawn during training, without known pixels.

    Raises:
      UserError: `init_from` is empty, or `frozen_dtype` is set but all of the U-Net is trained.
    """

    name: ClassVar[str] = "conditional"
    init_from: str = field()
    conditioning: MaskMixture
    cond_in_blocks: bool = False
    trained: Literal["added", "unet"] = "added"
    frozen: tuple[str, ...] = ()
    frozen_dtype: Literal["float32", "bfloat16"] | None = None
    sample_prompts: tuple[str, ...] = ()

    def __post_init__(self):
        check_init_from(self)
        check_trained_part(self.trained, self.frozen_dtype)

    def architecture(self, start: UNetConfig | None) -> UNetConfig:
        """See `Stage.architecture`."""
        return replace(start, cond_channels=COND_CHANNELS, cond_in_blocks=self.cond_in_blocks)

    def initial_model(
        self, run: RunConfig, data: DataFormat, captions: Callable[[], list[str]]
    ) -> ModelFolder:
        """See `Stage.initial_model`."""
        sampled = "sample_prompts" if self.sample_prompts else None
        start = read_start_model(self.init_from, run, data, sampled)
        if start.model.unet.temporal is None:
            raise UserError(
                f"init_from: {start.folder} is a text-to-image model, expected one of stage 't2v'"
            )
        video_unet = with_dtype(start.model.unet, run)
        check_network(video_unet, start.model.text_encoder, None, run, data)
        unet = self.architecture(video_unet)
        params = with_new_parameters(start.unet_params, unet)
        check_module_names(self.frozen, params, start.folder)
        params = cast_spatial_kernels(self.frozen_dtype, params)
        return continued_model(self.name, start, unet, params, run, data)

    def is_trained(self, path: str) -> bool:
        """See `Stage.is_trained`."""
        return in_trained_part(path, self.trained, self.frozen)

    def loss(
        self, networks: Networks, diffusion: DiffusionConfig, params: Tree, batch: Batch, seed: int
    ) -> jax.Array:
        """Computes the denoising loss `[B]` with the pixels of a random mask known."""
        make_inputs = functools.partial(masked_inputs, self.conditioning)
        return denoising_loss(networks, diffusion, params, batch, seed, make_inputs)
