"""The datasets behind one interface: captions and clips by record index."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from data import records
from data.moving_shapes import moving_shapes_builder as moving_shapes
from data.moving_shapes.render import NOMINAL_SECONDS, render_at
from data.moving_shapes.vocabulary import Attributes
from data.ucf101 import ucf101_builder as ucf101
from data.video_folder import video_folder_builder as video_folder
from stunet.errors import UserError
from stunet.video_io import to_float

NAMES = ("moving_shapes", "video_folder", "ucf101")

# A record and the example's random numbers -> the clip [T, H, W, 3] float32 in [-1, 1].
Decode = Callable[[Mapping[str, Any], np.random.Generator], np.ndarray]


class Source(NamedTuple):
    """A dataset's split: its records, and how to turn one into a clip."""

    records: Sequence[Mapping[str, Any]]
    decode: Decode


def open_source(config: Mapping[str, Any]) -> Source:
    """The split that `config` names (see `data.pipeline` for its fields).

    Raises:
      UserError: an unknown dataset or split, or a dataset that was not built.
    """
    found = records.read(make_builder(config), config["split"])
    if config["name"] != "moving_shapes":
        return Source(found, _stored_decoder(config))
    if motions := config.get("motions"):
        found = [r for r in found for _ in range(motions.count(r["motion"].decode()))]
    return Source(found, _shapes_decoder(config))


def make_builder(config: Mapping[str, Any]) -> tfds.core.DatasetBuilder:
    """The TFDS builder of the dataset that `config` names.

    Raises:
      UserError: an unknown dataset, or no such source.
    """
    name, data_dir = config["name"], config["data_dir"]
    if name not in NAMES:
        raise UserError(f"unknown dataset '{name}'; known are {', '.join(NAMES)}")
    if name == "moving_shapes":
        return moving_shapes.make_builder(data_dir, config["num_examples"])
    if not config["source"]:  # an empty path would be the current folder
        raise UserError(f"dataset '{name}' needs its videos: config.data.source is empty")
    form = {field: config[field] for field in ("source", "resolution", "fps", "num_frames")}
    if name == "video_folder":
        return video_folder.make_builder(data_dir, **form)
    return ucf101.make_builder(data_dir, **form, prompts=config.get("prompts"))


def _shapes_decoder(config: Mapping[str, Any]) -> Decode:
    num_frames, resolution, fps = config["num_frames"], config["resolution"], config["fps"]
    texture = config.get("texture") or 0.0
    clip_frames = config.get("clip_frames") or num_frames

    def decode(record: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
        words = (record[name].decode() for name in moving_shapes.ATTRIBUTES)
        attributes, seed = Attributes(*words), int(record["seed"])
        if num_frames == 1:  # an image: any moment of the clip
            moments, seconds = rng.random(1), NOMINAL_SECONDS
        else:
            first = rng.integers(clip_frames - num_frames + 1)
            moments = (first + np.arange(num_frames)) / clip_frames
            seconds = clip_frames / fps
        return render_at(attributes, seed, moments, seconds, resolution, texture)

    return decode


def _stored_decoder(config: Mapping[str, Any]) -> Decode:
    num_frames = config["num_frames"]

    def decode(record: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
        frames = record["frames"]
        start = int(rng.integers(len(frames) - num_frames + 1))
        return to_float(frames[start : start + num_frames])

    return decode
