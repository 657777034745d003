"""Text to video in the moving-shapes world: inflates the model of `tiny_t2i.py`.

python -m experiments.train --config=experiments/configs/tiny_t2v.py --workdir=runs/tiny_t2v
"""

from ml_collections import ConfigDict

from experiments.configs import tiny_t2i


def get_config() -> ConfigDict:
    """Returns the config of the second stage, which trains only the temporal modules."""
    t2i = tiny_t2i.get_config()
    return ConfigDict(
        {
            "stage": "t2v",
            "init_from": "runs/tiny_t2i",
            "temporal": {
                "resample": (True, False),
                "head_dim": 16,
                "text_modulation": True,
                "frame_modulation": True,
                "position_encoding": True,
                "feed_forward": True,
                "relative": False,
            },
            "data": {**t2i.data.to_dict(), "num_frames": 8},
            # Position and motion of a uniform shape of 40 pixels are visible from a log-SNR of
            # about -5 on, and in eight frames from ln 8 = 2 below. Motion is decided there, not
            # where the object is plainly visible. Min-SNR weights would almost ignore that range.
            "diffusion": {
                "prediction": "v",
                "loss": "simple",
                "schedule": {"kind": "continuous_cosine", "log_snr_shift": -4.0},
            },
            # At 5e-3, words of motion were not learnt within 400 steps.
            "optimizer": {**t2i.optimizer.to_dict(), "learning_rate": 1.5e-3},
            "batch_size": 8,
            "total_steps": 160,
            "checkpoint_every": 200,
            "sample_prompts": (
                "a red circle moving right on a dark background",
                "a blue star spinning on a light background",
                "a yellow square growing on a navy background",
                "a green heart bouncing on a grey background",
            ),
        }
    )
