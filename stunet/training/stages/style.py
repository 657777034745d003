"""Stage "style": a text-to-image model tuned to a handful of pictures."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import jax

from stunet.errors import UserError
from stunet.models.unet_config import UNetConfig
from stunet.schema import Range, check_fields
from stunet.training.initial_model import continued_image_model
from stunet.training.settings import DataFormat, RunConfig
from stunet.training.stages.stage import Stage, check_init_from, in_trained_part
from stunet.weights.low_rank import add_adapters, init_adapters
from stunet.weights.model_folder import ModelFolder
from stunet.weights.trees import Tree


@dataclass(frozen=True, kw_only=True)
class Style(Stage):
    """Tunes the text-to-image network of a model to a style.

    Attributes:
      init_from: Text-to-image model, or text-to-video model of which the text-to-image part is
        tuned.
      adapter_rank: Rank of low-rank adapters that are trained instead of the network. The exported
        model has them added to its weights. 0 trains the network.
      frozen: Names of U-Net modules that are not trained.
      sample_prompts: Prompts of the samples drawn during training.

    Raises:
      UserError: `init_from` is empty or a field has the wrong type or is out of range.
    """

    name: ClassVar[str] = "style"
    init_from: str = field()
    adapter_rank: Annotated[int, Range(0, 2**16)] = 0
    frozen: tuple[str, ...] = ()
    sample_prompts: tuple[str, ...] = ()

    def __post_init__(self):
        check_fields(self)
        check_init_from(self)

    def architecture(self, start: UNetConfig | None) -> UNetConfig:
        """See `Stage.architecture`."""
        return start.text_to_image()

    def initial_model(
        self, run: RunConfig, data: DataFormat, captions: Callable[[], list[str]]
    ) -> ModelFolder:
        """See `Stage.initial_model`."""
        sampled = "sample_prompts" if self.sample_prompts else None
        return continued_image_model(
            self.name, self.init_from, None, self.frozen, run, data, sampled
        )

    def is_trained(self, path: str) -> bool:
        """Whether a parameter is trained: those of the U-Net are."""
        return in_trained_part(path, "unet", self.frozen)

    def split(self, params: Tree, seed: int) -> tuple[Tree, Tree]:
        """Splits parameters into (trained, frozen); with adapters, all of `params` are frozen.

        Raises:
          UserError: no kernel is large enough for adapters of this rank.
        """
        if not self.adapter_rank:
            return super().split(params, seed)
        key = jax.random.key(seed)
        adapters = init_adapters(params, self.is_trained, self.adapter_rank, key)
        if not adapters:
            raise UserError(
                f"adapter_rank: {self.adapter_rank}, expected less than the smaller side of some "
                "kernel of the network"
            )
        return adapters, params

    def join(self, trained: Tree, frozen: Tree) -> Tree:
        """See `Stage.join`."""
        if not self.adapter_rank:
            return super().join(trained, frozen)
        return add_adapters(frozen, trained)
