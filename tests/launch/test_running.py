import pytest

from experiments.launch import commands
from experiments.launch.running import launch
from stunet.errors import UserError
from tests.launch.examples import example

CONFIG = example("queued_resources")


class Script:
    """A runner that runs nothing: (what is expected, what it gives) in order; None for any wait."""

    def __init__(self, *steps):
        self.steps = list(steps)
        self.said = []

    def run(self, argv):
        name, gives = self.steps.pop(0)
        assert argv == getattr(commands, name)(self.config)
        return gives

    read = run

    def wait(self, seconds):
        assert self.steps.pop(0) == "wait"

    def say(self, text):
        self.said.append(text)

    def launch(self, config=CONFIG):
        self.config = config
        code = launch(config, self)
        assert not self.steps
        return code


def state(value):
    return ("state", value)


NEW = [state(""), state(""), ("create", 0), state("WAITING_FOR_RESOURCES"), "wait", state("ACTIVE")]
TRAIN = ("start", 0)


def ends(code):
    return ("follow", code)


DONE = [TRAIN, ends(0), ("delete", 0)]


def test_it_is_created_trained_and_deleted():
    runner = Script(*NEW, *DONE)
    assert runner.launch() == 0
    assert runner.said == ["the TPU is WAITING_FOR_RESOURCES", "done: gs://my-bucket/runs/tiny_t2i"]


def test_one_that_is_there_already_is_followed():
    assert Script(state("ACTIVE"), state("ACTIVE"), *DONE).launch() == 0


def test_it_resumes_after_a_preemption():
    assert Script(*NEW, *[TRAIN, ends(75), state("ACTIVE")] * 9, *DONE).launch() == 0


def test_a_lost_one_is_made_anew():
    lost = [TRAIN, ends(255), state("SUSPENDING")]
    again = [state("SUSPENDING"), "wait", state("SUSPENDED"), ("delete", 0), state("")]
    assert Script(*NEW, *lost, *again, ("create", 0), state("ACTIVE"), *DONE).launch() == 0


def test_one_that_was_lost_before_the_launch_is_made_anew():
    steps = [state("FAILED"), state("FAILED"), ("delete", 0), *NEW[1:], *DONE]
    assert Script(*steps).launch() == 0


def test_losing_touch_is_waited_out():
    away = [TRAIN, ends(1), state(None), state(None), "wait", state("ACTIVE")]
    assert Script(*NEW, *away, *DONE).launch() == 0


def test_a_mistake_ends_it():
    runner = Script(*NEW, TRAIN, ends(2))
    with pytest.raises(UserError, match=r"training exited 2.*'tiny-t2i' is left, and a TPU costs"):
        runner.launch()
    assert not runner.steps


def test_it_gives_up_after_failures_in_a_row():
    failure = [TRAIN, ends(1), state("ACTIVE"), "wait"]
    no_start = [("start", 2), state("ACTIVE"), "wait"]  # that 2 is not training's
    config = example("queued_resources", max_failures=2)
    preempted = [TRAIN, ends(75), state("ACTIVE")]
    runner = Script(
        *NEW, *failure, state("ACTIVE"), *preempted, *failure, state("ACTIVE"), *no_start
    )
    assert runner.launch(config) == 1
    assert "failure 2 of 2: exit code 2" in runner.said
    assert "gave up after 2 failures in a row" in runner.said[-1]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([state(None)], "gcloud cannot list queued resources"),
        ([*NEW[:2], ("create", 1)], "the TPU was refused: gcloud compute tpus queued-resources cr"),
        ([*NEW[:3], state("FAILED")], "the request for a TPU failed"),
        ([*NEW, TRAIN, ends(0), ("delete", 1)], "the TPU could not be deleted and costs"),
    ],
)
def test_what_google_cloud_refuses(steps, message):
    runner = Script(*steps)
    with pytest.raises(UserError, match=message):
        runner.launch()
    assert not runner.steps


@pytest.mark.parametrize(
    ("waits", "code", "said"),
    [
        ([0], 0, "done: gs"),
        ([124, 124, 0], 0, "done: gs"),
        ([125], 1, "failed"),
        ([1], 1, "may be"),
    ],
)
def test_xpk(waits, code, said):
    runner = Script(("xpk_create", 0), *(("xpk_wait", wait) for wait in waits))
    assert runner.launch(example("xpk")) == code
    assert said in runner.said[-1]


def test_xpk_refuses():
    with pytest.raises(UserError, match="xpk could not create the workload"):
        Script(("xpk_create", 1)).launch(example("xpk"))
