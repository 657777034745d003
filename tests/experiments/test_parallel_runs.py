import subprocess
import sys
import time

from experiments.common.exit_codes import PREEMPTED
from experiments.common.parallel_runs import run_in_parallel

NEEDS = {"image": None, "video": "image", "long": "video", "large": None, "style": "image"}


class Recorder:
    """Starts processes that log when they begin and end."""

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


def test_processes_start_once_their_needs_have_ended_and_two_run_in_parallel(tmp_path):
    recorder = Recorder(tmp_path)
    assert run_in_parallel(NEEDS, recorder.start, max_parallel=2) == 0
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


def test_a_failure_stops_the_others(tmp_path):
    recorder = Recorder(tmp_path, image="time.sleep(60)", large="time.sleep(0.5); sys.exit(3)")
    started = time.monotonic()
    assert run_in_parallel(NEEDS, recorder.start, max_parallel=2) == 3
    assert time.monotonic() - started < 30
    assert sorted(recorder.lines()) == [("begins", "image"), ("begins", "large")]


def test_a_killed_process_has_failed(tmp_path):
    recorder = Recorder(tmp_path, image="import os; os.kill(os.getpid(), 9)")
    assert run_in_parallel(NEEDS, recorder.start, max_parallel=1) == 128 + 9
    assert recorder.lines() == [("begins", "image")]


def test_out_of_time(tmp_path):
    recorder = Recorder(tmp_path, large="time.sleep(60)")
    end = time.monotonic() + 1.5
    assert run_in_parallel(NEEDS, recorder.start, max_parallel=2, end=end) == PREEMPTED
    assert ("ends", "image") in recorder.lines()
    assert ("ends", "large") not in recorder.lines()
    # The result is the same if processes are stopped while they start.
    assert run_in_parallel(NEEDS, recorder.start, max_parallel=2, end=0.0) == PREEMPTED
