"""Random values of every option of every `stunet` command, found in its argument parser."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from stunet import cli, cluster
from stunet.diffusion import SamplingDefaults, Schedule, SuperResolution, Threshold
from stunet.engine import cascade
from stunet.engine import run as runs
from stunet.errors import UserError
from stunet.model import Model
from stunet.paths import user_path
from stunet.text import load_tokenizer, train_tokenizer
from stunet.video_io import write_image, write_video
from tests.fuzz.fuzzing import Finished, check_cases
from tests.tiny import CAPTIONS, FPS, MAX_TOKENS, NUM_FRAMES, RESOLUTION, T5, UNET

# What each command needs; {0} is the folder of the inputs.
REQUIRED = {
    "generate": ["a red circle", "--out=out.mp4"],
    "animate": ["{0}/image.png", "a red circle", "--out=out.mp4"],
    "interpolate": ["{0}/image.png", "{0}/image.png", "a red circle", "--out=out.mp4"],
    "inpaint": ["{0}/clip.mp4", "a red circle", "--mask={0}/mask.png", "--out=out.mp4"],
    "cinemagraph": ["{0}/image.png", "a red circle", "--mask={0}/mask.png", "--out=out.gif"],
    "edit": ["{0}/clip.mp4", "a red circle", "--strength=0.5", "--out=out.mp4"],
    "upscale": ["{0}/clip.mp4", "a red circle", "--out=out.mp4"],
    "import-if": ["{0}/empty", "imported"],
    "import-t5": ["{0}/empty", "imported"],
    "export-if": ["{0}/empty", "exported"],
    "push": ["{0}/empty", "hf://owner/name"],
    "evaluate": ["{0}/clips", "--frames=2"],
    "studio": [],
}
NUMBERS = [
    *("100000000000000000000", "-100000000000000000000", "9" * 5000, "100000000", "4294967296"),
    *(
        "-1",
        "0",
        "-0",
        "1",
        "2",
        "0.5",
        "1e400",
        "1e300",
        "nan",
        "inf",
        "-inf",
        "0x10",
        "1_000",
        "٣",
    ),
]
TEXTS = ["", " ", "x" * 100_000, "a\0b", "line\nbreak", "\x1b[31m", "\udcff", "Zoë 🎈", "a:b", ":"]
LISTS = ["1,2", "0,0,0,0", "1,1,1,1", ",,,", "-1,0,0,1", "1,1,1,99999999999", "nan,1,1,1"]
CLUSTERS = ["auto", "h:1,2,0", "h:99999,2,0", "h:1,2,3", "h:²,2,0", "h:1,2," + "9" * 5000]
PATHS = [
    *(
        "out.mp4",
        "out.mp4/",
        "./out.mp4",
        "..mp4",
        ".mp4",
        "..",
        ".",
        "/",
        "new/out.png",
        "b\0.mp4",
    ),
    *("out.gif", "out.avi", "out_0.mp4", "x" * 300 + ".mp4", "y/" * 3000 + "z.mp4", "é.mp4"),
    *("{0}", "{0}/", "{0}/clip.mp4", "{0}/link.mp4", "{0}/image.png", "{0}/text.txt", "{0}/empty"),
    *("{0}/folder.mp4", "{0}/clips", "{0}/text.txt/out.mp4", "/proc/out.mp4", "{0}/loop/out.mp4"),
    *(
        "{0}/../inputs/clip.mp4",
        "{0}/base",
        "{0}/ssr",
        "~nobody_here/x.mp4",
        "\udcff.mp4",
        "a\nb.mp4",
    ),
    *("ftp://host/x.mp4", "gs://", "hf://", "hf://a", "hf://a/b/c@d", "file:///x.mp4"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "inputs"
    for name in ("empty", "clips", "folder.mp4", "base", "conditional", "ssr"):
        (folder / name).mkdir(parents=True)
    video = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
    mask = np.ones((16, 16, 3), np.float32)
    mask[4:12, 4:12] = -1
    write_video(folder / "clip.mp4", video, FPS)
    write_video(folder / "clips" / "clip.mp4", video, FPS)
    write_image(folder / "image.png", video[0])
    write_image(folder / "mask.png", mask)
    (folder / "text.txt").write_text("a red circle\na star\n")
    (folder / "link.mp4").symlink_to("clip.mp4")
    (folder / "loop").symlink_to("loop")
    return folder


def tiny_models(folder: Path) -> dict[str, Model]:
    """Returns a model without parameters for each name; sampling is replaced."""
    train_tokenizer(CAPTIONS, T5.vocab_size, folder / "tokenizer.json")
    base = Model(
        unet=UNET,
        text_encoder=T5,
        tokenizer=load_tokenizer(folder / "tokenizer.json", MAX_TOKENS),
        schedule=Schedule(),
        prediction="eps",
        variance="fixed_small",
        threshold=Threshold(),
        sampling=SamplingDefaults(),
        super_resolution=None,
        resolution=RESOLUTION,
        num_frames=NUM_FRAMES,
        fps=FPS,
        params={"unet": {}, "text_encoder": {}},
    )
    conditional = dataclasses.replace(UNET, cond_channels=4)
    enlarging = dataclasses.replace(UNET, in_channels=6)
    return {
        "base": base,
        "conditional": dataclasses.replace(base, unet=conditional),
        "ssr": dataclasses.replace(
            base,
            unet=enlarging,
            resolution=2 * RESOLUTION,
            super_resolution=SuperResolution(2),
        ),
    }


@pytest.fixture
def _no_work(monkeypatch, tmp_path, inputs):
    """Replaces loading, sampling and network calls, and keeps all checks before and after."""
    models = {str(inputs / name): model for name, model in tiny_models(tmp_path).items()}
    load = cascade.load

    def zeros(*shape: int) -> np.ndarray:
        if np.prod(shape, dtype=float) > 1e6:
            raise Finished
        return np.zeros(shape, np.float32)

    def sample_base(model, prompts, num_frames, *_, **__):
        return zeros(len(prompts), num_frames, model.resolution, model.resolution, 3)

    def sample_super_resolution(model, videos, *_, **__):
        count, frames, height, width, _ = videos.shape
        factor = model.super_resolution.factor
        return zeros(count, frames, factor * height, factor * width, 3)

    def finish(*_, **__):
        raise Finished

    monkeypatch.setattr("stunet.compiling.prepare_compiler", lambda: None)
    monkeypatch.setattr(cascade, "load", lambda path, devices: models.get(str(path)) or load(path))
    monkeypatch.setattr(runs, "sample_base", sample_base)
    monkeypatch.setattr(runs, "sample_super_resolution", sample_super_resolution)
    monkeypatch.setattr(cluster, "join_cluster", join_no_cluster)
    monkeypatch.setattr("stunet.cli.studio._check_gradio", lambda: None)
    monkeypatch.setattr("stunet.studio.server.serve", finish)
    monkeypatch.setattr("stunet.weights.hub_models.push_model_folder", finish)
    monkeypatch.setattr("stunet.weights.hub.download", refuse_download)
    monkeypatch.setattr("stunet.weights.hub_models.download", refuse_download)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def fitting_values(action: argparse.Action) -> list[str]:
    """Returns values of the kind that an option takes."""
    if action.dest in ("cluster", "windows", "outpaint"):
        return CLUSTERS if action.dest == "cluster" else LISTS
    paths = ("FILE", "FILE.png", "DIR", "FOLDER", "SRC", "DST", "TSV", "IMAGE", "VIDEO")
    return PATHS if action.metavar in paths else NUMBERS


def join_no_cluster(text: str) -> None:
    if text != "auto":
        cluster._parse_cluster(text)
    raise Finished


def refuse_download(hub_id, *_):
    raise UserError(f"{hub_id}: no connection")


def commands() -> dict[str, list[argparse.Action]]:
    """Returns the options and positional arguments of every command."""
    found = {}
    for name in command_names():
        parser = _subparsers(cli._parser([name])).choices[name]
        found[name] = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    return found


def command_names() -> Sequence[str]:
    return list(_subparsers(cli._parser([])).choices)


def _subparsers(parser: argparse.ArgumentParser) -> argparse._SubParsersAction:
    return next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))


def arguments_with(name: str, actions: list, changes: Sequence[tuple[Any, str]]) -> list[str]:
    """Returns the arguments of a command in which some have other values."""
    options, positional = [], []
    for argument in REQUIRED[name]:
        (options if argument.startswith("--") else positional).append(argument)
    if name in ("animate", "interpolate", "inpaint", "cinemagraph"):
        options.append("--model={0}/conditional")
    elif name == "upscale":
        options.append("--model={0}/ssr")
    elif name in ("generate", "edit", "studio"):
        options.append("--model={0}/base")
    places = [action.dest for action in actions if not action.option_strings]
    for action, value in changes:
        if not action.option_strings:
            positional[places.index(action.dest) : places.index(action.dest) + 1] = [value]
        elif action.nargs == 0:
            options.append(action.option_strings[0])
        else:
            options.append(f"{action.option_strings[0]}={value}")
    return [*positional, *options]


def test_options(inputs, tmp_path, monkeypatch, _no_work):
    choices = [(name, action) for name, actions in commands().items() for action in actions]
    any_value = st.one_of(*map(st.sampled_from, (NUMBERS, TEXTS, LISTS, PATHS)))
    folders = itertools.count()
    all_actions = commands()
    before = contents(inputs)

    def change(choice: tuple) -> st.SearchStrategy:
        name, action = choice
        fitting = st.sampled_from(fitting_values(action))
        second = st.tuples(st.sampled_from(all_actions[name]), any_value)
        first = st.tuples(st.just(action), st.one_of(fitting, fitting, any_value))
        return st.tuples(st.just(name), st.tuples(first) | st.tuples(first, second))

    def run(case: tuple) -> None:
        name, changes = case
        argv = [name, *arguments_with(name, all_actions[name], changes)]
        argv = [argument.replace("{0}", str(inputs)) for argument in argv]
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        monkeypatch.chdir(folder)
        try:
            written = call(argv)
        except UserError:
            left = [path for path in folder.rglob("*") if path.is_file()]
            assert not left, f"leaves {left}"
            raise
        finally:
            if damaged := restore(inputs, before):
                read = {os.path.realpath(word.partition("=")[2] or word) for word in reads(argv)}
                assert not read & damaged, f"changes {read & damaged}"
        for path in written:
            assert user_path(path).exists(), f"{path} does not exist"
        assert len({user_path(path).resolve() for path in written}) == len(written), written

    check_cases(st.sampled_from(choices).flatmap(change).map(Shown), lambda shown: run(shown.case))


@dataclasses.dataclass
class Shown:
    """A case whose `repr` names options."""

    case: tuple

    def __repr__(self) -> str:
        name, changes = self.case
        return " ".join([name, *(f"{action.dest}={value!r:.60}" for action, value in changes)])


def call(argv: list[str]) -> list[str]:
    """Runs a command; returns the files that it printed.

    Raises:
      UserError: It was refused in one line with code 2.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(argv)
    out.getvalue().encode("utf-8", "surrogateescape")
    if code == 0:
        return [line for line in out.getvalue().split("\n") if line] if argv[0] in COMMANDS else []
    assert code == 2, f"exit code {code}"
    before, _, message = err.getvalue().rpartition("stunet: error: ")
    assert "stunet: error: " not in before and message.endswith("\n"), err.getvalue()[-600:]
    raise UserError(message[:-1])


COMMANDS = {name for name, needed in REQUIRED.items() if any("--out=" in word for word in needed)}


def reads(argv: list[str]) -> list[str]:
    """Returns the arguments that are not those of an output."""
    outputs = ("--out=", "--xt-slice=")
    folders = argv[2:3] if argv[0] in ("import-if", "import-t5", "export-if") else []
    return [word for word in argv if not word.startswith(outputs) and word not in folders]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def restore(folder: Path, before: dict[Path, bytes]) -> set[str]:
    """Writes changed files again, deletes new ones, and returns the changed ones."""
    after = contents(folder)
    changed = {path for path in before if before[path] != after.get(path)}
    for path in after.keys() - before.keys():
        path.unlink()
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(before[path])
    return {os.path.realpath(path) for path in changed}


def test_every_command_is_covered():
    assert set(command_names()) == set(REQUIRED)
