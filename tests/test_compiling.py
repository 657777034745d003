import os
import subprocess
import sys

import jax
import jaxlib
import pytest

from stunet import compiling

FLAG = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(compiling, "_use_compile_cache", lambda: None)
    jax.devices()  # reads the flags, once, and not those of the next line
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")


def test_convolutions_are_kept_from_ynn_and_other_flags_stay():
    compiling.prepare_compiler()
    first, second = os.environ["XLA_FLAGS"].split()
    assert first == "--xla_dump_to=x" and second.startswith(f"{FLAG}=")


def test_the_users_own_choice_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{FLAG}=LIBRARY_FUSION_TYPE_DOT")
    compiling.prepare_compiler()
    assert os.environ["XLA_FLAGS"] == f"{FLAG}=LIBRARY_FUSION_TYPE_DOT"


@pytest.mark.parametrize("version", [(0, 9, 2), (0, 13, 0)])
def test_a_jaxlib_that_may_not_know_the_flag_gets_none(monkeypatch, version):
    monkeypatch.setattr(jaxlib.version, "__version_info__", version)
    compiling.prepare_compiler()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"


def test_this_jaxlib_takes_the_flag(monkeypatch, tmp_path):
    """XLA ends a process whose flags it does not know; convolutions must not come out as YNN."""
    code = (
        "from stunet.compiling import prepare_compiler; prepare_compiler(); import jax; "
        "x = jax.numpy.ones((2, 8, 8, 32)); w = jax.numpy.ones((3, 3, 32, 32)); "
        "f = jax.jit(lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', "
        "dimension_numbers=('NHWC', 'HWIO', 'NHWC'))); "
        "assert 'ynn' not in f.lower(x, w).compile().as_text()"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_what_is_made_on_the_cpu_lies_there():
    with compiling.on_cpu():
        assert jax.config.jax_default_device == jax.devices("cpu")[0]
    assert jax.config.jax_default_device is None


def test_without_a_cpu_all_stays_as_it_was(monkeypatch):
    def absent(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", absent)
    with compiling.on_cpu():
        assert jax.config.jax_default_device is None
