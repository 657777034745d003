"""The table of datasets, and the parser of data configs.

To add a dataset, subclass `DataConfig` in a new module and enter it here. A class outside of this
package needs no entry: its name in a config is "package.module:name".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from data.data_config import DataConfig
from data.emoji.emoji_builder import EmojiConfig
from data.moving_shapes.moving_shapes_builder import MovingShapesConfig
from data.ucf101.ucf101_builder import Ucf101Config
from data.video_folder.video_folder_builder import VideoFolderConfig
from stunet.errors import UserError
from stunet.plugins import resolve
from stunet.schema import from_dict

DATASETS: dict[str, type[DataConfig]] = {
    "moving_shapes": MovingShapesConfig,
    "video_folder": VideoFolderConfig,
    "ucf101": Ucf101Config,
    "emoji": EmojiConfig,
}


def parse_config(mapping: Mapping[str, Any], where: str = "config.data") -> DataConfig:
    """Parses a data config.

    Unset fields of other datasets (None, empty or 0) are ignored, so that one config file can
    switch between datasets.

    Args:
      mapping: Plain values by field name, from a dict or an `ml_collections.ConfigDict`.
      where: Name of the mapping in errors.

    Raises:
      UserError: `mapping` is no mapping, the dataset or a field is unknown, missing or invalid, or
        a field of another dataset has a value.
    """
    try:
        values = dict(mapping)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {mapping!r}, expected the fields of a dataset") from error
    name = values.get("name")
    if not isinstance(name, str):
        raise UserError(
            f"{where}: name is {name!r}, expected one of {', '.join(DATASETS)} or "
            "'package.module:name'"
        )
    dataset = resolve(f"{where}: dataset", name, DATASETS)
    if not (isinstance(dataset, type) and issubclass(dataset, DataConfig)):
        raise UserError(f"{where}: dataset {name!r} is {dataset!r}, expected a DataConfig subclass")
    for field, owners in _fields_of_others(dataset).items():
        if value := values.pop(field, None):
            raise UserError(
                f"{where}: {field} is {value!r}, expected no value for dataset {name!r} "
                f"({field} is a field of {', '.join(owners)})"
            )
    return from_dict(dataset, values, where)


def _fields_of_others(dataset: type[DataConfig]) -> dict[str, list[str]]:
    """Fields that `dataset` does not have -> names of the datasets that do."""
    own = {field.name for field in dataclasses.fields(dataset)}
    owners: dict[str, list[str]] = {}
    for name, other in DATASETS.items():
        for field in dataclasses.fields(other):
            if field.name not in own:
                owners.setdefault(field.name, []).append(name)
    return owners
