"""Model FLOPs of a function: the matrix products and convolutions that its trace holds."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def model_flops(function: Callable, *args: Any) -> dict[str, float]:
    """FLOPs of one call by the path of the module they are in, such as "UNet/conv_in".

    Two for a multiplication and an addition. Only convolutions and matrix products count, as
    is usual; norms, activations and attention's softmax do not, nor does what a compiler adds.
    A function that recomputes (rematerialises) counts its recomputation: trace one that does not.
    """
    flops: dict[str, float] = defaultdict(float)
    for path, count in _equations(jax.make_jaxpr(function)(*args).jaxpr, "", 1):
        flops[path] += count
    return dict(flops)


def _equations(jaxpr: Any, outer: str, times: int) -> Iterator[tuple[str, float]]:
    for equation in jaxpr.eqns:
        inner = str(equation.source_info.name_stack)
        path = "/".join(part for part in (outer, inner) if part)
        name = equation.primitive.name
        if name == "dot_general":
            yield path, times * _dot_flops(equation)
        elif name == "conv_general_dilated":
            yield path, times * _conv_flops(equation)
        repeats = times * equation.params.get("length", 1) if name == "scan" else times
        for value in equation.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                item = item.jaxpr if isinstance(item, core.ClosedJaxpr) else item
                if isinstance(item, core.Jaxpr):
                    yield from _equations(item, path, repeats)


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    inner = math.prod(left[axis] for axis in contracted)
    return 2.0 * inner * math.prod(equation.outvars[0].aval.shape)


def _conv_flops(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    out_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    # A dilated input is zeros but for one in `lhs_dilation`; nothing is gained by counting them.
    zeros = math.prod(equation.params["lhs_dilation"])
    products = math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / out_channels
    return 2.0 * products / zeros
