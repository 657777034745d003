"""Runs the commands of a launch until training is done."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Protocol

from experiments.common.exit_codes import PREEMPTED
from experiments.launch import commands
from experiments.launch.config import Launch
from stunet.errors import UserError

LOST_STATES = ("SUSPENDED", "FAILED")  # a queued resource does not recover from these
POLL_S = 60


class Runner(Protocol):
    """Access to processes, time and terminal; tests pass a fake."""

    def run(self, argv: Sequence[str]) -> int:
        """Runs a command in this terminal and returns its exit code."""
        ...

    def read(self, argv: Sequence[str]) -> str | None:
        """Runs a command and returns its stripped output; None if it failed."""
        ...

    def wait(self, seconds: float) -> None:
        """Waits."""
        ...

    def log(self, message: str) -> None:
        """Shows a message to the user."""
        ...


class Shell:
    """The `Runner` that runs commands."""

    def run(self, argv: Sequence[str]) -> int:
        """Runs a command in this terminal and returns its exit code."""
        return subprocess.run(argv).returncode

    def read(self, argv: Sequence[str]) -> str | None:
        """Runs a command and returns its stripped output; None if it failed."""
        process = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
        return process.stdout.strip() if process.returncode == 0 else None

    def wait(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)

    def log(self, message: str) -> None:
        """Prints a message to stderr."""
        print(f"experiments.launch: {message}", file=sys.stderr, flush=True)


def launch(config: Launch, runner: Runner) -> int:
    """Starts training and restarts it until it is done.

    Returns:
      0 if training is done, 1 if it failed too often.

    Raises:
      UserError: Training exited with 2 (wrong usage or divergence), or Google Cloud refused a
        request.
    """
    launchers = {"xpk": _launch_xpk, "queued_resources": _launch_queued_resources}
    return launchers[config.launcher](config, runner)


def _launch_xpk(config: Launch, runner: Runner) -> int:
    """Submits the workload and waits for its end; the cluster restarts it after preemptions."""
    _run_checked(runner, commands.xpk_create(config), "xpk could not create the workload")
    while (code := runner.run(commands.xpk_wait(config))) == 124:  # xpk stops waiting after a week
        pass
    if code == 0:
        runner.log(f"done: {config.workdir}")
    elif code == 125:
        runner.log(
            f"the workload {config.name!r} failed, by an error in its log or after "
            f"{config.max_restarts} restarts; launch it again to resume"
        )
    else:
        runner.log(f"xpk exited with {code} while waiting; the workload may still be running")
    return 0 if code == 0 else 1


def _launch_queued_resources(config: Launch, runner: Runner) -> int:
    """Restarts training after each preemption, on a new TPU if the old one is lost."""
    if runner.read(commands.state(config)) is None:
        raise UserError("gcloud: cannot list queued resources; its message is above")
    failures = 0
    while failures < config.max_failures:
        _obtain_tpu(config, runner)
        code = runner.run(commands.start(config))
        if code == 0:
            code = runner.run(commands.follow(config))
            if code == 0:
                runner.log(f"done: {config.workdir}")
                _run_checked(
                    runner, commands.delete(config), "the TPU could not be deleted and is billed"
                )
                return 0
            if code == 2:
                raise UserError(f"training: exit code 2, see its last line. {_leftover(config)}")
        if code in (PREEMPTED, 128 + signal.SIGTERM):  # saved, or nothing to save yet
            runner.log("training was preempted and has saved; resuming")
            failures = 0
        elif runner.read(commands.state(config)) != "ACTIVE":
            runner.log("the TPU is lost or unreachable; resuming on it or on a new one")
            failures = 0
        else:
            failures += 1
            runner.log(f"failure {failures} of {config.max_failures}: exit code {code}")
            runner.wait(POLL_S)
    runner.log(f"gave up after {failures} failures in a row. {_leftover(config)}")
    return 1


def _obtain_tpu(config: Launch, runner: Runner) -> None:
    """Waits until the TPU is ACTIVE. Requests one if there is none, and replaces a lost one."""
    requested = False
    while (state := runner.read(commands.state(config))) != "ACTIVE":
        if state == "FAILED" and requested:
            raise UserError(
                "the request for a TPU failed; `gcloud compute tpus queued-resources describe` "
                f"shows the reason. {_leftover(config)}"
            )
        if state in LOST_STATES:
            _run_checked(runner, commands.delete(config), "a lost TPU could not be deleted")
        elif state == "":
            _run_checked(runner, commands.create(config), "the request for a TPU was refused")
            requested = True
        else:
            runner.log(f"the TPU is {state or 'unreachable'}")
            runner.wait(POLL_S)


def _run_checked(runner: Runner, argv: Sequence[str], error: str) -> None:
    """Runs a command; raises a UserError that begins with `error` if it fails."""
    code = runner.run(argv)
    if code:
        raise UserError(f"{error}: {' '.join(argv[:5])} exited with {code}; its message is above")


def _leftover(config: Launch) -> str:
    return (
        f"The queued resource {config.name!r} still exists and is billed; --dry-run prints the "
        "command that deletes it"
    )
