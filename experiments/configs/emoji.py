"""The emoji models: 16 frames of 32x32 pixels, and super-resolution to 128x128.

npm install --prefix datasets/emoji_packages --ignore-scripts ...   # docs/emoji.md
python -m experiments.ship --world=emoji --workdir=runs/emoji
"""

from ml_collections import ConfigDict

from experiments.configs import tiny_conditional, tiny_ssr, tiny_style, tiny_t2i, tiny_t2v
from stunet.errors import UserError

STAGES = ("t2i", "t2v", "t2v_16", "conditional", "ssr", "style")  # in order of dependence
INIT_FROM = {"t2v": "t2i", "t2v_16": "t2v", "conditional": "t2v", "style": "t2i"}
WORKDIR = "runs/emoji"
SAMPLE_PROMPTS = (
    "a woman with dark skin running on a white background",
    "a brown horse galloping on a green background",
    "a whale spouting water on an orange background",
    "a thumb going up on a blue background",
    "a butterfly fluttering on a black background",
    "a face crying loudly on a pink background",
    "a rocket flying on a purple background",
    "a flame burning on a grey background",
)


def get_config(stage: str) -> ConfigDict:
    """Returns the config of a stage.

    Raises:
      UserError: there is no such stage.
    """
    if stage not in STAGES:
        raise UserError(f"emoji.py:{stage}: unknown stage, expected one of {', '.join(STAGES)}")
    config = _STAGES[stage]()
    if stage in INIT_FROM:
        config.init_from = f"{WORKDIR}/{INIT_FROM[stage]}"
    return config


def _data(num_frames: int, resolution: int, fps: float = 8.0) -> ConfigDict:
    return ConfigDict(
        {
            "name": "emoji",
            "source": "datasets/emoji_packages",
            "data_dir": "datasets",
            "split": "train",
            "concepts": ("clear",),
            "num_frames": num_frames,
            "resolution": resolution,
            "frame_size": 48 if resolution == 32 else 256,  # 256 is the size of the files
            "min_size": 1.0,  # one size, one place; see "Models" in docs/emoji.md
            "fps": fps,
            "seed": 0,
            "caption_dropout": 0.1,
            "text_states": False,
        }
    )


def _t2i() -> ConfigDict:
    config = tiny_t2i.get_config()
    config.data = _data(num_frames=1, resolution=32)
    config.unet.channels = (32, 64, 128, 192)
    config.unet.layers_per_block = (1, 1, 1, 2)
    config.unet.attention_levels = (False, False, True, True)
    config.unet.head_dim = 32
    config.unet.text_dim = config.unet.cross_attention_dim = 128
    config.unet.time_embedding_dim = 256
    config.text_encoder.t5.vocab_size = 1024
    config.text_encoder.t5.d_model = 128
    config.text_encoder.t5.d_kv = 32
    config.text_encoder.t5.d_ff = 256
    config.text_encoder.max_tokens = 32
    # Weights of min-SNR neglect the levels at which the text decides what an emoji is.
    config.diffusion.loss = "simple"
    config.diffusion.schedule.log_snr_shift = -1.5
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 2e-3
    config.batch_size = 16
    config.optimizer.cooldown_steps = 1500
    config.total_steps = 12000
    config.checkpoint_every = 500
    config.sample_prompts = SAMPLE_PROMPTS
    return config


def _t2v() -> ConfigDict:
    config = tiny_t2v.get_config()
    config.data = _data(num_frames=8, resolution=32, fps=4.0)
    config.temporal.resample = (True, True, False)
    config.temporal.head_dim = 32
    config.temporal.relative = True
    # No caption names a place in the frame, and position features would be 22 MB of the package.
    config.temporal.position_encoding = False
    config.diffusion.schedule.log_snr_shift = -3.0
    config.optimizer.name = "muon"
    config.optimizer.cooldown_steps = 800
    config.batch_size = 4
    config.total_steps = 2500
    config.checkpoint_every = 500
    config.sample_prompts = SAMPLE_PROMPTS
    return config


def _in_16_frames(config: ConfigDict) -> None:
    # Twice the frames in the same two seconds, at the cost per step of `t2v`.
    config.data = _data(num_frames=16, resolution=32)
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.cooldown_steps = 500
    config.batch_size = 2
    config.total_steps = 1500


def _t2v_16() -> ConfigDict:
    config = _t2v()
    _in_16_frames(config)
    config.diffusion.schedule.log_snr_shift = -3.7  # ln 2 lower for twice the frames
    return config


def _conditional() -> ConfigDict:
    config = tiny_conditional.get_config()
    _in_16_frames(config)
    config.diffusion.schedule.log_snr_shift = -2.0  # as for shapes
    config.conditioning.none = 0.25
    config.conditioning.first_frame = 0.25
    return config


def _ssr() -> ConfigDict:
    config = tiny_ssr.get_config()
    config.data = {**_data(num_frames=8, resolution=128).to_dict(), "crop": 64}
    config.text_encoder.max_tokens = 32
    config.total_steps = 3000
    config.optimizer.cooldown_steps = 1000
    return config


def _style() -> ConfigDict:
    config = tiny_style.get_config()
    config.data.source = f"{WORKDIR}/duotone"
    config.data.resolution = 32
    config.diffusion = _t2i().diffusion
    return config


_STAGES = {
    "t2i": _t2i,
    "t2v": _t2v,
    "t2v_16": _t2v_16,
    "conditional": _conditional,
    "ssr": _ssr,
    "style": _style,
}
