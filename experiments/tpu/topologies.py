"""TPU topologies without TPUs: chips, devices to compile for, and the compiler's figures."""

import math
import os
import re
from collections import Counter
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from experiments.tpu.hlo_costs import KERNELS, Kind, time_by_kind
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


def describe_topology(name: str, num_slices: int = 1) -> tuple[str, list]:
    """Returns the chip and the devices of slices.

    Args:
      name: Topology of a slice, such as "v5p:4x4x4".
      num_slices: Number of slices, connected by the data centre network.

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
        slices = {"num_slices": num_slices} if num_slices > 1 else {}  # of 1, devices have indices
        topology = topologies.get_topology_desc(name, platform="tpu", **slices)
        return chip, list(topology.devices)
    except Exception as error:  # the plugin raises errors of many types
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology={name}: {reason} (requirements-tpu.txt installs the compiler)"
        ) from error


def compiler_figures(compiled: jax.stages.Compiled, chip: str) -> dict[str, Any]:
    """Returns the compiler's memory, FLOPs, time estimate and collectives for one device.

    FLOPs and time include the roofline of the attention kernels, `kernels_s`, which the compiler
    does not know.
    """
    memory, cost, hlo = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    peak, bandwidth = CHIPS[chip].peak, CHIPS[chip].bandwidth
    kinds = time_by_kind(hlo, peak, bandwidth)
    kernels = kinds.get(KERNELS, Kind(0.0, 0.0))  # the compiler counts neither FLOPs nor time
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "hbm_bytes": CHIPS[chip].memory,
        "hardware_flops": cost["flops"] + kernels.peak_seconds * peak,
        "estimated_s": cost["optimal_seconds"] + kernels.seconds,
        "kernels_s": kernels.seconds,
        "collective_bytes": collective_bytes(hlo),
        "between_slices_bytes": between_slices_bytes(hlo),
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
        shapes = re.findall(r"[a-z]+\d+\[[\d,]*\]", match[1])
        if match[3]:  # the shape is (operands, results), and two contexts for a permutation
            shapes = [shape for shape in shapes if shape != "u32[]"]
            shapes = shapes[len(shapes) // 2 :]
        total[match[2]] += sum(map(_array_bytes, shapes))
    return dict(total)


def between_slices_bytes(hlo: str) -> dict[str, int]:
    """Returns the bytes that one device sends to other slices, by kind of collective.

    The TPU compiler turns a collective over several slices into one within each slice, and a
    transfer by the hosts ("megascale").

    Args:
      hlo: The compiled program, `Compiled.as_text()`.
    """
    total: Counter[str] = Counter()
    for line in hlo.splitlines():
        if " send(" not in line or "_xla_megascale_transfer_type" not in line:
            continue
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', line)[1]
        total[kind.lower().replace("_", "-")] += _array_bytes(
            re.search(r"[a-z]+\d+\[[\d,]*\]", line)[0]
        )
    return dict(total)


def _array_bytes(shape: str) -> int:
    """Returns the bytes of an array such as "bf16[8,128]"."""
    bits, extent = re.fullmatch(r"[a-z]+(\d+)\[([\d,]*)\]", shape).groups()
    return math.prod(map(int, filter(None, extent.split(",")))) * int(bits) // 8
