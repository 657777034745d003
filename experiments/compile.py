"""Compiles an experiment's program for a TPU that is not on this machine.

    pip install -r requirements-tpu.txt
    python -m experiments.compile --config=experiments/configs/ssr_1024.py --topology=v5p:4x4x4

Runs the real TPU compiler, on any Linux machine. A program that exceeds the chip's memory is
refused as on the chip. Seconds are the compiler's own estimate, not a measurement. FLOPs of the
model count matrix products and convolutions once, without rematerialisation.

--what=train compiles the train step that `experiments.train` runs. --what=sample compiles one
guided step of the ancestral sampler for `batch_size` videos (for stage "ssr", windows of a video)
on the chips of one host, such as --topology=v5p:2x2x1.
"""

import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from data.pipeline import parse_config
from experiments.common.program_flags import read_flags
from experiments.common.reports import write_json
from experiments.tpu.programs import ARCHITECTURES, PROGRAMS, compile_for, read_networks
from experiments.tpu.topologies import GIB
from stunet.errors import UserError, run_command
from stunet.paths import output_file
from stunet.training.config import parse_train_config

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "read this config file", flag_values=FLAGS
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", "v5p:4x4x4", "compile for this TPU slice, CHIP:AxB or CHIP:AxBxC", flag_values=FLAGS
)
_NUM_SLICES = flags.DEFINE_integer(
    "num_slices",
    1,
    "compile for this number of such slices, which share the batch",
    lower_bound=1,
    flag_values=FLAGS,
)
_WHAT = flags.DEFINE_enum(
    "what", "train", tuple(PROGRAMS), "compile this program", flag_values=FLAGS
)
_BACKBONE = flags.DEFINE_enum(
    "backbone",
    None,
    tuple(ARCHITECTURES),
    "use this architecture instead of the model in init_from",
    flag_values=FLAGS,
)
_OUT = flags.DEFINE_string("out", None, "write the figures to this JSON file", flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Parses the flags, compiles, and prints a table."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None:
        raise UserError("--config=FILE: missing")
    config = parse_train_config(values, parse_config)
    if _OUT.value:
        output_file(_OUT.value)
    networks = read_networks(config, _BACKBONE.value)
    print(f"compiling for {_TOPOLOGY.value} ...", flush=True)
    report = compile_for(
        _TOPOLOGY.value, _WHAT.value, config, *networks, num_slices=_NUM_SLICES.value
    )
    print("\n".join(table_lines(report)))
    if _OUT.value:
        write_json(_OUT.value, report)


def table_lines(report: dict[str, Any]) -> list[str]:
    """Returns the report as text, one line per figure."""
    memory = report["argument_bytes"] + report["temporary_bytes"]
    total = sum(time["seconds"] for time in report["time_by_kind"].values())
    rows = {
        "program": f"{report['what']}, mesh {report['mesh']}",
        "parameters": f"{report['parameters']:,}",
        "memory per chip": (
            f"arguments {report['argument_bytes'] / GIB:.2f} GiB, temporaries "
            f"{report['temporary_bytes'] / GIB:.2f} GiB, together {memory / GIB:.2f} of "
            f"{report['hbm_bytes'] / GIB:.0f} GiB"
        ),
        "FLOPs per chip": (
            f"model {report['model_flops'] / 1e12:.3g} T, "
            f"hardware {report['hardware_flops'] / 1e12:.3g} T"
        ),
        "collectives per chip": _gibibytes(report["collective_bytes"]),
        "estimated by the compiler": (
            f"{report['estimated_s']:.3f} s, {report['estimated_share_of_peak']:.2f} of peak by "
            f"model FLOPs, {report['estimated_hardware_share']:.2f} with recomputation"
        ),
        "compiled in": f"{report['compile_s']:.0f} s",
    }
    if report["slices"] > 1:
        rows["to other slices per chip"] = _gibibytes(report["between_slices_bytes"])
    if report["loops"]:
        rows["loops"] = f"{report['loops']}: seconds and FLOPs above count their bodies once"
    rows["time by kind of operation"] = "share of the total; of which at the chip's peak FLOP/s"
    for kind, time in report["time_by_kind"].items():
        seconds, at_peak = time["seconds"], time["peak_seconds"]
        rows[f"  {kind}"] = f"{seconds / total:.2f}" + f"; {at_peak / seconds:.2f}" * (at_peak > 0)
    return [f"{name:36} {value}" for name, value in rows.items()]


def _gibibytes(count_by_kind: dict[str, int]) -> str:
    counts = sorted(count_by_kind.items())
    return ", ".join(f"{kind} {count / GIB:.2f} GiB" for kind, count in counts) or "none"


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.compile"))
