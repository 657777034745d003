"""Processes that form a cluster, wait for each other, and end if one is missing."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stunet.cluster import join_cluster
from stunet.errors import UserError

ROOT = Path(__file__).parents[1]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(what, port, number):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster_process", what, f"localhost:{port},2,{number}"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    out, err = process.communicate(timeout=100)
    return out, err, process.returncode


def test_processes_wait_and_share_texts_and_errors():
    port = free_port()
    processes = [start("exchange", port, number) for number in range(2)]
    (first, err, code), (second, second_err, second_code) = map(ended, processes)
    assert (code, second_code) == (0, 0), err + second_err
    texts = "['ä first\\x00\\n', 'ä second\\x00\\n'] first"
    user_error = "UserError process 0 of the cluster: field: 1, expected 2"
    key_error = r"KeyError 'lost\nkey'"
    assert first.splitlines() == [
        *(texts, "first True", "False", user_error, key_error),
        *("UserError field: 1, expected 2", key_error, "[]"),
    ]
    other_error = r"UserError process 0 of the cluster: KeyError: 'lost\nkey'"
    assert second.splitlines() == [
        *(texts, "second True", "False"),
        *(user_error, other_error) * 2,
        "[]",
    ]


def test_a_waiting_process_ends_if_another_dies():
    port = free_port()
    first, second = (start("die", port, number) for number in range(2))
    assert ended(second)[2] == 9
    _, err, code = ended(first)
    assert code not in (0, 2, 75)
    assert "crashed" in err


@pytest.mark.parametrize(
    ("number", "message"),
    [(0, "process 0 .* 3 s .* 2 .*port {}"), (1, "port {} of localhost .*Connection refused")],
)
def test_a_missing_process_or_closed_port_is_one_line(number, message):
    port = free_port()
    out, err, code = ended(start("join", port, number))
    assert (out, code) == ("", 2)
    (line,) = err.splitlines()
    assert re.search(f"^test: error: --cluster=localhost:{port},2,{number}: ", line), line
    assert re.search(message.format(port), line), line


def test_a_port_in_use_is_one_line():
    with socket.socket() as used:
        used.bind(("", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(UserError, match=f"localhost:{port},2,0: port {port} .*in use.*free"):
            join_cluster(f"localhost:{port},2,0")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost,2,0", "'HOST:PORT,COUNT,NUMBER'"),
        ("localhost:one,2,0", "'HOST:PORT,COUNT,NUMBER'"),
        ("localhost:1234,2", "'HOST:PORT,COUNT,NUMBER'"),
        ("localhost:1234,2,2", "process number 2, expected 0 to 1"),
        ("localhost:70000,2,0", "port 70000, .*65535"),
    ],
)
def test_invalid_addresses(address, message):
    with pytest.raises(UserError, match=f"--cluster={address}: .*{message}"):
        join_cluster(address)
