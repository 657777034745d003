"""What an ablation is, and how its commands run."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from tqdm import tqdm

from stunet import signals
from stunet.compiling import shared_cache_environment
from stunet.errors import UserError

SEEDS = (0, 1, 2)

Inputs = Mapping[str, str | Path]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A run of another program of `experiments`.

    Attributes:
      program: Name of the module, such as "experiments.train".
      flags: Flags of the program.
      result: File that the program writes last. A command whose result exists is skipped.
      log: File that the program's output is appended to.
    """

    program: str
    flags: tuple[str, ...]
    result: Path
    log: Path

    @property
    def text(self) -> str:
        """The command as a line to paste into a shell."""
        return f"python -m {self.program} {' '.join(self.flags)}"

    def run(self, running: set[subprocess.Popen] | None = None) -> None:
        """Runs the program in a process of its own, unless its result exists.

        Args:
          running: Contains the process while it runs.

        Raises:
          UserError: The program failed. The message has its last line and the path of the log.
        """
        if self.result.exists():
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            command = [sys.executable, "-m", self.program, *self.flags]
            code = run_process(command, log, set() if running is None else running)
        if code:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "no output"
            raise UserError(f"{self.program}: exit code {code}, {last} (log: {self.log})")


# Commands that run one after the other, and chains that may run in parallel.
Chain = Sequence[Command]
Phase = Sequence[Chain]


class Ablation(Protocol):
    """A question, the commands that answer it, and a report on their results."""

    @property
    def name(self) -> str:
        """Name of the ablation, of its module and of the folder of its runs."""
        ...

    @property
    def question(self) -> str:
        """Heading of the report."""
        ...

    @property
    def paper(self) -> str:
        """The paper's finding."""
        ...

    def inputs(self, scale: str) -> tuple[str, ...] | None:
        """Returns the names of the models and datasets that it needs; None if not at this scale."""
        ...

    def prepare(self, workdir: Path, inputs: Inputs) -> None:
        """Writes to `workdir` what the commands need beside the inputs."""
        ...

    def phases(
        self, workdir: Path, inputs: Inputs, options: Sequence[str], scale: str
    ) -> list[Phase]:
        """Returns all commands, finished or not; each phase needs the results of the one before.

        Args:
          workdir: The ablation's own folder.
          inputs: Paths of `self.inputs(scale)`, or placeholders of them.
          options: Further flags of the programs.
          scale: "cpu" or "tpu".
        """
        ...

    def report(self, workdir: Path, scale: str) -> str:
        """Returns a section in Markdown about the results in `workdir`; writes its pictures."""
        ...


@dataclass(frozen=True, kw_only=True)
class ProgramAblation:
    """An ablation by programs that run at the scale of a CPU only.

    Attributes:
      name: See `Ablation`.
      question: See `Ablation`.
      paper: See `Ablation`.
      needs: Names of the models that it needs.
      plan: (workdir, inputs, options) -> phases, see `Ablation.phases`.
      findings: workdir -> lines of the report below its heading.
      preparation: Optional (workdir, inputs) function, see `Ablation.prepare`.
    """

    name: str
    question: str
    paper: str
    needs: tuple[str, ...] = ()
    plan: Callable[[Path, Inputs, Sequence[str]], list[Phase]]
    findings: Callable[[Path], list[str]]
    preparation: Callable[[Path, Inputs], None] | None = None

    def inputs(self, scale: str) -> tuple[str, ...] | None:
        """Returns `needs` at the scale of a CPU, else None."""
        return self.needs if scale == "cpu" else None

    def prepare(self, workdir: Path, inputs: Inputs) -> None:
        """Calls `preparation`, if there is one."""
        if self.preparation is not None:
            self.preparation(workdir, inputs)

    def phases(
        self, workdir: Path, inputs: Inputs, options: Sequence[str], scale: str
    ) -> list[Phase]:
        """Returns the phases of `plan`."""
        return self.plan(workdir, inputs, options)

    def report(self, workdir: Path, scale: str) -> str:
        """Returns the section with `findings`."""
        return "\n".join([*heading(self), *self.findings(workdir)])


def heading(ablation: Ablation) -> list[str]:
    """Returns the first lines of an ablation's section: its question and the paper's finding."""
    return [f"## {ablation.question}", "", f"The paper: {ablation.paper}", ""]


def run(
    ablation: Ablation,
    workdir: Path,
    inputs: Inputs,
    options: Sequence[str] = (),
    *,
    jobs: int = 1,
    scale: str = "cpu",
) -> None:
    """Runs the commands of an ablation that have no result yet.

    Args:
      ablation: The ablation.
      workdir: Its own folder.
      inputs: Paths of the models and datasets that it needs.
      options: Further flags of its programs.
      jobs: Number of chains of commands that run in parallel.
      scale: "cpu" or "tpu".

    Raises:
      UserError: A command failed. Chains that have not started are cancelled.
    """
    ablation.prepare(workdir, inputs)
    phases = ablation.phases(workdir, inputs, options, scale)
    total = len(list_commands(phases))
    with tqdm(total=total, desc=ablation.name, unit=" commands") as bar:
        for chains in phases:
            _run_phase(chains, jobs, bar)


def run_process(command: list[str], log: TextIO, running: set[subprocess.Popen]) -> int:
    """Runs a command and returns its exit code; `running` contains the process until it ends."""
    environment = shared_cache_environment()  # most runs differ in their seed only
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    running.add(process)
    try:
        return process.wait()
    finally:
        running.discard(process)


def _run_phase(chains: Phase, jobs: int, bar: tqdm) -> None:
    running: set[subprocess.Popen] = set()

    def run_chain(chain: Chain) -> None:
        for command in chain:
            command.run(running)
            bar.update()

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run_chain, chain) for chain in chains]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if signals.received():
                signals.defer()  # the processes save, which may take minutes
                for process in list(running):
                    process.terminate()
            raise


def list_commands(phases: Sequence[Phase]) -> list[Command]:
    """Returns the commands of all phases in order."""
    return [command for chains in phases for chain in chains for command in chain]


def seed_commands(program: str, flags: Sequence[str], workdir: Path) -> list[Phase]:
    """Returns one chain that runs a program with each of `SEEDS`.

    The program must take --out and --seed and write OUT.json, here `WORKDIR/seed_N.json`.
    """
    chain = []
    for seed in SEEDS:
        out = workdir / f"seed_{seed}"
        command = Command(
            program=program,
            flags=(*flags, f"--out={out}", f"--seed={seed}"),
            result=out.with_suffix(".json"),
            log=out.with_suffix(".log"),
        )
        chain.append(command)
    return [[chain]]


def read_seed_reports(workdir: Path) -> list[dict]:
    """Reads `WORKDIR/seed_N.json` of all `SEEDS`."""
    return [json.loads((workdir / f"seed_{seed}.json").read_text()) for seed in SEEDS]
