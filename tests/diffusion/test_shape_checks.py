"""The import hook of tests/conftest.py checks the shapes that functions are annotated with."""

import jax.numpy as jnp
import jaxtyping
import pytest

from stunet.diffusion import Windows, add_noise

VIDEO = jnp.zeros((2, 3, 4, 4, 3))


@pytest.mark.parametrize(
    ("eps", "log_snr"),
    [
        (jnp.zeros((2, 3, 4, 5, 3)), jnp.zeros(2)),
        (VIDEO[0], jnp.zeros(2)),
        (VIDEO.astype(int), jnp.zeros(2)),
        (VIDEO, jnp.zeros(3)),
    ],
)
def test_wrong_shapes_raise(eps, log_snr):
    add_noise(VIDEO, VIDEO, jnp.zeros(2))
    with pytest.raises(jaxtyping.TypeCheckError, match="add_noise"):
        add_noise(VIDEO, eps, log_snr)


def test_methods_are_checked():
    with pytest.raises(jaxtyping.TypeCheckError, match="split"):
        Windows.over(6, 4).split(jnp.zeros(6))
