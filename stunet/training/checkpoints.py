"""Checkpoints of the training state, by Orbax."""

import contextlib
import logging
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from stunet.errors import UserError, writing
from stunet.training.cluster import all_processes_agree, run_on_first_process
from stunet.training.step import TrainState
from stunet.weights.trees import compare_shapes


class DataState(NamedTuple):
    """The data that a run has read.

    Attributes:
      position: Number of training examples read so far.
      fingerprint: Identity of the dataset. None in checkpoints of older versions.
    """

    position: int
    fingerprint: str | None = None


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/STEP`.

    A checkpoint contains the state (step, parameters, EMA, optimizer state) and `DataState`. Saving
    is asynchronous; `close` waits for it.

    Args:
      workdir: The run's workdir.
      keep: Number of checkpoints to keep; older ones are deleted.
    """

    def __init__(self, workdir: Path, keep: int):
        self.folder = Path(workdir).absolute() / "checkpoints"
        # Orbax writes into a folder of this name until a checkpoint is complete. Leftovers of
        # killed runs are only reported; Orbax may delete them at any time.
        self._unfinished = sorted(
            int(path.name.split(".")[0])
            for path in self.folder.glob("*.orbax-checkpoint-tmp*")
            if path.name.split(".")[0].isdigit()
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        )
        # Orbax warns whenever a save waits for the one before. absl's own function sets the level,
        # because TFDS changes and restores the level that absl knows of.
        absl_logging.set_verbosity(absl_logging.ERROR)
        self._handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "data": ocp.JsonCheckpointHandler(),
        }
        with writing(self.folder):
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=self._handlers
            )

    def save(self, state: TrainState, data: DataState) -> None:
        """Saves the state, unless there is a checkpoint of its step.

        Args:
          state: The training state.
          data: The data read so far.

        Raises:
          UserError: here, in `wait` or in `close`, if the disk is full or read-only. Earlier
            checkpoints are kept.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        with writing(self.folder):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state._asdict()),
                    data=ocp.args.JsonSave(data._asdict()),
                ),
            )

    def restore(
        self, abstract: TrainState, report: Callable[[str], None]
    ) -> tuple[TrainState, DataState] | None:
        """Restores the newest readable checkpoint.

        Incomplete and unreadable checkpoints are reported. Unreadable ones are renamed to
        `damaged-STEP` once an earlier checkpoint was restored.

        Args:
          abstract: Shapes, types and shardings of the state.
          report: Called with each line about checkpoints that are skipped.

        Returns:
          The state and the data read before, or None if there is no checkpoint.

        Raises:
          UserError: there are checkpoints but none is readable, or their parameters have other
            shapes than the configured networks, or their optimizer state is of another optimizer.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        newest = steps[0] if steps else -1
        incomplete = [step for step in self._unfinished if step > newest]
        for step in incomplete:
            report(f"{self.folder / str(step)}: incomplete checkpoint")
        damaged = []
        for step in steps:
            reason = "in another process"
            try:
                with _quiet_failure():
                    self._check_fit(step, abstract)
                    state, data = self._read(step, abstract)
            except UserError:
                raise
            except Exception as error:  # storage layers raise errors of many types
                reason = textwrap.shorten(str(error) or repr(error), 120, placeholder=" ...")
                state = None
            if not all_processes_agree(state is not None):
                report(f"{self.folder / str(step)}: unreadable checkpoint ({reason})")
                damaged.append(step)
                continue
            if incomplete or damaged:
                report(f"falling back to the checkpoint of step {step}")
            # Not before another one was restored: otherwise the next start would train from
            # scratch instead of failing, too.
            for damaged_step in damaged:
                self._set_aside(damaged_step)
            return state, data
        if damaged:
            raise UserError(
                f"{self.folder}: no readable checkpoint among steps "
                f"{', '.join(map(str, sorted(steps)))}; remove the folder to start from scratch"
            )
        if incomplete:
            report("no earlier checkpoint: starting from scratch")
        return None

    def wait(self) -> None:
        """Waits until all checkpoints are on disk."""
        with writing(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until all checkpoints are on disk and ends Orbax's threads."""
        with writing(self.folder):
            self._manager.close()

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, DataState]:
        # By the handlers, because the manager synchronises processes after reading. A process
        # that failed to read would not arrive there but in another collective, which over Gloo
        # ends all processes.
        folder = self.folder / str(step)
        args = ocp.args.StandardRestore(abstract._asdict())
        state = self._handlers["state"].restore(folder / "state", args=args)
        data = self._handlers["data"].restore(folder / "data", args=ocp.args.JsonRestore())
        return TrainState(**state), DataState(**data)

    def _check_fit(self, step: int, abstract: TrainState) -> None:
        try:
            saved = self._manager.item_metadata(step)["state"].tree
            params, opt_state = saved["params"], _shapes(saved["opt_state"])
        except Exception:  # damaged metadata: reading the checkpoint reports it
            return
        compare_shapes(abstract.params, params, f"{self.folder / str(step)}: the parameters")
        if opt_state != _shapes(abstract.opt_state):
            raise UserError(
                f"{self.folder / str(step)}: optimizer state of another optimizer; expected "
                "optimizer.name of the run's start"
            )

    def _set_aside(self, step: int) -> None:
        # Renamed, not deleted, in case someone can repair it. A later save of this step and later
        # starts must not find it.
        def rename() -> None:
            new = self.folder / f"damaged-{step}"
            shutil.rmtree(new, ignore_errors=True)
            (self.folder / str(step)).rename(new)

        run_on_first_process(rename)
        self._manager.reload()


@contextlib.contextmanager
def _quiet_failure() -> Iterator[None]:
    """Suppresses the tracebacks that a failing restore prints in addition to its exception.

    At the first unreadable array Orbax closes its event loop. Threads that still read other arrays
    then print an error each, which for a large state fills screens.
    """
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")
    held = []
    sys.unraisablehook = held.append
    try:
        yield
    except Exception:
        # Not reset, because the last errors are printed at some later garbage collection.
        logger.setLevel(logging.CRITICAL)
        time.sleep(0.5)
        raise
    finally:
        sys.unraisablehook = hook
    for unraisable in held:  # the restore succeeded, so these are not its errors
        hook(unraisable)


def _shapes(tree: Any) -> Mapping[str, tuple[int, ...]]:
    """Returns shapes by path, because Orbax restores (named) tuples as dicts and lists."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
