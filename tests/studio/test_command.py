"""`stunet studio` up to the page, which tests marked `browser` open."""

import importlib.metadata
import re
import socket

import pytest

from stunet import cli
from stunet.studio.server import free_port


@pytest.fixture(autouse=True)
def _compiler_as_before(monkeypatch):
    monkeypatch.setattr("stunet.compiling.prepare_compiler", lambda: None)


@pytest.fixture
def gradio(monkeypatch):
    """Sets the version of Gradio that is found, or None."""
    real = importlib.metadata.version

    def found(number):
        def version(name):
            if name == "gradio" and number is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return number if name == "gradio" else real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)

    return found


def error_of(capsys, *arguments):
    assert cli.main(["studio", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("number", "said"), [(None, "it is not installed"), ("5.49.1", "5.49.1 is installed")]
)
def test_without_gradio_6_it_says_how_to_get_it(gradio, capsys, number, said):
    gradio(number)
    line = error_of(capsys)
    assert said in line and line.endswith('pip install "stunet[studio]"')


def test_mistakes_are_one_line(gradio, capsys, tmp_path):
    gradio("6.0.0")
    nowhere = tmp_path / "nowhere"
    assert "nowhere: no such folder" in error_of(capsys, "--model", nowhere, "--port", "0")
    assert "ports are 0 to 65535" in error_of(capsys, "--model", nowhere, "--port", "70000")
    assert "argument --port: invalid int" in error_of(capsys, "--port", "web")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = error_of(capsys, "--model", nowhere, "--port", port)
    assert re.search(rf"cannot listen at 127.0.0.1, port {port} \(Address already in use\)$", line)


def test_a_free_port_is_found():
    assert free_port("127.0.0.1", 0) > 0
