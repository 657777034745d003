"""Orbax checkpoints of training state, behind a few functions."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from stunet.errors import UserError
from stunet.training.step import TrainState
from stunet.weights.trees import compare_shapes


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/STEP`.

    Each holds the state (step, parameters, EMA, optimiser) and the data iterator's position.
    Saving is asynchronous; `close` waits for it.
    """

    def __init__(self, workdir: Path, keep: int):
        self.folder = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        # Orbax logs a screenful at every save.
        logging.getLogger("absl").setLevel(logging.ERROR)
        handlers = {"state": ocp.StandardCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(self, state: TrainState, data_position: int) -> None:
        """Saves the state under its step, once: a step that is there already is left alone."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()),
                data=ocp.args.JsonSave({"position": data_position}),
            ),
        )

    def restore(
        self, abstract: TrainState, report: Callable[[str], None]
    ) -> tuple[TrainState, int] | None:
        """The newest checkpoint that can be read, as (state, data position), or None.

        `abstract` gives shapes, dtypes and shardings. A checkpoint that cannot be read is
        reported, set aside, and the one before it is taken.

        Raises:
          UserError: there are checkpoints but none can be read, or their parameters have
            other shapes than the configured networks.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            self._check_shapes(step, abstract)
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract._asdict()),
                        data=ocp.args.JsonRestore(),
                    ),
                )
            except Exception as error:  # whatever the storage layers raise on damaged files
                reason = str(error).strip().splitlines()[0][:200] if str(error) else repr(error)
                report(f"checkpoint {self.folder / str(step)} cannot be read ({reason})")
                self._set_aside(step)
                continue
            if step != steps[0]:
                report(f"falling back to the checkpoint of step {step}")
            return TrainState(**restored["state"]), restored["data"]["position"]
        if steps:
            raise UserError(
                f"{self.folder}: no complete checkpoint among steps "
                f"{', '.join(map(str, sorted(steps)))}; remove the folder to start anew"
            )
        return None

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _check_shapes(self, step: int, abstract: TrainState) -> None:
        try:
            saved = self._manager.item_metadata(step)["state"].tree["params"]
        except Exception:  # damaged: restoring will say so
            return
        compare_shapes(abstract.params, saved, f"{self.folder / str(step)}: the parameters")

    def _set_aside(self, step: int) -> None:
        # Renamed, not deleted: it may still be of use to someone, but no later save at this
        # step, nor a later start, should meet it.
        damaged = self.folder / f"damaged-{step}"
        shutil.rmtree(damaged, ignore_errors=True)
        (self.folder / str(step)).rename(damaged)
        self._manager.reload()


def abstract_state(state: Any) -> Any:
    """Shapes, dtypes and shardings of a state."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
