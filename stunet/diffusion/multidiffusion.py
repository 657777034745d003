"""MultiDiffusion over time: a denoiser of short windows becomes one of a clip of any length.

The clip is cut into overlapping windows, each is denoised on its own, and the clip's prediction is
the one nearest to all of theirs in (weighted) least squares: for each frame the mean of what the
windows that cover it say (2302.08113 eq. 3 to 5; Lumiere, 2401.12945, section 3.2 along time).
Predictions are averaged, never the samples x_{t-1}: a sampler then takes one step of the whole clip
with one noise, whose variance in the overlaps is that of everywhere else. Order: guide each window
-> `windowed_denoiser` -> threshold once -> step.

    windows = Windows.over(num_frames=80, length=8)
    network = in_parts(network, 4)  # so many windows are at work at once
    guided = guided_denoiser(network, ..., cond=windows.repeat(text), uncond=empty, ...)
    denoiser = thresholded(windowed(guided, windows), schedule, threshold)

What is conditioned on frame by frame goes through `Windows.cut`, what is one for the clip through
`Windows.repeat`.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion.guidance import Network
from stunet.diffusion.prediction import Denoiser, Prediction
from stunet.errors import UserError

OVERLAP = 2  # frames, the paper's
WEIGHTS = ("uniform", "ramp")


@dataclass(frozen=True)
class Windows:
    """Where a clip is cut along time; `over` makes them.

    Attributes:
      starts: the first frame of each window, ascending.
      length: frames of every window.
      overlap: frames that neighbours share; the last two may share more.
      weights: "uniform", the paper's, or "ramp", which counts a window less in its first and last
        `overlap` frames, so that one window's prediction fades into the next's.
    """

    starts: tuple[int, ...]
    length: int
    overlap: int = OVERLAP
    weights: str = "ramp"

    @classmethod
    def over(
        cls,
        num_frames: int,
        length: int,
        *,
        overlap: int = OVERLAP,
        weights: str = "ramp",
        stride: int = 1,
    ) -> "Windows":
        """Windows that cover `num_frames` frames, the last one shifted back to end with the clip.

        A clip that is no longer than a window is a single window of its own length.

        Args:
          num_frames: of the clip.
          length: of a window, in frames.
          overlap: of neighbours, in frames.
          weights: see the class.
          stride: the network's temporal stride, of which a window's length is a multiple.

        Raises:
          UserError: a number or a name is none of these.
        """
        if weights not in WEIGHTS:
            raise UserError(f"window weights are {weights!r}; choose one of {', '.join(WEIGHTS)}")
        if length < 1 or length % stride:
            raise UserError(
                f"window length is {length}; it must be a multiple of the model's temporal "
                f"stride, {stride}"
            )
        if not 0 <= overlap < length:
            raise UserError(
                f"window overlap is {overlap}; it must be at least 0 and less than the window's "
                f"{length} frames"
            )
        if num_frames <= length:
            return cls((0,), num_frames, overlap, weights)
        last = num_frames - length
        starts = (*range(0, last, length - overlap), last)
        return cls(starts, length, overlap, weights)

    @property
    def num_frames(self) -> int:
        """Of the clip that they cover."""
        return self.starts[-1] + self.length

    def cut(self, x: jax.Array) -> jax.Array:
        """The windows of `[B, T, ...]`, `[B * W, length, ...]`; a video's windows lie together."""
        frames = np.array(self.starts)[:, None] + np.arange(self.length)
        return x[:, frames].reshape(-1, self.length, *x.shape[2:])

    def repeat(self, x: jax.Array) -> jax.Array:
        """What is one for a video, `[B, ...]`, for each of its windows, `[B * W, ...]`."""
        return jnp.repeat(x, len(self.starts), axis=0)

    def join(self, y: jax.Array) -> jax.Array:
        """The weighted mean `[B, T, ...]` of what windows `[B * W, length, ...]` say of a frame."""
        frames = y.reshape(-1, len(self.starts) * self.length, *y.shape[2:])
        rows, shares = self._cover
        shares = jnp.asarray(shares, y.dtype).reshape(*shares.shape, *(1,) * (y.ndim - 2))
        return sum(
            frames[:, row] * share for row, share in zip(rows, shares, strict=True)
        )  # gathered, not scattered: nothing to collide, and the same on every device

    @functools.cached_property
    def shares(self) -> np.ndarray:
        """The part `[W, T]` that each window has in the mean of each frame of the clip."""
        place = np.arange(self.length)
        weight = np.ones(self.length)
        if self.weights == "ramp":
            weight = np.minimum(np.minimum(place, place[::-1]) + 1, self.overlap + 1.0)
        weights = np.zeros((len(self.starts), self.num_frames))
        for row, start in zip(weights, self.starts, strict=True):
            row[start : start + self.length] = weight
        return weights / weights.sum(0)

    @functools.cached_property
    def _cover(self) -> tuple[np.ndarray, np.ndarray]:
        """Which of the windows' frames make a frame of the clip, and their shares, each [K, T].

        K is the number of windows over the most covered frame; where there are fewer, a share
        is 0.
        """
        most = np.count_nonzero(self.shares, axis=0).max()
        window = np.argsort(self.shares == 0, axis=0, kind="stable")[:most]
        shares = np.take_along_axis(self.shares, window, axis=0)
        place = np.arange(self.num_frames) - np.array(self.starts)[window]
        return np.where(shares > 0, window * self.length + place, 0), shares


def windowed_denoiser(denoiser: Denoiser, windows: Windows) -> Denoiser:
    """The denoiser of a clip `[B, T, ...]` from one of its windows `[B * W, length, ...]`.

    x0, eps and the variance channels are averaged alike; at the x_t that the windows share, eps is
    affine in x0, so that the averages still belong together. `t` is a scalar or `[B]`.
    """

    def whole(x_t: jax.Array, t: jax.Array) -> Prediction:
        t = windows.repeat(jnp.broadcast_to(jnp.asarray(t), x_t.shape[:1]))
        return jax.tree.map(windows.join, denoiser(windows.cut(x_t), t))

    return whole


def chunked(network: Network, rows: int) -> Network:
    """The same network, called on at most `rows` of the batch's rows at a time, one after another.

    Its temporary memory so follows `rows` and not the batch. Rows that fill the last part up are
    the last one's copies.
    """

    def apply(x_t: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        count = len(x_t)
        if count <= rows:
            return network(x_t, t, cond)
        parts = -(-count // rows)
        order = np.minimum(np.arange(parts * rows), count - 1).reshape(parts, rows)
        split = jax.tree.map(lambda a: a[order], (x_t, t, cond))
        outputs = jax.lax.map(lambda part: network(*part), split)
        return outputs.reshape(-1, *outputs.shape[2:])[:count]

    return apply
