"""Prepares the dataset of a config for training: cuts, re-times, resizes and encodes its clips.

    python -m experiments.prepare --config=experiments/configs/clips_t2v.py \\
        --config.data.source=FOLDER --workers=8
    python -m experiments.prepare --config=... --runner=DirectRunner --workers=8
    python -m experiments.prepare --config=... --runner=DataflowRunner --project=... --region=...

Training does the same if the dataset does not exist. The dataset consists of parts of
`config.data.part_size` clips. An interrupted preparation keeps its finished parts: run the command
again. Records do not depend on the number of workers or on the runner. `config.data.source` and
`config.data.data_dir` may be in a bucket (gs://): each video is downloaded when it is prepared, and
each finished part uploaded.

--runner distributes parts by Apache Beam (extra `beam`), whose own options follow as flags
(docs/data.md). All workers must see the source and the data folder under the same paths.
"""

import json
import re
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from data import pipeline as data
from data.parts import BuildParts, PartTask, build_locally, build_part, delete_folder
from data.preparation import ClipSettings, available_cores
from data.sources import MediaFile, SourceClip
from experiments.common.program_flags import read_flags
from stunet.errors import UserError, run_command, writing
from stunet.paths import user_path
from stunet.training.config import parse_train_config

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "read this config file", flag_values=FLAGS
)
_RUNNER = flags.DEFINE_string(
    "runner", None, "distribute parts by this runner of Apache Beam", flag_values=FLAGS
)
_WORKERS = flags.DEFINE_integer(
    "workers",
    None,
    "prepare clips in this many processes of this machine; default: the number of cores",
    lower_bound=1,
    flag_values=FLAGS,
)


def build_by_beam(runner: str, workers: int, options: Sequence[str]) -> BuildParts:
    """Returns a function that builds parts by Apache Beam, one part per element.

    Args:
      runner: Name of a Beam runner. "DirectRunner" uses processes of this machine.
      workers: Number of processes of the DirectRunner.
      options: Options of Beam and its runner, such as "--region=us-east5".

    Raises:
      UserError: Apache Beam is not installed or does not have an option.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            f"--runner={runner}: Apache Beam is not installed ({error}), expected `pip install -e "
            '".[train,beam]"`'
        ) from error
    arguments = [f"--runner={runner}", *options]
    if runner == "DirectRunner":
        mode = "multi_processing" if workers > 1 else "in_memory"
        arguments += [f"--direct_num_workers={workers}", f"--direct_running_mode={mode}"]
    parsed = PipelineOptions(arguments)
    known = parsed.get_all_options()
    if unknown := parsed.get_all_options(retain_unknown_options=True).keys() - known.keys():
        raise UserError(f"--{min(unknown)}: not an option of Apache Beam, expected one of its own")

    def build(tasks: Sequence[PartTask]) -> None:
        if not tasks:
            return
        # Parts are passed as files, because runners limit the size of a pipeline.
        folder = tasks[0].folder.with_name(".tasks")
        with writing(folder):
            delete_folder(folder)
            folder.mkdir()
            paths = [folder / task.folder.name for task in tasks]
            for path, task in zip(paths, tasks, strict=True):
                path.write_text(_task_to_json(task))
        try:
            with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
                # Reshuffled, because runners fuse Create with the step that follows it.
                created = pipeline | "parts" >> beam.Create(map(str, paths)) | beam.Reshuffle()
                _ = created | "build" >> beam.Map(_build_part_of_file)
        except UserError:
            raise
        except Exception as error:  # runners raise errors of many types
            # Errors of workers arrive as tracebacks in the text.
            found = re.findall(r"UserError: (.+?)(?:\n|\\n| \[while running|$)", str(error))
            reason = found[-1] if found else str(error).strip().splitlines()[-1]
            raise UserError(
                f"--runner={runner}: {reason}; the same command continues after the finished parts"
            ) from error
        finally:
            delete_folder(folder)

    return build


def _build_part_of_file(path: str) -> None:
    build_part(_task_from_json(user_path(path).read_text()))


def _task_to_json(task: PartTask) -> str:
    return json.dumps(task, default=str)  # named tuples become lists, and paths texts


def _task_from_json(text: str) -> PartTask:
    def clip(name, file, captions, span, *others) -> SourceClip:
        path, *member = file
        media = MediaFile(user_path(path), *member)
        return SourceClip(name, media, tuple(captions), span and tuple(span), *others)

    folder, clips, settings = json.loads(text)
    return PartTask(user_path(folder), [clip(*c) for c in clips], ClipSettings(*settings))


def main(argv: list[str]) -> None:
    """Parses the flags and prepares the dataset."""
    beam_options: list[str] = []
    values = read_flags(FLAGS, argv, __doc__, _CONFIG, unknown=beam_options)
    if values is None:
        raise UserError("--config=FILE: missing")
    if beam_options and not _RUNNER.value:
        raise UserError(f"{beam_options[0]}: unknown flag, expected a --runner of Beam with it")
    config = parse_train_config(values, data.parse_config)
    workers = _WORKERS.value or available_cores()
    if _RUNNER.value:
        build_parts = build_by_beam(_RUNNER.value, workers, beam_options)
    else:
        build_parts = build_locally(workers)
    ready = data.prepare(config.data, build_parts)
    print(ready.folder())
    if dataset := getattr(ready, "dataset", None):
        print(f"train with --config.data.dataset={dataset}")


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.prepare"))
