import subprocess
import sys
import time

from experiments.common.parallel_runs import run_side_by_side
from experiments.common.exit_codes import PREEMPTED

NEEDS = {"image": None, "video": "image", "long": "video", "large": None, "style": "image"}


class Recorder:
    """Processes that do nothing but note in a file when they begin and end."""

    def __init__(self, folder, **scripts):
        self.log, self.scripts = folder / "log", scripts

    def start(self, name):
        lines = [
            "import sys, time",
            f"note = lambda word: open({str(self.log)!r}, 'a').write(word + ' {name}\\n')",
            "note('begins')",
            self.scripts.get(name, "time.sleep(0.3)"),
            "note('ends')",
        ]
        return subprocess.Popen([sys.executable, "-c", "\n".join(lines)])

    def lines(self):
        return [tuple(line.split()) for line in self.log.read_text().splitlines()]


def test_each_as_soon_as_what_it_needs_has_ended_and_two_at_once(tmp_path):
    recorder = Recorder(tmp_path)
    assert run_side_by_side(NEEDS, recorder.start, at_once=2) == 0
    running, ended, most = set(), {None}, 0
    for word, name in recorder.lines():
        if word == "begins":
            assert NEEDS[name] in ended, name
            running.add(name)
            most = max(most, len(running))
        else:
            running.remove(name)
            ended.add(name)
    assert ended == {None, *NEEDS}
    assert most == 2


def test_one_that_fails_stops_the_one_beside_it_and_all_that_wait(tmp_path):
    recorder = Recorder(tmp_path, image="time.sleep(60)", large="time.sleep(0.5); sys.exit(3)")
    started = time.monotonic()
    assert run_side_by_side(NEEDS, recorder.start, at_once=2) == 3
    assert time.monotonic() - started < 30
    assert sorted(recorder.lines()) == [("begins", "image"), ("begins", "large")]


def test_one_that_is_killed_has_failed(tmp_path):
    recorder = Recorder(tmp_path, image="import os; os.kill(os.getpid(), 9)")
    assert run_side_by_side(NEEDS, recorder.start, at_once=1) == 128 + 9
    assert recorder.lines() == [("begins", "image")]


def test_out_of_time(tmp_path):
    recorder = Recorder(tmp_path, large="time.sleep(60)")
    end = time.monotonic() + 1.5
    assert run_side_by_side(NEEDS, recorder.start, at_once=2, end=end) == PREEMPTED
    assert ("ends", "image") in recorder.lines()
    assert ("ends", "large") not in recorder.lines()
    # Before the first has begun to listen, the same is said.
    assert run_side_by_side(NEEDS, recorder.start, at_once=2, end=0.0) == PREEMPTED
