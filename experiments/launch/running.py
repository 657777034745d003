"""Running a launch's commands until the experiment is done."""

import subprocess
import sys
import time
from collections.abc import Sequence

from experiments.common.exit_codes import PREEMPTED
from experiments.launch import commands
from experiments.launch.config import Launch
from stunet.errors import UserError

LOST = ("SUSPENDED", "FAILED")  # a queued resource in these states will not come back
POLL_S = 60


class Shell:
    """Runs commands, waits and talks; a test's runner does the same without any of it."""

    def run(self, argv: Sequence[str]) -> int:
        """Runs a command, whose terminal this one is, and returns its exit code."""
        return subprocess.run(argv).returncode

    def read(self, argv: Sequence[str]) -> str | None:
        """What a command printed, without the space around it; None where it failed."""
        ran = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
        return ran.stdout.strip() if ran.returncode == 0 else None

    def wait(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)

    def say(self, text: str) -> None:
        """Tells the user what is going on."""
        print(f"experiments.launch: {text}", file=sys.stderr, flush=True)


def launch(config: Launch, runner: Shell) -> int:
    """Starts the experiment and sees it through.

    Returns:
      0 when it is done; 1 when it failed too often.

    Raises:
      UserError: a mistake of the user's, or a request that Google Cloud refused.
    """
    run = {"xpk": _launch_xpk, "queued_resources": _launch_queued}[config.launcher]
    return run(config, runner)


def _launch_xpk(config: Launch, runner: Shell) -> int:
    """The cluster itself restarts what was preempted and stops at any other exit code."""
    _must(runner, commands.xpk_create(config), "xpk could not create the workload")
    while (code := runner.run(commands.xpk_wait(config))) == 124:  # after a week
        pass
    if code == 0:
        runner.say(f"done: {config.workdir}")
    elif code == 125:
        runner.say(
            f"the workload {config.name!r} failed: by a mistake that its log tells, or after "
            f"{config.max_restarts} restarts; launching again resumes it"
        )
    else:
        runner.say(f"xpk exited {code} while waiting; the workload may be running all the same")
    return 0 if code == 0 else 1


def _launch_queued(config: Launch, runner: Shell) -> int:
    """Starts training again whenever it was preempted, on a new TPU where the old one is lost."""
    if runner.read(commands.state(config)) is None:
        raise UserError("gcloud cannot list queued resources; its message is above")
    failures = 0
    while failures < config.max_failures:
        _obtain(config, runner)
        code = runner.run(commands.start(config))
        if code == 0:
            code = runner.run(commands.follow(config))
            if code == 0:
                runner.say(f"done: {config.workdir}")
                _must(runner, commands.delete(config), "the TPU could not be deleted and costs")
                return 0
            if code == 2:
                raise UserError(f"training exited 2: its last line says why. {_leftover(config)}")
        if code == PREEMPTED:
            runner.say("training was stopped and has saved; it resumes")
            failures = 0
        elif runner.read(commands.state(config)) != "ACTIVE":
            runner.say("the TPU is lost or out of reach; training resumes on it or on another")
            failures = 0
        else:
            failures += 1
            runner.say(f"failure {failures} of {config.max_failures}: exit code {code}")
            runner.wait(POLL_S)
    runner.say(f"gave up after {failures} failures in a row. {_leftover(config)}")
    return 1


def _obtain(config: Launch, runner: Shell) -> None:
    """Returns when the TPU is there, having asked for it, or for another, where need be."""
    asked = False
    while (state := runner.read(commands.state(config))) != "ACTIVE":
        if state == "FAILED" and asked:
            raise UserError(
                "the request for a TPU failed; `gcloud compute tpus queued-resources describe` "
                f"says why. {_leftover(config)}"
            )
        if state in LOST:
            _must(runner, commands.delete(config), "a lost TPU could not be deleted")
        elif state == "":
            _must(runner, commands.create(config), "the TPU was refused")
            asked = True
        else:
            runner.say(f"the TPU is {state or 'out of reach'}")
            runner.wait(POLL_S)


def _must(runner: Shell, argv: Sequence[str], otherwise: str) -> None:
    code = runner.run(argv)
    if code:
        raise UserError(f"{otherwise}: {' '.join(argv[:5])} exited {code}; its message is above")


def _leftover(config: Launch) -> str:
    return (
        f"The queued resource {config.name!r} is left, and a TPU costs: --dry-run prints the "
        "command that deletes it"
    )
