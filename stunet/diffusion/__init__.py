"""Diffusion as pure functions on arrays: schedule, predictions, losses, guidance, samplers.

A denoiser is a function (x_t, timestep) -> `Prediction`. Guidance makes one from a network;
MultiDiffusion and thresholding map denoisers to denoisers; samplers take any denoiser. Order of
composition: guide -> average over windows -> threshold once -> step.

Arrays are annotated with their shapes (jaxtyping). Video is [B, T, H, W, C]; masks are 1 = known.
"""

from stunet.diffusion.conditioning import (
    COND_CHANNELS,
    MaskMixture,
    draw_mask,
    mask_conditioning,
    paste_known,
)
from stunet.diffusion.guidance import Network, guided_denoiser
from stunet.diffusion.losses import (
    discretised_log_likelihood,
    min_snr_weight,
    simple_loss,
    variational_loss,
)
from stunet.diffusion.multidiffusion import Windows, chunked, windowed_denoiser
from stunet.diffusion.prediction import (
    Denoiser,
    Prediction,
    add_noise,
    eps_from_x0,
    make_target,
    split_output,
    to_prediction,
    x0_from_eps,
)
from stunet.diffusion.samplers import (
    DDIM,
    SAMPLERS,
    Ancestral,
    BoundSampler,
    Carry,
    DPMSolver2M,
    Sampler,
    SamplingDefaults,
    SingleCallSampler,
    resolve_sampler,
    sampler_from_dict,
    sampler_to_dict,
)
from stunet.diffusion.sampling_loop import (
    AUGMENTATION_NOISE,
    START_NOISE,
    keyed_noise,
    run_steps,
    sample_in_chunks,
)
from stunet.diffusion.schedule import (
    Schedule,
    alpha_sigma,
    cosine_betas,
    respace_betas,
    sample_training_time,
)
from stunet.diffusion.super_resolution import (
    SuperResolution,
    augment,
    downsample,
    upsample,
)
from stunet.diffusion.thresholding import Threshold, thresholded_denoiser
from stunet.diffusion.time_grid import TimeGrid

__all__ = [
    "AUGMENTATION_NOISE",
    "COND_CHANNELS",
    "DDIM",
    "SAMPLERS",
    "START_NOISE",
    "Ancestral",
    "BoundSampler",
    "Carry",
    "DPMSolver2M",
    "Denoiser",
    "MaskMixture",
    "Network",
    "Prediction",
    "Sampler",
    "SamplingDefaults",
    "Schedule",
    "SingleCallSampler",
    "SuperResolution",
    "Threshold",
    "TimeGrid",
    "Windows",
    "add_noise",
    "alpha_sigma",
    "augment",
    "chunked",
    "cosine_betas",
    "discretised_log_likelihood",
    "downsample",
    "draw_mask",
    "eps_from_x0",
    "guided_denoiser",
    "keyed_noise",
    "make_target",
    "mask_conditioning",
    "min_snr_weight",
    "paste_known",
    "resolve_sampler",
    "respace_betas",
    "run_steps",
    "sample_in_chunks",
    "sample_training_time",
    "sampler_from_dict",
    "sampler_to_dict",
    "simple_loss",
    "split_output",
    "thresholded_denoiser",
    "to_prediction",
    "upsample",
    "variational_loss",
    "windowed_denoiser",
    "x0_from_eps",
]
