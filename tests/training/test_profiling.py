"""Traces of training steps."""

import jax
import jax.numpy as jnp
import pytest

from stunet.errors import UserError
from stunet.paths import user_path
from stunet.training.logs.profiling import Profiler, parse_profile_steps


def test_steps():
    assert list(parse_profile_steps("3:5", 5)) == [3, 4, 5]
    assert list(parse_profile_steps("1:1", 1)) == [1]


@pytest.mark.parametrize("text", ["", "3", "5:3", "0:2", "3:6", "a:b", "-1:2", "1:2:3", "1.0:2"])
def test_invalid_steps(text):
    with pytest.raises(UserError, match=rf"--profile_steps={text}: expected A:B .*\(5\)"):
        parse_profile_steps(text, 5)


def step_names(trace):
    (file,) = trace.glob("plugins/profile/*/*.xplane.pb")
    profile = jax.profiler.ProfileData.from_serialized_xspace(file.read_bytes())
    events = (event for plane in profile.planes for line in plane.lines for event in line.events)
    found = (dict(event.stats) for event in events if event.name.startswith("train"))
    return sorted({stats["step_num"] for stats in found if "step_num" in stats})


def run(profiler, first, last):
    for number in range(first, last + 1):
        with profiler.step(number):
            metrics = {"loss": jnp.float32(number) + 1}
        profiler.end(number, metrics)
    profiler.close()


def test_traced_steps(tmp_path):
    run(Profiler(range(0), tmp_path / "none"), 1, 3)
    assert not (tmp_path / "none").exists()
    run(Profiler(range(3, 5), tmp_path / "trace"), 1, 6)
    assert step_names(tmp_path / "trace") == [3, 4]
    # Resumed within these steps, and stopped before their end.
    run(Profiler(range(3, 9), tmp_path / "resumed"), 5, 6)
    assert step_names(tmp_path / "resumed") == [5, 6]


def test_trace_in_a_bucket(bucket):
    folder = user_path(bucket) / "profile"
    run(Profiler(range(1, 2), folder), 1, 1)
    assert step_names(folder) == [1]
