"""`stunet studio` without its page, which tests marked `browser` open."""

import importlib.metadata
import socket

import pytest

from stunet import cli
from stunet.engine.applications import APPLICATIONS
from stunet.studio.server import free_port


@pytest.fixture(autouse=True)
def _unchanged_compiler(monkeypatch):
    monkeypatch.setattr("stunet.compiling.prepare_compiler", lambda: None)


@pytest.fixture
def install_gradio(monkeypatch):
    """Sets the version of Gradio that is found, or None."""
    real_version = importlib.metadata.version

    def install(number):
        def version(name):
            if name == "gradio" and number is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return number if name == "gradio" else real_version(name)

        monkeypatch.setattr(importlib.metadata, "version", version)

    return install


def error_of(capsys, *arguments):
    assert cli.main(["studio", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("number", "found"), [(None, "gradio: not installed"), ("5.49.1", "gradio: version 5.49.1")]
)
def test_without_gradio_6_the_error_has_the_install_command(install_gradio, capsys, number, found):
    install_gradio(number)
    line = error_of(capsys)
    assert found in line and line.endswith('pip install "stunet[studio]"')


def test_errors_are_one_line(install_gradio, capsys, tmp_path):
    install_gradio("6.0.0")
    nowhere = tmp_path / "nowhere"
    line = error_of(capsys, "--model", nowhere, "--port", "0")
    assert f"{nowhere}: " in line and "no such" in line
    line = error_of(capsys, "--model", nowhere, "--port", "70000")
    assert "--port" in line and "70000" in line and "65535" in line
    line = error_of(capsys, "--port", "web")
    assert "--port" in line and "'web'" in line
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = error_of(capsys, "--model", nowhere, "--port", port)
    assert "--port" in line and f"127.0.0.1 port {port} (Address already in use)" in line


def test_port_0_selects_a_free_port():
    assert free_port("127.0.0.1", 0) > 0


def test_help_names_the_tabs_that_need_certain_models(capsys):
    with pytest.raises(SystemExit):
        cli.main(["studio", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for kind in ("conditional", "super_resolution"):
        names = [name for name, a in APPLICATIONS.items() if a.model == kind]
        assert ", ".join(names) in text
