import os
import subprocess
import sys

import jax
import jaxlib
import pytest

from stunet import compiling

FLAG = "--xla_cpu_experimental_ynn_fusion_type"

CONVOLUTION_HLO = """
import jax
x, w = jax.numpy.ones((2, 8, 8, 32)), jax.numpy.ones((3, 3, 32, 32))
layout = ("NHWC", "HWIO", "NHWC")
convolve = jax.jit(
    lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)
)
hlo = convolve.lower(x, w).compile().as_text()
assert "convolution" in hlo and "ynn" not in hlo
"""


@pytest.fixture
def before_start(monkeypatch):
    """A process in which JAX has not started, with another flag set and no cache to configure."""
    jax.devices()  # reads the real flags first
    monkeypatch.setattr(compiling.xla_bridge, "backends_are_initialized", lambda: False)
    monkeypatch.setattr(compiling, "use_compilation_cache", lambda folder: None)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")


def run_python(code, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.usefixtures("before_start")
def test_flag_is_added_to_other_flags():
    compiling.prepare_compiler()
    first, second = os.environ["XLA_FLAGS"].split()
    assert first == "--xla_dump_to=x" and second.startswith(f"{FLAG}=")


@pytest.mark.usefixtures("before_start")
def test_flag_set_by_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{FLAG}=LIBRARY_FUSION_TYPE_DOT")
    compiling.prepare_compiler()
    assert os.environ["XLA_FLAGS"] == f"{FLAG}=LIBRARY_FUSION_TYPE_DOT"


@pytest.mark.usefixtures("before_start")
@pytest.mark.parametrize("version", [(0, 9, 2), (0, 13, 0)])
def test_untested_jaxlib_versions_get_no_flag(monkeypatch, version):
    monkeypatch.setattr(jaxlib.version, "__version_info__", version)
    compiling.prepare_compiler()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"


def test_flags_stay_once_jax_has_started(monkeypatch):
    jax.devices()
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    compiling.set_cpu_flags()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"


@pytest.mark.parametrize(
    "code",
    [
        "from stunet.compiling import prepare_compiler; prepare_compiler()",
        "from stunet.model import load; load('shapes')",
    ],
    ids=["prepare_compiler", "load"],
)
def test_convolutions_are_not_compiled_for_ynn(tmp_path, code):
    """Also checks that this jaxlib knows the flag: XLA ends a process over an unknown one."""
    check_flag = f"import os; assert '{FLAG}=' in os.environ['XLA_FLAGS']"
    run_python(f"{code}\n{check_flag}\n{CONVOLUTION_HLO}", tmp_path)


def test_load_works_after_jax_has_started(tmp_path):
    code = (
        "import os, jax; jax.devices(); from stunet.model import load; load('shapes'); "
        "assert 'XLA_FLAGS' not in os.environ"
    )
    run_python(code, tmp_path)


CACHE_CODE = """
import jax
from stunet.compiling import prepare_compiler
from stunet.paths import user_path

folder = user_path({folder!r})
prepare_compiler(folder)
assert jax.config.jax_compilation_cache_dir == str(folder)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * 2 + 1)(1.0)
print(sorted(path.name for path in folder.iterdir() if path.name.endswith("-cache")))
events = []
jax.monitoring.register_event_listener(lambda name, **kwargs: events.append(name))
jax.clear_caches()
jax.jit(lambda x: x * 2 + 1)(1.0)
assert "/jax/compilation_cache/cache_hits" in events, events
"""


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_compiled_programs_are_stored_in_a_given_folder(place, request, tmp_path):
    folder = str(tmp_path) if place == "disk" else request.getfixturevalue("bucket") + "/run"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    code = CACHE_CODE.format(folder=folder + "/compiled")
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and "jit__lambda" in result.stdout, result.stderr


def test_runs_can_share_a_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    for configured, expected in ((None, str(tmp_path / "stunet/jax")), ("/x", "/x")):
        jax.config.update("jax_compilation_cache_dir", configured)
        assert compiling.shared_cache_environment()["JAX_COMPILATION_CACHE_DIR"] == expected
    jax.config.update("jax_compilation_cache_dir", before)


def test_on_cpu_changes_the_default_device_inside_the_block():
    with compiling.on_cpu():
        assert jax.config.jax_default_device == jax.devices("cpu")[0]
    assert jax.config.jax_default_device is None


def test_on_cpu_has_no_effect_without_a_cpu_backend(monkeypatch):
    def absent(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", absent)
    with compiling.on_cpu():
        assert jax.config.jax_default_device is None
