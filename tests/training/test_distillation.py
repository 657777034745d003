"""Losses of distillation against the sampler and the guidance that the student replaces."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.diffusion import (
    MaskMixture,
    Schedule,
    TimeGrid,
    add_noise,
    alpha_sigma,
    guided_denoiser,
    run_steps,
    sample_training_time,
)
from stunet.diffusion.samplers import SAMPLERS
from stunet.models.t5 import init_text_encoder
from stunet.models.unet import init_unet
from stunet.text import EOS_ID
from stunet.training.distillation import Teacher, guidance_loss, step_loss, x0_of_step
from stunet.training.losses import draw_inputs, masked_inputs, text_states, text_to_video_inputs
from stunet.training.networks import Networks
from stunet.training.settings import DiffusionConfig
from stunet.weights.trees import flatten, unflatten
from tests.tiny import T5, UNET, fast_compiles, random_params

SEED, B, STEPS = 3, 5, 4
SCHEDULE = Schedule(kind="continuous_cosine", log_snr_shift=-1.0)
DIFFUSION = DiffusionConfig(prediction="v", schedule=SCHEDULE)
DISTILLED = dataclasses.replace(UNET, guidance_embedding=True)
NETWORKS = Networks(DISTILLED, T5)


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 40, (B, 6))
    tokens[:, -1] = EOS_ID
    return {
        "video": jnp.asarray(rng.uniform(-1, 1, (B, 4, 8, 8, 3)), jnp.float32),
        "tokens": jnp.asarray(tokens, jnp.int32),
        "token_mask": jnp.ones((B, 6), bool),
        "position": jnp.arange(B, dtype=jnp.uint32),
    }


@pytest.fixture(scope="module")
def text_encoder():
    return init_text_encoder(T5, jax.random.key(1))


def make_params(unet, seed=0):
    return random_params(jax.eval_shape(lambda: init_unet(unet, jax.random.key(0))), seed=seed)


def test_a_step_leads_to_where_x0_of_step_says():
    rng = np.random.default_rng(1)
    x0, eps = (jnp.asarray(rng.normal(size=(3, 2, 4, 4, 3)), jnp.float32) for _ in range(2))
    start, end = jnp.array([-8.0, -2.0, 1.0]), jnp.array([-5.0, 3.0, jnp.inf])
    found = x0_of_step(add_noise(x0, eps, start), add_noise(x0, eps, end), start, end)
    np.testing.assert_allclose(found, x0, atol=2e-4)


@pytest.mark.parametrize("schedule", [SCHEDULE, Schedule()])
def test_grids_of_few_steps_contain_those_of_half_as_many(schedule):
    for steps in (1, 2, 4, 8):
        few, many = (TimeGrid.nested(schedule, n) for n in (steps, 2 * steps))
        np.testing.assert_allclose(many.log_snr[::2], few.log_snr, atol=1e-9)
        np.testing.assert_allclose(many.timesteps[::2], few.timesteps, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
def test_guidance_is_what_the_student_lacks_at_the_start(batch, text_encoder, masked):
    unet = dataclasses.replace(UNET, cond_channels=4) if masked else UNET
    teacher, start = make_params(unet), dataclasses.replace(unet, guidance_embedding=True)
    student = flatten(make_params(start)) | flatten(teacher)
    student = {p: 0 * a if "guidance_embedding" in p else a for p, a in student.items()}
    params = {"unet": unflatten(student), "text_encoder": text_encoder}
    networks, teachers = Networks(start, T5), Networks(unet, T5)
    masks = functools.partial(masked_inputs, MaskMixture(half_plane=1.0))
    make_inputs = masks if masked else text_to_video_inputs

    def loss(*scales):
        return guidance_loss(
            networks,
            Teacher(teachers, teacher),
            DIFFUSION,
            params,
            batch,
            SEED,
            make_inputs,
            scales,
        )

    np.testing.assert_allclose(loss(1.0, 1.0), 0, atol=1e-9)

    # At scale 3 the error of the student, which predicts without guidance, is what guidance adds.
    drawn = draw_inputs(networks, params, batch, SEED, make_inputs)
    t, log_snr = sample_training_time(SCHEDULE, drawn.uniform)
    x_t = add_noise(drawn.inputs.x0, drawn.eps, log_snr)
    empty = jnp.zeros_like(batch["tokens"]).at[:, 0].set(EOS_ID)
    none = text_states(networks, params, {"tokens": empty, "token_mask": empty == EOS_ID})
    cond = drawn.inputs.cond
    scale = jnp.where(cond[..., -1:] > 0.5, 1.0, 3.0) if masked else 3.0

    def network(x, t, inputs):
        return teachers.apply_unet({"params": teacher}, x, t, inputs["text"], None, inputs["known"])

    def predict_v(scale):
        inputs = ({"text": text, "known": cond} for text in (drawn.text, none))
        denoiser = guided_denoiser(network, SCHEDULE, "v", *inputs, scale, learned_variance=False)
        prediction = denoiser(x_t, t)
        alpha, sigma = (a.reshape(-1, 1, 1, 1, 1) for a in alpha_sigma(log_snr))
        return alpha * prediction.eps - sigma * prediction.x0

    expected = jnp.square(predict_v(scale) - predict_v(1)).mean((1, 2, 3, 4))
    assert expected.min() > 1e-6
    np.testing.assert_allclose(loss(3.0, 3.0), expected, rtol=2e-3)
    assert np.ptp(np.asarray(loss(1.0, 5.0) / expected)) > 0.1  # a scale for each example


def test_two_steps_of_the_teachers_sampler_are_the_target(batch, text_encoder):
    teacher, student = make_params(DISTILLED), make_params(DISTILLED, seed=1)
    params = {"unet": student, "text_encoder": text_encoder}
    losses = step_loss(
        NETWORKS,
        Teacher(NETWORKS, teacher),
        DIFFUSION,
        params,
        batch,
        SEED,
        text_to_video_inputs,
        (2.0, 2.0),
        STEPS,
    )
    drawn = draw_inputs(NETWORKS, params, batch, SEED, text_to_video_inputs)
    indices = np.floor(np.asarray(drawn.uniform) * STEPS).astype(int).tolist()
    assert len(set(indices)) > 2
    levels = np.append(TimeGrid.nested(SCHEDULE, STEPS).log_snr, np.inf)

    def sample(unet, row, x_t, num_steps, first, count):
        def network(x, t, text):
            scale = jnp.full((1,), 2.0)
            return NETWORKS.apply_unet({"params": unet}, x, t, text, None, None, scale)

        text = drawn.text[row : row + 1]
        denoiser = guided_denoiser(network, SCHEDULE, "v", text, text, 1, learned_variance=False)
        bound = SAMPLERS["few_steps"].bind(SCHEDULE, num_steps)
        carry, noise = bound.init(x_t), jnp.zeros_like(x_t)
        return run_steps(bound, denoiser, carry, first, count, lambda index: noise).x

    for row, index in enumerate(indices):
        x0, eps = (a[row : row + 1] for a in (drawn.inputs.x0, drawn.eps))
        x_t = add_noise(x0, eps, jnp.float32(levels[index]))
        two = sample(teacher, row, x_t, 2 * STEPS, 2 * index, 2)
        one = sample(student, row, x_t, STEPS, index, 1)
        # The ends differ by the difference of x0 times alpha_end - alpha sigma_end / sigma, and v
        # differs by 1 / sigma times that of x0.
        (alpha, alpha_end), (sigma, sigma_end) = alpha_sigma(levels[index : index + 2])
        change = (two - one) / (alpha_end - alpha * sigma_end / sigma)
        np.testing.assert_allclose(losses[row], jnp.square(change / sigma).mean(), rtol=5e-3)


def test_a_teacher_whose_x0_is_constant_is_imitated_without_loss(batch, text_encoder):
    zero = jax.tree.map(jnp.zeros_like, make_params(DISTILLED))
    loss = step_loss(
        NETWORKS,
        Teacher(NETWORKS, zero),
        dataclasses.replace(DIFFUSION, prediction="x0"),
        {"unet": zero, "text_encoder": text_encoder},
        batch,
        SEED,
        text_to_video_inputs,
        (1.0, 4.0),
        STEPS,
    )
    np.testing.assert_allclose(loss, 0, atol=1e-9)
