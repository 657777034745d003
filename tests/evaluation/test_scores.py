import numpy as np
import pytest
from scipy import linalg

from stunet.errors import UserError
from stunet.evaluation.scores import frechet_distance, inception_score, polynomial_mmd


def whitened(count, dim, seed):
    """Features `[count, dim]` whose sample mean is 0 and whose covariance is the identity."""
    drawn = np.random.default_rng(seed).standard_normal((count, dim))
    q, _ = np.linalg.qr(drawn - drawn.mean(0))
    return np.sqrt(count - 1) * q


def by_definition(a, b):
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    means = np.square(a.mean(0) - b.mean(0)).sum()
    return means + np.trace(covariances[0] + covariances[1] - 2 * root)


def test_gaussians_of_a_closed_form():
    """Independent axes: sum of the squared differences of means and of standard deviations."""
    stds, others = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.0, 0.0])
    a, b = whitened(40, 3, 0) * stds, whitened(70, 3, 1) * others + np.array([1.0, -2.0, 0.0])
    expected = 5.0 + ((stds - others) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_two_lines_in_many_dimensions():
    """Covariances 2 u u^T and 2 v v^T; the root of their product has the trace 2 |u v|."""
    u, v = np.random.default_rng(2).standard_normal((2, 400))
    expected = 2 * (u @ u + v @ v) - 4 * abs(u @ v)
    assert frechet_distance(np.stack([u, -u]), np.stack([v, -v])) == pytest.approx(expected)


@pytest.mark.parametrize(("count", "other"), [(60, 90), (8, 90), (8, 5)])
def test_definition(count, other):
    """Also for fewer clips than the 12 features, when covariances are singular."""
    rng = np.random.default_rng(3)
    a = rng.standard_normal((count, 12)) @ rng.standard_normal((12, 12)) + 1
    b = rng.standard_normal((other, 12)) @ rng.standard_normal((12, 12))
    assert frechet_distance(a, b) == pytest.approx(by_definition(a, b), rel=1e-6)


def test_equal_sets_and_too_few():
    a = np.random.default_rng(4).standard_normal((30, 400)).astype(np.float32)
    assert 0 <= frechet_distance(a, a) < 1e-9
    with pytest.raises(UserError, match=r"30 and 1 clips, expected 2"):
        frechet_distance(a, a[:1])


def test_mmd_of_a_closed_form():
    """One feature."""
    a, b = np.array([[1.0], [-1.0], [0.0]]), np.array([[0.0], [0.0]])
    # Pairs within a: (1 * -1 + 1)^3 = 0 once, (0 + 1)^3 = 1 twice.
    assert polynomial_mmd(a, b) == pytest.approx(2 / 3 + 1 - 2)
    shifted = np.array([[2.0], [2.0]])
    assert polynomial_mmd(shifted, b) == pytest.approx(125 + 1 - 2)
    with pytest.raises(UserError, match="3 and 1 clips"):
        polynomial_mmd(a, b[:1])


def test_mmd_is_unbiased():
    rng = np.random.default_rng(5)
    values = [polynomial_mmd(*rng.standard_normal((2, 10, 6))) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_inception_score_of_closed_forms():
    uniform, certain = np.full((40, 8), 1 / 8), np.repeat(np.eye(8), 5, axis=0)
    assert inception_score(uniform, 4) == pytest.approx((1, 0))
    assert inception_score(certain, 1) == pytest.approx((8, 0))
    # 3/4 of the mass on one of two classes: a KL divergence of 3/4 ln 3/2 + 1/4 ln 1/2
    halves = np.repeat([[0.75, 0.25], [0.25, 0.75]], 10, axis=0)
    expected = np.exp(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert inception_score(halves, 1)[0] == pytest.approx(expected)


def test_clips_are_shuffled_before_the_split():
    certain = np.repeat(np.eye(8), 500, axis=0)
    mean, std = inception_score(certain, 10)
    assert 7.8 < mean <= 8 and std < 0.1  # 1 if each part has one class
    with pytest.raises(UserError, match=r"3 clips in 10 splits"):
        inception_score(certain[:3], 10)
