"""MultiDiffusion along time: samples a clip of any length with a denoiser of short windows.

The clip is split into overlapping windows, each window is denoised separately, and the prediction
for the clip is the (weighted) least-squares fit to the predictions of all windows: for each frame
their weighted mean (2302.08113 eq. 3 to 5; Lumiere, 2401.12945 section 3.2, along time). The mean
is taken over predictions, not over samples x_{t-1}: the sampler takes one step for the whole clip
with one noise, so the noise variance in overlaps equals that elsewhere. Order of composition: guide
each window -> `windowed_denoiser` -> threshold once -> step.

    windows = Windows.over(num_frames=80, length=8)
    network = chunked(network, 4)  # at most 4 windows per network call
    guided = guided_denoiser(network, ..., cond=windows.repeat(text), uncond=empty, ...)
    denoiser = thresholded_denoiser(windowed_denoiser(guided, windows), schedule, threshold)

`Windows.split` prepares conditioning per frame, `Windows.repeat` conditioning per clip.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from stunet.diffusion.guidance import Conditioning, Network
from stunet.diffusion.prediction import Denoiser, PerExample, Prediction, Video
from stunet.errors import UserError

OVERLAP = 2  # frames, as in 2401.12945
WEIGHTS = ("uniform", "ramp")


@dataclass(frozen=True)
class Windows:
    """Windows along time that cover a clip. Create them with `over`.

    Attributes:
      starts: First frame of each window, ascending.
      length: Frames per window.
      overlap: Frames shared by neighbouring windows. The last two may share more.
      weights: "uniform" as in 2401.12945, or "ramp", which reduces the weight in the first and last
        `overlap` frames of a window, so that its prediction fades into that of its neighbour.
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
        """Returns windows that cover a clip, the last one shifted back to end with the clip.

        A clip no longer than a window is one window of the clip's length.

        Args:
          num_frames: Frames of the clip.
          length: Frames per window.
          overlap: Frames shared by neighbouring windows.
          weights: See the class.
          stride: Temporal stride of the network. The length must be a multiple of it.

        Raises:
          UserError: A value is out of range or unknown.
        """
        if weights not in WEIGHTS:
            raise UserError(
                f"window weights: unknown value {weights!r}, expected one of {', '.join(WEIGHTS)}"
            )
        if length < 1 or length % stride:
            raise UserError(
                f"window length: invalid value {length}, expected a multiple of the model's "
                f"temporal stride {stride}"
            )
        if not 0 <= overlap < length:
            raise UserError(
                f"window overlap: invalid value {overlap}, expected 0 to {length - 1}, less than "
                f"the window length {length}"
            )
        if num_frames <= length:
            return cls((0,), num_frames, overlap, weights)
        last = num_frames - length
        starts = (*range(0, last, length - overlap), last)
        return cls(starts, length, overlap, weights)

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""
        return self.starts[-1] + self.length

    @functools.cached_property
    def noise_frames(self) -> Int[np.ndarray, " frames"]:
        """Frame of the first window [T] whose noise each frame of the clip shares (FreeNoise).

        Every window has the noise frames of the first one, in another order (2310.15169, section
        3.2); only the last window, if it is shifted back, has some of them twice.
        """
        frames, step = list(range(self.length)), self.length - self.overlap
        rng = np.random.default_rng(0)
        while len(frames) < self.num_frames:
            left = frames[-self.length :][:step]  # by the next window
            frames += rng.permutation(left).tolist()
        return np.array(frames[: self.num_frames])

    def split(self, x: Shaped[Array, "batch frames *rest"]) -> Shaped[Array, "rows length *rest"]:
        """Splits [B, T, ...] into windows [B * W, length, ...], grouped by video."""
        frames = np.array(self.starts)[:, None] + np.arange(self.length)
        return x[:, frames].reshape(-1, self.length, *x.shape[2:])

    def repeat(self, x: Shaped[Array, " batch *rest"]) -> Shaped[Array, " rows *rest"]:
        """Repeats one value per video [B, ...] for each of its windows, [B * W, ...]."""
        return jnp.repeat(x, len(self.starts), axis=0)

    def merge(self, y: Float[Array, "rows length *rest"]) -> Float[Array, "batch frames *rest"]:
        """Averages windows [B * W, length, ...] with their weights into a clip [B, T, ...]."""
        frames = y.reshape(-1, len(self.starts) * self.length, *y.shape[2:])
        rows, shares = self._sources
        shares = jnp.asarray(shares, y.dtype).reshape(*shares.shape, *(1,) * (y.ndim - 2))
        # Gathers instead of scattering, so there are no colliding writes and the result is the same
        # on every device.
        return sum(frames[:, row] * share for row, share in zip(rows, shares, strict=True))

    @functools.cached_property
    def shares(self) -> Float[np.ndarray, "windows frames"]:
        """Normalised weight [W, T] of each window in each frame of the clip, float64."""
        position = np.arange(self.length)
        weight = np.ones(self.length)
        if self.weights == "ramp":
            weight = np.minimum(np.minimum(position, position[::-1]) + 1, self.overlap + 1.0)
        weights = np.zeros((len(self.starts), self.num_frames))
        for row, start in zip(weights, self.starts, strict=True):
            row[start : start + self.length] = weight
        return weights / weights.sum(0)

    @functools.cached_property
    def _sources(
        self,
    ) -> tuple[Int[np.ndarray, "sources frames"], Float[np.ndarray, "sources frames"]]:
        """Returns for each frame of the clip the window frames that cover it, and their weights.

        Both have shape [K, T], where K is the largest number of windows that cover a frame. Frames
        with fewer windows are padded with weight 0. Window frames are indices into [W * length].
        """
        most = np.count_nonzero(self.shares, axis=0).max()
        window = np.argsort(self.shares == 0, axis=0, kind="stable")[:most]
        shares = np.take_along_axis(self.shares, window, axis=0)
        position = np.arange(self.num_frames) - np.array(self.starts)[window]
        return np.where(shares > 0, window * self.length + position, 0), shares


def windowed_denoiser(denoiser: Denoiser, windows: Windows) -> Denoiser:
    """Returns a denoiser of clips [B, T, ...] from a denoiser of windows [B * W, length, ...].

    x0, eps and variance are averaged with the same weights. All windows share x_t, at which eps is
    an affine function of x0, so the averages remain consistent.
    """

    def apply(x_t: Video, t: PerExample) -> Prediction:
        t = windows.repeat(jnp.broadcast_to(jnp.asarray(t), x_t.shape[:1]))
        return jax.tree.map(windows.merge, denoiser(windows.split(x_t), t))

    return apply


def chunked(network: Network, rows: int) -> Network:
    """Returns the network, called sequentially on at most `rows` rows of the batch.

    Temporary memory then scales with `rows` instead of the batch. The last chunk is padded with
    copies of the last row.
    """

    def apply(
        x_t: Float[Array, "batch ..."], t: Float[Array, " batch"], cond: Conditioning
    ) -> Float[Array, "batch ..."]:
        count = len(x_t)
        if count <= rows:
            return network(x_t, t, cond)
        num_chunks = -(-count // rows)
        order = np.minimum(np.arange(num_chunks * rows), count - 1).reshape(num_chunks, rows)
        chunks = jax.tree.map(lambda a: a[order], (x_t, t, cond))
        outputs = jax.lax.map(lambda chunk: network(*chunk), chunks)
        return outputs.reshape(-1, *outputs.shape[2:])[:count]

    return apply
