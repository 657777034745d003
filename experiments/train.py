"""Trains one stage of a model.

    python -m experiments.train --config=experiments/configs/tiny_t2i.py --workdir=runs/tiny_t2i

The same command again resumes the run exactly. It is refused while the run is still active.

Exit codes: 0 finished; 2 invalid input, a diverged loss or a full disk, explained in one line; 75
stopped by Ctrl-C, SIGTERM, SIGHUP or SIGQUIT after saving, run the command again; 128 + N ended by
signal N with nothing to save (130 for Ctrl-C). A second Ctrl-C ends without saving.

A larger `total_steps` continues a finished run. Other fields must not change, except those in
`stunet.training.resuming`.

On a TPU pod, start it on every host with `--cluster=auto`. All hosts must see the workdir.

Contents of the workdir: `initial/` (the model before training, frozen parameters included),
`checkpoints/`, `model/` (a model folder, updated with every checkpoint), `metrics.csv`,
`tensorboard/`, `samples/`, `run.json` (the config and a fingerprint of the data), and at the end
`loss.png` and the marker `DONE`.
"""

import contextlib
import dataclasses
import functools
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from data import pipeline as data
from experiments.common.cluster_data import prepare_in_cluster
from experiments.common.exit_codes import PREEMPTED
from experiments.common.program_flags import read_flags
from stunet import signals
from stunet.api import generate, upscale
from stunet.compiling import on_cpu, prepare_compiler
from stunet.engine.request import Sampling
from stunet.errors import UserError, run_command, writing
from stunet.model import load, model_from_folder
from stunet.training.checkpoints import Checkpoints, DataState
from stunet.training.claim import claim_folder
from stunet.training.cluster import (
    gather_to_first_process,
    is_first_process,
    join_cluster,
    run_on_first_process,
    signal_arrived,
)
from stunet.training.config import TrainConfig, parse_train_config
from stunet.training.mesh import batch_slice, check_batch, make_mesh, put_batch, put_parameters
from stunet.training.metrics import MetricsLog, plot_loss
from stunet.training.program import build_program
from stunet.training.resuming import (
    check_initial_model,
    check_run_config,
    check_run_data,
    check_total_steps,
    finished_steps,
    record_run,
    recorded_data,
)
from stunet.training.stages import SampleTools
from stunet.training.step import TrainState
from stunet.training.text_cache import check_text_states
from stunet.video_io import contact_sheet, to_uint8, write_image
from stunet.weights.model_folder import ModelFolder, open_model_folder, write_model_folder
from stunet.weights.trees import Tree

BAR = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
    "[{elapsed}, ETA {remaining}, {rate_noinv_fmt}{postfix}]"
)

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "read this config file", flag_values=FLAGS
)
_CLUSTER = flags.DEFINE_string(
    "cluster",
    None,
    "train together with other processes: 'auto' on a TPU pod, else 'HOST:PORT,COUNT,NUMBER'",
    flag_values=FLAGS,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "keep the run in this folder", flag_values=FLAGS)
_ALLOW_CHANGED = flags.DEFINE_list(
    "allow_changed",
    [],
    "continue the run although this has changed: 'data' (clips, captions or their preparation)",
    flag_values=FLAGS,
)


def train(config: TrainConfig, workdir: Path, allow_changed_data: bool = False) -> int:
    """Trains a stage to its end, or until a signal.

    Args:
      config: The run.
      workdir: An existing folder, empty or of the same run.
      allow_changed_data: Whether the run may continue with other clips and captions.

    Returns:
      0, or `PREEMPTED` after a signal.

    Raises:
      UserError: the config does not suit the data, the devices or the workdir's run, or the loss
        diverged, or the disk is full or read-only.
      Interrupted: a signal arrived before the first step, or after the last one was saved.
    """
    for remark in check_run_config(config, workdir):
        print_once(remark, file=sys.stderr)
    if finished_steps(workdir) == config.total_steps:
        print_once(f"{workdir} is finished: {(workdir / 'DONE').read_text().strip()}")
        return 0
    stage, mesh = config.stage, make_mesh(config.mesh.fsdp, config.mesh.frames)
    check_batch(mesh, config.batch_size, config.data.num_frames)
    slice_index, num_slices = batch_slice(mesh)
    recorded = recorded_data(workdir)

    def check_data(before: str | None, fingerprint: str) -> None:
        for remark in check_run_data(before, fingerprint, workdir, allow_changed_data):
            print_once(remark, file=sys.stderr)

    ready = prepare_in_cluster(config.data, functools.partial(check_data, recorded))
    config = dataclasses.replace(config, data=ready)

    # The initial model is stored in the workdir, so that resuming needs no other file.
    run_on_first_process(lambda: write_initial_model(config, workdir))
    initial = open_model_folder(workdir / "initial")
    model = model_from_folder(initial, workdir / "initial")
    if config.data.text_states:
        check_text_states(data.text_states_path(config.data), model)
    check_initial_model(config, initial.config["stage"], model, workdir / "initial")
    trained, frozen = stage.split(initial.params, config.seed)
    program = build_program(config, model.unet, model.text_encoder, trained, frozen, mesh)

    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    restored = checkpoints.restore(program.state, functools.partial(print_once, file=sys.stderr))
    fingerprint = data.fingerprint(config.data)
    state, read = restored or (program.initial_state(trained), DataState(0))
    frozen_on_mesh = put_parameters(mesh, frozen)
    start, last = int(state.step), config.total_steps
    check_total_steps(config, start, workdir)
    if read.position != start * config.batch_size:
        raise UserError(
            f"{workdir}: stopped after {read.position} examples in {start} steps, expected steps "
            f"of batch_size {config.batch_size} (or the batch size of the run's start)"
        )
    if recorded is None:  # run.json was deleted or is older than the field
        check_data(read.fingerprint, fingerprint)
    run_on_first_process(lambda: record_run(config, fingerprint, workdir))
    log = MetricsLog(workdir, start, writes=is_first_process())
    batches = data.make_batches(
        config.data,
        model.tokenizer,
        batch_size=config.batch_size,
        start_step=start,
        process_index=slice_index,
        process_count=num_slices,
    )
    if not config.data.text_states:  # otherwise reported by experiments.cache_text
        for warning in data.caption_warnings(config.data, model.tokenizer):
            print_once(warning, file=sys.stderr)
    progress = progress_bar(config, start)
    if is_first_process():
        (workdir / "DONE").unlink(missing_ok=True)  # of fewer steps
    stopping = False
    # Closed after an error too, because a checkpoint may still be on its way to the disk.
    closing = contextlib.closing
    with closing(checkpoints), closing(log), closing(batches), progress:
        if start == last:  # killed between the last checkpoint and what follows it
            save(config, workdir, checkpoints, state, frozen, initial)
            write_samples(config, workdir, log, start)
        for step in range(start + 1, last + 1):
            batch = next(batches)
            batch["position"] = batch["position"].astype(np.uint32)  # JAX disables int64
            state, metrics = program.step(state, frozen_on_mesh, put_batch(mesh, batch))
            if step == start + 1:  # it is compiled: from now on, a signal waits for a save
                signals.defer()
            log.add(step, metrics)
            stopping = signal_arrived(step)
            sampling = step == last or (config.sample_every and step % config.sample_every == 0)
            saving = stopping or sampling or step % config.checkpoint_every == 0
            if saving or step % config.log_every == 0:
                loss = log.write()
                progress.update(step - progress.n)
                videos_per_s = (progress.format_dict["rate"] or 0) * config.batch_size
                progress.set_postfix_str(f"{videos_per_s:.1f} videos/s, loss {loss:.4f}")
            if saving:
                save(config, workdir, checkpoints, state, frozen, initial)
            if sampling and not stopping:
                checkpoints.wait()  # a signal may end the process while it compiles the sampler
                try:
                    with signals.interruptible(PREEMPTED):
                        write_samples(config, workdir, log, step)
                except signals.Interrupted:
                    stopping = True
            if stopping:
                break

    if is_first_process():
        plot_loss(workdir)
    if stopping:
        name = signal.Signals(signals.received() or signal.SIGTERM).name
        print_once(
            f"experiments.train: stopped by {name} after step {int(state.step)}, saved; run the "
            "command again",
            file=sys.stderr,
        )
        return PREEMPTED
    if is_first_process():
        with writing(workdir / "DONE"):
            (workdir / "DONE").write_text(f"{last} steps of stage {stage.name}\n")
    print_once(f"finished: model in {workdir / 'model'}")
    return 0


def print_once(text: str, file=None) -> None:
    """Prints a line in one process of a cluster."""
    if is_first_process():
        print(text, file=file)


def progress_bar(config: TrainConfig, start: int) -> tqdm:
    """Returns a progress bar over the steps of a run, which one process of a cluster shows."""
    return tqdm(
        total=config.total_steps,
        initial=start,
        unit=" steps",
        desc=config.stage.name,
        bar_format=BAR,
        postfix="compiling",
        disable=not is_first_process(),
    )


def write_initial_model(config: TrainConfig, workdir: Path) -> None:
    """Writes the model before training to the workdir, unless it exists."""
    if (workdir / "initial").exists():
        return
    with on_cpu():
        content = config.stage.initial_model(
            config, config.data, lambda: data.captions(config.data)
        )
    write_model_folder(workdir / "initial", content)


def save(
    config: TrainConfig,
    workdir: Path,
    checkpoints: Checkpoints,
    state: TrainState,
    frozen: Tree,
    initial: ModelFolder,
) -> None:
    """Saves a checkpoint, and the model of averaged parameters as `model/`."""
    step = int(state.step)
    read = DataState(step * config.batch_size, data.fingerprint(config.data))
    checkpoints.save(state, read)
    ema = gather_to_first_process(state.ema)
    if is_first_process():
        content = dataclasses.replace(initial, params=config.stage.join(ema, frozen))
        write_model_folder(workdir / "model", content)


def write_samples(config: TrainConfig, workdir: Path, log: MetricsLog, step: int) -> None:
    """Draws samples from the exported model, to `samples/` (one row per video) and TensorBoard."""
    if not (is_first_process() and config.stage.num_samples):
        return
    model, sampling = load(workdir / "model"), Sampling(seed=config.seed)
    tools = SampleTools(
        generate=lambda prompts: generate(model, prompts, sampling=sampling).videos,
        upscale=lambda low, prompts: upscale(model, low, prompts, sampling=sampling).videos,
        examples=lambda count: data.whole_examples(config.data, count),
    )
    with warnings.catch_warnings():
        # Truncated captions were reported at the start.
        warnings.simplefilter("ignore", UserWarning)
        captions, videos = config.stage.draw_samples(tools)
    frames = videos.reshape(-1, *videos.shape[2:])
    sheet = contact_sheet(frames, columns=videos.shape[1])
    with writing(workdir / "samples"):
        (workdir / "samples").mkdir(exist_ok=True)
        write_image(workdir / "samples" / f"step_{step:06d}.png", sheet)
    for caption, video in zip(captions, videos, strict=True):
        log.add_video(caption, to_uint8(video), config.data.fps, step)


def main(argv: list[str]) -> int:
    """Parses the flags and trains."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None or not _WORKDIR.value:
        raise UserError("--config=FILE and --workdir=DIR: one is missing, expected both")
    if _CLUSTER.value:
        join_cluster(_CLUSTER.value)
    if unknown := set(_ALLOW_CHANGED.value) - {"data"}:
        raise UserError(f"--allow_changed: {min(unknown)!r}, expected 'data'")
    config, workdir = parse_train_config(values, data.parse_config), Path(_WORKDIR.value)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be created ({error.strerror})") from error
    prepare_compiler()
    with contextlib.ExitStack() as stack:
        # Refuses to start while a run that was told to stop is still saving.
        run_on_first_process(lambda: stack.enter_context(claim_folder(workdir)))
        try:
            return train(config, workdir, "data" in _ALLOW_CHANGED.value)
        finally:
            with contextlib.suppress(OSError):  # removes the folder only if it is empty
                workdir.rmdir()


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.train"))
