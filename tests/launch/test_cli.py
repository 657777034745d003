import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import experiments.launch.__main__ as launcher
from experiments.launch.commands import plan
from experiments.launch.jobset import jobset, kueue_queue
from tests.launch.examples import example

ROOT = Path(__file__).parents[2]
CONFIGS = "experiments/launch/configs"


def run(*arguments, path=""):
    """Runs the launcher with the programs of the folder `path`."""
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


def test_jobset_prints_the_manifest_of_the_run_or_of_a_queue():
    ran = run(f"--config={CONFIGS}/jobset.py")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert list(yaml.safe_load_all(ran.stdout)) == [jobset(example("jobset"))]
    ran = run(f"--config={CONFIGS}/jobset.py", "--queue_slices=4")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert list(yaml.safe_load_all(ran.stdout)) == kueue_queue(example("jobset"), 4)


def test_help_has_the_docstring_and_the_flags():
    ran = run("--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(launcher.__doc__)
    assert "--config=" in ran.stdout and "dry_run" in ran.stdout


def test_it_runs_what_it_printed(tmp_path):
    """A fake xpk creates the workload, then reports its completion."""
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
        ([], "--config: .*experiments/launch/configs"),
        ([f"--config={CONFIGS}/xpk.py"], "xpk: .*PATH"),
        ([f"--config={CONFIGS}/queued_resources.py"], "gcloud: .*PATH"),
        ([f"--config={CONFIGS}/xpk.py", "--config.project="], "project: .*'xpk'"),
        ([f"--config={CONFIGS}/xpk.py", "--config.zoom=1"], "--config.*zoom"),
        ([f"--config={CONFIGS}/xpk.py", "--queue_slices=1"], "--queue_slices=1: .*'jobset'"),
        (["--dry"], "'dry'"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_with_2(arguments, message):
    ran = run(*arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("experiments.launch: error: ")
    assert re.search(message, line), line


def test_it_loads_no_jax():
    code = "import sys, experiments.launch.__main__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
