"""What diffusers' and transformers' own PyTorch modules compute for `cases`."""

from unittest import mock

import diffusers
import numpy as np
import torch
import transformers
from diffusers.schedulers import scheduling_ddpm

from tests.parity import cases


def _filled(module):
    """The module with `cases.weight` in every parameter."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = cases.weight(name, tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(np.asarray(drawn, np.float32)))
    return module.eval()


def unet(name):
    """diffusers' U-Net of a case."""
    return _filled(diffusers.UNet2DConditionModel.from_config(cases.UNETS[name]))


def t5():
    """transformers' encoder."""
    config = transformers.T5Config.from_dict(cases.T5)
    return _filled(transformers.T5EncoderModel(config))


@torch.no_grad()
def unet_output(name):
    """[2, 6, H, W]."""
    x, t, text, level = map(torch.from_numpy, cases.unet_inputs(name))
    labels = level if cases.UNETS[name].get("class_embed_type") else None
    return unet(name)(x, t, encoder_hidden_states=text, class_labels=labels).sample.numpy()


@torch.no_grad()
def t5_states():
    """[3, 77, D]."""
    ids, mask = map(torch.from_numpy, cases.t5_inputs())
    return t5()(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()


@torch.no_grad()
def trajectory():
    """x [2, 3, H, W] after ten guided steps, as IFPipeline takes them."""
    network = unet("stage_one")
    scheduler = diffusers.DDPMScheduler.from_config(cases.SCHEDULER)
    scheduler.set_timesteps(cases.STEPS)
    x, steps, text, empty = map(torch.from_numpy, cases.trajectory_inputs())
    both = torch.cat([empty.expand_as(text), text])
    for index, t in enumerate(scheduler.timesteps):
        output = network(torch.cat([x, x]), t, encoder_hidden_states=both).sample
        without, given = output.chunk(2)
        without, _ = without.split(3, dim=1)
        given, variance = given.split(3, dim=1)
        guided = without + cases.SCALE * (given - without)
        drawn = steps[index]
        with mock.patch.object(scheduling_ddpm, "randn_tensor", lambda *_, d=drawn, **__: d):
            x = scheduler.step(torch.cat([guided, variance], dim=1), t, x).prev_sample
    assert scheduler.timesteps[0] == 900
    return x.numpy()


def outputs():
    """Everything above, by the name of its golden file."""
    return {
        **{name: unet_output(name) for name in cases.UNETS},
        "t5": t5_states(),
        "trajectory": trajectory(),
    }
