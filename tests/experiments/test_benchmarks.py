import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.harness import workloads
from experiments.benchmarks.harness.timing import Worker, resident_bytes, take_turns
from experiments.common import networks
from experiments.common.flops import model_flops
from experiments.common.op_profile import module_paths, op_seconds
from stunet.models.attention import attention
from stunet.weights.trees import count_parameters

MIB = 2**20


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), strides=2, padding=1, name="conv")(x)
        return nn.Dense(16, name="dense")(jnp.tanh(x))


X = jnp.ones((2, 8, 8, 4))
PARAMS = Net().init(jax.random.key(0), X)
CONV = 2.0 * (2 * 4 * 4) * (3 * 3 * 4) * 8
DENSE = 2.0 * (2 * 4 * 4) * 8 * 16


def by_layer(flops):
    return {name: sum(n for path, n in flops.items() if name in path) for name in ("conv", "dense")}


@pytest.mark.parametrize(("unet", "millions"), [("IF_M", 371.6), ("IF_XL", 4304.7)])
def test_if_networks_have_their_published_sizes(unet, millions):
    image_model = getattr(networks, unet).text_to_image()
    assert round(count_parameters(workloads.parameter_structs(image_model)) / 1e6, 1) == millions


def test_flops_of_a_forward_pass():
    assert by_layer(model_flops(Net().apply, PARAMS, X)) == {"conv": CONV, "dense": DENSE}


def test_a_gradient_takes_three_times_the_flops_of_the_forward_pass():
    """The zeros in the dilated input gradient of the strided convolution do not count."""

    def loss(params, x):
        return Net().apply(params, x).sum()

    flops = by_layer(model_flops(jax.grad(loss, argnums=(0, 1)), PARAMS, X))
    assert flops["dense"] == 3 * DENSE
    assert flops["conv"] == pytest.approx(3 * CONV)


def test_flops_of_a_kernel_include_its_padding_and_its_recomputation():
    query, key = jnp.ones((2, 130, 3, 8)), jnp.ones((2, 200, 3, 8))
    pairs = 2 * 3 * 256 * 256  # of queries and keys, padded to the kernel's blocks
    kernel = functools.partial(attention, backend="flash")
    assert sum(model_flops(kernel, query, key, key).values()) == 2 * 2 * pairs * 8

    def loss(*args):
        return kernel(*args).sum()

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    row_sums = 2 * 2 * 3 * 256 * 8  # output times its gradient, outside the kernels
    expected = (2 + 5) * 2 * pairs * 8 + row_sums
    assert sum(model_flops(gradient, query, key, key).values()) == expected


def test_flops_in_a_scan_count_for_each_step():
    def repeated(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, length=5)[0]

    assert sum(model_flops(repeated, jnp.ones((4, 4))).values()) == 5 * 2 * 4**3


def test_the_time_of_an_operation_is_attributed_to_its_module():
    # The large matrix product takes nearly all of the time.
    def work(x, y):
        with jax.named_scope("large"):
            x = x @ x
        with jax.named_scope("small"):
            return x, y @ y

    x, y = jnp.ones((1024, 1024)), jnp.ones((16, 16))
    compiled = jax.jit(work).lower(x, y).compile()
    paths = module_paths(compiled.as_text())
    seconds = op_seconds(lambda: jax.block_until_ready(compiled(x, y)), 2)
    shares = {
        name: sum(s for op, s in seconds.items() if name in paths.get(op, ""))
        for name in ("large", "small")
    }
    assert shares["large"] > shares["small"] > 0


def use_memory(mebibytes):
    idle = resident_bytes()

    def run():
        block = np.ones(mebibytes * MIB, np.uint8)
        return (block.astype(np.float32)[: 4 * MIB] ** 2).sum()

    return run, idle, {"mebibytes": mebibytes}


def test_workers_take_turns_on_their_cpus():
    small, large = take_turns([Worker(1, use_memory, n) for n in (8, 64)], 3)
    assert len(small.seconds) == len(large.seconds) == 3
    assert small.best <= small.median and large.info == {"mebibytes": 64}
    assert large.cpus < 1.1
    assert large.peak_bytes - large.idle_bytes >= 64 * MIB
    assert large.as_json()["best_s"] == large.best


def fail():
    raise RuntimeError("no such device")


def test_a_worker_that_fails_ends_the_benchmark(capfd):
    with pytest.raises(SystemExit, match="worker process failed"):
        Worker(1, fail)
    assert "no such device" in capfd.readouterr().err
