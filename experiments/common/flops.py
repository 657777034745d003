"""Model FLOPs of a function: its matrix products and convolutions, counted in its jaxpr."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def model_flops(function: Callable, *args: Any) -> dict[str, float]:
    """Counts the FLOPs of one call by module path, such as "UNet/conv_in".

    A multiplication and an addition are two FLOPs. As is customary, only convolutions and matrix
    products count: norms, activations, softmax and operations that a compiler adds do not.
    Rematerialised operations count twice, so pass a function without rematerialisation. A Pallas
    kernel counts once per step of its grid, with its padding and all that it recomputes, so pass a
    function with the einsum backend of attention.

    Args:
      function: Any function that JAX can trace.
      *args: Its arguments, arrays or `jax.ShapeDtypeStruct`.
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
        repeats = times
        if name == "scan":
            repeats *= equation.params["length"]
        elif name == "pallas_call":
            repeats *= math.prod(equation.params["grid_mapping"].grid)
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
    # A dilated input has one non-zero element in `lhs_dilation`; products with zeros do not count.
    zeros = math.prod(equation.params["lhs_dilation"])
    products = math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / out_channels
    return 2.0 * products / zeros
