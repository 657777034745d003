"""Trains one stage.

    python -m experiments.train --config=experiments/configs/tiny_t2i.py --workdir=runs/tiny_t2i

The same command again resumes, exactly; while the first is still at work it is refused. Exit
codes: 0 finished, 2 a mistake or a diverged loss (one line says which), 75 stopped by SIGTERM after
saving: start the command again.

On a TPU pod start it on every host with `--cluster=auto`; all hosts need to see the workdir.

The workdir holds `initial/` (the model before training, frozen parameters included),
`checkpoints/`, `model/` (a model folder, made at every checkpoint), `metrics.csv`,
`tensorboard/`, `samples/`, `loss.png` at the end and then the marker `DONE`.
"""

import contextlib
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from data import pipeline as data
from experiments.common.exit_codes import PREEMPTED
from experiments.common.program_flags import read_flags
from stunet.compiling import on_cpu, prepare_compiler
from stunet.diffusion import downsample, upsample
from stunet.engine import generate, upscale
from stunet.errors import UserError, run_command
from stunet.model import load, model_from_folder
from stunet.schema import from_dict
from stunet.training.checkpoints import Checkpoints, abstract_state
from stunet.training.claim import claimed
from stunet.training.cluster import (
    first_alone,
    gathered,
    is_first,
    join_cluster,
    watch_for_sigterm,
)
from stunet.training.config import TrainConfig
from stunet.training.initial_model import check_initial_model, make_initial_model
from stunet.training.mesh import batch_slice, check_batch, make_mesh, put_batch, put_parameters
from stunet.training.metrics import MetricsLog, plot_loss
from stunet.training.stages import Networks, make_stage
from stunet.training.step import make_optimizer, make_train_step, place_state
from stunet.training.text_cache import check_text_states
from stunet.video_io import contact_sheet, to_uint8, write_image
from stunet.weights.model_folder import ModelFolder, open_model_folder, write_model_folder

BAR = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
    "[{elapsed}, ETA {remaining}, {rate_noinv_fmt}{postfix}]"
)

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the experiment's config file", flag_values=FLAGS
)
_CLUSTER = flags.DEFINE_string(
    "cluster",
    None,
    "join other processes that train the same: 'auto' on a TPU pod, else 'HOST:PORT,COUNT,NUMBER'",
    flag_values=FLAGS,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "where everything about the run is kept", flag_values=FLAGS
)


def train(config: TrainConfig, workdir: Path) -> int:
    """Trains a stage to its end, or until SIGTERM; returns the exit code."""
    if (workdir / "DONE").exists():
        if is_first():
            print(f"{workdir} is finished: {(workdir / 'DONE').read_text().strip()}")
        return 0
    stop_after = watch_for_sigterm()
    mesh = make_mesh(config.mesh.fsdp, config.mesh.frames)
    check_batch(mesh, config.batch_size, config.data["num_frames"])
    part, parts = batch_slice(mesh)  # which of every batch this process reads
    data_config = data.parse_config(config.data)
    first_alone(lambda: data.prepare(data_config))
    if not is_first():  # where the datasets are on a disk of its own
        data.prepare(data_config)

    # The model before training, kept in the workdir so that resuming needs nothing else.
    def begin() -> None:
        if not (workdir / "initial").exists():
            with on_cpu():
                content = make_initial_model(config, lambda: data.captions(data_config))
            write_model_folder(workdir / "initial", content)

    first_alone(begin)
    initial = open_model_folder(workdir / "initial")
    model = model_from_folder(initial, workdir / "initial")
    if data_config.text_states:
        check_text_states(data.text_states_path(data_config), model)
    check_initial_model(config, initial.config["stage"], model, workdir / "initial")

    # Networks, what of them is trained, and the update step.
    networks = Networks(
        model.unet,
        model.text_encoder,
        config.remat,
        model.super_resolution,
        config.conditioning,
        mesh,
    )
    stage = make_stage(
        config.stage,
        networks,
        config.diffusion,
        trains=config.trains,
        frozen=config.frozen,
        text_denoising=config.text_denoising,
        adapter_rank=config.adapter_rank,
    )
    trained, frozen = stage.split(initial.params, config.seed)
    optimizer = make_optimizer(config.optimizer, config.total_steps)
    state = place_state(mesh, trained, optimizer)
    frozen_on_mesh = put_parameters(mesh, frozen)
    step_fn = make_train_step(
        stage,
        optimizer,
        config.optimizer.ema_decay,
        config.seed,
        gradient_accumulation=config.gradient_accumulation,
    )
    # Left to itself the partitioner might leave the parameters whole, as it has them in between.
    lies = jax.tree.map(lambda leaf: leaf.sharding, state)
    step_fn = jax.jit(step_fn, donate_argnums=0, out_shardings=(lies, None))

    # Where the last run stopped.
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    restored = checkpoints.restore(
        abstract_state(state), lambda text: is_first() and print(text, file=sys.stderr)
    )
    position = 0
    if restored is not None:
        state, position = restored
    start = int(state.step)
    if position != start * config.batch_size:
        raise UserError(
            f"{workdir} stopped after {position} examples, which is not {start} steps of "
            f"batch_size {config.batch_size}; resume with the batch size it was started with"
        )
    log = MetricsLog(workdir, start, writes=is_first())
    batches = data.make_batches(
        data_config,
        model.tokenizer,
        batch_size=config.batch_size,
        start_step=start,
        process_index=part,
        process_count=parts,
    )

    def save_and_export() -> None:
        checkpoints.save(state, int(state.step) * config.batch_size)
        ema = gathered(state.ema)
        if is_first():
            content = ModelFolder(initial.config, stage.join(ema, frozen), initial.tokenizer)
            write_model_folder(workdir / "model", content)

    progress = tqdm(
        total=config.total_steps,
        initial=start,
        unit=" steps",
        desc=config.stage,
        bar_format=BAR,
        postfix="compiling",
        disable=not is_first(),
    )
    # Closed whatever happens: a checkpoint may still be on its way to the disk.
    with contextlib.closing(checkpoints), contextlib.closing(log), progress:
        if start == config.total_steps:  # killed after the last checkpoint, before what follows it
            save_and_export()
            write_samples(config, workdir, log, start)
        for step in range(start + 1, config.total_steps + 1):
            batch = next(batches)
            batch["position"] = batch["position"].astype(np.uint32)  # JAX has no int64 by default
            state, metrics = step_fn(state, frozen_on_mesh, put_batch(mesh, batch))
            log.add(step, metrics)
            last, stopping = step == config.total_steps, stop_after(step)
            checkpoint_due = last or stopping or step % config.checkpoint_every == 0
            if checkpoint_due or step % config.log_every == 0:
                loss = log.write()
                progress.update(step - progress.n)
                videos_per_s = (progress.format_dict["rate"] or 0) * config.batch_size
                progress.set_postfix_str(f"{videos_per_s:.1f} videos/s, loss {loss:.4f}")
            if checkpoint_due:
                save_and_export()
            if stopping and not last:
                break
            if last or (config.sample_every and step % config.sample_every == 0):
                write_samples(config, workdir, log, step)
    finished = int(state.step) == config.total_steps
    if is_first():
        plot_loss(workdir)
        if finished:
            done = f"{config.total_steps} steps of stage {config.stage}\n"
            (workdir / "DONE").write_text(done)
            print(f"finished: model in {workdir / 'model'}")
        else:
            print(f"stopped by SIGTERM after step {int(state.step)}, saved; run the command again")
    return 0 if finished else PREEMPTED


def write_samples(config: TrainConfig, workdir: Path, log: MetricsLog, step: int) -> None:
    """Samples from the exported model: its prompts, or clips of the data enlarged.

    Files and TensorBoard; for super-resolution the clip given, enlarged bilinearly, comes first.
    """
    if not is_first():
        return
    count = config.sample_videos if config.super_resolution else len(config.sample_prompts)
    if not count:
        return
    model = load(workdir / "model")
    if config.super_resolution:
        whole, prompts = data.whole_examples(data.parse_config(config.data), count)
        factor = config.super_resolution.factor
        given = downsample(whole, factor)
        videos = upscale(model, given, prompts, seed=config.seed)
        videos = np.concatenate([upsample(given, factor), videos], axis=2)
    else:
        prompts = list(config.sample_prompts)
        videos = generate(model, prompts, seed=config.seed)
    (workdir / "samples").mkdir(exist_ok=True)
    # One sheet: a row a prompt.
    frames = videos.reshape(-1, *videos.shape[2:])
    sheet = contact_sheet(frames, columns=videos.shape[1])
    write_image(workdir / "samples" / f"step_{step:06d}.png", sheet)
    for prompt, video in zip(prompts, videos, strict=True):
        log.add_video(prompt, to_uint8(video), config.data["fps"], step)


def main(argv: list[str]) -> int:
    """Reads the flags and trains."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None or not _WORKDIR.value:
        raise UserError("both --config=FILE and --workdir=DIR are needed")
    if _CLUSTER.value:
        join_cluster(_CLUSTER.value)
    workdir = Path(_WORKDIR.value)
    config = from_dict(TrainConfig, values, "config")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from error
    prepare_compiler()
    with contextlib.ExitStack() as claim:
        # Started again too soon, before the run that was told to stop has saved.
        first_alone(lambda: claim.enter_context(claimed(workdir)))
        try:
            return train(config, workdir)
        finally:
            with contextlib.suppress(OSError):  # not empty, as a rule
                workdir.rmdir()


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.train"))
