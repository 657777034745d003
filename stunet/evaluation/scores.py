"""Scores of sets of features or class probabilities, in float64."""

import numpy as np
from scipy import special

from stunet.errors import UserError


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (1706.08500, eq. 6).

    With S = F^T F, the trace of the root is the sum of the singular values of F_a F_b^T. Without a
    matrix root, singular covariances (fewer clips than features) are no problem. The distance is
    biased upwards for small sets, so only sets of equal size are comparable.

    Args:
      a: Features `[N, D]`.
      b: Features `[M, D]`.

    Returns:
      The distance in squared units of the features, with covariances divided by N - 1 and M - 1.

    Raises:
      UserError: a set has fewer than two clips.
    """
    if min(len(a), len(b)) < 2:
        raise UserError(
            f"Frechet distance: sets of {len(a)} and {len(b)} clips, expected 2 or more"
        )
    (mean_a, factor_a), (mean_b, factor_b) = _gaussian(a), _gaussian(b)
    root = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    traces = np.square(factor_a).sum() + np.square(factor_b).sum()
    distance = np.square(mean_a - mean_b).sum() + traces - 2 * root
    return max(0.0, float(distance))  # rounding may make it negative for equal sets


def polynomial_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the squared MMD with the kernel (x . y / D + 1)^3 (1801.01401, eq. 4).

    The estimate is unbiased, so that sets of different size are comparable; it can be negative.

    Args:
      a: Features `[N, D]`.
      b: Features `[M, D]`.

    Raises:
      UserError: a set has fewer than two clips.
    """
    if min(len(a), len(b)) < 2:
        raise UserError(f"MMD: sets of {len(a)} and {len(b)} clips, expected 2 or more")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def mean_of_pairs(x: np.ndarray) -> float:
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return float(mean_of_pairs(a) + mean_of_pairs(b) - 2 * kernel(a, b).mean())


def inception_score(
    probabilities: np.ndarray, splits: int = 10, seed: int = 0
) -> tuple[float, float]:
    """Returns exp of the mean KL divergence of p(class | clip) from p(class) (1606.03498).

    Args:
      probabilities: `[N, classes]`; rows sum to 1.
      splits: Number of parts that are scored separately. Clips are shuffled before, because
        folders are often sorted by class and a part of few classes would have a low score.
      seed: Seed of the shuffle.

    Returns:
      Mean and standard deviation over the parts. Scores are between 1 and the number of classes.

    Raises:
      UserError: there are fewer clips than parts.
    """
    if not 1 <= splits <= len(probabilities):
        raise UserError(
            f"inception score: {len(probabilities)} clips in {splits} splits, expected a clip or "
            "more per split"
        )
    order = np.random.default_rng(seed).permutation(len(probabilities))
    shuffled = np.asarray(probabilities, np.float64)[order]
    scores = [_score(part) for part in np.array_split(shuffled, splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean `[D]` and a factor F `[min(N, D), D]` of the covariance F^T F."""
    features = np.asarray(features, np.float64)
    mean = features.mean(0)
    factor = (features - mean) / np.sqrt(len(features) - 1)
    return mean, np.linalg.qr(factor, mode="r")


def _score(probabilities: np.ndarray) -> float:
    # rel_entr is p log(p / q), 0 for p = 0
    divergence = special.rel_entr(probabilities, probabilities.mean(0)).sum(1)
    return float(np.exp(divergence.mean()))
