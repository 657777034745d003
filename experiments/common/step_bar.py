"""A progress bar over sampling steps."""

import contextlib
from collections.abc import Callable, Iterator

from tqdm import tqdm

import stunet


@contextlib.contextmanager
def step_bar(label: str) -> Iterator[Callable[[stunet.Progress], None]]:
    """Yields the callback that `stunet.generate` and the other functions report progress to."""
    with tqdm(desc=label, unit="step") as bar:

        def on_progress(progress: stunet.Progress) -> None:
            bar.total = progress.total
            bar.update(progress.done - bar.n)

        yield on_progress
