"""The studio's queue: one job at a time, in order; cancelling stops the work."""

import threading
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest

from stunet.engine.request import Progress
from stunet.errors import UserError
from stunet.studio.jobs import INTERNAL_ERROR, Cancelled, ProgressAdapter, Queue, Status


@pytest.fixture
def queue():
    queue = Queue(limit=3)
    yield queue
    queue.close()


def wait_for(job):
    stages = [status.stage for status in job.updates()]
    return stages, job.result()


def endless_work(started):
    def work(report):
        started.set()
        while True:
            report(Status("working"))
            time.sleep(0.001)

    return work


def test_jobs_run_one_at_a_time_in_order(queue):
    started, proceed, order = threading.Event(), threading.Event(), []

    def first(report):
        started.set()
        proceed.wait(10)
        order.append("first")
        return 1

    def second(report):
        order.append("second")
        return 2

    jobs = [queue.add(first), queue.add(second), queue.add(second)]
    assert started.wait(10)
    stages = [next(job.updates()).stage for job in jobs]
    assert stages[1:] == ["waiting: 1 ahead", "waiting: 2 ahead"]
    with pytest.raises(UserError, match=r"queue.*3 jobs.*3"):
        queue.add(second)
    proceed.set()
    assert [wait_for(job)[1] for job in jobs] == [1, 2, 2]
    assert order == ["first", "second", "second"]


def test_cancelling_stops_the_work_and_frees_the_queue(queue):
    started = threading.Event()
    job = queue.add(endless_work(started), "anna", "edit")
    other = queue.add(lambda report: "result", "ben", "edit")
    assert started.wait(10)
    queue.cancel("anna", "generate")
    queue.cancel("carl")
    assert next(job.updates()).stage == "working"
    queue.cancel("anna")
    with pytest.raises(Cancelled):
        wait_for(job)
    assert wait_for(other)[1] == "result"


def test_a_cancelled_waiting_job_leaves_the_queue(queue):
    started, ran = threading.Event(), []
    job = queue.add(endless_work(started))
    waiting = queue.add(lambda report: ran.append(1))
    assert started.wait(10)
    waiting.cancel()
    with pytest.raises(Cancelled):
        wait_for(waiting)
    job.cancel()
    job.cancel()  # no effect
    with pytest.raises(Cancelled):
        wait_for(job)
    assert wait_for(queue.add(lambda report: 5))[1] == 5 and not ran


def test_user_errors_reach_the_user_and_others_the_terminal(queue, capsys):
    def user_error(report):
        raise UserError("too large")

    def fault(report):
        raise KeyError("gone")

    with pytest.raises(UserError, match="too large"):
        wait_for(queue.add(user_error))
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=INTERNAL_ERROR):
        wait_for(queue.add(fault))
    assert "KeyError: 'gone'" in capsys.readouterr().err
    assert wait_for(queue.add(lambda report: 5))[1] == 5


def test_close_stops_the_running_job():
    queue, started = Queue(), threading.Event()
    job = queue.add(endless_work(started))
    assert started.wait(10)
    assert queue.close()
    with pytest.raises(Cancelled):
        wait_for(job)


def test_close_does_not_wait_for_a_job_without_reports():
    queue, started, finish = Queue(), threading.Event(), threading.Event()

    def work_without_reports(report):
        started.set()
        finish.wait(10)

    queue.add(work_without_reports)
    assert started.wait(10)
    assert not queue.close(timeout=0.0)
    finish.set()
    assert queue.close()


def test_previews_are_subsampled_and_stay_until_the_next_stage_has_one():
    statuses = []
    on_progress = ProgressAdapter(statuses.append, interval=0.0, max_frames=3, max_side=8)
    estimate = jnp.arange(7.0)[None, :, None, None, None] * jnp.ones((1, 1, 16, 20, 3))
    on_progress(Progress("reading", warnings=("shrunk",)))
    on_progress(Progress("sampling", 0, 2, 1, jnp.zeros_like(estimate)))
    on_progress(Progress("sampling", 1, 2, 1, estimate))
    on_progress(Progress("enlarging", 0, 2, 1, estimate))
    reading, compiling, sampling, enlarging = statuses
    assert reading.stage == "reading" and reading.frames is None
    assert compiling.frames is None and compiling.stage.startswith("sampling: compiling")
    assert (compiling.done, compiling.total) == (0, 2)
    assert (sampling.stage, sampling.done, sampling.total) == ("sampling", 1, 2)
    assert sampling.frames.shape == (3, 6, 7, 3) and sampling.frame_stride == 3
    np.testing.assert_array_equal(sampling.frames[:, 0, 0, 0], [0, 3, 6])
    assert enlarging.stage.startswith("enlarging") and enlarging.frames is sampling.frames
    assert all(status.warnings == ("shrunk",) for status in statuses)


def test_time_counts_from_the_end_of_each_stage_s_first_step(monkeypatch):
    times = iter([10.0, 13.0, 20.0, 21.0])
    clock = types.SimpleNamespace(monotonic=lambda: next(times))
    monkeypatch.setattr("stunet.studio.jobs.time", clock)
    statuses = []
    on_progress = ProgressAdapter(statuses.append, interval=100.0)
    estimate = jnp.zeros((1, 1, 4, 4, 3))
    for stage in ("sampling", "enlarging"):
        for done in range(3):
            on_progress(Progress(stage, done, 3, 1, estimate))
    assert [status.seconds for status in statuses] == [0.0, 0.0, 3.0, 0.0, 0.0, 1.0]
