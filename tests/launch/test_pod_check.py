import re
import socket
import time

import pytest

from experiments import pod_check
from experiments.pod_check import Check, run_check
from stunet.errors import UserError
from tests.experiments.runs import T2I, changed, ended, parse, start, start_cluster, write_config

NAMES = ["hosts", "write", "read, delete", "clocks", "code", "mesh", "step"]
CONFIG = changed(T2I, mesh__frames=2, data__num_frames=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pod")
    write_config(folder / "config.py", CONFIG)
    return folder


def lines_of(out):
    """Returns the lines of the checks, by name, without those of Gloo."""
    pairs = (line.split(": ", 1) for line in out.splitlines() if re.match("[a-z, ]+: ", line))
    return {name: rest for name, rest in pairs if name in NAMES}


def test_two_processes_check_a_bucket(root, bucket):
    config = root / "config.py"
    commands = ("experiments.pod_check",) * 2
    workdir = f"{bucket}/runs/a"
    processes = start_cluster(config, workdir, root / "cache", commands=commands)
    (out, err, code), (quiet, quiet_err, quiet_code) = ended(*processes)
    assert (code, quiet_code) == (0, 0), err + quiet_err
    lines = lines_of(out)
    assert list(lines) == NAMES and lines_of(quiet) == {}
    assert all(line.startswith("ok: ") for line in lines.values()), lines
    assert workdir in lines["write"]
    assert re.search("2.* 2 .*cpu", lines["hosts"])
    assert "data 2 x fsdp 1 x frames 2" in lines["mesh"]


def test_each_failed_check_is_a_line(root, monkeypatch):
    """The second process has another workdir and another variable, and the batch is too small."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for number in range(2):
        monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--x={number}")
        options = f"--cluster=localhost:{port},2,{number}", "--config.batch_size=3"
        processes.append(
            start(
                root / "config.py",
                root / str(number),
                root / "cache",
                *options,
                devices=2,
                command="experiments.pod_check",
            )
        )
    (out, *first), (_, *second) = ended(*processes)
    lines = lines_of(out)
    assert re.search(rf"^process \d: {root}/\d/\S+/\d.txt: missing", lines["read, delete"]), lines
    assert re.search("LIBTPU_INIT_ARGS --x=1 in process 1, .*--x=0", lines["code"]), lines
    assert re.search("^batch_size: 3, .* 2 ", lines["mesh"]), lines
    assert [name for name, line in lines.items() if line.startswith("ok: ")] == [
        *("hosts", "write", "clocks")
    ]
    for err, code in first, second:
        assert code == 2
        message = "experiments.pod_check: error: failed: read, delete, code, mesh"
        assert [line for line in err.splitlines() if "error:" in line][-1].startswith(message)
    assert not (root / "0").exists() and not (root / "1").exists()


def test_errors_of_libraries_are_one_line():
    def fail():
        raise OSError("no network\nbetween hosts")

    with pytest.raises(UserError, match="^OSError: no network$"):
        run_check(Check("x", fail, str))


def test_a_check_that_waits_ends_the_process(monkeypatch, capsys):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(pod_check, "LIMIT_S", 0.05)
    monkeypatch.setattr(pod_check.os, "_exit", leave)
    with pytest.raises(SystemExit) as caught:
        pod_check._report(Check("step", lambda: time.sleep(0.5), str))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"error: step: process 0 .* 0.05 s", line)


def test_judgements():
    config = parse(CONFIG)
    hosts = pod_check.hosts_check().judge
    assert "2" in hosts([[4, 8, "TPU v4", 1]] * 2)
    with pytest.raises(UserError, match="3 in process 1, .*4 as in process 0"):
        hosts([[4, 7, "TPU v4", 1], [3, 7, "TPU v4", 1]])
    with pytest.raises(UserError, match="8 devices, expected 12 in 3 "):
        hosts([[4, 8, "TPU v4", 1]] * 3)

    clocks = pod_check.clock_check().judge
    assert clocks([100.0, 100.25]) == "0.25 s apart"
    with pytest.raises(UserError, match="6.0 s .*process 2 .*process 1.* 5 s"):
        clocks([101.0, 100.0, 106.0])

    code = pod_check.code_check(config).judge
    with pytest.raises(UserError, match="gcsfs 1 in process 1, expected None"):
        code([{"code": "a"}, {"code": "a", "gcsfs": "1"}])

    step = pod_check.step_check(config).judge
    assert "0.300 s" in step([[1.5, 0.2], [1.5, 0.3]])
    with pytest.raises(UserError, match="1.6 in process 1, expected 1.5"):
        step([[1.5, 0.2], [1.6, 0.2]])
    with pytest.raises(UserError, match="nan in process 0"):
        step([[float("nan"), 0.2]])


def test_the_digest_changes_with_a_source(tmp_path, monkeypatch):
    before = pod_check.source_digest()
    assert before == pod_check.source_digest()
    (tmp_path / "new.py").write_text("")
    monkeypatch.setattr(pod_check.data, "__file__", str(tmp_path / "__init__.py"))
    assert pod_check.source_digest() != before


@pytest.mark.parametrize("arguments", [[], ["--workdir=w"]])
def test_missing_flags(arguments):
    with pytest.raises(UserError, match="--config.*--workdir"):
        pod_check.main(["pod_check", *arguments])
