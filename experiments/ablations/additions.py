"""Compares the paper's temporal blocks with our additions to them: each alone, and all but each.

    python -m experiments.ablations --only=additions --workdir=runs/ablations

The additions are fields of `TemporalConfig`. "paper" has none of them; as it is also cheaper per
step, it is trained once more for as many FLOPs as "all", and, with our optimizer and with the
paper's, for five times as many steps.
"""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments.ablations.harness.trained import TrainedAblation, base_config, mean_interval

ADDITIONS = (
    "text_modulation",
    "frame_modulation",
    "position_encoding",
    "feed_forward",
    "relative",
)
STEPS, LONG_STEPS = 600, 3000
EQUAL_FLOPS_STEPS = 655  # of "paper", which take the FLOPs of all steps of "all"
# Variant -> additions, optimizer and steps.
VARIANTS = {
    "all": (ADDITIONS, "muon", STEPS),
    "paper": ((), "muon", STEPS),
    **{f"only_{name}": ((name,), "muon", STEPS) for name in ADDITIONS},
    **{
        f"without_{name}": (tuple(n for n in ADDITIONS if n != name), "muon", STEPS)
        for name in ADDITIONS
    },
    "paper_equal_flops": ((), "muon", EQUAL_FLOPS_STEPS),
    "paper_adafactor": ((), "adafactor", STEPS),
    "paper_long": ((), "muon", LONG_STEPS),
    "paper_adafactor_long": ((), "adafactor", LONG_STEPS),
}


def _verdict(losses: dict[str, np.ndarray]) -> str:
    def changes(variants: Sequence[str], reference: str) -> str:
        """Returns the mean change of each variant relative to the reference, over equal seeds."""
        found = []
        for variant in variants:
            relative = 100 * (losses[variant] / losses[reference] - 1)
            mean, half = mean_interval(relative)
            mark = "" if abs(mean) <= half else " (significant)"
            found.append(f"{variant} {mean:+.1f} ± {half:.1f} %{mark}")
        return ", ".join(found)

    alone = [name for name in VARIANTS if name.startswith(("all", "only", "paper_"))]
    left_out = [name for name in VARIANTS if name.startswith("without")]
    return (
        f"Compared with paper: {changes(alone, 'paper')}. "
        f"Compared with all: {changes(left_out, 'all')}."
    )


ABLATION = TrainedAblation(
    name="additions",
    question="The paper's temporal blocks or our additions?",
    paper="Has none of them. It does not say how temporal blocks read the text.",
    variants=tuple(VARIANTS),
    verdict=_verdict,
    field_inputs={"cpu": {"init_from": "t2i"}},
    shared=False,
)


def get_config(argument: str) -> ConfigDict:
    """Returns the config of the run "VARIANT,SEED"."""
    variant, seed, _ = ABLATION.parse_run(argument)
    config = base_config(seed)
    additions, config.optimizer.name, steps = VARIANTS[variant]
    for name in ADDITIONS:
        config.temporal[name] = name in additions
    set_steps(config, steps)
    return config


def set_steps(config: ConfigDict, steps: int) -> None:
    """Sets the number of steps, and what follows from it."""
    config.total_steps, config.optimizer.cooldown_steps = steps, steps // 4
    config.sample_every = config.checkpoint_every = steps // 2
