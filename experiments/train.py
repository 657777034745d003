"""Trains one stage of a model.

    python -m experiments.train --config=experiments/configs/tiny_t2i.py --workdir=runs/tiny_t2i

The same command again resumes the run exactly. It is refused while the run is still active.

Exit codes: 0 finished; 2 invalid input, a diverged loss or a full disk, explained in one line; 75
stopped by Ctrl-C, SIGTERM, SIGHUP or SIGQUIT after saving, run the command again; 128 + N ended by
signal N with nothing to save (130 for Ctrl-C). A second Ctrl-C ends without saving.

A larger `total_steps` continues a finished run. Other fields must not change, except those that do
not affect the result (`stunet.training.workdir.config_changes`) and those that --allow_changed
names.

On a TPU pod, start it on every host with `--cluster=auto`. All hosts must see the workdir.

Contents of the workdir: `run.json` (the config, a fingerprint of the data, versions, and what has
changed), `initial/` (a description of the model before training), `checkpoints/`, `metrics.csv`,
`telemetry.jsonl`, `tensorboard/`, `samples/`, `compiled/` (compiled programs), and at the end
`model/` (a model folder), `loss.png` and the marker `DONE`.

`initial/` and `model/` do not contain parameters that the run does not change: they refer to the
folder of `init_from` or of the text encoder (`base` in their `config.json`), which the run needs as
long as it exists. `python -m experiments.export` writes a model folder before the end of training,
and one that needs no other folder.
"""

import contextlib
import dataclasses
import functools
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from data import pipeline as data
from experiments.common.cluster_data import prepare_in_cluster
from experiments.common.exit_codes import PREEMPTED
from experiments.common.program_flags import read_flags
from experiments.common.workload import describe_workload
from stunet import signals
from stunet.api import generate, upscale
from stunet.cluster import (
    agree,
    gather_to_first_process,
    is_first_process,
    join_cluster,
    run_on_first_process,
    share_text,
    signal_arrived,
)
from stunet.compiling import prepare_compiler
from stunet.engine.request import Sampling
from stunet.errors import UserError, run_command, writing
from stunet.model import Model, on_devices
from stunet.paths import AnyPath, is_remote, user_path, write_text
from stunet.text import MAX_TOKENS, Tokenizer
from stunet.training.config import TrainConfig, parse_train_config
from stunet.training.logs.metrics import MetricsLog, join_parts, plot_loss, read_metrics
from stunet.training.logs.profiling import Profiler, parse_profile_steps
from stunet.training.logs.telemetry import SAMPLE_METRICS, Telemetry, read_records
from stunet.training.mesh import batch_slice, check_batch, make_mesh, put_batch
from stunet.training.parameters import put_or_init
from stunet.training.program import build_program
from stunet.training.stages import SampleTools
from stunet.training.step import TrainState
from stunet.training.text_cache import check_text_states
from stunet.training.workdir.checkpoint_tensors import open_averages
from stunet.training.workdir.checkpoints import Checkpoints, DataState
from stunet.training.workdir.claim import claim_folder
from stunet.training.workdir.contents import check_contents, finished_steps
from stunet.training.workdir.resuming import (
    check_initial_model,
    check_run_config,
    check_run_data,
    check_total_steps,
    record_run,
    recorded_data,
)
from stunet.training.workdir.run_model import (
    export_model,
    open_initial_model,
    write_initial_model,
)
from stunet.video_io import contact_sheet, to_uint8, write_image
from stunet.weights.bases import check_base
from stunet.weights.folder_writing import check_replaceable
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
    "continue the run although these have changed: fields of the config, such as "
    "optimizer.learning_rate, or 'data' (clips, captions or their preparation)",
    flag_values=FLAGS,
)
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps",
    None,
    "trace steps A to B, given as A:B, to WORKDIR/profile for xprof",
    flag_values=FLAGS,
)


def train(
    config: TrainConfig,
    workdir: AnyPath,
    allow_changed: Collection[str] = (),
    profile_steps: range = range(0),
) -> int:
    """Trains a stage to its end, or until a signal.

    Args:
      config: The run.
      workdir: An existing folder, empty or of the same run.
      allow_changed: Fields of the config that may have changed, such as "optimizer.learning_rate",
        and "data" for clips and captions.
      profile_steps: Consecutive steps to trace.

    Returns:
      0, or `PREEMPTED` after a signal.

    Raises:
      UserError: the config does not suit the data, the devices or the workdir's run, or the loss
        diverged, or the disk is full or read-only.
      Interrupted: a signal arrived before the first step, or after the last one was saved.
    """
    start_time = time.time()
    run_on_first_process(lambda: check_contents(workdir))
    run_on_first_process(lambda: check_replaceable(workdir / "model"))
    remarks = check_run_config(config, workdir, allow_changed)
    if finished_steps(workdir) == config.total_steps:
        if is_first_process():
            join_parts(workdir)  # of a run that was killed while it drew its last samples
        print_once(f"{workdir} is finished: {(workdir / 'DONE').read_text().strip()}")
        return 0
    for remark in remarks:
        print_once(remark, file=sys.stderr)
    history = []

    def read_logs() -> None:  # before hours of preparation and compilation
        read_metrics(workdir / "metrics.csv")
        history.extend(read_records(workdir / "telemetry.jsonl"))

    run_on_first_process(read_logs)
    stage, mesh = config.stage, make_mesh(config.mesh.fsdp, config.mesh.frames)
    check_batch(mesh, config.batch_size, config.data.num_frames)
    slice_index, num_slices = batch_slice(mesh)
    recorded = recorded_data(workdir)

    def check_data(before: str | None, fingerprint: str) -> None:
        for remark in check_run_data(before, fingerprint, workdir, "data" in allow_changed):
            print_once(remark, file=sys.stderr)

    ready = prepare_in_cluster(config.data, functools.partial(check_data, recorded))
    config = dataclasses.replace(config, data=ready)

    # From here on, parameters are lazy tensors in files, and shapes of those to be initialised.
    captions = functools.partial(data.captions, config.data)
    run_on_first_process(lambda: write_initial_model(config, workdir / "initial", captions))
    stage_name, model = agree(lambda: open_initial_model(workdir / "initial"))
    run_on_first_process(lambda: check_base(workdir / "initial"))
    if config.data.text_states:
        check_text_states(data.text_states_path(config.data), model)
    check_initial_model(config, stage_name, model, workdir / "initial")
    params, text_encoder = model.params, model.text_encoder
    if config.data.text_states:  # the text encoder stays on disk
        params, text_encoder = {"unet": params["unet"]}, None
    trained, frozen = stage.split(params, config.seed)
    program = build_program(config, model.unet, text_encoder, trained, frozen, mesh)

    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    restored = checkpoints.restore(program.state, functools.partial(print_once, file=sys.stderr))
    fingerprint = data.fingerprint(config.data)
    put = functools.partial(put_or_init, stage, model, mesh=mesh, seed=config.seed)
    if restored is None:
        state, read = program.init(agree(lambda: put(trained))), DataState(0)
    else:
        state, read = restored
    frozen_on_mesh = agree(lambda: put(frozen))
    start, last = int(state.step), config.total_steps
    check_total_steps(config, start, workdir)
    if read.position != start * config.batch_size:
        raise UserError(
            f"{workdir}: stopped after {read.position} examples in {start} steps, expected steps "
            f"of batch_size {config.batch_size} (or the batch size of the run's start)"
        )
    if recorded is None:  # run.json was deleted or is older than the field
        check_data(read.fingerprint, fingerprint)
    run_on_first_process(lambda: record_run(config, fingerprint, workdir, start, read.fingerprint))
    num_tokens = model.tokenizer.max_tokens if model.tokenizer else MAX_TOKENS
    workload = describe_workload(config, model.unet, text_encoder, num_tokens, program)
    telemetry = Telemetry(workload, start, start_time, history)
    log = MetricsLog(workdir, start, is_first_process(), telemetry)
    traced = profile_steps if is_first_process() else range(0)
    profiler = Profiler(traced, workdir / "profile")
    batches = data.make_batches(
        config.data,
        model.tokenizer,
        batch_size=config.batch_size,
        start_step=start,
        process_index=slice_index,
        process_count=num_slices,
    )
    for warning in text_warnings(config, model.tokenizer):
        print_once(warning, file=sys.stderr)

    def sample(step: int, averages: Tree) -> None:
        if not stage.num_samples:
            return
        averaged = averaged_model(config, model, averages, frozen, frozen_on_mesh)
        run_on_first_process(lambda: write_samples(config, workdir, log, step, averaged))

    progress = progress_bar(config, start)
    if is_first_process():
        (workdir / "DONE").unlink(missing_ok=True)  # of fewer steps
    stopping, saved_at, previous = False, time.monotonic(), ()
    # Closed after an error too, because a checkpoint may still be on its way to the disk.
    closing = contextlib.closing
    with closing(checkpoints), closing(log), closing(batches), closing(profiler), progress:
        for step in range(start + 1, last + 1):
            with telemetry.data_wait():
                batch = next(batches)
            batch["position"] = batch["position"].astype(np.uint32)  # JAX disables int64
            with profiler.step(step):
                state, metrics = program.step(state, frozen_on_mesh, put_batch(mesh, batch))
            profiler.end(step, metrics)
            if step == start + 1:  # it is compiled: from now on, a signal waits for a save
                signals.defer()
            log.add(step, metrics)
            # JAX would dispatch steps until the next row of the log; a signal has to wait for them.
            jax.block_until_ready(previous)
            previous = metrics
            stopping = signal_arrived(step)
            logging = step % config.log_every == 0
            sampling = config.sample_every and step % config.sample_every == 0 and step < last
            saving = stopping or sampling or step == last or step % config.checkpoint_every == 0
            # Last, because a cluster decides about it together.
            saving = saving or (logging and is_due(saved_at, config.checkpoint_minutes))
            if saving or logging:
                loss = log.write()
                progress.update(step - progress.n)
                videos_per_s = (progress.format_dict["rate"] or 0) * config.batch_size
                progress.set_postfix_str(f"{videos_per_s:.1f} videos/s, loss {loss:.4f}")
            if saving:
                log.flush()  # a resumed run needs the rows up to its checkpoint
                save(config, checkpoints, state)
                saved_at = time.monotonic()
            if sampling and not stopping:
                checkpoints.wait()  # a signal may end the process while it compiles the sampler
                stopping = was_interrupted(lambda step=step, ema=state.ema: sample(step, ema))
            if stopping:
                break
        if not stopping:
            checkpoints.wait()
            stopping = was_interrupted(lambda: finish(config, workdir))
        if not stopping:
            was_interrupted(lambda: sample(last, state.ema), exit_code=0)

    if is_first_process() and not stopping:
        join_parts(workdir)
    if stopping:
        name = signal.Signals(signals.received() or signal.SIGTERM).name
        print_once(
            f"experiments.train: stopped by {name} after step {int(state.step)}, saved; run the "
            "command again",
            file=sys.stderr,
        )
        return PREEMPTED
    print_once(f"finished: model in {workdir / 'model'}")
    return 0


def print_once(text: str, file=None) -> None:
    """Prints a line in one process of a cluster."""
    if is_first_process():
        print(text, file=file)


def text_warnings(config: TrainConfig, tokenizer: Tokenizer | None) -> list[str]:
    """Returns warnings about captions and sample prompts that the text encoder reads incompletely.

    Those about captions with cached states are reported by `experiments.cache_text`.
    """
    captions = [] if config.data.text_states else data.caption_warnings(config.data, tokenizer)
    if tokenizer is None:
        return captions
    return captions + tokenizer.warnings(config.stage.sample_prompts, "config.sample_prompts")


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


def is_due(saved_at: float, minutes: float) -> bool:
    """Whether that many minutes have passed; all processes of a cluster follow the first one."""
    return bool(share_text("due" if time.monotonic() - saved_at > 60 * minutes else ""))


def save(config: TrainConfig, checkpoints: Checkpoints, state: TrainState) -> None:
    """Saves a checkpoint."""
    read = DataState(int(state.step) * config.batch_size, data.fingerprint(config.data))
    checkpoints.save(state, read)


def was_interrupted(action: Callable[[], None], exit_code: int = PREEMPTED) -> bool:
    """Runs an action that a signal may interrupt, because all that it needs is saved.

    Args:
      action: The action.
      exit_code: Exit code if the process has to be ended because the main thread is busy.
    """
    try:
        with signals.interruptible(exit_code):
            action()
    except signals.Interrupted:
        return True
    return False


def finish(config: TrainConfig, workdir: AnyPath) -> None:
    """Writes `model/` from the last checkpoint, `loss.png` and the marker `DONE`."""

    def write() -> None:
        averages = open_averages(workdir / "checkpoints" / str(config.total_steps))
        export_model(config, workdir / "initial", averages, workdir / "model")
        plot_loss(workdir)
        text = f"{config.total_steps} steps of stage {config.stage.name}\n"
        write_text(workdir / "DONE", text)

    run_on_first_process(write)


def averaged_model(
    config: TrainConfig, model: Model, averages: Tree, frozen: Tree, frozen_on_mesh: Tree
) -> Model | None:
    """Returns the model of averaged parameters on the devices of process 0, None in others.

    Args:
      config: The run.
      model: The model before training.
      averages: Averages of the trained parameters on the mesh.
      frozen: Frozen parameters as they are stored.
      frozen_on_mesh: Frozen parameters on the mesh.
    """
    if jax.process_count() > 1:  # the mesh has devices that process 0 cannot compute on
        averages, frozen_on_mesh = gather_to_first_process(averages), frozen
        if not is_first_process():
            return None
    params = {**model.params, **config.stage.join(averages, frozen_on_mesh)}
    return on_devices(dataclasses.replace(model, params=params), jax.local_devices())


def write_samples(
    config: TrainConfig, workdir: AnyPath, log: MetricsLog, step: int, model: Model
) -> None:
    """Draws samples from a model, to `samples/` (one row per video) and TensorBoard."""
    sampling = Sampling(seed=config.seed)
    tools = SampleTools(
        generate=lambda prompts: generate(model, prompts, sampling=sampling).videos,
        upscale=lambda low, prompts: upscale(model, low, prompts, sampling=sampling).videos,
        examples=lambda count: data.whole_examples(config.data, count),
    )
    with warnings.catch_warnings():
        # Truncated texts were reported at the start.
        warnings.simplefilter("ignore", UserWarning)
        captions, videos = config.stage.draw_samples(tools)
    frames = videos.reshape(-1, *videos.shape[2:])
    sheet = contact_sheet(frames, columns=videos.shape[1])
    with writing(workdir / "samples"):
        (workdir / "samples").mkdir(exist_ok=True)
        write_image(workdir / "samples" / f"step_{step:06d}.png", sheet)
    for caption, video in zip(captions, videos, strict=True):
        log.add_video(caption, to_uint8(video), config.data.fps, step)
    if videos.shape[1] > 1 and config.stage.super_resolution is None:
        clips, _ = data.whole_examples(config.data, len(videos))
        values = {name: metric(videos, clips) for name, metric in SAMPLE_METRICS.items()}
        log.add_sample_metrics(values, step)


def main(argv: list[str]) -> int:
    """Parses the flags and trains."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None or not _WORKDIR.value:
        raise UserError("--config=FILE and --workdir=DIR: one is missing, expected both")
    if _CLUSTER.value:
        join_cluster(_CLUSTER.value)
    config, workdir = parse_train_config(values, data.parse_config), user_path(_WORKDIR.value)
    profile_steps = range(0)
    if _PROFILE_STEPS.value is not None:
        profile_steps = parse_profile_steps(_PROFILE_STEPS.value, config.total_steps)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", error)
        raise UserError(f"--workdir={workdir}: cannot be created ({reason})") from error
    prepare_compiler(workdir / "compiled")
    with contextlib.ExitStack() as stack:
        # Refuses to start while a run that was told to stop is still saving.
        run_on_first_process(lambda: stack.enter_context(claim_folder(workdir)))
        try:
            return train(config, workdir, _ALLOW_CHANGED.value, profile_steps)
        finally:
            if not is_remote(workdir):
                for folder in (workdir / "compiled", workdir):
                    with contextlib.suppress(OSError):  # removes a folder only if it is empty
                        folder.rmdir()


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.train"))
