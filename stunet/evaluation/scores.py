"""What a set of clips scores, from features or class probabilities of its clips; float64."""

import numpy as np
from scipy import special

from stunet.errors import UserError


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of two sets of features (1706.08500 eq. 6).

    With S = F^T F the trace of the root is the sum of the singular values of F_a F_b^T: no root of
    a matrix is taken, so that fewer clips than features, whose covariances are singular, do no
    harm. (The distance itself is larger for fewer clips: compare equal numbers.)

    Args:
      a: `[N, D]`.
      b: `[M, D]`.

    Returns:
      The distance, in squared units of the features; covariances are divided by N - 1 and M - 1.

    Raises:
      UserError: a set has fewer than two clips.
    """
    if min(len(a), len(b)) < 2:
        raise UserError(f"a Frechet distance takes 2 clips of each set, got {len(a)} and {len(b)}")
    (mean_a, factor_a), (mean_b, factor_b) = _gaussian(a), _gaussian(b)
    root = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    traces = np.square(factor_a).sum() + np.square(factor_b).sum()
    distance = np.square(mean_a - mean_b).sum() + traces - 2 * root
    return max(0.0, float(distance))  # of equal sets rounding may leave less


def inception_score(
    probabilities: np.ndarray, splits: int = 10, seed: int = 0
) -> tuple[float, float]:
    """exp of the mean KL divergence of a clip's classes from all clips' (1606.03498).

    Args:
      probabilities: `[N, classes]`, each row sums to 1.
      splits: the clips are shuffled and scored in so many parts: folders are often sorted by class,
        and a part of few classes would score low.
      seed: of the shuffling.

    Returns:
      Mean and standard deviation over the parts; 1 is the least, the number of classes the most.

    Raises:
      UserError: there are fewer clips than parts.
    """
    if not 1 <= splits <= len(probabilities):
        raise UserError(
            f"an inception score in {splits} parts takes as many clips, got {len(probabilities)}"
        )
    order = np.random.default_rng(seed).permutation(len(probabilities))
    shuffled = np.asarray(probabilities, np.float64)[order]
    scores = [_score(part) for part in np.array_split(shuffled, splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean `[D]` and a factor F `[min(N, D), D]` of the covariance F^T F."""
    features = np.asarray(features, np.float64)
    mean = features.mean(0)
    factor = (features - mean) / np.sqrt(len(features) - 1)
    return mean, np.linalg.qr(factor, mode="r")


def _score(probabilities: np.ndarray) -> float:
    # rel_entr is p log(p / q), and 0 at p = 0
    divergence = special.rel_entr(probabilities, probabilities.mean(0)).sum(1)
    return float(np.exp(divergence.mean()))
