"""Compiles an experiment for a TPU that is not there, and says what it would take.

    pip install -r requirements-tpu.txt
    python -m experiments.compile --config=experiments/configs/ssr_1024.py --topology=v5p:4x4x4

The real TPU compiler runs on any Linux machine. A program that does not fit the chip's memory is
refused as it would be on the chip. Seconds are the compiler's own estimate, never a measurement;
FLOPs of the model count matrix products and convolutions once, without what is recomputed.

--what=train is the training step of the config's stage. --what=sample is one guided step of the
ancestral sampler for `batch_size` videos (for stage "ssr": windows of a clip) on the chips of one
host: a topology such as v5p:2x2x1.
"""

import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from experiments.common.reports import write_json
from experiments.common.program_flags import read_flags
from experiments.tpu.programs import ARCHITECTURES, compile_for, networks_of
from experiments.tpu.topologies import GIB
from stunet.errors import UserError, run_command
from stunet.schema import from_dict
from stunet.training.config import TrainConfig

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the experiment's config file", flag_values=FLAGS
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", "v5p:4x4x4", "CHIP:AxB or CHIP:AxBxC", flag_values=FLAGS
)
_WHAT = flags.DEFINE_enum("what", "train", ("train", "sample"), "which program", flag_values=FLAGS)
_BACKBONE = flags.DEFINE_enum(
    "backbone",
    None,
    tuple(ARCHITECTURES),
    "instead of init_from's model, which need not be there",
    flag_values=FLAGS,
)
_OUT = flags.DEFINE_string("out", None, "a JSON file for the figures", flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Compiles and prints a table."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None:
        raise UserError("--config=FILE is needed")
    config = from_dict(TrainConfig, values, "config")
    networks = networks_of(config, _BACKBONE.value)
    print(f"compiling for {_TOPOLOGY.value} ...", flush=True)
    report = compile_for(_TOPOLOGY.value, _WHAT.value, config, *networks)
    print("\n".join(lines(report)))
    if _OUT.value:
        write_json(_OUT.value, report)


def lines(report: dict[str, Any]) -> list[str]:
    """The report, a line a figure."""
    memory = report["argument_bytes"] + report["temporary_bytes"]
    total = sum(time["seconds"] for time in report["time_by_kind"].values())
    collectives = ", ".join(
        f"{kind} {count / GIB:.2f}" for kind, count in sorted(report["collective_bytes"].items())
    )
    rows = {
        "program": f"{report['what']}, mesh {report['mesh']}",
        "parameters": f"{report['parameters']:,}",
        "memory a chip": (
            f"arguments {report['argument_bytes'] / GIB:.2f} GiB, temporaries "
            f"{report['temporary_bytes'] / GIB:.2f} GiB, together {memory / GIB:.2f} of "
            f"{report['hbm_bytes'] / GIB:.0f} GiB"
        ),
        "FLOPs a chip": (
            f"model {report['model_flops'] / 1e12:.3g} T, "
            f"hardware {report['hardware_flops'] / 1e12:.3g} T"
        ),
        "collectives a chip": f"{collectives or 'none'} GiB",
        "estimated by the compiler": (
            f"{report['estimated_s']:.3f} s, {report['estimated_share_of_peak']:.2f} of peak from "
            f"model FLOPs, {report['estimated_hardware_share']:.2f} counting recomputation"
        ),
        "compiled in": f"{report['compile_s']:.0f} s",
    }
    if report["loops"]:
        rows["loops"] = f"{report['loops']}: seconds and FLOPs above count what is in them once"
    rows["where the time goes"] = "share; of it, at the peak rate of products"
    for kind, time in report["time_by_kind"].items():
        seconds, at_peak = time["seconds"], time["peak_seconds"]
        rows[f"  {kind}"] = f"{seconds / total:.2f}" + f"; {at_peak / seconds:.2f}" * (at_peak > 0)
    return [f"{name:36} {value}" for name, value in rows.items()]


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.compile"))
