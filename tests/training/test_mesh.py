import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from stunet.errors import UserError
from stunet.sharding import parameter_shardings, replicated
from stunet.training.mesh import (
    AXES,
    batch_sharding,
    check_batch,
    count_slices,
    make_mesh,
    put_batch,
)


def test_one_device():
    mesh = make_mesh()
    assert mesh.axis_names == AXES == ("data", "fsdp", "frames")
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1, "frames": 1}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ((2, 1), "mesh: fsdp 2 x frames 1,.* 1 devices"),
        ((1, 3), "mesh: fsdp 1 x frames 3,.* 1 devices"),
        ((0, 1), "mesh.fsdp: 0,.* 1"),
        ((1, -1), "mesh.frames: -1,.* 1"),
    ],
)
def test_invalid_axes(axes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(*axes)


def test_devices_that_are_not_tpus_form_one_slice():
    def device(platform, **index):
        return SimpleNamespace(platform=platform, **index)

    tpus = [device("tpu", slice_index=n // 2) for n in range(6)]
    assert count_slices(tpus) == 3
    assert count_slices([device("tpu")] * 2) == 1
    assert count_slices([device("cpu", slice_index=0), device("cpu", slice_index=1)]) == 1


def test_batches_that_do_not_divide_among_devices():
    mesh = AbstractMesh((2, 2, 2), AXES)
    check_batch(mesh, batch_size=8, num_frames=16)
    check_batch(mesh, batch_size=4, num_frames=1)
    with pytest.raises(UserError, match="batch_size: 6,.* 4 .*8 .*fsdp 2, mesh.frames 2"):
        check_batch(mesh, batch_size=6, num_frames=16)
    with pytest.raises(UserError, match=r"num_frames.* 7.*mesh.frames.* 2"):
        check_batch(mesh, batch_size=8, num_frames=7)


def test_sharding_rule():
    """Splits the largest axis that fsdp divides; replicates small and indivisible arrays."""
    mesh = AbstractMesh((2, 4, 1), AXES)
    shapes = {
        "kernel": (3, 3, 64, 128),  # the last is the largest
        "tall": (1024, 8),
        "odd": (63, 64),  # 63 is not divisible, 64 is
        "prime": (37, 41),
        "bias": (512,),  # below 1024 entries
        "step": (),
    }
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    specs = {name: s.spec for name, s in parameter_shardings(mesh, tree).items()}
    assert specs == {
        "kernel": PartitionSpec(None, None, None, "fsdp"),
        "tall": PartitionSpec("fsdp"),
        "odd": PartitionSpec(None, "fsdp"),
        "prime": PartitionSpec(),
        "bias": PartitionSpec(),
        "step": PartitionSpec(),
    }
    alone = parameter_shardings(AbstractMesh((8, 1, 1), AXES), tree)
    assert {s.spec for s in alone.values()} == {PartitionSpec()}


def test_batches_are_split_over_data_and_fsdp():
    mesh = AbstractMesh((2, 4, 1), AXES)
    assert batch_sharding(mesh).shard_shape((16, 4, 8, 8, 3)) == (2, 4, 8, 8, 3)
    assert replicated(mesh).shard_shape((16, 4)) == (16, 4)
    batch = {"video": np.ones((2, 1, 4, 4, 3), np.float32), "position": np.arange(2)}
    put = put_batch(make_mesh(), {**batch, "position": batch["position"].astype(np.uint32)})
    for name, array in put.items():
        np.testing.assert_array_equal(array, batch[name])
        assert array.sharding == batch_sharding(make_mesh())


PROGRAM = """
import jax, numpy as np
from stunet.training.settings import OptimizerConfig
from stunet.sharding import parameter_shardings
from stunet.training.mesh import make_mesh, put_batch
from stunet.training.step import init_state, make_optimizer, make_train_step

def loss(params, frozen, batch):
    noise = jax.vmap(lambda p: jax.random.fold_in(jax.random.key(3), p))(batch["position"])
    noise = jax.vmap(lambda key: jax.random.normal(key, (48,)))(noise)
    hidden = jax.numpy.tanh((batch["video"].reshape(8, -1) + noise) @ params["in"]["kernel"])
    return ((hidden @ params["out"]["kernel"] + params["out"]["bias"]) ** 2).mean(1)

rng = np.random.default_rng(0)
params = {
    "in": {"kernel": rng.normal(size=(48, 64)).astype("float32") / 7},
    "out": {
        "kernel": rng.normal(size=(64, 32)).astype("float32") / 8,
        "bias": np.ones(32, "float32"),
    },
}
batches = [
    {
        "video": rng.normal(size=(8, 1, 4, 4, 3)).astype("float32"),
        "position": np.arange(8, dtype="uint32") + 8 * i,
    }
    for i in range(3)
]
optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=2), 10**6)
train_step = make_train_step(loss, optimizer, 0.9)

def run(mesh):
    def place(tree):
        return jax.device_put(tree, None if mesh is None else parameter_shardings(mesh, tree))

    state = place(init_state(place(params), optimizer))
    step = jax.jit(train_step, donate_argnums=0)
    for batch in batches:
        state, metrics = step(state, {}, batch if mesh is None else put_batch(mesh, batch))
    return state, metrics

alone, metrics = run(None)
mesh = make_mesh(fsdp=2)
assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "frames": 1}
shared, shared_metrics = run(mesh)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), alone, shared)
np.testing.assert_allclose(metrics["loss"], shared_metrics["loss"], rtol=1e-5)
for tree in (shared.params, shared.ema):
    sharding = tree["in"]["kernel"].sharding
    assert sharding.shard_shape((48, 64)) == (48, 32), sharding
print("equal on", jax.device_count(), "devices")
"""


def test_four_devices_compute_what_one_does():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "equal on 4 devices\n", done.stderr
