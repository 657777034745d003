"""Running the other programs of `experiments`, each in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from stunet.errors import UserError

SEEDS = (0, 1, 2)


def call_with_each_seed(program: str, flags: Sequence[str], workdir: Path) -> None:
    """Runs a program that writes `--out` with each seed, as `WORKDIR/seed_N.json` and beside it;
    what is there already stays.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    for seed in tqdm(SEEDS, desc=workdir.name, unit=" seeds"):
        out = workdir / f"seed_{seed}"
        if not out.with_suffix(".json").exists():
            call(program, [*flags, f"--out={out}", f"--seed={seed}"], out.with_suffix(".log"))


def read_reports(workdir: Path) -> list[dict]:
    """What `call_with_each_seed` wrote."""
    return [json.loads((workdir / f"seed_{seed}.json").read_text()) for seed in SEEDS]


def call(program: str, flags: Sequence[str], log: Path) -> None:
    """Runs a program to its end; what it prints goes to `log`.

    Raises:
      UserError: it failed; its last line and the log are named.
    """
    with log.open("a") as file:
        code = subprocess.run(
            [sys.executable, "-m", program, *flags],
            stdout=file,
            stderr=file,
            check=False,
        ).returncode
    if code:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"{program} ended with {code}: {''.join(last)} (all of it: {log})")
