"""Time of a compiled program by Flax module: a profiler trace joined with the program's HLO text.

The HLO text holds the module path of each instruction, the profiler trace the time that each
instruction took. Works on every backend.
"""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import jax

_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_PATH = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(r"calls=%?([\w.\-]+)")
_HEAVY = re.compile(r" (convolution|dot)\(")


def module_paths(hlo: str) -> dict[str, str]:
    """Returns the module path of each instruction.

    The path of a fusion is that of its convolution or matrix product if it has one, else that of
    its root, else that of any instruction in it.

    Args:
      hlo: Text of a compiled program, `Compiled.as_text()`.

    Returns:
      Instruction name -> path, such as "jit(step)/jvp(UNet)/conv_in/conv_general_dilated".
    """
    paths: dict[str, str] = {}
    called: dict[str, str] = {}
    heavy: dict[str, str] = {}
    root: dict[str, str] = {}
    any_path: dict[str, str] = {}
    computation = ""
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            computation = match[1]
        elif match := _INSTRUCTION.match(line):
            path = _PATH.search(line)
            if path:
                paths[match[2]] = any_path[computation] = path[1]
                if _HEAVY.search(line):
                    heavy[computation] = path[1]
                if match[1]:
                    root[computation] = path[1]
            if fusion := _CALLS.search(line):
                called[match[2]] = fusion[1]
    for name, inner in called.items():
        path = heavy.get(inner) or paths.get(name) or root.get(inner) or any_path.get(inner)
        if path:
            paths[name] = path
    return paths


def op_seconds(run: Callable[[], object], repeats: int) -> dict[str, float]:
    """Profiles a function and returns the seconds per run of each HLO instruction.

    Args:
      run: Runs the compiled program and waits for its result. It is called once before profiling.
      repeats: Number of profiled runs.
    """
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    started: dict[int, tuple[str, float, float]] = {}
    ended: dict[int, float] = {}
    seconds: dict[str, float] = defaultdict(float)
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    # A CPU thunk may return before its work is done; an "end:" event follows.
                    if "_p" in stats:
                        started[stats["_p"]] = (stats["hlo_op"], event.start_ns, event.duration_ns)
                    else:
                        seconds[stats["hlo_op"]] += event.duration_ns / 1e9 / repeats
                elif event.name.startswith("end: "):
                    ended[stats["_c"]] = event.start_ns
    for key, (name, start, duration) in started.items():
        end = max(ended.get(key, 0.0), start + duration)
        seconds[name] += (end - start) / 1e9 / repeats
    return dict(seconds)
