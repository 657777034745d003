"""Errors of the disk."""

import errno
import os
import threading

import pytest

from stunet.errors import UserError, disk_error, run_command, writing


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EIO]
)
def test_a_disk_error_is_one_line_that_names_the_file(number, capsys):
    def write():
        raise OSError(number, os.strerror(number), "out/clip.mp4")

    assert run_command(write, "program") == 2
    assert capsys.readouterr().err == f"program: error: out/clip.mp4: {os.strerror(number)}\n"


def test_the_text_of_a_library_in_c_is_recognised():
    text = "RESOURCE_EXHAUSTED: Error writing: [OS error 28: ENOSPC No space left on device]"
    expected = r"states.npy: .*No space left on device"
    with pytest.raises(UserError, match=expected), writing("states.npy"):
        raise ValueError(text)


def test_the_cause_counts():
    try:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError as error:
            raise RuntimeError("cannot save") from error
    except RuntimeError as error:
        assert disk_error(error) == os.strerror(errno.ENOSPC)


def test_other_errors_keep_their_traceback():
    for error in (KeyError("a"), FileNotFoundError(errno.ENOENT, "no file"), UserError("wrong")):
        with pytest.raises(type(error)), writing("file"):
            raise error
    with pytest.raises(KeyError):
        run_command(lambda: {}["a"], "program")


def test_a_disk_error_in_a_thread_is_one_line(capsys):
    def write():
        raise OSError(errno.ENOSPC, "full", "board")

    def main():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()

    assert run_command(main, "program") == 2
    assert capsys.readouterr().err == f"program: error: board: {os.strerror(errno.ENOSPC)}\n"


def test_a_long_message_keeps_its_ends():
    message = str(UserError(f"--steps: {'9' * 10_000}, expected 1 to 10"))
    assert len(message) == 500
    assert message.startswith("--steps: 999") and message.endswith("9, expected 1 to 10")


def test_a_message_is_one_printable_line():
    message = str(UserError("a\nb\x1b[31m\0\udcff\u2028 é"))
    assert message == r"a\nb\x1b[31m\x00\udcff\u2028 é"
    wrapped = str(UserError(f"config: {UserError('x' * 600)}"))
    assert len(wrapped) <= 500 and wrapped.startswith("config: x")
