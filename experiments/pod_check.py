"""Checks a pod in about a minute, before an expensive run. Arguments are those of a training run.

    python -m experiments.pod_check --config=experiments/configs/tiny_t2i.py --workdir=gs://B/RUN \\
        --cluster=auto

Run it on every host. Process 0 prints one line per check: all hosts see each other; the workdir can
be written, read and deleted from on every host; clocks, code and config agree; the config's mesh
fits the devices; a tiny train step runs on all of them. Exit codes: 0 all checks passed; 2 a check
failed, or took longer than 5 minutes. Needs no dataset and leaves nothing in the workdir.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import config_flags

import data
import experiments
import stunet
from data.pipeline import parse_config
from experiments.common.program_flags import read_flags
from experiments.common.tiny_step import time_tiny_step
from stunet.cluster import (
    agree,
    end_on_signals,
    gather_texts,
    is_first_process,
    join_cluster,
    share_text,
)
from stunet.compiling import prepare_compiler
from stunet.errors import UserError, run_command
from stunet.paths import AnyPath, user_path, write_text
from stunet.training.config import TrainConfig, parse_train_config
from stunet.training.mesh import batch_slice, check_batch, count_slices, make_mesh

LIMIT_S = 300  # per check; a blocked network makes a collective wait without end
CLOCK_LIMIT_S = 5.0  # leases of workdirs in buckets expire by the clock
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy", "gcsfs")
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "read this config file", flag_values=FLAGS
)
_CLUSTER = flags.DEFINE_string(
    "cluster",
    None,
    "check together with other processes: 'auto' on a TPU pod, else 'HOST:PORT,COUNT,NUMBER'",
    flag_values=FLAGS,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "check this folder of the run", flag_values=FLAGS)


class Check(NamedTuple):
    """A check of all processes.

    Attributes:
      name: Name in the output.
      measure: Called in every process; returns JSON values.
      judge: Maps the values of all processes to a remark; raises a UserError if they are wrong.
    """

    name: str
    measure: Callable[[], Any]
    judge: Callable[[list[Any]], str]


def main(argv: list[str]) -> None:
    """Parses the flags and runs the checks."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None or not _WORKDIR.value:
        raise UserError("--config=FILE and --workdir=DIR: one is missing, expected both")
    if _CLUSTER.value:
        join_cluster(_CLUSTER.value)
        end_on_signals()
    prepare_compiler()
    config = agree(lambda: parse_train_config(values, parse_config))
    workdir = agree(lambda: user_path(_WORKDIR.value))
    groups = [  # a check that needs the one before it
        [hosts_check()],
        workdir_checks(workdir),
        [clock_check()],
        [code_check(config)],
        [mesh_check(config), step_check(config)],
    ]
    failed = [name for group in groups for name in _report_until_failure(group)]
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; their lines are in the output of process 0")


def _report_until_failure(checks: list[Check]) -> list[str]:
    """Runs checks up to the first one that fails, and returns its name in a list."""
    return next(([check.name] for check in checks if not _report(check)), [])


def _report(check: Check) -> bool:
    """Runs a check and prints its line; returns whether it passed."""
    outcome: list[str | UserError] = []

    def run() -> None:
        try:
            outcome.append(run_check(check))
        except UserError as error:
            outcome.append(error)

    running = threading.Thread(target=run, daemon=True)
    running.start()
    running.join(LIMIT_S)
    if not outcome:
        print(
            f"experiments.pod_check: error: {check.name}: process {jax.process_index()} "
            f"({socket.gethostname()}) still waits after {LIMIT_S} s, expected seconds; another "
            "host is stuck, or a network between the hosts is blocked",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # a regular exit would wait for the other processes
    if is_first_process():
        mark = "" if isinstance(outcome[0], UserError) else "ok: "
        print(f"{check.name}: {mark}{outcome[0]}", flush=True)
    return not isinstance(outcome[0], UserError)


def run_check(check: Check) -> str:
    """Runs a check in all processes and returns its remark.

    Raises:
      UserError: In all processes, if a process measured an error, or the values are wrong.
    """
    value, failure = None, ""
    try:
        value = check.measure()
    except UserError as error:
        failure = str(error)
    except Exception as error:  # a library's; the other processes wait for this one
        failure = f"{type(error).__name__}: {error}".partition("\n")[0]
    results = [json.loads(text) for text in gather_texts(json.dumps([value, failure]))]
    failures = [failure for _, failure in results]
    if all(failures) and len(set(failures)) == 1:
        raise UserError(failures[0])
    for number, failure in enumerate(failures):
        if failure:
            raise UserError(f"process {number}: {failure}")
    return check.judge([value for value, _ in results])


def hosts_check() -> Check:
    """Returns the check that all processes see all devices."""

    def measure() -> list[Any]:
        devices = jax.devices()
        kind = devices[0].device_kind
        return [jax.local_device_count(), len(devices), kind, count_slices(devices)]

    def judge(values: list[Any]) -> str:
        local, _, kind, slices = first = values[0]
        _check_same(values)
        total = local * len(values)
        if first[1] != total:
            raise UserError(
                f"{first[1]} devices, expected {total} in {len(values)} processes with {local} each"
            )
        return f"processes: {len(values)}, devices of each: {local} ({kind}), slices: {slices}"

    return Check("hosts", measure, judge)


def workdir_checks(workdir: AnyPath) -> list[Check]:
    """Returns the checks that every process can write to, read from and delete from a folder."""
    folder = workdir / ".pod_check"
    token = share_text(uuid.uuid4().hex)

    def file_of(number: int) -> AnyPath:
        return folder / f"{number % jax.process_count()}.txt"

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file_of(jax.process_index()), token)

    def read_and_delete() -> None:
        try:
            read(file_of(jax.process_index() + 1))  # the file of another host
        finally:
            gather_texts("")  # all have read
            file_of(jax.process_index()).unlink()
            gather_texts("")
            for empty in (folder, workdir):  # a bucket has no folders
                with contextlib.suppress(OSError, UserError):
                    empty.rmdir()

    def read(path: AnyPath) -> None:
        try:
            found = path.read_text()
        except FileNotFoundError:
            found = None
        if found != token:
            raise UserError(
                f"{path}: {'missing' if found is None else 'of another check'}, expected the file "
                "that another host has just written; all hosts need the same workdir"
            )

    def judge(values: list[Any]) -> str:
        return f"{workdir}, processes: {len(values)}"

    return [Check("write", write, judge), Check("read, delete", read_and_delete, judge)]


def clock_check() -> Check:
    """Returns the check that the clocks of all hosts agree."""

    def measure() -> float:
        gather_texts("")  # all processes pass this within milliseconds
        return time.time()

    def judge(values: list[float]) -> str:
        skew = max(values) - min(values)
        if skew > CLOCK_LIMIT_S:
            latest = values.index(max(values))
            raise UserError(
                f"{skew:.1f} s apart (process {latest} is ahead of process "
                f"{values.index(min(values))}), expected at most {CLOCK_LIMIT_S:g} s"
            )
        return f"{skew:.2f} s apart"

    return Check("clocks", measure, judge)


def code_check(config: TrainConfig) -> Check:
    """Returns the check that all hosts have the same code, packages, variables and config."""

    def measure() -> dict[str, str]:
        settings = {"config": hashlib.sha256(repr(config).encode()).hexdigest()[:12]}
        settings |= {name: os.environ.get(name, "unset") for name in VARIABLES}
        return {"code": source_digest(), **versions(), **settings}

    def judge(values: list[dict[str, str]]) -> str:
        _check_same(values)
        found = values[0]
        packages = [f"{name} {found[name]}" for name in ("python", *PACKAGES) if name in found]
        return f"{found['code']}, {', '.join(packages)}"

    return Check("code", measure, judge)


def mesh_check(config: TrainConfig) -> Check:
    """Returns the check that the config's mesh and batch fit the devices."""

    def measure() -> list[int]:
        mesh = make_mesh(config.mesh.fsdp, config.mesh.frames)
        check_batch(mesh, config.batch_size, config.data.num_frames)
        batch_slice(mesh)
        return list(mesh.devices.shape)

    def judge(values: list[list[int]]) -> str:
        rows, fsdp, frames = values[0]
        return f"data {rows} x fsdp {fsdp} x frames {frames}, batch_size {config.batch_size}"

    return Check("mesh", measure, judge)


def step_check(config: TrainConfig) -> Check:
    """Returns the check that a tiny train step computes the same on all hosts."""

    def judge(values: list[list[float]]) -> str:
        for number, (loss, _) in enumerate(values):
            if not loss == values[0][0]:  # NaN differs from itself
                raise UserError(
                    f"loss {loss} in process {number}, expected {values[0][0]} as in process 0, "
                    "and finite"
                )
        seconds = max(seconds for _, seconds in values)
        return f"tiny train step in {seconds:.3f} s"

    return Check("step", lambda: list(time_tiny_step(config.mesh)), judge)


def _check_same(values: list[Any]) -> None:
    """Checks that all processes have the values of process 0.

    Raises:
      UserError: They do not; names the first one and its process.
    """
    first = values[0]
    for number, value in enumerate(values):
        keys = first.keys() | value.keys() if isinstance(first, dict) else range(len(first))
        for key in sorted(keys):
            own, other = (v.get(key) if isinstance(v, dict) else v[key] for v in (value, first))
            if own != other:
                name = f"{key} " if isinstance(key, str) else ""
                raise UserError(
                    f"{name}{own} in process {number}, expected {other} as in process 0"
                )


def source_digest() -> str:
    """Returns a digest of this project's sources on this host."""
    digest = hashlib.sha256()
    for package in (stunet, data, experiments):
        folder = Path(package.__file__).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages that training depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.pod_check"))
