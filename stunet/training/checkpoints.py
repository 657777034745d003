"""Orbax checkpoints of training state, behind a few functions."""

import contextlib
import logging
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from stunet.errors import UserError
from stunet.training.cluster import first_alone, on_every_process
from stunet.training.step import TrainState
from stunet.weights.trees import compare_shapes


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/STEP`.

    Each holds the state (step, parameters, EMA, optimiser) and the data iterator's position.
    Saving is asynchronous; `close` waits for it.
    """

    def __init__(self, workdir: Path, keep: int):
        self.folder = Path(workdir).absolute() / "checkpoints"
        # Orbax writes under such a name until a checkpoint is whole. Those of a run that was
        # killed meanwhile are only told of: Orbax may remove them at any time.
        self._unfinished = sorted(
            int(path.name.split(".")[0])
            for path in self.folder.glob("*.orbax-checkpoint-tmp*")
            if path.name.split(".")[0].isdigit()
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        )
        # Orbax warns whenever a save has to wait for the one before. By absl's own function:
        # whoever else changes the level and restores it (TFDS does) goes by that.
        absl_logging.set_verbosity(absl_logging.ERROR)
        self._handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "data": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            self.folder, options=options, item_handlers=self._handlers
        )

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

        `abstract` gives shapes, dtypes and shardings. A checkpoint that is incomplete or cannot
        be read is reported, and the one before it is taken; what was unreadable is set aside.

        Raises:
          UserError: there are checkpoints but none can be read, or their parameters have
            other shapes than the configured networks, or they are another optimiser's.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        newest = steps[0] if steps else -1
        incomplete = [step for step in self._unfinished if step > newest]
        for step in incomplete:
            report(f"checkpoint {self.folder / str(step)} is incomplete")
        damaged = []
        for step in steps:
            reason = "by another process"
            try:
                with _quiet_failure():
                    self._check_fit(step, abstract)
                    state, position = self._read(step, abstract)
            except UserError:
                raise
            except Exception as error:  # whatever the storage layers raise on damaged files
                reason = textwrap.shorten(str(error) or repr(error), 120, placeholder=" ...")
                state = None
            if not on_every_process(state is not None):
                report(f"checkpoint {self.folder / str(step)} cannot be read ({reason})")
                damaged.append(step)
                continue
            if incomplete or damaged:
                report(f"falling back to the checkpoint of step {step}")
            # Only now that there is another: without one, the next start must fail as well.
            for other in damaged:
                self._set_aside(other)
            return state, position
        if damaged:
            raise UserError(
                f"{self.folder}: no complete checkpoint among steps "
                f"{', '.join(map(str, sorted(steps)))}; remove the folder to start anew"
            )
        if incomplete:
            report("there is no checkpoint before it: starting anew")
        return None

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, int]:
        # By the handlers, not the manager: that has the processes meet after reading, where those
        # that cannot read would not come, and be in another collective (over Gloo all then die).
        folder = self.folder / str(step)
        args = ocp.args.StandardRestore(abstract._asdict())
        state = self._handlers["state"].restore(folder / "state", args=args)
        data = self._handlers["data"].restore(folder / "data", args=ocp.args.JsonRestore())
        return TrainState(**state), data["position"]

    def _check_fit(self, step: int, abstract: TrainState) -> None:
        try:
            saved = self._manager.item_metadata(step)["state"].tree
            params, opt_state = saved["params"], _shapes(saved["opt_state"])
        except Exception:  # damaged: reading it will say so
            return
        compare_shapes(abstract.params, params, f"{self.folder / str(step)}: the parameters")
        if opt_state != _shapes(abstract.opt_state):
            raise UserError(
                f"{self.folder / str(step)}: its optimiser's state does not fit the configured "
                "optimizer; resume with the one that the run was started with"
            )

    def _set_aside(self, step: int) -> None:
        # Renamed, not deleted: it may still be of use to someone, but no later save at this
        # step, nor a later start, should meet it.
        def rename() -> None:
            damaged = self.folder / f"damaged-{step}"
            shutil.rmtree(damaged, ignore_errors=True)
            (self.folder / str(step)).rename(damaged)

        first_alone(rename)
        self._manager.reload()


def abstract_state(state: Any) -> Any:
    """Shapes, dtypes and shardings of a state."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@contextlib.contextmanager
def _quiet_failure() -> Iterator[None]:
    """Holds back the tracebacks that a failing restore prints besides what it raises.

    At the first array that cannot be read Orbax closes its event loop, and each of the others,
    still being read by other threads, then reports to a loop that is closed, or its error to
    nobody: of a large state that fills screens.
    """
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")
    held = []
    sys.unraisablehook = held.append
    try:
        yield
    except Exception:
        # Not set back: the last of them speak up at some later garbage collection.
        logger.setLevel(logging.CRITICAL)
        time.sleep(0.5)
        raise
    finally:
        sys.unraisablehook = hook
    for unraisable in held:  # nothing failed: they are not of a restore
        hook(unraisable)


def _shapes(tree: Any) -> Mapping[str, tuple[int, ...]]:
    """Shapes by path; Orbax gives back dicts and lists where there were (named) tuples."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
