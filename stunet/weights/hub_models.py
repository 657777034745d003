"""Model folders on the Hugging Face Hub.

A repository contains a model folder in its root or several in subfolders. A base of a model folder
is another folder of the repository, or a hub id.
"""

import contextlib
import json
import posixpath
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stunet.checksums import CHECKSUMS
from stunet.errors import UserError
from stunet.paths import AnyPath, is_remote, local_input, resolved
from stunet.weights.bases import base_folder
from stunet.weights.find_model import find_model_folder
from stunet.weights.folder_config import folder_kind, is_model_file, listed_files
from stunet.weights.hub import (
    HubId,
    create_repository,
    download,
    hub_id_of,
    is_hub_id,
    list_files,
    upload,
)
from stunet.weights.model_folder import open_model_folder, open_text_encoder
from stunet.weights.trees import count_parameters

_CARD = "README.md"
# Kind of model -> description, pipeline tag of the hub, and example command.
_KINDS = {
    "text encoder": ("A frozen text encoder", None, "stunet import-t5 {id} MODEL_FOLDER"),
    "image": (
        "A text-to-image model",
        "text-to-image",
        'stunet generate "PROMPT" --model {id} --out image.png',
    ),
    "video": (
        "A text-to-video model",
        "text-to-video",
        'stunet generate "PROMPT" --model {id} --out video.mp4',
    ),
    "conditional": (
        "An image-to-video and video inpainting model",
        "image-to-video",
        'stunet animate image.png "PROMPT" --model {id} --out video.mp4',
    ),
    "super-resolution": (
        "A super-resolution model for images and videos",
        "video-to-video",
        'stunet upscale video.mp4 "PROMPT" --model {id} --out large.mp4',
    ),
}


def download_model_folder(hub_id: HubId) -> Path:
    """Downloads a model folder, with its bases in the same repository, to the hub's cache.

    Downloads the files that `config.json` lists.

    Returns:
      The local folder.

    Raises:
      UserError: There is no model folder, a file is missing, or as `download`.
    """
    return _download(hub_id, frozenset())


def _download(hub_id: HubId, derived: frozenset[str]) -> Path:
    folder = download(hub_id, ["config.json", CHECKSUMS])
    if not (folder / "config.json").is_file():
        raise _no_model_error(hub_id)
    try:
        names, base = listed_files(folder)
    except UserError as error:
        raise UserError(f"{hub_id}: {error}") from error
    commit = hub_id_of(folder)  # so that all files are of one version
    if names:  # a folder can inherit all of its parameters
        download(commit, names)
    if missing := [name for name in names if not (folder / name).is_file()]:
        list_files(commit)  # reports a missing connection
        raise UserError(f"{hub_id}: {missing[0]}: no such file, but config.json lists it")
    # A base that inherits from the folder is reported when the folder is opened.
    if (
        base is not None
        and not (is_hub_id(base) or is_remote(base))
        and hub_id.folder not in derived
    ):
        _download(_base_id(commit, base), derived | {hub_id.folder})
    return folder


def _base_id(hub_id: HubId, base: str) -> HubId:
    try:
        return hub_id.at(base if "/" in base else f"../{base}")
    except ValueError:
        raise UserError(
            f"{hub_id}: config.json: base is {base!r}, which is outside of the repository"
        ) from None


def _no_model_error(hub_id: HubId) -> UserError:
    names = list_files(hub_id)
    folders = [name.removesuffix("/config.json") for name in names if name.endswith("/config.json")]
    if not names:
        return UserError(f"{hub_id}: no such folder in the repository, expected a model folder")
    if "unet" in folders:
        hint = f"; `stunet import-if {hub_id} DST` converts a diffusers pipeline"
    elif folders:
        hint = f" or one of the folders {', '.join(str(hub_id.at(name)) for name in folders)}"
    else:
        hint = f", found {', '.join(names[:5])}"
    return UserError(f"{hub_id}: no model found, expected config.json{hint}")


def push_model_folder(
    path: str | AnyPath, hub_id: HubId, private: bool, license: str | None
) -> str:
    """Uploads a model folder, with its local bases, in one commit.

    Creates the repository if it does not exist. Writes a model card if there is none. Files that
    are there already are not transferred, and weights that the new folder lacks are deleted. Bases
    keep their position relative to the folder.

    Args:
      path: Model folder, text encoder folder or training workdir, on disk or in a bucket, or the
        name of a model of the package. Files in a bucket are downloaded to temporary ones.
      hub_id: Folder to write. Its revision, if any, is an existing branch.
      private: Whether a new repository is private.
      license: License in the model card, such as "apache-2.0". None leaves it out.

    Returns:
      The repository's address.

    Raises:
      UserError: There is no complete model, a base would be outside of the repository, or as
        `upload`.
    """
    folder = resolved(find_model_folder(path))
    if folder_kind(folder) == "text_encoder":
        encoder = open_text_encoder(folder)
        config, params = {"text_encoder": encoder.config}, {"text_encoder": encoder.params}
    else:
        model = open_model_folder(folder)
        config, params = model.config, model.params
    files = _repository_files(folder, hub_id)
    create_repository(hub_id, private)
    root = HubId(hub_id.repository, hub_id.revision)
    present = list_files(root)
    folders = {posixpath.dirname(name) for name in files}
    deleted = [
        name
        for name in present
        if name not in files
        and posixpath.dirname(name) in folders
        and is_model_file(posixpath.basename(name))
    ]
    with contextlib.ExitStack() as stack:
        contents: dict[str, Path | bytes] = {
            name: stack.enter_context(local_input(file)) for name, file in files.items()
        }
        if _CARD not in present:
            sizes = {part: count_parameters(tree) for part, tree in params.items()}
            contents[_CARD] = model_card(config, sizes, hub_id, license).encode()
        return upload(root, contents, deleted, f"Upload {folder.name} with stunet")


def _repository_files(folder: AnyPath, hub_id: HubId) -> dict[str, AnyPath]:
    """Returns path in the repository -> file of a folder and its bases. `folder` is resolved."""
    names, base = listed_files(folder)
    names = ["config.json", *names, *filter(lambda name: (folder / name).exists(), [CHECKSUMS])]
    files = {hub_id.at(name).folder: folder / name for name in names}
    if base is None or is_hub_id(base):
        return files
    path = PurePosixPath(base) if "/" in base else PurePosixPath("..", base)
    try:
        if is_remote(base):
            raise ValueError("it has no position relative to the folder")
        base_id = hub_id.at(path.as_posix())
    except ValueError:
        depth = max(1, path.parts.count(".."))
        target = "/".join(folder.parts[-depth:])
        raise UserError(
            f"{folder / 'config.json'}: base is {base!r}, which would be outside of the repository "
            f"for {hub_id}, expected a relative path and a folder such as "
            f"{HubId(hub_id.repository, hub_id.revision, target)}"
        ) from None
    return _repository_files(resolved(base_folder(folder, base)), base_id) | files


def model_card(
    config: Mapping[str, Any], sizes: Mapping[str, int], hub_id: HubId, license: str | None
) -> str:
    """Returns the text of a model card (Markdown with YAML metadata).

    Args:
      config: Fields of `ModelConfig`, or only `text_encoder` for a text encoder.
      sizes: Numbers of parameters: "unet" and "text_encoder".
      hub_id: The model's hub id.
      license: Identifier of the license on the hub. None leaves it out.
    """
    kind = _kind(config)
    description, pipeline_tag, command = _KINDS[kind]
    metadata = [
        "library_name: stunet",
        *([] if license is None else [f"license: {json.dumps(license)}"]),
        *([] if pipeline_tag is None else [f"pipeline_tag: {pipeline_tag}"]),
        "tags:",
        *(f"- {tag}" for tag in ("stunet", "jax", "flax", "lumiere", kind.replace(" ", "-"))),
    ]
    rows = [(f"parameters of the {part}", f"{size:,}") for part, size in _named(sizes).items()]
    if kind != "text encoder":
        rows = [("output", _output(config)), ("training stage", config["stage"]), *rows]
        if "text_encoder" not in sizes:
            rows.append(("text encoder", "none; `stunet import-t5` adds one"))
    table = [f"| {name} | {value} |" for name, value in rows]
    name = (hub_id.folder or hub_id.repository).rpartition("/")[2]
    lines = [
        "---",
        *metadata,
        "---",
        "",
        f"# {name}",
        "",
        f"{description}. It runs with stunet, an implementation of Lumiere's Space-Time U-Net "
        "([arXiv 2401.12945](https://arxiv.org/abs/2401.12945)) in JAX and Flax.",
        "",
        "| | |",
        "|---|---|",
        *table,
        "",
        "```bash",
        'pip install "stunet[hub]"',
        command.format(id=hub_id),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _kind(config: Mapping[str, Any]) -> str:
    """Returns the key of `_KINDS`."""
    if "architecture" not in config:
        return "text encoder"
    if config.get("super_resolution") is not None:
        return "super-resolution"
    if config["architecture"].get("cond_channels"):
        return "conditional"
    return "video" if config["architecture"].get("temporal") else "image"


def _output(config: Mapping[str, Any]) -> str:
    size = f"{config['resolution']}x{config['resolution']} pixels"
    if config["num_frames"] == 1 or config["fps"] is None:
        return f"images of {size}"
    seconds = config["num_frames"] / config["fps"]
    return f"{config['num_frames']} frames of {size} at {config['fps']:g} fps ({seconds:g} s)"


def _named(sizes: Mapping[str, int]) -> dict[str, int]:
    names = {"unet": "U-Net", "text_encoder": "text encoder"}
    return {names[part]: size for part, size in sizes.items()}
