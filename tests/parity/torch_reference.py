"""Outputs of diffusers and transformers for `cases`."""

import itertools
import sys
from unittest import mock

import diffusers
import jax
import numpy as np
import torch
import transformers
from diffusers.schedulers import scheduling_ddpm

from stunet.diffusion import AUGMENTATION_NOISE, START_NOISE, keyed_noise
from stunet.engine.sampling import BASE_STREAM, UPSCALE_STREAM, stream_key
from tests.parity import cases

# The networks are too small for more: waiting for threads takes most of the time.
torch.set_num_threads(1)


def _set_weights(module):
    """Sets all parameters to `cases.weight` and returns the module."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = cases.weight(name, tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(np.asarray(drawn, np.float32)))
    return module.eval()


def unet(name):
    """Returns the U-Net of a case."""
    return _set_weights(diffusers.UNet2DConditionModel.from_config(cases.UNETS[name]))


def t5():
    """Returns the text encoder."""
    config = transformers.T5Config.from_dict(cases.T5)
    return _set_weights(transformers.T5EncoderModel(config))


@torch.no_grad()
def unet_output(name):
    """Returns the output [2, 6, H, W] of a U-Net."""
    x, t, text, level = map(torch.from_numpy, cases.unet_inputs(name))
    labels = level if cases.UNETS[name].get("class_embed_type") else None
    return unet(name)(x, t, encoder_hidden_states=text, class_labels=labels).sample.numpy()


@torch.no_grad()
def t5_states():
    """Returns the text states [3, 77, D]."""
    ids, mask = map(torch.from_numpy, cases.t5_inputs())
    return t5()(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()


def pipelines():
    """Returns an IFPipeline and an IFSuperResolutionPipeline by the names of `cases.STAGES`."""
    parts = {
        "tokenizer": transformers.T5Tokenizer.from_pretrained(str(cases.GOLDEN)),
        "text_encoder": t5(),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }
    found = {}
    for name, stage in cases.STAGES.items():
        network = diffusers.UNet2DConditionModel.from_config(stage.unet)
        scheduler = diffusers.DDPMScheduler.from_config(stage.scheduler)
        parts |= {"unet": _set_weights(network), "scheduler": scheduler}
        if name == "stage_one":
            found[name] = diffusers.IFPipeline(**parts)
        else:
            found[name] = diffusers.IFSuperResolutionPipeline(
                **parts,
                image_noising_scheduler=diffusers.DDPMScheduler.from_config(scheduler.config),
            )
        found[name].set_progress_bar_config(disable=True)
    return found


def token_ids(pipeline):
    """Returns token ids and their mask [2, N, 77] of `cases.TEXTS`."""
    texts = pipeline._text_preprocessing(list(cases.TEXTS), clean_caption=False)
    options = {"padding": "max_length", "max_length": 77, "truncation": True}
    encoded = pipeline.tokenizer(texts, **options, return_tensors="np")
    return np.stack([encoded.input_ids, encoded.attention_mask]).astype(np.int16)


def trajectories(pipelines, steps, negative_prompt):
    """Generates images from `cases.PROMPTS` with the noise of `stunet.api.generate`.

    Args:
      pipelines: From `pipelines`.
      steps: Steps by the names of `cases.STAGES`. None uses the default of the pipeline.
      negative_prompt: Negative prompt of all images, or None.

    Returns:
      The estimated image [S, 2, 3, H, W] after each step by the names of `cases.STAGES`.
    """
    prompts = list(cases.PROMPTS)
    # The removal of markup needs further packages and is not part of stunet.
    options = {"clean_caption": False, "output_type": "pt"}
    options["negative_prompt"] = negative_prompt and [negative_prompt] * len(prompts)
    noise_order = {"stage_one": (START_NOISE,), "stage_two": (START_NOISE, AUGMENTATION_NOISE)}
    streams = {"stage_one": BASE_STREAM, "stage_two": UPSCALE_STREAM}
    images, found = {}, {}
    for name, pipeline in pipelines.items():
        size = pipeline.unet.config.sample_size
        key = stream_key(cases.SEED, streams[name])
        noise_at = jax.jit(keyed_noise(key, np.arange(len(prompts)), (1, size, size, 3)))
        indices = itertools.chain(noise_order[name], itertools.count())

        def draw(shape, noise_at=noise_at, indices=indices, **_):
            noise = np.moveaxis(np.asarray(noise_at(next(indices)))[:, 0], -1, 1)
            assert noise.shape == tuple(shape)
            return torch.from_numpy(noise.copy())

        estimates = []

        def step(*args, take=pipeline.scheduler.step, estimates=estimates, **options):
            following, estimate = take(*args, **options)
            estimates.append(estimate.numpy())
            return following, estimate

        own = {} if steps[name] is None else {"num_inference_steps": steps[name]}
        with (
            mock.patch.object(pipeline.scheduler, "step", step),
            mock.patch.object(sys.modules[type(pipeline).__module__], "randn_tensor", draw),
            mock.patch.object(scheduling_ddpm, "randn_tensor", draw),
        ):
            image = pipeline(prompts, **images, **own, **options).images
        np.testing.assert_allclose(image.numpy(), estimates[-1], atol=1e-6)
        images, found[name] = {"image": image}, np.stack(estimates)
    return found


def outputs():
    """Returns all outputs by the name of their golden file."""
    both = pipelines()
    steps = {name: stage.steps for name, stage in cases.STAGES.items()}
    trajectory = trajectories(both, steps, cases.NEGATIVE_PROMPT)
    return {
        **{name: unet_output(name) for name in cases.UNETS},
        "t5": t5_states(),
        "token_ids": token_ids(both["stage_one"]),
        **{f"trajectory_{name}": estimates for name, estimates in trajectory.items()},
    }
