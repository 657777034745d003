"""What a training stage is."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import numpy as np

from stunet.diffusion import SuperResolution
from stunet.errors import UserError
from stunet.models.t5 import T5Config, TextEncoderConfig, init_text_encoder
from stunet.models.unet import init_unet
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
      text_encoder: Architecture of a text encoder that the stage trains, or the folder of a frozen
        one: a text encoder folder, a model folder, a training workdir or the name of a shipped
        model. None keeps that of `init_from`.
      super_resolution: Settings of a stage that trains a super-resolution model.
      frozen: Names of U-Net modules that are not trained.
      frozen_dtype: Type of the kernels of the text-to-image network, "float32" or "bfloat16"; None
        keeps that of `init_from`.
      sample_prompts: Prompts of the samples drawn during training.
    """

    name: ClassVar[str]
    init_from: str = ""
    text_encoder: TextEncoderConfig | str | None = None
    super_resolution: SuperResolution | None = None
    frozen: tuple[str, ...] = ()
    frozen_dtype: str | None = None
    sample_prompts: tuple[str, ...] = ()

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the stage trains a new text encoder."""
        return isinstance(self.text_encoder, TextEncoderConfig)

    def check_data(self, data: DataFormat) -> None:
        """Checks that the data suits the stage.

        Raises:
          UserError: it does not.
        """
        if self.trains_text_encoder and data.text_states:
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
        """Makes the model before the first update, without reading or computing parameters.

        Leaves of its parameters are lazy tensors (or arrays), and shapes if they are to be
        initialised by `init`.

        Args:
          run: The run's settings.
          data: The run's data.
          captions: Returns the captions of the data.

        Raises:
          UserError: the stage cannot start from `init_from`, or the networks do not fit each other
            or the data.
        """

    def init(self, unet: UNetConfig, text_encoder: T5Config | None, key: jax.Array) -> Tree:
        """Initialises the parameters of the networks.

        `jax.jit` eliminates the computation of those that the initial model has from elsewhere.

        Args:
          unet: Architecture of the U-Net.
          text_encoder: Architecture of the text encoder, None for a model without one.
          key: Key of the run's seed.
        """
        if self.init_from:
            return {"unet": init_unet(unet, key)}
        params = {"unet": init_unet(unet, jax.random.fold_in(key, 0))}
        if self.trains_text_encoder:
            params["text_encoder"] = init_text_encoder(text_encoder, jax.random.fold_in(key, 1))
        return params

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

    def loss_params(self, trained: Tree, frozen: Tree) -> Tree:
        """Returns the parameters that `loss` receives: those of all networks."""
        return self.join(trained, frozen)

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


def check_new_or_continued(stage: Stage, only_new: Sequence[str], only_continued: Sequence[str]):
    """Checks a stage that trains a new model or, with `init_from`, continues an existing one.

    Args:
      stage: The stage, with the fields `unet`, `text_encoder` and `text_denoising`.
      only_new: Names of fields that must be unset with `init_from`.
      only_continued: Names of fields that must be unset without `init_from`.

    Raises:
      UserError: Fields of both are set, a new model lacks an architecture, or the loss of a text
        encoder is set for a frozen one.
    """
    if not stage.init_from:
        for name, expected in (
            ("unet", "an architecture"),
            ("text_encoder", "an architecture or the folder of a text encoder"),
        ):
            if not getattr(stage, name):
                raise UserError(
                    f"{name}: {getattr(stage, name)!r}, expected {expected} (or a model in "
                    "init_from)"
                )
    case, unset = (
        ("a model in init_from", only_new) if stage.init_from else ("a new model", only_continued)
    )
    for name in unset:
        if value := getattr(stage, name):
            raise UserError(f"{name}: {value!r}, expected it to be unset for {case}")
    if stage.text_denoising and not stage.trains_text_encoder:
        raise UserError(
            f"text_denoising: {stage.text_denoising}, expected 0 for the frozen text encoder "
            f"{stage.text_encoder!r}"
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
