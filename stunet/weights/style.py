"""Stylized generation: interpolates the text-to-image weights inside a video model."""

import jax
import jax.numpy as jnp

from stunet.errors import UserError
from stunet.weights.trees import Tree, compare_shapes, is_added, merge, partition

MAX_STRENGTH = 1.5
DEFAULT_STRENGTH = 0.7
RECOMMENDED_STRENGTH = (0.5, 1.0)  # 2401.12945 section 4.1: at 1 motion often suffers


def strength_warning(strength: float) -> str | None:
    """Returns a warning if a strength is outside the recommended range, else None."""
    low, high = RECOMMENDED_STRENGTH
    if low <= strength <= high:
        return None
    return (
        f"style strength {strength:g} is outside the recommended range {low:g} to {high:g}: style "
        "or motion may suffer"
    )


def interpolate_style(params: Tree, style: Tree, strength: float, where: str) -> Tree:
    """Interpolates the text-to-image parameters of a U-Net towards those of a style.

    W = strength * W_style + (1 - strength) * W. Temporal and conditioning parameters are unchanged
    (Lumiere, 2401.12945, section 4.1).

    Args:
      params: U-Net parameters of the video model.
      style: U-Net parameters of a model that was fine-tuned to a style (text-to-image, or a video
        model, whose temporal parameters are ignored).
      strength: 0 to `MAX_STRENGTH`. 0 returns `params`.
      where: Source of `style`, for error messages.

    Raises:
      UserError: The strength is out of range, or shapes of `style` differ from those of `params`.
    """
    if not 0 <= strength <= MAX_STRENGTH:
        raise UserError(f"style strength is {strength}, expected 0 to {MAX_STRENGTH}")
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
