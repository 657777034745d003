"""What a training stage is."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import numpy as np

from stunet.diffusion import SuperResolution
from stunet.errors import UserError
from stunet.models.t5 import TextEncoderConfig
from stunet.models.unet_config import UNetConfig
from stunet.training.losses import Batch, denoising_loss
from stunet.training.networks import Networks
from stunet.training.settings import DataFormat, DiffusionConfig, RunConfig
from stunet.weights.model_folder import ModelFolder
from stunet.weights.trees import Tree, is_added, merge, partition

TrainedPart = Literal["added", "unet"]


@dataclass(frozen=True)
class SampleTools:
    """Functions with which a stage draws samples from the exported model.

    Videos are `[N, T, H, W, 3]` in [-1, 1].

    Attributes:
      generate: Maps N prompts to videos.
      upscale: Maps low-resolution videos and their N captions to videos.
      examples: Maps a count to as many uncropped videos of the training data and their captions.
    """

    generate: Callable[[list[str]], np.ndarray]
    upscale: Callable[[np.ndarray, list[str]], np.ndarray]
    examples: Callable[[int], tuple[np.ndarray, list[str]]]


class Stage(abc.ABC):
    """A training stage: its initial model, which parameters it trains, its loss and its samples.

    A stage is a frozen dataclass. Its fields are the fields that a config file has for this stage
    in addition to those of `RunConfig`. A field without a default whose name is an attribute below
    is written `init_from: str = field()`; otherwise it would inherit the default below.

    Attributes:
      name: Name of the stage in configs and model folders.
      init_from: Model that the stage starts from; "" for a new model.
      text_encoder: Text encoder that the stage trains; None keeps that of `init_from`.
      super_resolution: Settings of a stage that trains a super-resolution model.
      frozen: Names of U-Net modules that are not trained.
      frozen_dtype: Type of the kernels of the text-to-image network, "float32" or "bfloat16"; None
        keeps that of `init_from`.
      sample_prompts: Prompts of the samples drawn during training.
    """

    name: ClassVar[str]
    init_from: str = ""
    text_encoder: TextEncoderConfig | None = None
    super_resolution: SuperResolution | None = None
    frozen: tuple[str, ...] = ()
    frozen_dtype: str | None = None
    sample_prompts: tuple[str, ...] = ()

    def check_data(self, data: DataFormat) -> None:
        """Checks that the data suits the stage.

        Raises:
          UserError: it does not.
        """
        if self.text_encoder is not None and data.text_states:
            raise UserError(
                f"data.text_states: True, expected False, because stage {self.name!r} trains the "
                "text encoder"
            )

    @abc.abstractmethod
    def architecture(self, start: UNetConfig | None) -> UNetConfig:
        """Returns the architecture of the U-Net that the stage trains.

        Args:
          start: Architecture of the model in `init_from`, or of the stage's initial model. None if
            `init_from` is "".
        """

    @abc.abstractmethod
    def initial_model(
        self, run: RunConfig, data: DataFormat, captions: Callable[[], list[str]]
    ) -> ModelFolder:
        """Makes the model before the first update.

        Args:
          run: The run's settings.
          data: The run's data.
          captions: Returns the captions of the data.

        Raises:
          UserError: the stage cannot start from `init_from`, or the networks do not fit each other
            or the data.
        """

    @abc.abstractmethod
    def is_trained(self, path: str) -> bool:
        """Whether the parameter at a path such as "unet/conv_in/kernel" is trained."""

    def split(self, params: Tree, seed: int) -> tuple[Tree, Tree]:
        """Splits parameters into (trained, frozen).

        Args:
          params: Parameters of all networks.
          seed: Seed of trained parameters that are not among `params`.
        """
        del seed
        return partition(params, self.is_trained)

    def join(self, trained: Tree, frozen: Tree) -> Tree:
        """Returns the parameters of all networks: the inverse of `split`."""
        return merge(trained, frozen)

    def loss(
        self, networks: Networks, diffusion: DiffusionConfig, params: Tree, batch: Batch, seed: int
    ) -> jax.Array:
        """Computes the loss `[B]` of a batch; see `stunet.training.losses`."""
        return denoising_loss(networks, diffusion, params, batch, seed)

    @property
    def num_samples(self) -> int:
        """Number of videos that `draw_samples` returns."""
        return len(self.sample_prompts)

    def draw_samples(self, tools: SampleTools) -> tuple[list[str], np.ndarray]:
        """Returns captions and videos `[N, T, H, W, 3]` that show the progress of training."""
        prompts = list(self.sample_prompts)
        return prompts, tools.generate(prompts)


def check_init_from(stage: Stage) -> None:
    """Checks that a stage that always starts from a model names one.

    Raises:
      UserError: `init_from` is empty.
    """
    if not stage.init_from:
        raise UserError(
            "init_from: empty, expected a model folder, a training workdir or the name of a "
            "shipped model"
        )


def check_trained_part(trained: TrainedPart, frozen_dtype: str | None) -> None:
    """Checks that a stage that casts frozen kernels leaves them frozen.

    Raises:
      UserError: it trains them.
    """
    if trained == "unet" and frozen_dtype is not None:
        raise UserError(
            f"frozen_dtype: {frozen_dtype!r}, expected None, because trained is 'unet', which "
            "freezes no kernels"
        )


def in_trained_part(path: str, trained: TrainedPart, frozen: Sequence[str] = ()) -> bool:
    """Whether a stage that starts from a model trains a parameter.

    Args:
      path: Path of the parameter.
      trained: "added" for the temporal modules and the conditioning convolution, "unet" for all of
        the U-Net.
      frozen: Names of modules that are not trained.
    """
    selected = is_added(path) if trained == "added" else path.startswith("unet/")
    return selected and not set(frozen).intersection(path.split("/"))
