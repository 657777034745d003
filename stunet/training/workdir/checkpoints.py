"""Checkpoints of the training state, by Orbax."""

import contextlib
import logging
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from stunet.checksums import CHECKSUMS, DamageError, write_checksums
from stunet.cluster import agree, all_processes_agree, is_first_process, run_on_first_process
from stunet.errors import UserError, writing
from stunet.paths import AnyPath, absolute, is_remote
from stunet.training.step import TrainState
from stunet.training.workdir import checkpoint_markers
from stunet.training.workdir.checkpoint_tensors import HAS_CHECKSUMS, check_checkpoint
from stunet.weights.trees import compare_shapes

_STEP_METADATA = "_CHECKPOINT_METADATA"  # written after the checksums, and not used


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

    A checkpoint contains the state (step, parameters, EMA, optimizer state), `DataState` and
    checksums of its files, which are compared before it is restored. Saving is asynchronous;
    `close` waits for it. In a bucket, marker objects record what is saved and deleted
    (`checkpoint_markers`).

    Args:
      workdir: The run's workdir, on disk or in a bucket.
      keep: Number of checkpoints to keep; older ones are deleted.

    Raises:
      UserError: a checkpoint in a bucket was copied there without its commit marker, or the folder
        cannot be written.
    """

    def __init__(self, workdir: AnyPath, keep: int):
        self._is_remote, self._keep = is_remote(workdir), keep
        self.folder = absolute(workdir) / "checkpoints"
        self._unfinished: list[int] = []
        run_on_first_process(self._find_unfinished)
        # In a bucket, Orbax would delete every checkpoint without a commit marker, those that were
        # copied by hand included, and leave no trace of a deletion that is killed.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if self._is_remote else keep,
            create=True,
            cleanup_tmp_directories=not self._is_remote,
            # Called before the checkpoint is renamed or, in a bucket, marked as complete.
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=self._write_checksums
            ),
        )
        # Orbax warns whenever a save waits for the one before. absl's own function sets the level,
        # because TFDS changes and restores the level that absl knows of.
        absl_logging.set_verbosity(absl_logging.ERROR)
        self._handlers = {
            # Compression takes four times as long as writing, and saves 8 %.
            "state": ocp.PyTreeCheckpointHandler(use_compression=False),
            "data": ocp.JsonCheckpointHandler(),
        }
        with writing(self.folder):
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=self._handlers
            )
        self._steps = sorted(self._manager.all_steps())
        self._saving: int | None = None  # until `_end_save`
        self._written: int | None = None  # the latest step that Orbax writes
        self._deletions: list[Future] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")

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
        if step in self._steps:
            return
        with writing(self.folder):
            self._manager.wait_until_finished()
            self._end_save()
            if self._is_remote and is_first_process():
                checkpoint_markers.begin_save(self.folder, step)
            self._written = step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state._asdict()),
                    data=ocp.args.JsonSave({**data._asdict(), HAS_CHECKSUMS: True}),
                ),
            )
        self._steps.append(step)
        self._saving = step

    def restore(
        self, abstract: TrainState, report: Callable[[str], None]
    ) -> tuple[TrainState, DataState] | None:
        """Restores the newest readable checkpoint.

        Incomplete and unreadable checkpoints are reported. Unreadable ones are renamed to
        `damaged-STEP` once an earlier checkpoint was restored; in a bucket, an object of this name
        marks them.

        Args:
          abstract: Shapes, types and shardings of the state.
          report: Called with each line about checkpoints that are skipped.

        Returns:
          The state and the data read before, or None if there is no checkpoint.

        Raises:
          UserError: there are checkpoints but none is readable, or their parameters have other
            shapes than the configured networks, or their optimizer state is of another optimizer.
        """
        steps = sorted(self._steps, reverse=True)
        newest = steps[0] if steps else -1
        incomplete = [step for step in self._unfinished if step > newest]
        for step in incomplete:
            report(f"{self.folder / str(step)}: incomplete checkpoint")
        damaged = []
        for step in steps:
            # A request that fails is no damage: it ends all processes.
            state, reason = None, agree(lambda step=step: self._find_damage(step))
            if all_processes_agree(reason is None):
                try:
                    with _quiet_failure():
                        self._check_fit(step, abstract)
                        state, data = self._read(step, abstract)
                except UserError:
                    raise
                except Exception as error:  # storage layers raise errors of many types
                    reason = textwrap.shorten(str(error) or repr(error), 120, placeholder=" ...")
            if not all_processes_agree(state is not None):
                reason = reason or "in another process"
                report(f"{self.folder / str(step)}: unreadable checkpoint ({reason})")
                damaged.append(step)
                continue
            folder = self.folder / str(step)
            if not (folder / CHECKSUMS).exists():
                report(f"{folder}: not covered by checksums, damage would not be noticed")
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
            self._end_save()
            for deletion in self._deletions:
                deletion.result()
            self._deletions = []

    def close(self) -> None:
        """Waits until all checkpoints are on disk and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            with writing(self.folder):
                self._manager.close()

    def _find_unfinished(self) -> None:
        if self._is_remote:
            self._unfinished = checkpoint_markers.recover(self.folder)
            return
        # Orbax writes into a folder of this name until a checkpoint is complete. Leftovers of
        # killed runs are only reported; Orbax may delete them at any time.
        names = [path.name for path in self.folder.glob("*.orbax-checkpoint-tmp*")]
        steps = (name.split(".")[0] for name in names)
        self._unfinished = sorted(int(step) for step in steps if step.isdigit())

    def _end_save(self) -> None:
        """Marks the checkpoint that is saved now as complete, and deletes those that are too old.

        On disk, Orbax does both.
        """
        if self._saving is None:
            return
        if self._is_remote and is_first_process():
            checkpoint_markers.end_save(self.folder, self._saving)
            for step in self._steps[: -self._keep]:
                deletion = self._thread.submit(checkpoint_markers.delete, self.folder, step)
                self._deletions.append(deletion)
        self._saving, self._steps = None, self._steps[-self._keep :]

    def _write_checksums(self) -> None:
        if not is_first_process():
            return
        folder = self.folder / str(self._written)
        if not self._is_remote:
            [folder] = self.folder.glob(f"{self._written}.orbax-checkpoint-tmp*")
        write_checksums(folder, lambda name: name != _STEP_METADATA)

    def _find_damage(self, step: int) -> str | None:
        """Compares this process's share of a checkpoint's files with their checksums."""
        share = slice(jax.process_index(), None, jax.process_count())
        try:
            check_checkpoint(self.folder / str(step), share)
        except DamageError as error:
            return str(error)
        return None

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, DataState]:
        # By the handlers, because the manager synchronises processes after reading. A process
        # that failed to read would not arrive there but in another collective, which over Gloo
        # ends all processes.
        folder = self.folder / str(step)
        data = self._handlers["data"].restore(folder / "data", args=ocp.args.JsonRestore())
        data.pop(HAS_CHECKSUMS, None)
        tree = abstract._asdict()
        restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
        args = ocp.args.PyTreeRestore(tree, restore_args=restore_args)
        state = self._handlers["state"].restore(folder / "state", args=args)
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
            if self._is_remote:
                checkpoint_markers.set_aside(self.folder, step)
                return
            new = self.folder / f"damaged-{step}"
            shutil.rmtree(new, ignore_errors=True)
            (self.folder / str(step)).rename(new)

        run_on_first_process(rename)
        self._steps.remove(step)
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
