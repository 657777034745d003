"""Estimated time of a compiled TPU program by kind of operation.

The compiler's estimate is a roofline: an operation, with all operations fused into it, takes the
maximum of its products' time at the chip's peak FLOP/s and of its bytes' time at the memory's
bandwidth. The compiler reports only the sum; this module repeats the estimate for each operation in
the program's text. The body of a loop counts once, as in the compiler's sum.

The compiler's sum lacks the FLOPs, the bytes and the time of attention kernels. The FLOPs are
counted here by hand: two matrix products of queries x keys x head_dim in the forward pass, and five
in the gradient, which computes the logits again.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from experiments.common.op_profile import module_paths

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"([a-z]+)(\d+)?\w*\[([\d,]*)\](?:\{([\d,]*)([^}]*)\})?")
_BODIES = re.compile(r"(?:body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_CALLS = re.compile(r"calls=%?([\w.\-]+)")
_KERNEL = re.compile(r"splash_mha_(fwd|dkv)")
_KERNEL_PRODUCTS = {"fwd": 2, "dkv": 5}
KERNELS = "attention kernels"
_FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "iota"}
# Asynchronous copies overlap with other operations; collectives do not use the memory bandwidth.
_NOT_COUNTED = re.compile(r"-(start|done)$|^(all-|reduce-scatter|collective|partition-id)")


class Cost(NamedTuple):
    """Cost of one operation.

    Attributes:
      kind: Kind of operation.
      flops: FLOPs of its products.
      bytes: Bytes that it reads and writes.
    """

    kind: str
    flops: float
    bytes: float


class Kind(NamedTuple):
    """Time of all operations of a kind.

    Attributes:
      seconds: Roofline estimate.
      peak_seconds: Time of their products at the chip's peak FLOP/s.
    """

    seconds: float
    peak_seconds: float


def time_by_kind(hlo: str, peak: float, bandwidth: float) -> dict[str, Kind]:
    """Returns the time of each kind of operation, longest first.

    Args:
      hlo: The compiled program, `Compiled.as_text()`.
      peak: FLOP/s of a chip.
      bandwidth: Bytes per second of its memory.
    """
    seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for cost in costs(hlo):
        at_peak = cost.flops / peak
        seconds[cost.kind][0] += max(at_peak, cost.bytes / bandwidth)
        seconds[cost.kind][1] += at_peak
    found = {kind: Kind(*pair) for kind, pair in seconds.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1].seconds))


def costs(hlo: str) -> list[Cost]:
    """Returns the cost of each operation that runs; of a conditional, of its dearest branch."""
    shapes: dict[str, str] = {}
    flops: dict[str, float] = defaultdict(float)  # FLOPs of products by computation
    paths = module_paths(hlo)
    found: dict[str, list[Cost]] = {}
    computation = ""
    for line in hlo.splitlines():  # computations precede their callers
        if match := _COMPUTATION.match(line):
            computation = match[1]
            found[computation] = []
            continue
        if not (match := _INSTRUCTION.match(line)):
            continue
        name, shape, op, rest = match.groups()
        shapes[name] = shape
        kernel = _KERNEL.match(name) if op == "custom-call" else None
        product = (
            _kernel_flops(kernel[1], rest) if kernel else _product_flops(op, shape, rest, shapes)
        )
        flops[computation] += product
        if op in ("conditional", "while", "call"):
            bodies = [found[body] for body in _BODIES.findall(rest) if body in found]
            bodies += [found[branch.strip(" %")] for branch in _branches(rest)]
            if bodies:
                found[computation] += max(bodies, key=lambda body: sum(c.bytes for c in body))
            continue
        if op in _FREE or _NOT_COUNTED.search(op) or '="AllocateBuffer"' in rest:
            continue
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        inner = _CALLS.search(rest)
        if inner:
            product += flops[inner[1]]
        size = _bytes(shape) + sum(_bytes(shapes.get(operand, "")) for operand in operands)
        kind = KERNELS if kernel else _kind(op, paths.get(name, ""), bool(product))
        found[computation].append(Cost(kind, product, size))
    return found[computation]  # the entry computation is the last


def _branches(rest: str) -> list[str]:
    match = re.search(r"branch_computations=\{([^}]*)\}", rest)
    return match[1].split(",") if match else []


def _kernel_flops(kernel: str, rest: str) -> float:
    """Returns the FLOPs of an attention kernel, including padded keys."""
    operands = rest.partition("operand_layout_constraints=")[2]
    query, key = _dimensions(" ".join(re.findall(r"b?f\d+\[[\d,]+\]", operands)[:2]))
    return 2.0 * _KERNEL_PRODUCTS[kernel] * math.prod(query) * key[-2]


def _product_flops(op: str, shape: str, rest: str, shapes: dict[str, str]) -> float:
    """Returns the FLOPs of a convolution or matrix product, without products with padding.

    The TPU compiler writes batched matrix products as convolutions of mostly padding.
    """
    if op not in ("convolution", "dot"):
        return 0.0
    lhs, rhs = re.findall(r"%([\w.\-]+)", rest)[:2]
    (out,), (left,), (right,) = (_dimensions(s) for s in (shape, shapes[lhs], shapes[rhs]))
    if op == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)[1]
        return 2.0 * math.prod(out) * math.prod(left[int(n)] for n in contracted.split(",") if n)
    of_left, of_right, of_out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest).groups()
    groups = re.search(r"batch_group_count=(\d+)", rest)
    terms = left[of_left.index("b")] // int(groups[1] if groups else 1)
    terms *= right[of_right.index("i")] * right[of_right.index("o")]
    window = re.search(r"window=\{([^}]*)\}", rest)
    fields = dict(pair.split("=") for pair in window[1].split()) if window else {}
    for axis in range(len(left) - 2):
        at = {name: value.split("x")[axis] for name, value in fields.items()}
        terms *= _terms_inside(
            left[of_left.index(str(axis))],
            right[of_right.index(str(axis))],
            out[of_out.index(str(axis))],
            int(at.get("stride", 1)),
            int(at.get("pad", "0_0").split("_")[0]),
            int(at.get("lhs_dilate", 1)),
            int(at.get("rhs_dilate", 1)),
        )
    return 2.0 * terms


def _terms_inside(
    size: int, window: int, out: int, stride: int, pad: int, dilation: int, window_dilation: int
) -> int:
    """Counts pairs (output, tap of its window) along an axis that meet an input, not padding."""
    position = np.arange(out)[:, None] * stride - pad + np.arange(window) * window_dilation
    inside = (position >= 0) & (position <= (size - 1) * dilation) & (position % dilation == 0)
    return int(inside.sum())


def _dimensions(shape: str) -> list[list[int]]:
    return [[int(n) for n in match[3].split(",") if n] for match in _SHAPE.finditer(shape)]


def _bytes(shape: str) -> int:
    """Returns the bytes of arrays in memory, padded to the tiles of their layout."""
    total = 0
    for match in _SHAPE.finditer(shape):
        kind, bits, extents, order, tiles = match.groups()
        if "S(1)" in (tiles or ""):  # in the chip's fast memory
            continue
        extents = [int(n) for n in extents.split(",") if n]
        tile = re.search(r"T\((\d+),(\d+)\)", tiles or "")
        if tile and order and len(extents) > 1:
            first, second, *_ = (int(axis) for axis in order.split(","))
            for axis, unit in ((first, int(tile[2])), (second, int(tile[1]))):
                extents[axis] = -(-extents[axis] // unit) * unit
        total += math.prod(extents) * (8 if kind == "pred" else int(bits or 0)) // 8
    return total


def _kind(op: str, path: str, product: bool) -> str:
    if not product:
        if op in ("copy", "transpose", "reshape") or path.endswith(("/transpose", "/reshape")):
            return "copies and new layouts"
        return "norms, activations and the rest"
    if "conv_general_dilated" not in path:
        return "matrix products"
    where = "temporal" if "temporal_" in path and "conv_space" not in path else "spatial"
    direction = "forward"
    if "transpose(" in path:
        direction = "recomputed" if "rematted" in path else "gradients"
    return f"{where} convolutions, {direction}"
