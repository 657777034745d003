"""Flags of the programs in `experiments`."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from experiments.common.program_flags import read_flags
from stunet.errors import UserError

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "experiments").rglob("*.py")
    if path.stem not in ("__init__", "torch_unet")  # torch is no dependency
)

# ml_collections reads a config file by a call that Python means to remove.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_one_process_can_import_all_programs():
    programs = [importlib.import_module(name) for name in MODULES]
    own = [program.FLAGS for program in programs if hasattr(program, "FLAGS")]
    assert len(own) >= 15 and len({id(values) for values in own}) == len(own)
    assert not {"config", "workdir", "out"} & set(flags.FLAGS)


def make_flags():
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, "read this", flag_values=values)
    flags.DEFINE_enum("what", "a", ("a", "b"), "compile this", flag_values=values)
    flags.DEFINE_multi_integer("frames", [1, 2], "measure these", flag_values=values)
    flags.DEFINE_boolean("seconds", True, "measure seconds", flag_values=values)
    flags.DEFINE_string("out", None, "write this", flag_values=values)
    return values, config


def test_help_lists_the_flags_of_the_program_only(capsys):
    values, config = make_flags()
    with pytest.raises(SystemExit) as stop:
        read_flags(values, ["program", "--help"], "What it does.\n\n    an example\n", config)
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code in (None, 0)
    assert lines[:3] == ["What it does.", "", "    an example"]
    assert [line.split() for line in lines if line.startswith("  --")] == [
        ["--config=FILE", "read", "this"],
        ["--what=a|b", "compile", "this", "(default:", "a)"],
        ["--frames=N", "measure", "these", "(repeatable;", "default:", "1,", "2)"],
        ["--[no]seconds", "measure", "seconds", "(default:", "true)"],
        ["--out=TEXT", "write", "this"],
    ]
    assert "--config.FIELD=VALUE" in lines[-1]


def test_help_of_a_program():
    command = [sys.executable, "-m", "experiments.train", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  --")]
    names = ["cluster", "workdir", "allow_changed", "profile_steps"]
    assert found == ["--config=FILE", *(f"--{name}=TEXT" for name in names)]
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_unknown_flag():
    values, config = make_flags()
    with pytest.raises(UserError, match="nonsense"):
        read_flags(values, ["program", "--nonsense=1"], "", config)


def test_help_of_a_program_without_flags_is_its_docstring(capsys):
    with pytest.raises(SystemExit) as stopped:
        read_flags(flags.FlagValues(), ["gallery", "--help"], "Runs the commands.")
    assert stopped.value.code == 0
    assert capsys.readouterr().out == "Runs the commands.\n"
