import pytest

from experiments.launch import commands
from experiments.launch.runner import launch
from stunet.errors import UserError
from tests.launch.examples import example

CONFIG = example("queued_resources")


class Script:
    """A runner that runs nothing.

    Args:
      *steps: What the launcher is expected to do, in order: "wait", or (name of a function of
        `commands`, result of its command).
    """

    def __init__(self, *steps):
        self.steps = list(steps)
        self.messages = []

    def run(self, argv):
        name, result = self.steps.pop(0)
        assert argv == getattr(commands, name)(self.config)
        return result

    read = run

    def wait(self, seconds):
        assert self.steps.pop(0) == "wait"

    def log(self, message):
        self.messages.append(message)

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


def test_a_tpu_is_created_trains_and_is_deleted():
    runner = Script(*NEW, *DONE)
    assert runner.launch() == 0
    assert runner.messages == [
        "the TPU is WAITING_FOR_RESOURCES",
        "done: gs://my-bucket/runs/tiny_t2i",
    ]


def test_an_active_tpu_is_used():
    assert Script(state("ACTIVE"), state("ACTIVE"), *DONE).launch() == 0


def test_training_resumes_after_a_preemption():
    assert Script(*NEW, *[TRAIN, ends(75), state("ACTIVE")] * 9, *DONE).launch() == 0


def test_a_lost_tpu_is_replaced():
    lost = [TRAIN, ends(255), state("SUSPENDING")]
    again = [state("SUSPENDING"), "wait", state("SUSPENDED"), ("delete", 0), state("")]
    assert Script(*NEW, *lost, *again, ("create", 0), state("ACTIVE"), *DONE).launch() == 0


def test_a_tpu_that_was_lost_before_the_launch_is_replaced():
    steps = [state("FAILED"), state("FAILED"), ("delete", 0), *NEW[1:], *DONE]
    assert Script(*steps).launch() == 0


def test_the_launcher_waits_for_an_unreachable_tpu():
    unreachable = [TRAIN, ends(1), state(None), state(None), "wait", state("ACTIVE")]
    assert Script(*NEW, *unreachable, *DONE).launch() == 0


def test_wrong_usage_ends_the_launch():
    runner = Script(*NEW, TRAIN, ends(2))
    with pytest.raises(UserError, match=r"training: .* 2.*'tiny-t2i'.*--dry-run"):
        runner.launch()
    assert not runner.steps


def test_the_launch_ends_after_consecutive_failures():
    failure = [TRAIN, ends(1), state("ACTIVE"), "wait"]
    no_start = [("start", 2), state("ACTIVE"), "wait"]  # the exit code of ssh, not of training
    config = example("queued_resources", max_failures=2)
    preempted = [TRAIN, ends(75), state("ACTIVE")]
    runner = Script(
        *NEW, *failure, state("ACTIVE"), *preempted, *failure, state("ACTIVE"), *no_start
    )
    assert runner.launch(config) == 1
    assert "failure 2 of 2: exit code 2" in runner.messages
    assert "gave up after 2 failures in a row" in runner.messages[-1]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([state(None)], "gcloud: .*queued resources"),
        ([*NEW[:2], ("create", 1)], "refused: gcloud compute tpus queued-resources create .* 1"),
        ([*NEW[:3], state("FAILED")], "failed.*'tiny-t2i'"),
        (
            [*NEW, TRAIN, ends(0), ("delete", 1)],
            "deleted.*gcloud compute tpus .*delete .* 1",
        ),
    ],
)
def test_requests_that_google_cloud_refuses(steps, message):
    runner = Script(*steps)
    with pytest.raises(UserError, match=message):
        runner.launch()
    assert not runner.steps


@pytest.mark.parametrize(
    ("waits", "code", "message"),
    [
        ([0], 0, "done: gs"),
        ([124, 124, 0], 0, "done: gs"),
        ([125], 1, "failed"),
        ([1], 1, "exited with 1"),
    ],
)
def test_xpk(waits, code, message):
    runner = Script(("xpk_create", 0), *(("xpk_wait", wait) for wait in waits))
    assert runner.launch(example("xpk")) == code
    assert message in runner.messages[-1]


def test_xpk_refuses():
    with pytest.raises(UserError, match="xpk .*workload.* 1"):
        Script(("xpk_create", 1)).launch(example("xpk"))
