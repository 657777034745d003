"""Stylised generation: the text-to-image weights inside a video model, swapped by degrees."""

import jax
import jax.numpy as jnp

from stunet.errors import UserError
from stunet.weights.trees import Tree, compare_shapes, is_added, merge, partition

MAX_STRENGTH = 1.5
DEFAULT_STRENGTH = 0.7
RECOMMENDED_STRENGTH = (0.5, 1.0)  # the paper's range; at 1 motion often suffers (section 4.1)


def strength_warning(strength: float) -> str | None:
    """What to tell of a strength that is not usual; None of one that is."""
    low, high = RECOMMENDED_STRENGTH
    if low <= strength <= high:
        return None
    return (
        f"style strength {strength:g} is outside {low:g} to {high:g}, where styles and motion go "
        "together best"
    )


def interpolate_style(params: Tree, style: Tree, strength: float, where: str) -> Tree:
    """W = strength * W_style + (1 - strength) * W over the text-to-image parameters of a U-Net.

    What inflation added stays as it is (Lumiere, 2401.12945, section 4.1).

    Args:
      params: the video model's U-Net.
      style: the U-Net of a text-to-image model, or of a video model, tuned to a style.
      strength: 0 to `MAX_STRENGTH`; 0 gives `params` back.
      where: what `style` was read from, for errors.

    Raises:
      UserError: the strength is none, or `style` has parameters of another shape.
    """
    if not 0 <= strength <= MAX_STRENGTH:
        raise UserError(f"style strength is {strength}; it must be within 0..{MAX_STRENGTH}")
    added, spatial = partition(params, is_added)
    style = partition(style, is_added)[1]
    compare_shapes(spatial, style, where)
    if strength == 0:
        return params

    def mix(a: jax.Array, b: jax.Array) -> jax.Array:
        mixed = (1 - strength) * jnp.asarray(a, jnp.float32) + strength * jnp.asarray(
            b, jnp.float32
        )
        return mixed.astype(a.dtype)

    return merge(jax.tree.map(mix, spatial, style), added)
