"""The file `WORKDIR/run.json`: config, data and versions of a run's last start, and all changes."""

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata

from stunet import __version__
from stunet.errors import UserError
from stunet.files import read_json
from stunet.paths import AnyPath, write_text
from stunet.schema import from_dict

_FILE = "run.json"
_PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of `run.json`.

    Attributes:
      config: Fields of the config of the last start, as in a config file.
      stage: Where the stage is defined, "MODULE:CLASS". Missing in files of older versions.
      data: Identity of clips and captions. None in files of older versions.
      versions: Versions of Python and packages at the last start, by name. Empty in files of older
        versions.
      changes: One entry for each value that changed between two starts: `step` that the run
        continued from, `field`, `old` and `new`.
    """

    config: dict
    stage: str = ""
    data: str | None = None
    versions: dict = field(default_factory=dict)
    changes: tuple[dict, ...] = ()


def read_record(workdir: AnyPath) -> RunRecord | None:
    """Reads the record of the workdir's run, None if there is none.

    Raises:
      UserError: `run.json` is damaged.
    """
    path = workdir / _FILE
    return from_dict(RunRecord, read_json(path), str(path)) if path.exists() else None


def stored_record(workdir: AnyPath) -> tuple[RunRecord, str]:
    """Returns the record of a run, and its path for errors.

    Raises:
      UserError: The workdir has no record, or one that does not name the stage.
    """
    path, record = workdir / _FILE, read_record(workdir)
    if record is None or not record.stage:
        raise UserError(
            f"{path}: no config of a run, expected a training workdir (resume a run of an older "
            "version with its config, which writes it)"
        )
    return record, str(path)


def write_record(record: RunRecord, workdir: AnyPath) -> None:
    """Writes `run.json`, replacing an existing one in one step.

    Raises:
      UserError: The disk is full or read-only.
    """
    write_text(workdir / _FILE, json.dumps(asdict(record), indent=2) + "\n")


def installed_versions() -> dict[str, str]:
    """Returns the versions of Python, this package and those that determine a run's numbers."""
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "stunet": __version__, **versions}
