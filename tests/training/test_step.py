import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.training.losses import NUM_NOISE_BINS, noise_bins
from stunet.training.settings import OptimizerConfig
from stunet.training.step import init_state, make_optimizer, make_train_step

NAMES = ("adamw", "adafactor", "muon")
MUON_OF_ONE = 1.2649  # a singular value of 1 after Muon's iterations
RTOL = {"adamw": 1e-5, "adafactor": 1e-5, "muon": 2e-4}  # Muon's iterations amplify rounding
PARAMS = {"conv": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0)}}


def constant_gradient(value):
    return jax.tree.map(lambda p: jnp.full_like(p, value), PARAMS)


def updates(config, grads, steps, total_steps=10**6):
    """Returns the updates of `steps` steps with a constant gradient and constant parameters."""
    optimizer = make_optimizer(config, total_steps)
    state, result = optimizer.init(PARAMS), []
    for _ in range(steps):
        update, state = optimizer.update(grads, state, PARAMS)
        result.append(jax.tree.map(np.asarray, update)["conv"])
    return result


def rates(config, steps, total_steps=10**6):
    """Returns the learning rate of each step, from the updates for a constant gradient.

    Updates of AdamW and Adafactor are as long as the rate. Muon's is an orthogonal matrix, here of
    rank one; at full rank the RMS of its entries is a fifth of the rate.
    """
    moved = updates(config, constant_gradient(1.0), steps, total_steps)
    if config.name == "muon":
        return [-update["kernel"][0, 0] * np.sqrt(2) / 0.2 / MUON_OF_ONE for update in moved]
    return [-update["bias"][0] for update in moved]


@pytest.mark.parametrize("name", NAMES)
def test_warm_up(name):
    config = OptimizerConfig(name, learning_rate=0.1, warmup_steps=4)
    np.testing.assert_allclose(
        rates(config, 6), [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=RTOL[name]
    )
    config = OptimizerConfig(name, learning_rate=0.1, warmup_steps=0)
    np.testing.assert_allclose(rates(config, 2), 0.1, rtol=RTOL[name])


@pytest.mark.parametrize("name", NAMES)
def test_cool_down(name):
    config = OptimizerConfig(name, learning_rate=0.1, warmup_steps=2, cooldown_steps=4)
    expected = [0.05, 0.1, 0.1, 0.1, 0.1, 0.075, 0.05, 0.025]
    np.testing.assert_allclose(rates(config, 8, total_steps=8), expected, rtol=RTOL[name])


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_is_decoupled_and_spares_biases(name):
    config = OptimizerConfig(name, learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    plain = OptimizerConfig(name, learning_rate=0.1, warmup_steps=0)
    (decayed,), (bare,) = (updates(c, constant_gradient(1.0), 1) for c in (config, plain))
    np.testing.assert_allclose(decayed["kernel"] - bare["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-5)
    np.testing.assert_array_equal(decayed["bias"], bare["bias"])


def test_gradients_are_clipped_by_their_global_norm():
    # Through Adam's second moment, which is (1 - b2) of the clipped gradient's square.
    optimizer = make_optimizer(OptimizerConfig(clip_norm=0.6), 10**6)
    _, state = optimizer.update(constant_gradient(10.0), optimizer.init(PARAMS), PARAMS)
    (moment,) = (
        leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2, 3) and leaf.max() < 1e-2
    )
    np.testing.assert_allclose(moment, 0.01 * 0.6**2 / 9, rtol=1e-5)  # nine equal entries
    _, state = optimizer.update(constant_gradient(0.1), optimizer.init(PARAMS), PARAMS)
    (moment,) = (
        leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2, 3) and leaf.max() < 1e-2
    )
    np.testing.assert_allclose(moment, 0.01 * 0.1**2, rtol=1e-5)  # a norm of 0.3 passes


def test_adafactor_has_a_smaller_state():
    params = {"kernel": jnp.ones((256, 512)), "bias": jnp.ones(512)}
    sizes = {}
    for name in ("adamw", "adafactor"):
        state = jax.eval_shape(make_optimizer(OptimizerConfig(name), 10**6).init, params)
        sizes[name] = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert sizes["adamw"] >= 2 * 512 * 257
    assert sizes["adafactor"] < 2 * (256 + 512 + 512)


def test_muon_updates_are_orthogonal_and_as_long_as_adams():
    params = {"conv": {"kernel": jnp.zeros((3, 3, 4, 16)), "bias": jnp.zeros(16)}}
    optimizer = make_optimizer(OptimizerConfig("muon", learning_rate=0.1, warmup_steps=0), 10**6)
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, 16)))[0] for n in (36, 16))
    strengths = np.geomspace(0.016, 1.0, 16)
    assert 0.01 < strengths.min() / np.linalg.norm(strengths) < 0.011
    kernel = 1e3 * left * strengths @ right.T  # the gradient's scale has no effect
    bias = np.array([1.0, -2.0] * 8, np.float32)
    grads = {"conv": {"kernel": jnp.asarray(kernel.reshape(3, 3, 4, 16)), "bias": bias}}
    update, _ = optimizer.update(grads, optimizer.init(params), params)
    moved = left.T @ np.reshape(update["conv"]["kernel"], (36, 16)) @ right
    # Equal steps along all directions, up to the band that the iterations map to.
    np.testing.assert_allclose(np.diag(moved) / (-0.1 * 0.2 * np.sqrt(36)), 1, atol=0.27)
    np.testing.assert_allclose(moved, np.diag(np.diag(moved)), atol=1e-5)
    down = -np.sign(bias) * update["conv"]["bias"]  # Adam: equal steps
    np.testing.assert_allclose(down, np.abs(down[0]), rtol=1e-2)


def quadratic(trained, frozen, batch):
    distance = sum(jnp.sum((p - 1.0) ** 2) for p in jax.tree.leaves((trained, frozen)))
    return distance * batch["weight"] + 3


@pytest.mark.parametrize("name", NAMES)
def test_training_step(name):
    """Loss, gradient norm, descent and moving average; frozen parameters are read only."""
    config = OptimizerConfig(name, learning_rate=0.05, warmup_steps=0, ema_decay=0.15)
    optimizer = make_optimizer(config, 10**6)
    step = jax.jit(make_train_step(quadratic, optimizer, config.ema_decay))
    frozen = {"frozen": {"kernel": jnp.full((2, 2), 3.0)}}
    batch = {"weight": jnp.array([1.0, 3.0])}
    state = init_state(PARAMS, optimizer)
    average, losses = np.float64(2.0), []
    for i in range(12):
        before = np.asarray(state.params["conv"]["bias"])
        state, metrics = step(state, frozen, batch)
        if i == 0:  # nine entries at distance 1, four at 2, mean weight 2, plus 3
            np.testing.assert_allclose(metrics["loss"], 2 * (9 + 16) + 3, rtol=1e-6)
            np.testing.assert_allclose(metrics["grad_norm"], 2 * 2 * np.sqrt(9), rtol=1e-6)
        assert np.all(np.asarray(state.params["conv"]["bias"]) < before)
        decay = min(0.15, (1 + i) / (10 + i))  # 0.1 at first, 0.15 from the second step on
        average = decay * average + (1 - decay) * np.float64(state.params["conv"]["bias"][0])
        np.testing.assert_allclose(state.ema["conv"]["bias"], average, rtol=1e-6)
        losses.append(float(metrics["loss"]))
    assert int(state.step) == 12 and losses[-1] < losses[0] - (5 if name == "muon" else 10)
    assert jax.tree.structure(state.params) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulated_gradients_equal_those_of_the_whole_batch(parts):
    def loss(trained, frozen, batch):
        kernel = trained["conv"]["kernel"]
        return jnp.sin(batch["x"] @ kernel).sum(-1) + 3 * trained["conv"]["bias"].sum()

    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0), 10**6)
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)}

    def run(parts, unrolled=False):
        step = make_train_step(loss, optimizer, 0.9, parts, unrolled=unrolled)
        return jax.jit(step)(init_state(PARAMS, optimizer), {}, batch)

    whole, metrics = run(1)
    for unrolled in (False, True):
        split, split_metrics = run(parts, unrolled)
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(split_metrics[name], metrics[name], rtol=1e-5)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_accumulation_keeps_activations_of_one_part():
    params = {"conv": {"kernel": jnp.eye(64)}}

    def loss(trained, frozen, batch):
        x = batch["x"]
        for _ in range(6):
            x = jnp.tanh(x @ trained["conv"]["kernel"])
        return x.sum((1, 2))

    optimizer = make_optimizer(OptimizerConfig(), 10**6)
    batch = {"x": jnp.ones((8, 1024, 64)), "tokens": jnp.ones((8, 3), jnp.int32)}
    sizes = {}
    for parts in (1, 4):
        step = make_train_step(loss, optimizer, 0.9, parts, unrolled=True)
        lowered = jax.jit(step).lower(init_state(params, optimizer), {}, batch)
        sizes[parts] = lowered.compile().memory_analysis().temp_size_in_bytes
    assert sizes[4] < 0.6 * sizes[1]


def test_the_initial_average_is_a_copy():
    """It has memory of its own, because the first update donates both."""
    state = init_state(PARAMS, make_optimizer(OptimizerConfig(), 10**6))
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()
        np.testing.assert_array_equal(a, b)


def test_a_model_stored_in_bfloat16_is_trained_in_float32():
    stored = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    state = init_state(stored, make_optimizer(OptimizerConfig(), 10**6))
    for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state)):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def convolution_loss(trained, frozen, batch):
    x = batch["x"]
    for name in ("first", "second"):
        layer = trained[name]
        window = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME", dimension_numbers=window
        )
        x = jnp.tanh(x + layer["bias"])
    return jnp.square(x - batch["x"]).mean((1, 2, 3))


@pytest.mark.parametrize("parts", [1, 3])
def test_telemetry_changes_no_bit_of_loss_and_parameters(parts):
    """XLA removes what a program does not return, so `plain` computes no telemetry."""
    rng = np.random.default_rng(0)
    params = {
        name: {
            "kernel": jnp.asarray(rng.normal(size=(3, 3, 8, 8)) / 9, jnp.float32),
            "bias": jnp.zeros(8),
        }
        for name in ("first", "second")
    }
    config = OptimizerConfig(learning_rate=0.01, warmup_steps=3, weight_decay=0.1)
    optimizer = make_optimizer(config, 10**6)

    def bins(batch):
        return noise_bins(batch["position"], 7)

    whole = make_train_step(convolution_loss, optimizer, 0.9, parts, noise_bins=bins)

    def plain(*args):
        state, metrics = whole(*args)
        return state, {name: metrics[name] for name in ("loss", "grad_norm")}

    results = []
    for step in map(jax.jit, (plain, whole)):
        state = init_state(params, optimizer)
        for i in range(4):
            x = jnp.asarray(np.random.default_rng(i).normal(size=(6, 8, 8, 8)), jnp.float32)
            batch = {"x": x, "position": jnp.arange(6 * i, 6 * i + 6, dtype=jnp.uint32)}
            before = state
            state, metrics = step(state, {}, batch)
        results.append((state, metrics["loss"], metrics["grad_norm"]))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(a, b)

    def norm(tree):
        return np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree)))

    change = jax.tree.map(jnp.subtract, state.params, before.params)
    np.testing.assert_allclose(metrics["param_norm"], norm(state.params), rtol=1e-5)
    np.testing.assert_allclose(metrics["update_norm"], norm(change), rtol=1e-4)
    losses = convolution_loss(before.params, {}, batch)
    found = np.asarray(bins(batch))
    for number in range(NUM_NOISE_BINS):
        mean = np.where(found == number, losses, 0).mean()
        np.testing.assert_allclose(metrics["noise_loss"][number], mean, rtol=1e-5)
        np.testing.assert_allclose(metrics["noise_share"][number], np.mean(found == number))
    np.testing.assert_allclose(metrics["noise_loss"].sum(), metrics["loss"], rtol=1e-5)
