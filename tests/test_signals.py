"""How programs end on signals, in small processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from stunet import signals
from stunet.errors import run_command

PROGRAM = """
import signal, sys, threading, time
from stunet import signals
signals.watch("early")
from stunet.errors import run_command

def main():
    {body}

if __name__ == "__main__":
    sys.exit(run_command(main, "program"))
"""
READY = "print('ready', flush=True); "
# Stays in C without Python's lock for minutes, as a compilation does.
BUSY = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"


def start(body, ignored=(), program=PROGRAM):
    """Starts a program and waits for its first line."""
    # The process inherits which signals are ignored: by nohup, or by a shell in the background.
    handlers = {number: signal.getsignal(number) for number in signals.SIGNALS}
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-c", program.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    )
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert process.stdout.readline() == "ready\n"
    return process


def end(process, timeout=30):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGINT, "cancelled"),
        (signal.SIGTERM, "stopped by SIGTERM"),
        (signal.SIGHUP, "stopped by SIGHUP"),
        (signal.SIGQUIT, "stopped by SIGQUIT"),
    ],
)
def test_a_signal_ends_a_program_with_one_line_after_its_cleanup(number, words):
    process = start(f"try: {READY} time.sleep(60)\n    finally: print('cleaned')")
    process.send_signal(number)
    assert end(process) == (128 + number, "cleaned\n", f"program: {words}\n")


def test_a_signal_before_the_program_runs_ends_it_soon():
    program = "from stunet import signals\nsignals.watch('early')\n{body}"
    process = start(READY + BUSY, program=program)
    process.send_signal(signal.SIGTERM)
    assert end(process) == (128 + signal.SIGTERM, "", "early: stopped by SIGTERM\n")


def test_a_signal_during_a_callback_that_ignores_exceptions_ends_a_program():
    body = (
        f"\n    class Slow:\n        def __del__(self): {READY} time.sleep(1)"
        "\n    slow = Slow(); del slow; print('after'); time.sleep(60)"
    )
    process = start(body.strip())
    time.sleep(0.3)  # into `__del__`
    process.send_signal(signal.SIGINT)
    assert end(process, timeout=5)[::2] == (130, "program: cancelled\n")


def test_a_program_that_is_busy_in_c_ends_soon():
    process = start(READY + BUSY)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert end(process) == (128 + signal.SIGTERM, "", "program: stopped by SIGTERM\n")
    assert time.monotonic() - sent < 15


SAVING = (
    "signals.defer()\n    "
    + READY
    + "\n    while not signals.received(): time.sleep(0.01)"
    + "\n    print('saving', flush=True); time.sleep({seconds}); print('saved'); return 75"
)


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGHUP])
def test_deferred_signals_wait_for_a_save(again):
    process = start(SAVING.format(seconds=1))
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(again)  # a supervisor may repeat itself
    assert end(process) == (75, "saved\n", "")


def test_a_second_ctrl_c_does_not_wait_for_a_save():
    process = start(SAVING.format(seconds=60))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "saving\n"
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "", "program: cancelled\n")


def test_a_terminal_that_sends_ctrl_c_twice_at_once_does_not_cut_a_save_short():
    process = start(SAVING.format(seconds=1))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == 75


def test_an_ignored_signal_stays_ignored():
    process = start(READY + "time.sleep(1); print('finished')", ignored=[signal.SIGHUP])
    process.send_signal(signal.SIGHUP)
    assert end(process) == (0, "finished\n", "")


def test_a_save_survives_the_end_of_its_pipe():
    """Ctrl-C also ends `tee` in `program 2>&1 | tee log`."""
    body = SAVING.format(seconds=0.5).replace("print('saved')", "print('x', file=sys.stderr)")
    process = start(body + "\n    ")
    process.send_signal(signal.SIGINT)
    process.stderr.close()
    process.stdout.close()
    assert process.wait(timeout=30) == 75


def test_part_of_deferred_work_can_be_interruptible():
    body = (
        "signals.defer()\n    try:\n        with signals.interruptible(75): "
        + READY
        + "time.sleep(60)\n    except signals.Interrupted as error:"
        + "\n        print(error, error.number); time.sleep(0.1); return 75"
    )
    process = start(body)
    process.send_signal(signal.SIGTERM)
    assert end(process) == (75, f"SIGTERM {int(signal.SIGTERM)}\n", "")


def test_a_reader_that_leaves_ends_the_program_quietly():
    process = start(READY + "[print('word ' * 100) for _ in range(10000)]")
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == "" and process.wait() == 128 + signal.SIGPIPE


def test_an_error_is_told_although_nobody_reads_the_output():
    body = (
        "from stunet.errors import UserError; time.sleep(0.3); print('a'); raise UserError('wrong')"
    )
    process = start(READY + body)
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == "program: error: wrong\n" and process.wait() == 2


def test_the_handlers_of_a_caller_are_restored(capsys):
    before = [signal.getsignal(number) for number in signals.SIGNALS]

    def interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    assert run_command(interrupt, "program") == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "program: stopped by SIGTERM\n"
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    assert signals.received() is None
