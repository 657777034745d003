"""The models that the package ships (`stunet/shipped`), in six stages.

    python -m experiments.ship --workdir=runs/shapes

or a single stage, named after a colon:

    python -m experiments.train --config=experiments/configs/shapes.py:t2i --workdir=runs/shapes/t2i

All stages from scratch on two slow virtual CPUs take 2 hours 23 minutes (2026-11-27, one run in two
parts): t2i 50 minutes with ssr and the style in parallel, t2v 38, t2v_16 and conditional 55 in
parallel. Accuracy by the judge, 10 steps, guidance scale 4, 512 clips, in bfloat16:

                       colour  shape  motion
    seen prompts         99.4   89.6    89.3 %
    held-out prompts     99.0   88.1    91.4

t2i draws 91.2 % of the shapes in 512 pictures correctly. docs/applications.md has results of the
conditional model and the style; `experiments.ship` reduces the style's change to rank 3 per kernel.
"""

from ml_collections import ConfigDict

from data.moving_shapes.vocabulary import MOTIONS
from experiments.configs import tiny_conditional, tiny_ssr, tiny_style, tiny_t2i, tiny_t2v
from stunet.errors import UserError

STAGES = ("t2i", "t2v", "t2v_16", "conditional", "ssr", "style")  # in order of dependence
INIT_FROM = {"t2v": "t2i", "t2v_16": "t2v", "conditional": "t2v", "style": "t2i"}
WORKDIR = "runs/shapes"

_TINY = {
    "t2i": tiny_t2i,
    "t2v": tiny_t2v,
    "t2v_16": tiny_t2v,
    "conditional": tiny_conditional,
    "ssr": tiny_ssr,
    "style": tiny_style,
}


def get_config(stage: str) -> ConfigDict:
    """Returns the tiny config of a stage, with longer training.

    Raises:
      UserError: there is no such stage.
    """
    if stage not in STAGES:
        raise UserError(f"shapes.py:{stage}: unknown stage, expected one of {', '.join(STAGES)}")
    config = _TINY[stage].get_config()
    if stage in INIT_FROM:
        config.init_from = f"{WORKDIR}/{INIT_FROM[stage]}"
    if stage in _CHANGES:
        _CHANGES[stage](config)
    return config


def _t2i(config: ConfigDict) -> None:
    # Rotated shapes are the hardest to draw, and only two motions of ten show them. These weights
    # put them into half of all pictures.
    config.data.motions = [*MOTIONS, *("swinging", "spinning") * 3]
    config.data.num_examples = 60_000
    # Wider at the middle level, where it costs little: draws more of the rotated shapes correctly
    # (docs/moving_shapes.md).
    config.unet.channels = (32, 64, 128)
    # 6500 steps are about as good as 15000 of AdamW (docs/moving_shapes.md).
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 3e-3
    config.total_steps = 6500
    config.optimizer.cooldown_steps = 2000


def _t2v(config: ConfigDict) -> None:
    # Trains more slowly at first than without, and better from about 1000 steps on.
    config.temporal.relative = True
    # Learns motions in less time than AdamW (docs/moving_shapes.md).
    config.optimizer.name = "muon"
    config.total_steps = 4000
    config.optimizer.cooldown_steps = 1500


def _in_16_frames(config: ConfigDict) -> None:
    # Twice the frames in the same two seconds: temporal modules read relative time, not frame
    # numbers. The position features, half of their parameters, stay those of t2v: the loss falls
    # about as fast, and the package stores one copy for two models.
    config.frozen = ("position", "position_feed_forward")
    config.data.num_frames, config.data.fps = 16, 8.0
    config.data.num_examples = 100_000  # no example is seen twice
    config.batch_size = 4
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-3
    config.total_steps = 4000
    config.optimizer.cooldown_steps = 1500


def _t2v_16(config: ConfigDict) -> None:
    _in_16_frames(config)
    config.temporal.relative = True
    # The same noise level for a clip of twice the frames: ln 2 lower.
    config.diffusion.schedule.log_snr_shift = -4.7


def _conditional(config: ConfigDict) -> None:
    _in_16_frames(config)
    config.conditioning.none = 0.25
    config.conditioning.first_frame = 0.25
    # Less noise than learning motion needs: fidelity to known pixels is decided there.
    config.diffusion.schedule.log_snr_shift = -2.0


def _ssr(config: ConfigDict) -> None:
    # Clips like those of the other models, without the texture, which they do not generate.
    config.data.resolution = config.data.crop = 64
    config.data.num_frames, config.data.clip_frames, config.data.fps = 8, 16, 8.0
    config.data.texture = 0.0
    config.total_steps = 1500
    config.optimizer.cooldown_steps = 700


_CHANGES = {
    "t2i": _t2i,
    "t2v": _t2v,
    "t2v_16": _t2v_16,
    "conditional": _conditional,
    "ssr": _ssr,
}
