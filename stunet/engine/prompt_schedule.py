"""Prompts that change over time: each window of a long clip follows one text."""

from collections.abc import Sequence
from itertools import pairwise

from stunet.diffusion import Windows
from stunet.engine.request import PromptSchedule
from stunet.errors import UserError


def window_texts(prompt: str, schedule: PromptSchedule, windows: Windows) -> list[str]:
    """Returns the text of each window: the one in effect at its middle frame.

    Args:
      prompt: Text from frame 0 on.
      schedule: (first frame, text) of the texts after it.
      windows: Windows of the clip.
    """
    entries = [(0, prompt), *schedule]
    return [[text for frame, text in entries if frame <= n][-1] for n in _middles(windows)]


def check_schedule(schedule: PromptSchedule, windows: Windows, longest: int) -> None:
    """Checks that every text is the text of some window.

    Args:
      schedule: See `window_texts`.
      windows: Windows of the clip.
      longest: Frames of the longest clip that is one window.

    Raises:
      UserError: A text is empty or is in effect in no window, or frames do not ascend.
    """
    if not schedule:
        return
    frames = [0, *(frame for frame, _ in schedule)]
    for (before, after), (_, text) in zip(pairwise(frames), schedule, strict=True):
        if after <= before:
            raise UserError(f"prompt_schedule: frame {after} after {before}, expected a later one")
        if not text.strip():
            raise UserError(f"prompt_schedule: the text of frame {after} is empty")
    if len(windows.starts) == 1:
        raise UserError(
            f"prompt_schedule: the prompt changes in a clip of {windows.num_frames} frames, "
            f"expected more frames than the {longest} of a window"
        )
    # The frames themselves serve as texts, which shows the entries that no window follows.
    numbered = tuple((frame, str(frame)) for frame in frames[1:])
    unread = sorted(set(frames) - set(map(int, window_texts("0", numbered, windows))))
    if unread:
        raise UserError(
            f"prompt_schedule: no window of {windows.length} frames follows the text of frame "
            f"{unread[0]}, expected a text to be in effect at the middle of one: frame "
            f"{_list(_middles(windows))}"
        )


def _middles(windows: Windows) -> list[int]:
    return [start + windows.length // 2 for start in windows.starts]


def _list(frames: Sequence[int]) -> str:
    shown = [str(frame) for frame in frames]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:10], "...", shown[-1]])
