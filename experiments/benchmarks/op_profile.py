"""Where a compiled program's time goes: a profiler trace joined with the program's own text.

XLA keeps, for every instruction it runs, the path of the Flax modules it came from; the profiler
says how long each instruction took. Together: time by module path, on any backend.
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
    """Instruction name -> path such as "jit(step)/jvp(UNet)/conv_in/conv_general_dilated".

    `hlo` is a compiled program's text, `Compiled.as_text()`.

    A fusion goes under its convolution or matrix product if it holds one, else under its root,
    else under any instruction in it that has a path.
    """
    paths: dict[str, str] = {}
    called: dict[str, str] = {}
    heavy: dict[str, str] = {}
    root: dict[str, str] = {}
    some: dict[str, str] = {}
    computation = ""
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            computation = match[1]
        elif match := _INSTRUCTION.match(line):
            path = _PATH.search(line)
            if path:
                paths[match[2]] = some[computation] = path[1]
                if _HEAVY.search(line):
                    heavy[computation] = path[1]
                if match[1]:
                    root[computation] = path[1]
            if fusion := _CALLS.search(line):
                called[match[2]] = fusion[1]
    for name, inner in called.items():
        path = heavy.get(inner) or paths.get(name) or root.get(inner) or some.get(inner)
        if path:
            paths[name] = path
    return paths


def op_seconds(run: Callable[[], object], repeats: int) -> dict[str, float]:
    """Seconds per run that each HLO instruction took; `run` must wait for its own result."""
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
                    # A CPU thunk may return before its work is done; "end:" marks that.
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
