import jax
import numpy as np

from stunet.weights.low_rank import add_adapters, init_adapters, nearest_adapters
from stunet.weights.trees import flatten, unflatten

RNG = np.random.default_rng(0)
PARAMS = {
    "unet": {
        "conv": {"kernel": RNG.normal(size=(3, 3, 4, 6)).astype(np.float32), "bias": np.zeros(6)},
        "thin": {"kernel": RNG.normal(size=(8, 2)).astype(np.float32)},
        "dense": {"kernel": RNG.normal(size=(8, 5)).astype(np.float16)},
    },
    "text_encoder": {"kernel": RNG.normal(size=(8, 8)).astype(np.float32)},
}


def adapters():
    return init_adapters(PARAMS, lambda path: path.startswith("unet/"), 2, jax.random.key(0))


def test_selected_kernels_get_adapters_with_zero_initial_update():
    shapes = {path: leaf.shape for path, leaf in flatten(adapters()).items()}
    assert shapes == {
        "unet/conv/kernel/down": (36, 2),
        "unet/conv/kernel/up": (2, 6),
        "unet/dense/kernel/down": (8, 2),
        "unet/dense/kernel/up": (2, 5),
    }
    after, before = flatten(add_adapters(PARAMS, adapters())), flatten(PARAMS)
    assert after.keys() == before.keys()
    for path, leaf in after.items():
        np.testing.assert_array_equal(leaf, before[path])
        assert leaf.dtype == before[path].dtype


def test_the_update_is_the_product_and_has_the_rank():
    trained = jax.tree.map(lambda a: RNG.normal(size=a.shape).astype(np.float32), adapters())
    after = add_adapters(PARAMS, trained)["unet"]
    change = (after["conv"]["kernel"] - PARAMS["unet"]["conv"]["kernel"]).reshape(36, 6)
    pair = trained["unet"]["conv"]["kernel"]
    np.testing.assert_allclose(change, pair["down"] @ pair["up"], atol=1e-5)
    assert np.linalg.matrix_rank(change, tol=1e-3) == 2
    np.testing.assert_array_equal(after["thin"]["kernel"], PARAMS["unet"]["thin"]["kernel"])


def test_nearest_adapters_are_the_truncated_singular_value_decomposition():
    other = {
        path: leaf + RNG.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in flatten(PARAMS["unet"]).items()
    }
    before = {path: leaf.astype(np.float32) for path, leaf in flatten(PARAMS["unet"]).items()}
    adapters = nearest_adapters(unflatten(before), unflatten(other), 2)
    after = flatten(add_adapters(unflatten(before), adapters))
    for path in ("conv/kernel", "dense/kernel"):
        columns = before[path].shape[-1]
        change = (other[path] - before[path]).reshape(-1, columns)
        error = (other[path] - np.asarray(after[path])).reshape(-1, columns)
        singular = np.linalg.svd(change, compute_uv=False)
        # Eckart and Young: the smallest error of any matrix of rank two.
        np.testing.assert_allclose(np.sum(error**2), np.sum(singular[2:] ** 2), rtol=1e-4)
    for path in ("conv/bias", "thin/kernel"):
        np.testing.assert_array_equal(after[path], before[path])
