"""Files of repositories on the Hugging Face Hub, read and written through `huggingface_hub`.

A hub id names a folder of a model repository: `hf://OWNER/NAME[@REVISION][/FOLDER]`. REVISION is a
branch, a tag or a commit (default: the repository's main branch). Downloads go to the cache of
`huggingface_hub` ($HF_HOME), which is also read when there is no connection.
"""

import contextlib
import dataclasses
import glob
import logging
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from stunet.checksums import CHECKSUMS
from stunet.errors import UserError, disk_error
from stunet.paths import AnyPath

FORMAT = "hf://OWNER/NAME[@REVISION][/FOLDER]"

# `Path("hf://a/b")` has one slash. Revisions that contain a slash are those of pull requests and
# conversions.
_HUB_ID = re.compile(
    r"hf:/{1,2}(?P<repository>[\w.-]+/[\w.-]+)"
    r"(@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@]+))?(/(?P<folder>[^@]*))?"
)
_SNAPSHOT = re.compile(
    r".*/models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})"
    r"(/(?P<folder>.*))?"
)


@dataclasses.dataclass(frozen=True)
class HubId:
    """A folder of a model repository.

    Attributes:
      repository: OWNER/NAME.
      revision: Branch, tag or commit. None is the main branch.
      folder: Path in the repository, "" for its root.
    """

    repository: str
    revision: str | None = None
    folder: str = ""

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"hf://{self.repository}{revision}{'/' if self.folder else ''}{self.folder}"

    def at(self, path: str) -> "HubId":
        """Returns another folder of the repository, by its path from this one.

        Raises:
          ValueError: The path leads out of the repository.
        """
        folder = posixpath.normpath(posixpath.join(self.folder, path))
        if folder.startswith(("..", "/")):
            raise ValueError(f"{path}: outside of {self.repository}")
        return dataclasses.replace(self, folder="" if folder == "." else folder)


def is_hub_id(path: str | AnyPath) -> bool:
    """Returns whether a path that a user wrote is a hub id, possibly an invalid one."""
    return str(path).startswith("hf:/")


def parse_hub_id(text: str | AnyPath) -> HubId:
    """Parses a hub id.

    Raises:
      UserError: It is malformed.
    """
    match = _HUB_ID.fullmatch(str(text))
    folder = ((match and match["folder"]) or "").strip("/")
    if match is None or {"", ".", ".."} & set(folder.split("/") if folder else []):
        raise UserError(f"{text}: malformed hub id, expected {FORMAT}")
    return HubId(match["repository"], match["revision"], folder)


def hub_id_of(path: AnyPath) -> HubId | None:
    """Returns the hub id, with its commit, of a folder in the cache. None for other folders."""
    match = _SNAPSHOT.fullmatch(path.as_posix())
    if match is None:
        return None
    return HubId(f"{match['owner']}/{match['name']}", match["commit"], match["folder"] or "")


def download(hub_id: HubId, names: Sequence[str]) -> Path:
    """Downloads files to the cache, unless they are there.

    An interrupted download continues with the files that are missing. Without a connection the
    cache is used.

    Args:
      hub_id: Folder in the repository.
      names: Files to download, relative to `hub_id`. Files that the repository lacks are skipped.

    Returns:
      The local folder. `hub_id_of` returns the commit.

    Raises:
      UserError: The repository or revision does not exist or cannot be accessed, or there is no
        connection and the cache does not contain the revision.
    """
    paths = [hub_id.at(name).folder for name in names]
    with _reported(hub_id) as library:
        if re.fullmatch("[0-9a-f]{40}", hub_id.revision or ""):  # its files do not change
            cached = [
                library.try_to_load_from_cache(hub_id.repository, path, revision=hub_id.revision)
                for path in paths
            ]
            # Models of older versions have no checksums.
            required = [file for file, name in zip(cached, names, strict=True) if name != CHECKSUMS]
            if all(isinstance(file, str) for file in required):
                return Path(cached[0].removesuffix(paths[0]), hub_id.folder)
        patterns = [glob.escape(path) for path in paths]
        with _no_warnings("huggingface_hub._snapshot_download"):  # about names that do not exist
            root = library.snapshot_download(
                hub_id.repository, revision=hub_id.revision, allow_patterns=patterns
            )
    return Path(root, hub_id.folder)


def list_files(hub_id: HubId) -> list[str]:
    """Returns the sorted names of a folder's files, relative to it, including subfolders.

    Raises:
      UserError: See `download`. There is no listing without a connection.
    """
    with _reported(hub_id) as library:
        names = library.list_repo_files(hub_id.repository, revision=hub_id.revision)
    folder = f"{hub_id.folder}/" if hub_id.folder else ""
    return sorted(name.removeprefix(folder) for name in names if name.startswith(folder))


def upload(
    hub_id: HubId,
    files: Mapping[str, Path | bytes],
    deleted: Sequence[str],
    message: str,
) -> str:
    """Uploads files to a repository and deletes others, in one commit.

    Args:
      hub_id: Repository and branch. Its folder is ignored.
      files: Path in the repository -> local file or contents.
      deleted: Paths in the repository.
      message: Message of the commit.

    Returns:
      The repository's address.

    Raises:
      UserError: The repository cannot be written, or there is no connection.
    """
    with _reported(hub_id) as library:
        additions = [
            library.CommitOperationAdd(path, file if isinstance(file, bytes) else str(file))
            for path, file in files.items()
        ]
        result = library.create_commit(
            hub_id.repository,
            [*additions, *map(library.CommitOperationDelete, deleted)],
            commit_message=message,
            revision=hub_id.revision,
        )
    return str(result.repo_url)


def create_repository(hub_id: HubId, private: bool) -> None:
    """Creates a model repository. Changes nothing if it exists.

    Raises:
      UserError: The user is not logged in or has no permission, or there is no connection.
    """
    with _reported(hub_id) as library:
        library.create_repo(hub_id.repository, private=private, exist_ok=True)


@contextlib.contextmanager
def _no_warnings(name: str) -> Iterator[None]:
    """Silences a logger in the block, except for errors."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _reported(hub_id: HubId) -> Iterator[ModuleType]:
    """Yields `huggingface_hub` and converts its errors to a `UserError` of one line."""
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise UserError(
            f"{hub_id}: needs the package huggingface_hub ({error}), install it with "
            '`pip install "stunet[hub]"`'
        ) from error
    page = f"{constants.ENDPOINT}/{hub_id.repository}"
    try:
        yield huggingface_hub
    except errors.GatedRepoError as error:
        raise UserError(
            f"{hub_id}: access denied ({_server_message(error)}), expected an account that has "
            f"accepted the terms on {page}, logged in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{hub_id}: no such repository at {page}, expected {FORMAT}; a private repository "
            "needs `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{hub_id}: no revision {hub_id.revision!r}, expected a branch, tag or commit of {page}"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{hub_id}: malformed hub id, expected {FORMAT}") from error
    # `errors.HTTPError` is the base of the HTTP client's errors. hf_xet, which transfers large
    # files, raises RuntimeErrors.
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        if disk_error(error) is not None and not isinstance(error, errors.HTTPError):
            raise
        raise UserError(f"{hub_id}: {_describe(error, page)}") from error


def _describe(error: BaseException, page: str) -> str:
    """Describes a failed transfer and what to do about it."""
    from huggingface_hub import constants, errors

    cause = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__ or error
    is_cached_read = isinstance(error, errors.LocalEntryNotFoundError)
    uncached = f" and not in the cache {constants.HF_HUB_CACHE}" if is_cached_read else ""
    if constants.HF_HUB_OFFLINE:
        return f"offline (HF_HUB_OFFLINE is set){uncached}, expected a connection to {page}"
    if isinstance(cause, errors.HfHubHTTPError):
        if cause.response.status_code == 401:
            return f"not logged in ({_server_message(cause)}), expected `hf auth login`"
        return f"refused by {page} ({_server_message(cause)})"
    reason = " ".join(f"{type(cause).__name__}: {cause}".split())
    return f"transfer failed ({reason}){uncached}, expected a connection to {page}"


def _server_message(error: Exception) -> str:
    """Returns the server's own message on one line, or the status if it sent none."""
    text = getattr(error, "server_message", None) or str(error).splitlines()[0]
    return " ".join(text.split()).rstrip(".")
