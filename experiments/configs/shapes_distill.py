"""Distils the model `shapes`: guidance first, then 8, 4, 2 and 1 sampling steps.

    python -m experiments.train --config=experiments/configs/shapes_distill.py:guidance \\
        --workdir=runs/shapes_distill/guidance
    python -m experiments.train --config=experiments/configs/shapes_distill.py:8 \\
        --workdir=runs/shapes_distill/8

Each starts from the one before it, in runs/shapes_distill.
"""

from ml_collections import ConfigDict

from experiments.configs import shapes
from stunet.errors import UserError

PARTS = ("guidance", "8", "4", "2", "1")  # each is the teacher of the next
WORKDIR = "runs/shapes_distill"


def get_config(part: str) -> ConfigDict:
    """Returns the config of a part, "guidance" or a number of steps.

    Raises:
      UserError: There is no such part.
    """
    if part not in PARTS:
        raise UserError(
            f"shapes_distill.py:{part}: unknown part, expected one of {', '.join(PARTS)}"
        )
    teacher = shapes.get_config("t2v_16")
    return ConfigDict(
        {
            "stage": "distill",
            "init_from": "shapes" if part == "guidance" else f"{WORKDIR}/{_before(part)}",
            "steps": None if part == "guidance" else int(part),
            "scales": (1.0, 8.0),
            "data": teacher.data,
            "diffusion": teacher.diffusion,
            "optimizer": {**teacher.optimizer.to_dict(), "learning_rate": 5e-4},
            "batch_size": 4,
            "total_steps": 1500,
            "checkpoint_every": 500,
            "sample_prompts": teacher.sample_prompts,
        }
    )


def _before(part: str) -> str:
    return PARTS[PARTS.index(part) - 1]
