"""TPU topologies without TPUs: chips, devices to compile for, and the compiler's figures."""

import math
import os
import re
from collections import Counter
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from experiments.tpu.hlo_costs import time_by_kind
from stunet.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
    """A TPU chip.

    Attributes:
      peak: bfloat16 FLOP/s.
      memory: Bytes of memory.
      bandwidth: Bytes per second between chip and memory.
    """

    peak: float
    memory: int
    bandwidth: float


CHIPS = {  # from cloud.google.com/tpu/docs
    "v4": Chip(275e12, 32 * GIB, 1228e9),
    "v5e": Chip(197e12, 16 * GIB, 819e9),
    "v5p": Chip(459e12, 95 * GIB, 2765e9),
    "v6e": Chip(918e12, 32 * GIB, 1640e9),
}


def describe_topology(name: str) -> tuple[str, list]:
    """Returns the chip and the devices of a topology such as "v5p:4x4x4".

    Raises:
      UserError: there is no such topology, or no TPU compiler on this machine.
    """
    chip = name.partition(":")[0]
    if chip not in CHIPS or not re.fullmatch(r"\w+:\d+(x\d+){1,2}", name):
        raise UserError(
            f"--topology={name}: expected CHIP:AxB or CHIP:AxBxC with CHIP one of "
            f"{', '.join(CHIPS)}"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to wait for
    jax.config.update("jax_platforms", "cpu")  # uses the TPU compiler without looking for TPUs
    try:
        return chip, list(topologies.get_topology_desc(name, platform="tpu").devices)
    except Exception as error:  # the plugin raises errors of many types
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology={name}: {reason} (requirements-tpu.txt installs the compiler)"
        ) from error


def compiler_figures(compiled: jax.stages.Compiled, chip: str) -> dict[str, Any]:
    """Returns the compiler's memory, FLOPs, time estimate and collectives for one device."""
    memory, cost, hlo = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    kinds = time_by_kind(hlo, CHIPS[chip].peak, CHIPS[chip].bandwidth)
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "hbm_bytes": CHIPS[chip].memory,
        "hardware_flops": cost["flops"],
        "estimated_s": cost["optimal_seconds"],
        "collective_bytes": collective_bytes(hlo),
        "loops": hlo.count(" while("),
        "time_by_kind": {kind: time._asdict() for kind, time in kinds.items()},
    }


def collective_bytes(hlo: str) -> dict[str, int]:
    """Returns the output bytes of collectives on one device, by kind; each counts once.

    Args:
      hlo: The compiled program, `Compiled.as_text()`.
    """
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    total: Counter[str] = Counter()
    for line in hlo.splitlines():
        match = re.search(rf"= (.*?) ({kinds})(-start)?\(", line)
        if match is None:
            continue
        shapes = re.findall(r"([a-z]+\d+)\[([\d,]*)\]", match[1])
        if match[3]:  # the shape is (operands, results), and two contexts for a permutation
            shapes = [shape for shape in shapes if shape != ("u32", "")]
            shapes = shapes[len(shapes) // 2 :]
        for kind, extent in shapes:
            bits = int(re.search(r"\d+", kind)[0])
            total[match[2]] += math.prod(map(int, filter(None, extent.split(",")))) * bits // 8
    return dict(total)
