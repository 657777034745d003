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
    variational_loss,
)
from stunet.models.t5 import T5Encoder, TextEncoderConfig
from stunet.models.unet import init_unet
from stunet.training import stages
from stunet.training.config import DiffusionConfig, TrainConfig
from stunet.training.stages import (
    Networks,
    denoising_loss,
    make_stage,
    spread_uniform,
    text_denoising_loss,
)
from stunet.weights.trees import flatten, partition
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


def drawn(batch):
    """Timestep, log-SNR `[B]` and noise that each example must get, one at a time, in float64."""
    t, noise = [], []
    for position in batch["position"]:
        key = jax.random.fold_in(jax.random.key(SEED), position)
        phase = (START + int(position) * 2654435769) % 2**32
        t.append(phase // 2**8 * 1000 // 2**24)
        noise.append(jax.random.normal(key, batch["video"].shape[1:]))
    log_snr = SCHEDULE.log_snr(np.array(t), xp=np)
    return np.array(t), log_snr, np.stack(noise).astype(np.float64)


@pytest.mark.parametrize("first", [0, 12345, 2**32 - 20])
def test_noise_levels_of_any_batch_are_spread(first):
    """Of 64 successive positions (the count may wrap) every 16th of [0, 1) gets 3 to 5."""
    position = jnp.uint32(first) + jnp.arange(64, dtype=jnp.uint32)
    u = np.asarray(spread_uniform(position, SEED))
    assert u.min() >= 0 and u.max() < 1
    assert set(np.histogram(u, 16, (0, 1))[0]) <= {3, 4, 5}
    assert not np.array_equal(u, spread_uniform(position, SEED + 1))


class Oracle:
    """Stands in for the U-Net: remembers what it is asked, answers with a constant."""

    def __init__(self, answer):
        self.answer, self.asked = answer, None

    def __call__(self, config, remat, mesh):
        return self

    def apply(self, variables, x, t, text, noise_level, cond):
        self.asked, self.noise_level, self.cond = (x, t, text), noise_level, cond
        return jnp.broadcast_to(
            jnp.asarray(self.answer, jnp.float32), (*x.shape[:-1], len(self.answer))
        )


def loss_of(monkeypatch, batch, answer=(0, 0, 0), **diffusion):
    oracle = Oracle(answer)
    monkeypatch.setattr(stages, "UNet", oracle)
    config = DiffusionConfig(**diffusion)
    loss = denoising_loss(Networks(UNET, None), config, {"unet": {}}, batch, SEED)
    return np.asarray(loss), oracle.asked


def mean(a):
    return np.mean(a, axis=(1, 2, 3, 4))


def test_what_the_network_is_asked(monkeypatch):
    batch = make_batch(num_frames=4)
    t, log_snr, eps = drawn(batch)
    _, (x_t, asked_t, text) = loss_of(monkeypatch, batch)
    alpha, sigma = (
        (1 / np.sqrt(1 + np.exp(sign * log_snr))).reshape(B, 1, 1, 1, 1) for sign in (-1, 1)
    )
    np.testing.assert_allclose(asked_t, t, atol=1e-3)
    np.testing.assert_allclose(x_t, alpha * batch["video"] + sigma * eps, atol=1e-5)
    np.testing.assert_array_equal(text, batch["text_states"].astype(np.float32))
    assert len(set(t)) == B  # each example its own level


def test_what_a_super_resolution_network_is_asked(monkeypatch):
    """Beside the noisy video the mean of each square, enlarged and noised to the level told."""
    batch = make_batch(num_frames=2)
    oracle = Oracle((0, 0, 0))
    monkeypatch.setattr(stages, "UNet", oracle)
    networks = Networks(UNET, None, super_resolution=SuperResolution(4, 300.0, 100.0))
    loss = denoising_loss(networks, DiffusionConfig(), {"unet": {}}, batch, SEED)
    noisy, low = np.split(np.asarray(oracle.asked[0]), 2, axis=-1)
    plain_loss, (x_t, *_) = loss_of(monkeypatch, batch)
    np.testing.assert_array_equal(noisy, x_t)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)  # the target is the same

    keys = [jax.random.fold_in(jax.random.key(SEED), position) for position in batch["position"]]
    level = np.array([300 * jax.random.uniform(jax.random.fold_in(key, 2)) for key in keys])
    np.testing.assert_allclose(oracle.noise_level, level, rtol=1e-5)
    shape = batch["video"].shape[1:]
    eps = np.stack([jax.random.normal(jax.random.fold_in(key, 3), shape) for key in keys])
    log_snr = SCHEDULE.log_snr(level, xp=np).reshape(B, 1, 1, 1, 1)
    squares = batch["video"].reshape(B, 2, 2, 4, 2, 4, 3).mean((3, 5))
    # Bilinear from 2 to 8 pixels: constant to a pixel's centre, linear between the two.
    share = np.clip((np.arange(8) - 1.5) / 4, 0, 1)
    enlarge = np.stack([1 - share, share])
    large = np.einsum("btyxc,yY,xX->btYXc", squares, enlarge, enlarge)
    expected = (large * np.exp(log_snr / 2) + eps) / np.sqrt(1 + np.exp(log_snr))
    np.testing.assert_allclose(low, expected, atol=1e-4)

    # A residual model is asked for what the enlarged mean lacks, and sees the same clip.
    residual = SuperResolution(4, 300.0, 100.0, residual_scale=0.25)
    networks = Networks(UNET, None, super_resolution=residual)
    monkeypatch.setattr(stages, "UNet", oracle)
    details = {**batch, "video": (batch["video"] - large) / 0.25}
    loss = denoising_loss(networks, DiffusionConfig(), {"unet": {}}, batch, SEED)
    noisy, low = np.split(np.asarray(oracle.asked[0]), 2, axis=-1)
    details_loss, (x_t, *_) = loss_of(monkeypatch, details)
    np.testing.assert_allclose(noisy, x_t, atol=1e-4)
    np.testing.assert_allclose(loss, details_loss, rtol=1e-4)
    np.testing.assert_allclose(low, expected, atol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_a_network_of_zeros_loses_its_targets_square(monkeypatch, prediction):
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
    # min-SNR: the x0 error's weight is min(SNR, 5), whatever is predicted
    error_of_x0 = {"eps": 1 / snr, "x0": np.ones_like(snr), "v": 1 / (1 + snr)}[prediction]
    weight = (np.minimum(snr, 5) * error_of_x0).ravel()
    loss, _ = loss_of(monkeypatch, batch, prediction=prediction, loss="min_snr")
    np.testing.assert_allclose(loss, weight * expected, rtol=1e-4)
    assert np.ptp(weight) > 0.4  # so that leaving it out would show


def test_learned_range_adds_the_variational_term(monkeypatch):
    batch = make_batch()
    answer = (0.1, 0.2, -0.1, 0.5, -0.5, 0.0)
    fixed, _ = loss_of(monkeypatch, batch, answer)
    learned, (x_t, t, _) = loss_of(monkeypatch, batch, answer, variance="learned_range")
    _, log_snr, _ = drawn(batch)
    snr = np.exp(log_snr).reshape(B, 1, 1, 1, 1)
    eps, variance = (np.broadcast_to(part, x_t.shape) for part in (answer[:3], answer[3:]))
    x0 = (x_t - np.sqrt(1 / (1 + snr)) * eps) / np.sqrt(snr / (1 + snr))
    term = variational_loss(
        SCHEDULE, t, batch["video"], x_t, x0.astype(np.float32), variance.astype(np.float32)
    )
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


class Echo:
    """Stands in for the text encoder: each token's own embedding is its state."""

    def __init__(self, config):
        pass

    def apply(self, variables, tokens, mask):
        return variables["params"]["shared"]["embedding"][tokens]


def test_hidden_words_are_asked_for(monkeypatch):
    """A token that is seen costs little, a hidden one what a guess among all costs."""
    monkeypatch.setattr(stages, "T5Encoder", Echo)
    size, tall = 16, 12.0  # the right logit of a token that is seen
    config = dataclasses.replace(T5, vocab_size=size, d_model=size)
    params = {"shared": {"embedding": np.sqrt(tall * np.sqrt(size)) * np.eye(size)}}
    count, length = 200, 10
    tokens = np.random.default_rng(0).integers(3, size, (count, length))
    mask = np.arange(length) < np.arange(count)[:, None] % length + 1
    batch = {"tokens": tokens, "token_mask": mask, "position": np.arange(count, dtype=np.uint32)}
    losses = np.asarray(text_denoising_loss(config, params, batch, SEED))
    seen = np.log(np.exp(tall) + size - 1) - tall
    hidden = (losses - seen) * mask.sum(1) / tall  # each adds the logit that it lacks
    np.testing.assert_allclose(hidden, hidden.round(), atol=1e-4)
    assert np.all(hidden <= mask.sum(1) + 0.1)
    assert 0.1 < hidden.sum() / mask.sum() < 0.2
    part = {name: a[40:90] for name, a in batch.items()}
    np.testing.assert_allclose(
        text_denoising_loss(config, params, part, SEED), losses[40:90], rtol=1e-5
    )


@pytest.fixture(scope="module")
def networks():
    """Tiny networks without a zero among their parameters."""
    key, ids = jax.random.key(0), np.zeros((1, 4), np.int32)
    shapes = {
        "unet": jax.eval_shape(lambda: init_unet(UNET, key)),
        "text_encoder": jax.eval_shape(lambda: T5Encoder(T5).init(key, ids, ids == 0)["params"]),
    }
    return Networks(UNET, T5), random_params(shapes)


def test_real_networks_take_the_batch_in_any_order(networks):
    """(That each trained parameter gets a gradient is seen where whole runs train them.)"""
    networks, params = networks
    diffusion = DiffusionConfig(prediction="v", loss="min_snr")
    stage = make_stage("t2v", networks, diffusion, trains="added")
    batch = make_batch(num_frames=4)
    del batch["text_states"]
    tokens = np.arange(B * 5, dtype=np.int32).reshape(B, 5)
    batch |= {"tokens": tokens, "token_mask": tokens % 4 != 3}
    loss = jax.jit(lambda batch: stage.loss(params, batch, SEED))
    order = np.array([3, 5, 0, 4, 1, 2])
    whole, shuffled = loss(batch), loss({name: a[order] for name, a in batch.items()})
    np.testing.assert_allclose(shuffled, whole[order], rtol=1e-5)
    assert np.ptp(whole) > 0.1
    told_otherwise = loss({**batch, "tokens": tokens + 1})
    assert np.abs(told_otherwise - whole).max() > 1e-3


def test_a_conditional_network_is_given_the_clean_pixels_of_a_mask_drawn_for_each_example(
    monkeypatch,
):
    oracle, mixture, batch = Oracle([0.0, 0.0, 0.0]), MaskMixture(), make_batch(num_frames=4)
    monkeypatch.setattr(stages, "UNet", oracle)
    networks = Networks(UNET, None, conditioning=mixture)
    denoising_loss(networks, DiffusionConfig(prediction="v"), {"unet": {}}, batch, SEED)
    shapes = batch["video"].shape[1:4]
    for position, video, cond in zip(batch["position"], batch["video"], oracle.cond, strict=True):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), position), 4)
        mask = np.asarray(draw_mask(mixture, key, shapes))
        np.testing.assert_array_equal(cond, np.concatenate([np.where(mask, video, 0), mask], -1))
    assert 0 < np.mean(oracle.cond[..., 3]) < 1
    denoising_loss(Networks(UNET, None), DiffusionConfig(), {"unet": {}}, batch, SEED)
    assert oracle.cond is None


def test_which_parameters_a_stage_trains(networks):
    networks, params = networks
    everything = flatten(params).keys()
    new = {path for path in everything if "/temporal_" in path}
    in_conv_time = {path for path in new if "/conv_time/" in path}
    unet = {path for path in everything if path.startswith("unet/")}
    start = {"init_from": "there", "data": {}, "batch_size": 1, "total_steps": 1}
    t2v = {"stage": "t2v", "temporal": UNET.temporal}
    ssr = {"stage": "ssr", "temporal": UNET.temporal, "super_resolution": SuperResolution(4)}
    new_networks = {"init_from": "", "unet": UNET, "text_encoder": TextEncoderConfig(T5, 4)}
    for fields, expected in (
        ({"stage": "t2i", **new_networks}, everything),
        ({"stage": "style"}, unet),
        (t2v, new),
        ({**t2v, "trained": "unet"}, unet),
        ({**t2v, "frozen": ("conv_time", "embedding")}, new - in_conv_time),
        ({**ssr, **new_networks}, everything),
        (ssr, new),
        ({**ssr, "trained": "unet"}, unet),
    ):
        config = TrainConfig(**{**start, **fields})
        stage = make_stage(
            config.stage, networks, DiffusionConfig(), trains=config.trains, frozen=config.frozen
        )
        trained, frozen = partition(params, stage.is_trained)
        assert stage.name == config.stage
        assert flatten(trained).keys() == expected
        assert flatten(frozen).keys() == everything - expected
    assert 0 < len(in_conv_time) < len(new) < len(unet) < len(everything)


def test_configs_are_values():
    config = DiffusionConfig()
    assert hash(config) == hash(dataclasses.replace(config)) and config.schedule == SCHEDULE
