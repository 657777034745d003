"""Classifies the motion of a tracked object by fitting the path of each motion."""

import numpy as np

MIN_PATH = 0.055  # standard deviation of the positions, in units of the frame
MIN_GROWTH = 0.3  # change of the logarithm of the radius over the clip
MAX_CYCLES = 10.0  # cycles of a periodic motion per clip
MIN_TURN = np.pi  # net rotation over the clip in radians


def classify_motion(
    x: np.ndarray, y: np.ndarray, radius: np.ndarray, angle: np.ndarray, weight: np.ndarray
) -> str:
    """Returns the motion of an object.

    Args:
      x: Positions `[T]`, to the right, in units of the frame.
      y: Positions `[T]`, down, in units of the frame.
      radius: `[T]`, in units of the frame.
      angle: `[T]`, in radians clockwise.
      weight: `[T]`; frames of weight 0 are ignored.

    Returns:
      A key of `vocabulary.MOTIONS`, or "still" if the object does not move, grow or turn.
    """
    visible = weight > 0
    if visible.sum() < 4:
        return "still"
    u = (np.arange(len(x)) / len(x))[visible]
    x, y, radius, angle = x[visible], y[visible], radius[visible], angle[visible]
    x, y = x - x.mean(), y - y.mean()
    if np.sqrt((x**2 + y**2).mean()) < MIN_PATH:
        return _classify_in_place(u, radius, angle)
    cycles = np.arange(0.75, np.clip(len(u) / 3.5, 1.0, MAX_CYCLES), 0.05)
    residuals = {
        ("right", "left"): _linear(u, x) + (y**2).mean(),
        ("down", "up"): _linear(u, y) + (x**2).mean(),
        ("circling",): _circling(u, x, y, cycles),
        ("swinging",): _sinusoid(u, x, cycles) + _arc(x, y),
        ("bouncing",): _bouncing(u, y, cycles[cycles >= 1.5]) + (x**2).mean(),
    }
    names = min(residuals, key=residuals.get)
    if len(names) == 1:
        return names[0]
    along = x if names[0] == "right" else y
    return names[0] if (along * (u - u.mean())).sum() > 0 else names[1]


def _classify_in_place(u: np.ndarray, radius: np.ndarray, angle: np.ndarray) -> str:
    growth = np.polyfit(u, np.log(np.maximum(radius, 1e-3)), 1)[0]
    if abs(growth) > MIN_GROWTH:
        return "growing" if growth > 0 else "shrinking"
    steps = (np.diff(angle) + np.pi) % (2 * np.pi) - np.pi
    return "spinning" if abs(steps.sum()) > MIN_TURN else "still"


def _residual(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the mean squared residual `[...]` of least squares with `columns` [..., T, K]."""
    q, _ = np.linalg.qr(columns)
    fitted = np.einsum("...tk,...k->...t", q, np.einsum("...tk,t->...k", q, values))
    return ((values - fitted) ** 2).mean(-1)


def _linear(u, along):
    return _residual(np.stack([np.ones_like(u), u], -1), along)


def _waves(u, cycles):
    turns = 2 * np.pi * cycles[:, None] * u
    return np.stack([np.broadcast_to(1.0, turns.shape), np.cos(turns), np.sin(turns)], -1)


def _sinusoid(u, along, cycles):
    return _residual(_waves(u, cycles), along).min()


def _arc(x, y):
    """Returns the mean squared distance of y from a pendulum's arc, to second order a parabola."""
    columns = np.stack([np.ones_like(x), x**2], -1)
    coefficients = np.linalg.lstsq(columns, y, rcond=None)[0]
    if coefficients[1] > 0:  # the pivot would be below the object
        return (y**2).mean()
    return ((y - columns @ coefficients) ** 2).mean()


def _circling(u, x, y, cycles):
    """Fits a circle in either direction, x + iy = a + b exp(i w u)."""
    best = np.inf
    for way in (1, -1):
        wave = np.exp(way * 2j * np.pi * cycles[:, None] * u)
        columns = np.stack([np.broadcast_to(1.0 + 0j, wave.shape), wave], -1)
        q, _ = np.linalg.qr(columns)
        path = x + 1j * y
        fitted = np.einsum("ctk,ck->ct", q, np.einsum("ctk,t->ck", q.conj(), path))
        best = min(best, (np.abs(path - fitted) ** 2).mean(-1).min())
    return best


def _bouncing(u, y, cycles):
    if not len(cycles):
        return np.inf
    phases = np.arange(16) / 16
    arc = (cycles[:, None, None] * u + phases[:, None]) % 1
    height = 4 * arc * (1 - arc)
    height = height - height.mean(-1, keepdims=True)
    explained = (height * y).mean(-1) ** 2 / np.maximum((height**2).mean(-1), 1e-9)
    return (y**2).mean() - explained.max()
