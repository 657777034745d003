"""Random values of every flag of the programs `experiments/*.py`, parsed but not run."""

import importlib
import math
from pathlib import Path
from typing import Any

from absl import flags
from hypothesis import strategies as st

from experiments.common.program_flags import read_flags
from tests.fuzz.fuzzing import check_cases

ROOT = Path(__file__).parents[2]
VALUES = [
    *("", " ", "text", "x" * 10_000, "a\0b", "line\nbreak", "\udcff", "None", "true", "-0"),
    *("100000000000000000000", "9" * 5000, "-1", "0", "1", "0.5", "1e300", "nan", "inf", "-inf"),
    *("4294967296", "a,b", "~nobody_here/x", "[1, 2]", "{}", "()"),
]


def programs() -> dict[str, flags.FlagValues]:
    """Returns the flags of the programs that have some, without those of a config file."""
    found = {}
    for path in sorted((ROOT / "experiments").glob("[!_]*.py")):
        module = importlib.import_module(f"experiments.{path.stem}")
        if names := [name for name in getattr(module, "FLAGS", []) if name != "config"]:
            found[path.stem] = (module.FLAGS, names)
    return found


def test_flags():
    own = programs()
    choices = [(program, name) for program, (_, names) in own.items() for name in names]

    def run(case: tuple[tuple[str, str], str]) -> None:
        (program, name), value = case
        values = own[program][0]
        try:
            read_flags(values, [program, f"--{name}={value}"], "")
            assert_usable(values[name].value)
        finally:
            values.unparse_flags()
            values[name].unparse()

    check_cases(st.tuples(st.sampled_from(choices), st.sampled_from(VALUES)), run)


def assert_usable(value: Any) -> None:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, int | float):
            assert math.isfinite(item) and abs(item) < 2**32, item
        if isinstance(item, str):
            assert "\0" not in item, item
