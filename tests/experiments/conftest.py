import signal

import pytest

from experiments import train
from tests.experiments.runs import T2I, changed, start, write_config
from tests.tiny import fast_compiles


@pytest.fixture(scope="session", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


@pytest.fixture(scope="session", autouse=True)
def _restore_process():
    """Restores what training in this process changes: signal handler and compiler settings."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "prepare_compiler", lambda cache: None)
        yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def config(root):
    return changed(T2I, data__data_dir=str(root / "datasets"))


@pytest.fixture(scope="session")
def t2i_run(root, config):
    """An uninterrupted run: its workdir, stdout and stderr."""
    path = write_config(root / "t2i.py", config)
    process = start(path, root / "t2i_run", root / "cache")
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return root / "t2i_run", out, err
