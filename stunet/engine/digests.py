"""Digests of a job: two processes with equal digests compute the same result."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

import stunet
from stunet.engine.request import SOURCES, Request
from stunet.files import read_bytes
from stunet.paths import AnyPath
from stunet.weights.find_model import find_model_folder
from stunet.weights.model_folder import ModelFolder, open_model_folder
from stunet.weights.trees import flatten


def job_digests(requests: Sequence[Request], models: Sequence[str | AnyPath]) -> dict[str, str]:
    """Returns the settings of the requests, and digests of prompts, input files and models.

    Reads all files, one parameter at a time.

    Args:
      requests: Requests that differ in prompt and seed only. Their inputs must be files.
      models: Model folders, or names of models that come with the package.

    Raises:
      UserError: A file or a model is missing or unreadable.
    """
    settings = [
        {k: v for k, v in request.to_dict().items() if k not in SOURCES} for request in requests
    ]
    fields = {**settings[0], **settings[0]["sampling"]}
    del fields["prompts"], fields["sampling"]
    files = sorted({path for request in requests for path in request.files.values()})
    return {
        "stunet": stunet.__version__,
        **{name: json.dumps(value) for name, value in fields.items()},
        "prompts": _short(hashlib.sha256(json.dumps(settings, sort_keys=True).encode())),
        **{str(path): _short(hashlib.sha256(read_bytes(path))) for path in files},
        **model_digests(models),
    }


def model_digests(models: Sequence[str | AnyPath]) -> dict[str, str]:
    """Returns digests of models by path; see `job_digests`."""
    folders = {str(path): find_model_folder(path) for path in models}
    return {name: _model_digest(open_model_folder(folder)) for name, folder in folders.items()}


def _model_digest(contents: ModelFolder) -> str:
    """Returns a digest of a model's config, tokenizer and parameters."""
    digest = hashlib.sha256(json.dumps(contents.config, sort_keys=True).encode())
    digest.update(contents.tokenizer or b"")
    for path, leaf in sorted(flatten(contents.params).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return _short(digest)


def _short(digest) -> str:
    return f"SHA-256 {digest.hexdigest()[:16]}"
