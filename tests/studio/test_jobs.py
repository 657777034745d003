"""The studio's queue: one at a time, in order, and cancelling really stops."""

import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from stunet.errors import UserError
from stunet.studio.jobs import FAILED, Cancelled, Progress, Queue, Watch


@pytest.fixture
def queue():
    queue = Queue(limit=3)
    yield queue
    queue.close()


def finished(job):
    stages = [progress.stage for progress in job.updates()]
    return stages, job.result()


def endless(started):
    def work(report):
        started.set()
        while True:
            report(Progress("at it"))
            time.sleep(0.001)

    return work


def test_jobs_are_done_one_at_a_time_in_the_order_of_coming(queue):
    began, goes_on, order = threading.Event(), threading.Event(), []

    def first(report):
        began.set()
        goes_on.wait(10)
        order.append("first")
        return 1

    def second(report):
        order.append("second")
        return 2

    jobs = [queue.add(first), queue.add(second), queue.add(second)]
    assert began.wait(10)
    waiting = [next(job.updates()).stage for job in jobs]
    assert waiting[1:] == ["waiting: 1 ahead", "waiting: 2 ahead"]
    with pytest.raises(UserError, match="3 jobs are waiting already"):
        queue.add(second)
    goes_on.set()
    assert [finished(job)[1] for job in jobs] == [1, 2, 2]
    assert order == ["first", "second", "second"]


def test_cancelling_stops_the_work_itself_and_frees_the_queue(queue):
    started = threading.Event()
    job = queue.add(endless(started), "anna", "edit")
    other = queue.add(lambda report: "made", "ben", "edit")
    assert started.wait(10)
    queue.cancel("anna", "generate")
    queue.cancel("carl")
    assert next(job.updates()).stage == "at it"
    queue.cancel("anna")
    with pytest.raises(Cancelled):
        finished(job)
    assert finished(other)[1] == "made"


def test_a_waiting_job_is_taken_out_of_the_line(queue):
    started, ran = threading.Event(), []
    job = queue.add(endless(started))
    waiting = queue.add(lambda report: ran.append(1))
    assert started.wait(10)
    waiting.cancel()
    with pytest.raises(Cancelled):
        finished(waiting)
    job.cancel()
    job.cancel()  # once more does nothing
    with pytest.raises(Cancelled):
        finished(job)
    assert finished(queue.add(lambda report: 5))[1] == 5 and not ran


def test_mistakes_are_told_and_faults_go_to_the_terminal(queue, capsys):
    def mistaken(report):
        raise UserError("too large")

    def faulty(report):
        raise KeyError("gone")

    with pytest.raises(UserError, match="too large"):
        finished(queue.add(mistaken))
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=FAILED):
        finished(queue.add(faulty))
    assert "KeyError: 'gone'" in capsys.readouterr().err
    assert finished(queue.add(lambda report: 5))[1] == 5


def test_a_closed_queue_has_stopped():
    queue, started = Queue(), threading.Event()
    job = queue.add(endless(started))
    assert started.wait(10)
    assert queue.close()
    with pytest.raises(Cancelled):
        finished(job)


def test_a_job_that_does_not_listen_is_not_waited_for():
    queue, started, over = Queue(), threading.Event(), threading.Event()

    def deaf(report):
        started.set()
        over.wait(10)

    queue.add(deaf)
    assert started.wait(10)
    assert not queue.close(patience=0.0)
    over.set()
    assert queue.close()


def test_estimates_are_thinned_out_and_go_over_to_the_next_stage():
    said = []
    watch = Watch(said.append, ["sampling", "enlarging"], every=0.0, size=(3, 8))
    x0 = jnp.arange(7.0)[None, :, None, None, None] * jnp.ones((1, 1, 16, 20, 3))
    with watch(None) as on_chunk:
        on_chunk(0, 2, jnp.zeros_like(x0))
        on_chunk(1, 2, x0)
    with watch(None) as on_chunk:
        on_chunk(0, 2, x0)
    assert [one.stage for one in said[1:2]] == ["sampling"]
    assert said[0].frames is None and said[0].stage.startswith("sampling: getting ready")
    assert said[1].frames.shape == (3, 6, 7, 3) and said[1].thinned == 3
    np.testing.assert_array_equal(said[1].frames[:, 0, 0, 0], [0, 3, 6])
    assert said[2].stage.startswith("enlarging") and said[2].frames is said[1].frames
