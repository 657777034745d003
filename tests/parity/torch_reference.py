"""Outputs of diffusers and transformers for `cases`."""

from unittest import mock

import diffusers
import numpy as np
import torch
import transformers
from diffusers.schedulers import scheduling_ddpm

from tests.parity import cases


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


@torch.no_grad()
def trajectory():
    """Returns x [2, 3, H, W] after ten guided steps of IFPipeline."""
    network = unet("stage_one")
    scheduler = diffusers.DDPMScheduler.from_config(cases.SCHEDULER)
    scheduler.set_timesteps(cases.STEPS)
    x, steps, text, empty = map(torch.from_numpy, cases.trajectory_inputs())
    states = torch.cat([empty.expand_as(text), text])
    for index, t in enumerate(scheduler.timesteps):
        output = network(torch.cat([x, x]), t, encoder_hidden_states=states).sample
        unconditional, conditional = output.chunk(2)
        unconditional, _ = unconditional.split(3, dim=1)
        conditional, variance = conditional.split(3, dim=1)
        guided = unconditional + cases.SCALE * (conditional - unconditional)
        drawn = steps[index]
        with mock.patch.object(scheduling_ddpm, "randn_tensor", lambda *_, d=drawn, **__: d):
            x = scheduler.step(torch.cat([guided, variance], dim=1), t, x).prev_sample
    assert scheduler.timesteps[0] == 900
    return x.numpy()


def outputs():
    """Returns all outputs by the name of their golden file."""
    return {
        **{name: unet_output(name) for name in cases.UNETS},
        "t5": t5_states(),
        "trajectory": trajectory(),
    }
