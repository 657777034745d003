import signal

import pytest

from tests.experiments.runs import T2I, changed, start, write_config
from tests.tiny import fast_compiles


@pytest.fixture(scope="session", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


@pytest.fixture(autouse=True)
def _own_signal_handler():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def config(root):
    return changed(T2I, data__data_dir=str(root / "datasets"))


@pytest.fixture(scope="session")
def whole(root, config):
    """A run that nothing interrupts: its workdir and what it printed."""
    path = write_config(root / "t2i.py", config)
    process = start(path, root / "whole", root / "cache")
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return root / "whole", out, err
