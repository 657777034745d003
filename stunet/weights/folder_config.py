"""The `config.json` of model folders and text encoder folders."""

import dataclasses
import re
from typing import Any, ClassVar, Literal

from stunet.errors import UserError
from stunet.files import read_json
from stunet.paths import AnyPath
from stunet.schema import from_dict

FORMAT_VERSION = 1


MODEL_FILE = re.compile(
    r"config\.json|tokenizer\.json|checksums\.json"
    r"|(unet_spatial|unet_temporal|text_encoder|adapters)(-\d{5}-of-\d{5})?\.safetensors"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The fields of `ModelFolder.config`.

    Attributes:
      architecture: Fields of `UNetConfig`.
      stage: Training stage: "t2i", "style", "t2v", "conditional" or "ssr".
      resolution: Height and width in pixels.
      num_frames: Frames of a training clip, 1 for images.
      fps: Frames per second of the training clips. None for images.
      schedule: Fields of `stunet.diffusion.Schedule`.
      prediction: Output of the network: "eps", "x0" or "v".
      variance: Variance of the ancestral sampler: "fixed_small", "fixed_large" or "learned_range".
      text_encoder: Fields of `TextEncoderConfig`. None for a model that receives encoder states.
      threshold: Fields of `stunet.diffusion.Threshold`. None samples without a bound on x0. A
        folder without this field uses the defaults.
      sampling: Fields of `stunet.diffusion.SamplingDefaults`. A folder without this field uses the
        defaults.
      super_resolution: Fields of `stunet.diffusion.SuperResolution`. None for a base model.
    """

    architecture: dict
    stage: str
    resolution: int
    num_frames: int
    fps: float | None
    schedule: dict
    prediction: str
    variance: str
    text_encoder: dict | None
    threshold: dict | None = None
    sampling: dict | None = None
    super_resolution: dict | None = None


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """File names of every part. Empty for a part without parameters."""

    unet_spatial: tuple[str, ...]
    unet_temporal: tuple[str, ...]
    text_encoder: tuple[str, ...]
    adapters: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigFile(ModelConfig):
    """The fields of a model's `config.json`."""

    format_version: int
    weights: WeightFiles
    tokenizer: Literal["tokenizer.json"] | None
    digest: str | None = None
    base: str | None = None
    base_unet: bool = True
    base_dtype: Literal["float32", "bfloat16"] | None = None
    base_digest: str | None = None
    text_encoder_digest: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderFile:
    """The fields of a text encoder folder's `config.json`."""

    format_version: int
    text_encoder: dict
    weights: WeightFiles
    tokenizer: Literal["tokenizer.json"]
    text_encoder_digest: str
    digest: str | None = None
    base: ClassVar[None] = None


def read_config(path: AnyPath) -> ConfigFile | TextEncoderFile:
    """Reads a `config.json`.

    Raises:
      UserError: It is missing or unreadable, has missing, unknown or mistyped fields, or a newer
        format version.
    """
    return parse_config(path, read_fields(path))


def parse_config(path: AnyPath, fields: dict[str, Any]) -> ConfigFile | TextEncoderFile:
    """Checks the fields of a `config.json`; names `path` in errors."""
    return from_dict(ConfigFile if "architecture" in fields else TextEncoderFile, fields, str(path))


def read_fields(path: AnyPath) -> dict[str, Any]:
    """Reads the JSON values of a `config.json` and checks its format version."""
    if not path.is_file():
        raise UserError(f"{path.parent}: not a model folder (no config.json)")
    content = read_json(path)
    if type(content.get("format_version")) is not int:
        raise UserError(
            f"{path}: format_version is {content.get('format_version')!r}, expected an integer"
        )
    # Check before the fields, which would be reported as unknown for a newer format.
    if content["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version is {content['format_version']}, expected at most "
            f"{FORMAT_VERSION}; install a newer stunet"
        )
    return content


def folder_kind(folder: AnyPath) -> Literal["model", "text_encoder"] | None:
    """Returns what a folder contains: a model, a text encoder only, or none of our formats."""
    path = folder / "config.json"
    content = read_json(path) if path.is_file() else {}
    if "format_version" not in content:
        return None
    return "model" if "architecture" in content else "text_encoder"


def listed_files(folder: AnyPath) -> tuple[list[str], str | None]:
    """Returns the names of the files that a folder's `config.json` lists, and its base.

    Raises:
      UserError: `config.json` is missing or invalid.
    """
    stored = read_config(folder / "config.json")
    return file_names(stored), stored.base


def file_names(stored: ConfigFile | TextEncoderFile) -> list[str]:
    """Returns the names of the files that a `config.json` lists."""
    names = [name for part in vars(stored.weights).values() for name in part]
    return names if stored.tokenizer is None else [*names, stored.tokenizer]


def is_model_file(name: str) -> bool:
    """Returns whether a file of this name is part of a model folder."""
    return MODEL_FILE.fullmatch(name) is not None
