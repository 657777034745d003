"""Download of published weights from the Hugging Face Hub."""

import posixpath
from collections.abc import Sequence
from pathlib import Path

from stunet.conversion.hub_layout import select_weight_files
from stunet.errors import UserError
from stunet.paths import AnyPath, absolute, user_path
from stunet.weights.find_model import find_model_folder
from stunet.weights.folder_config import folder_kind
from stunet.weights.hub import HubId, download, hub_id_of, is_hub_id, list_files, parse_hub_id

# Small files that the import of a component reads besides its config, relative to the pipeline or
# to the component.
_SMALL_FILES = {
    "unet": tuple(f"{parent}scheduler/scheduler_config.json" for parent in ("", "../")),
    "text_encoder": tuple(
        f"{parent}{name}"
        for parent in ("", "text_encoder/", "tokenizer/", "../tokenizer/")
        for name in ("tokenizer.json", "spiece.model")
    ),
}


def find_source(source: str | AnyPath, components: Sequence[str], variant: str | None) -> AnyPath:
    """Returns the folder of published weights, downloaded if `source` is a hub id.

    Downloads the configs, the tokenizer and one variant of the weights of each component.

    Args:
      source: Folder (on disk or in a bucket) or hub id of a pipeline, of a component, or of a model
        folder.
      components: The pipeline's folders to read: "unet" or "text_encoder". The first is required.
      variant: Variant of the weights, see `hub_layout.find_weight_files`.

    Raises:
      UserError: The hub id contains none of these, or as `download` and `find_weight_files`.
    """
    if not is_hub_id(source):
        return absolute(user_path(source))  # so that "." has a parent
    hub_id = parse_hub_id(source)
    small = ["config.json"]
    for component in components:
        small += [f"{component}/config.json", *_SMALL_FILES[component]]
    folder = download(hub_id, [name for name in small if _is_inside(hub_id, name)])
    if folder_kind(folder) is not None:
        return find_model_folder(str(source))
    commit = hub_id_of(folder)  # so that all files are of one version
    names = _list_files(commit, folder)
    present = [name for name in components if f"{name}/config.json" in names]
    if components[0] not in present:
        if "config.json" not in names:
            raise UserError(
                f"{hub_id}: no weights found, expected {components[0]}/ (pipeline) or config.json"
            )
        present = ["."]
    weights = []
    for component in present:
        found = [name for name in names if posixpath.dirname(name) == component.strip(".")]
        selected = select_weight_files(
            [posixpath.basename(name) for name in found], variant, hub_id.at(component)
        )
        weights += [posixpath.join(component, name) for name in selected]
    return download(commit, weights)


def _is_inside(hub_id: HubId, name: str) -> bool:
    try:
        hub_id.at(name)
    except ValueError:
        return False
    return True


def _list_files(hub_id: HubId, folder: Path) -> list[str]:
    """Returns the names of a hub folder's files; without a connection, those in the cache."""
    try:
        return list_files(hub_id)
    except UserError:
        cached = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        if not any(name.endswith(".safetensors") for name in cached):
            raise
        return cached
