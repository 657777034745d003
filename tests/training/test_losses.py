import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.diffusion import (
    MaskMixture,
    Schedule,
    SuperResolution,
    draw_mask,
    sample_training_time,
    variational_loss,
)
from stunet.models.t5 import T5Encoder
from stunet.models.unet import init_unet
from stunet.training import losses, networks
from stunet.training.losses import (
    NUM_NOISE_BINS,
    denoising_loss,
    noise_bins,
    stratified_uniform,
    text_denoising_loss,
    video_to_float,
)
from stunet.training.networks import Networks
from stunet.training.settings import DiffusionConfig
from stunet.training.stages import Conditional, SpatialSuperResolution, TextToVideo
from stunet.video_io import to_float
from tests.tiny import T5, UNET, fast_compiles, random_params

SEED, B = 7, 6
SCHEDULE = Schedule()
START = int(jax.random.bits(jax.random.fold_in(jax.random.key(SEED), 2**32 - 1), dtype=jnp.uint32))


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


def make_batch(num_frames=1):
    rng = np.random.default_rng(1)
    return {
        "video": rng.uniform(-1, 1, (B, num_frames, 8, 8, 3)).astype(np.float32),
        "text_states": rng.normal(size=(B, 5, 8)).astype(np.float16),
        "position": np.array([0, 1, 2, 1000, 12345, 2**31 + 5], np.uint32),
    }


def arrays(batch):
    return {name: jnp.asarray(array) for name, array in batch.items()}


def drawn(batch):
    """Returns the expected timestep, log-SNR `[B]` and noise of each example, in float64."""
    t, noise = [], []
    for position in batch["position"]:
        key = jax.random.fold_in(jax.random.key(SEED), position)
        phase = (START + int(position) * 2654435769) % 2**32
        t.append(phase // 2**8 * 1000 // 2**24)
        noise.append(jax.random.normal(key, batch["video"].shape[1:]))
    log_snr = SCHEDULE.log_snr(np.array(t), xp=np)
    return np.array(t), log_snr, np.stack(noise).astype(np.float64)


@pytest.mark.parametrize("first", [0, 12345, 2**32 - 20])
def test_noise_levels_of_any_batch_are_stratified(first):
    """64 successive positions (which may wrap) put 3 to 5 numbers into each 16th of [0, 1)."""
    position = jnp.uint32(first) + jnp.arange(64, dtype=jnp.uint32)
    u = np.asarray(stratified_uniform(position, SEED))
    assert u.min() >= 0 and u.max() < 1
    assert set(np.histogram(u, 16, (0, 1))[0]) <= {3, 4, 5}
    assert not np.array_equal(u, stratified_uniform(position, SEED + 1))


# The network's timestep of a continuous time differs from it by up to 5.
@pytest.mark.parametrize(
    ("kind", "length", "difference"), [("cosine", 1000, 0), ("continuous_cosine", 999, 5)]
)
def test_noise_bins_are_quarters_of_the_timesteps(kind, length, difference):
    position = jnp.arange(64, dtype=jnp.uint32)
    schedule = Schedule(kind=kind)
    t, _ = sample_training_time(schedule, stratified_uniform(position, SEED))
    bins = np.asarray(noise_bins(position, SEED))
    first = bins * length / NUM_NOISE_BINS
    assert (first <= t + difference).all()
    assert (t - difference < first + length / NUM_NOISE_BINS).all()
    assert set(bins) == set(range(NUM_NOISE_BINS))


class FakeUNet:
    """Replaces the U-Net: records its inputs and returns a constant."""

    def __init__(self, monkeypatch, output=(0, 0, 0)):
        self.output, self.inputs = output, None
        monkeypatch.setattr(networks, "partitioned_unet", lambda *settings: self.apply)

    def apply(self, variables, x, t, text, noise_level, cond, guidance_scale):
        assert guidance_scale is None
        self.inputs, self.noise_level, self.cond = (x, t, text), noise_level, cond
        return jnp.broadcast_to(
            jnp.asarray(self.output, jnp.float32), (*x.shape[:-1], len(self.output))
        )


def loss_of(monkeypatch, batch, output=(0, 0, 0), **diffusion):
    """Returns losses for a constant output, and the inputs of the U-Net."""
    unet = FakeUNet(monkeypatch, output)
    config = DiffusionConfig(**diffusion)
    loss = denoising_loss(Networks(UNET, None), config, {"unet": {}}, arrays(batch), SEED)
    return np.asarray(loss), unet.inputs


def mean(a):
    return np.mean(a, axis=(1, 2, 3, 4))


def test_inputs_of_the_network(monkeypatch):
    batch = make_batch(num_frames=4)
    t, log_snr, eps = drawn(batch)
    _, (x_t, input_t, text) = loss_of(monkeypatch, batch)
    alpha, sigma = (
        (1 / np.sqrt(1 + np.exp(sign * log_snr))).reshape(B, 1, 1, 1, 1) for sign in (-1, 1)
    )
    np.testing.assert_allclose(input_t, t, atol=1e-3)
    np.testing.assert_allclose(x_t, alpha * batch["video"] + sigma * eps, atol=1e-5)
    np.testing.assert_array_equal(text, batch["text_states"].astype(np.float32))
    assert len(set(t)) == B  # every example has another level


def ssr_loss(config, batch):
    stage = SpatialSuperResolution(
        init_from="not read", temporal=UNET.temporal, super_resolution=config
    )
    return stage.loss(Networks(UNET, None), DiffusionConfig(), {"unet": {}}, arrays(batch), SEED)


def test_inputs_of_a_super_resolution_network(monkeypatch):
    """The noisy video, and the mean of each square, enlarged and noised to `noise_level`."""
    batch = make_batch(num_frames=2)
    unet = FakeUNet(monkeypatch)
    loss = ssr_loss(SuperResolution(4, 300.0, 100.0), batch)
    noisy, low = np.split(np.asarray(unet.inputs[0]), 2, axis=-1)
    plain_loss, (x_t, *_) = loss_of(monkeypatch, batch)
    np.testing.assert_array_equal(noisy, x_t)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)  # the target is the same

    keys = [jax.random.fold_in(jax.random.key(SEED), position) for position in batch["position"]]
    level = np.array([300 * jax.random.uniform(jax.random.fold_in(key, 2)) for key in keys])
    np.testing.assert_allclose(unet.noise_level, level, rtol=1e-5)
    shape = batch["video"].shape[1:]
    eps = np.stack([jax.random.normal(jax.random.fold_in(key, 3), shape) for key in keys])
    log_snr = SCHEDULE.log_snr(level, xp=np).reshape(B, 1, 1, 1, 1)
    squares = batch["video"].reshape(B, 2, 2, 4, 2, 4, 3).mean((3, 5))
    # Bilinear from 2 to 8 pixels: linear between pixel centres, constant outside.
    share = np.clip((np.arange(8) - 1.5) / 4, 0, 1)
    enlarge = np.stack([1 - share, share])
    large = np.einsum("btyxc,yY,xX->btYXc", squares, enlarge, enlarge)
    expected = (large * np.exp(log_snr / 2) + eps) / np.sqrt(1 + np.exp(log_snr))
    np.testing.assert_allclose(low, expected, atol=1e-4)

    # A residual model diffuses the difference to the enlarged mean, given the same clip.
    unet = FakeUNet(monkeypatch)
    details = {**batch, "video": (batch["video"] - large) / 0.25}
    loss = ssr_loss(SuperResolution(4, 300.0, 100.0, residual_scale=0.25), batch)
    noisy, low = np.split(np.asarray(unet.inputs[0]), 2, axis=-1)
    details_loss, (x_t, *_) = loss_of(monkeypatch, details)
    np.testing.assert_allclose(noisy, x_t, atol=1e-4)
    np.testing.assert_allclose(loss, details_loss, rtol=1e-4)
    np.testing.assert_allclose(low, expected, atol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_loss_of_output_0_is_the_square_of_the_target(monkeypatch, prediction):
    batch = make_batch()
    _, log_snr, eps = drawn(batch)
    snr = np.exp(log_snr).reshape(B, 1, 1, 1, 1)
    alpha, sigma = np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))
    x0 = batch["video"].astype(np.float64)
    target = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]
    expected = mean(target**2)
    loss, _ = loss_of(monkeypatch, batch, prediction=prediction)
    assert loss.shape == (B,)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # min-SNR weights the error of x0 by min(SNR, 5) for every prediction
    error_of_x0 = {"eps": 1 / snr, "x0": np.ones_like(snr), "v": 1 / (1 + snr)}[prediction]
    weight = (np.minimum(snr, 5) * error_of_x0).ravel()
    loss, _ = loss_of(monkeypatch, batch, prediction=prediction, loss="min_snr")
    np.testing.assert_allclose(loss, weight * expected, rtol=1e-4)
    assert np.ptp(weight) > 0.4  # distinguishes it from no weight


def test_learned_range_adds_the_variational_term(monkeypatch):
    batch = make_batch()
    output = (0.1, 0.2, -0.1, 0.5, -0.5, 0.0)
    fixed, _ = loss_of(monkeypatch, batch, output)
    learned, (x_t, t, _) = loss_of(monkeypatch, batch, output, variance="learned_range")
    _, log_snr, _ = drawn(batch)
    snr = np.exp(log_snr).reshape(B, 1, 1, 1, 1)
    eps, variance = (np.broadcast_to(part, x_t.shape) for part in (output[:3], output[3:]))
    x0 = (x_t - np.sqrt(1 / (1 + snr)) * eps) / np.sqrt(snr / (1 + snr))
    inputs = (t, batch["video"], x_t, x0.astype(np.float32), variance.astype(np.float32))
    term = variational_loss(SCHEDULE, *map(jnp.asarray, inputs))
    np.testing.assert_allclose(learned - fixed, term, rtol=2e-3)
    assert np.all(np.asarray(term) > 0)


def test_an_examples_loss_depends_on_its_position_only(monkeypatch):
    batch = make_batch()
    whole, _ = loss_of(monkeypatch, batch)
    order = np.array([3, 5, 0, 4, 1, 2])
    shuffled, _ = loss_of(monkeypatch, {name: a[order] for name, a in batch.items()})
    np.testing.assert_allclose(shuffled, whole[order], rtol=1e-6)
    half, _ = loss_of(monkeypatch, {name: a[2:4] for name, a in batch.items()})
    np.testing.assert_allclose(half, whole[2:4], rtol=1e-6)
    moved, _ = loss_of(monkeypatch, {**batch, "position": batch["position"] + np.uint32(1)})
    assert np.abs(moved - whole).min() > 1e-3


class FakeTextEncoder:
    """Replaces the text encoder: the state of a token is its embedding."""

    def __init__(self, config):
        pass

    def apply(self, variables, tokens, mask):
        return variables["params"]["shared"]["embedding"][tokens]


def test_loss_of_hidden_tokens(monkeypatch):
    """Visible tokens have almost no loss, hidden ones that of a guess among all tokens."""
    monkeypatch.setattr(losses, "T5Encoder", FakeTextEncoder)
    size, logit = 16, 12.0  # the correct logit of a visible token
    config = dataclasses.replace(T5, vocab_size=size, d_model=size)
    params = {"shared": {"embedding": np.sqrt(logit * np.sqrt(size)) * np.eye(size)}}
    count, length = 200, 10
    tokens = np.random.default_rng(0).integers(3, size, (count, length))
    mask = np.arange(length) < np.arange(count)[:, None] % length + 1
    batch = {"tokens": tokens, "token_mask": mask, "position": np.arange(count, dtype=np.uint32)}
    loss = np.asarray(text_denoising_loss(config, params, batch, SEED))
    visible = np.log(np.exp(logit) + size - 1) - logit
    hidden = (loss - visible) * mask.sum(1) / logit  # each adds its missing logit
    np.testing.assert_allclose(hidden, hidden.round(), atol=1e-4)
    assert np.all(hidden <= mask.sum(1) + 0.1)
    assert 0.1 < hidden.sum() / mask.sum() < 0.2
    part = {name: a[40:90] for name, a in batch.items()}
    np.testing.assert_allclose(
        text_denoising_loss(config, params, part, SEED), loss[40:90], rtol=1e-5
    )


@pytest.fixture(scope="module")
def params():
    """Parameters of tiny networks, none of them zero."""
    key, ids = jax.random.key(0), np.zeros((1, 4), np.int32)
    shapes = {
        "unet": jax.eval_shape(lambda: init_unet(UNET, key)),
        "text_encoder": jax.eval_shape(lambda: T5Encoder(T5).init(key, ids, ids == 0)["params"]),
    }
    return random_params(shapes)


def test_losses_do_not_depend_on_the_order_of_the_batch(params):
    """(tests/experiments/test_train.py checks that trained parameters have gradients.)"""
    diffusion = DiffusionConfig(prediction="v", loss="min_snr")
    stage = TextToVideo(init_from="not read", temporal=UNET.temporal)
    batch = make_batch(num_frames=4)
    del batch["text_states"]
    tokens = np.arange(B * 5, dtype=np.int32).reshape(B, 5)
    batch |= {"tokens": tokens, "token_mask": tokens % 4 != 3}
    tiny = Networks(UNET, T5)
    loss = jax.jit(lambda batch: stage.loss(tiny, diffusion, params, batch, SEED))
    order = np.array([3, 5, 0, 4, 1, 2])
    whole, shuffled = loss(batch), loss({name: a[order] for name, a in batch.items()})
    np.testing.assert_allclose(shuffled, whole[order], rtol=1e-5)
    assert np.ptp(whole) > 0.1
    other_prompt = loss({**batch, "tokens": tokens + 1})
    assert np.abs(other_prompt - whole).max() > 1e-3


def test_inputs_of_a_conditional_network(monkeypatch):
    """The known pixels, without noise, of a mask drawn for each example."""
    unet, mixture, batch = FakeUNet(monkeypatch), MaskMixture(), make_batch(num_frames=4)
    stage = Conditional(init_from="not read", conditioning=mixture)
    diffusion, tiny = DiffusionConfig(prediction="v"), Networks(UNET, None)
    stage.loss(tiny, diffusion, {"unet": {}}, arrays(batch), SEED)
    shapes = batch["video"].shape[1:4]
    for position, video, cond in zip(batch["position"], batch["video"], unet.cond, strict=True):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), position), 4)
        mask = np.asarray(draw_mask(mixture, key, shapes))
        np.testing.assert_array_equal(cond, np.concatenate([np.where(mask, video, 0), mask], -1))
    assert 0 < np.mean(unet.cond[..., 3]) < 1
    denoising_loss(tiny, DiffusionConfig(), {"unet": {}}, arrays(batch), SEED)
    assert unet.cond is None


def test_configs_are_values():
    config = DiffusionConfig()
    assert hash(config) == hash(dataclasses.replace(config)) and config.schedule == SCHEDULE


def test_pixels_become_floats_as_those_of_decoded_videos():
    levels = np.arange(256, dtype=np.uint8)
    found = jax.jit(video_to_float)(levels)
    assert found.dtype == jnp.float32
    expected = (2 * levels.astype(np.float32) - 255) * np.float32(1 / 255)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, to_float(levels), atol=1.2e-7)
    assert found[0] == -1 and found[255] == 1
    assert video_to_float(found) is found
