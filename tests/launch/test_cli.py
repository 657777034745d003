import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.launch.commands import plan
from tests.launch.examples import example

ROOT = Path(__file__).parents[2]
CONFIGS = "experiments/launch/configs"


def run(*arguments, path=""):
    """The launcher as a user runs it, with these programs."""
    return subprocess.run(
        [sys.executable, "-m", "experiments.launch", *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": str(path)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("launcher", ["xpk", "queued_resources"])
def test_dry_run_prints_all_and_runs_nothing(tmp_path, launcher):
    for name in ("gcloud", "xpk"):
        (tmp_path / name).write_text(f"#!/bin/bash\ntouch {tmp_path}/ran\n")
        (tmp_path / name).chmod(0o755)
    ran = run(f"--config={CONFIGS}/{launcher}.py", "--dry-run", path=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert not (tmp_path / "ran").exists()
    printed = [shlex.split(line) for line in ran.stdout.splitlines() if line[:1] not in ("", "#")]
    assert printed == [argv for _, argv in plan(example(launcher))]


def test_help_tells_what_it_does_and_its_flags():
    ran = run("--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("Launches an experiment on a Cloud TPU pod")
    assert "--config: what to launch, and where" in ran.stdout


def test_it_runs_what_it_printed(tmp_path):
    """Both tools stand in: the workload is created, then found to have completed."""
    (tmp_path / "xpk").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >> {tmp_path}/calls\n')
    (tmp_path / "xpk").chmod(0o755)
    ran = run(
        f"--config={CONFIGS}/xpk.py", "--config.overrides=('a=1 2',)", path=f"{tmp_path}:/bin"
    )
    assert (ran.returncode, ran.stdout) == (0, "")
    expected = [arg for _, argv in plan(example("xpk", overrides=("a=1 2",))) for arg in argv[1:]]
    assert (tmp_path / "calls").read_text().splitlines() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=FILE is needed; experiments/launch/configs has examples"),
        ([f"--config={CONFIGS}/xpk.py"], "the command 'xpk' is not on the PATH"),
        ([f"--config={CONFIGS}/queued_resources.py"], "the command 'gcloud' is not on the PATH"),
        ([f"--config={CONFIGS}/xpk.py", "--config.project="], "'xpk' needs the field 'project'"),
        ([f"--config={CONFIGS}/xpk.py", "--config.zoom=1"], "no field to override"),
        (["--dry"], "Unknown command line flag 'dry'"),
    ],
)
def test_mistakes(arguments, message):
    ran = run(*arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("experiments.launch: error: ")
    assert message in line


def test_it_loads_no_jax():
    code = "import sys, experiments.launch.__main__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
