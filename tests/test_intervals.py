import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from scipy.stats import beta, binom, chi2

from priorshift.estimation import (
    Likelihood,
    bootstrap_intervals,
    estimate_prior,
    identifiability,
    likelihood_intervals,
)
from priorshift.priors import Prior


class Population:
    """Points of Gaussian classes with their exact posteriors under a uniform prior."""

    def __init__(self, seed: int, num_classes: int, distance: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.means = distance * self.rng.normal(size=(num_classes, num_classes))

    def draw(self, size: int, mix: np.ndarray) -> np.ndarray:
        labels = self.rng.choice(len(mix), size=size, p=mix)
        points = self.means[labels] + self.rng.normal(size=(size, self.means.shape[1]))
        return points @ self.means.T - (self.means**2).sum(axis=1) / 2


def perfect(counts: list[int]) -> Likelihood:
    """The likelihood of predictions that show every label."""
    rows = np.full((len(counts), len(counts)), -np.inf)
    np.fill_diagonal(rows, 0.0)
    return Likelihood(np.repeat(rows, counts, axis=0))


def highest(ratios: np.ndarray, fixed: dict[int, float]) -> float:
    """The highest log-likelihood with some shares fixed, by a general optimiser."""
    others = [y for y in range(ratios.shape[1]) if y not in fixed]
    left = 1 - sum(fixed.values())
    base = sum(value * ratios[:, y] for y, value in fixed.items()) if fixed else 0.0

    def loss(shares: np.ndarray) -> float:
        return -np.log(base + ratios[:, others] @ shares).sum()

    def slope(shares: np.ndarray) -> np.ndarray:
        return -(ratios[:, others] / (base + ratios[:, others] @ shares)[:, None]).sum(axis=0)

    found = minimize(
        loss,
        np.full(len(others), left / len(others)),
        jac=slope,
        bounds=[(1e-12, 1)] * len(others),
        constraints={"type": "eq", "fun": lambda shares: shares.sum() - left, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    return -found.fun


def test_with_perfect_predictions_the_ends_are_those_of_a_binomial_likelihood():
    counts, size, half = [60, 36, 4, 0], 100, chi2.ppf(0.9, 1) / 2
    found = likelihood_intervals(perfect(counts), [0.6, 0.36, 0.04, 0.0])

    def drop(share: float, count: int) -> float:
        rest = size - count
        return sum(n * np.log(n / size / p) for n, p in ((count, share), (rest, 1 - share)) if n)

    for y, count in enumerate(counts[:3]):
        seen = count / (1 - count / size)
        threshold = half + np.exp(-seen) * (np.log(10) - half)
        low = brentq(lambda v, n=count: drop(v, n) - half, 1e-9, count / size)
        high = brentq(lambda v, n=count, h=threshold: drop(v, n) - h, count / size, 1 - 1e-9)
        assert found.lower[y] == pytest.approx(low, abs=5e-4)
        # The class seems to have a little fewer samples half a sample inside the simplex.
        assert found.upper[y] == pytest.approx(high, abs=1e-3)
    assert found.lower[3] == 0
    # A share at which a class stays unseen with a probability of 10 %.
    assert (1 - found.upper[3]) ** size == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(("seed", "distance"), [(0, 1.0), (1, 0.7), (2, 2.0), (3, 0.5)])
def test_the_ends_are_where_the_profile_likelihood_has_fallen_to_the_threshold(seed, distance):
    population = Population(seed, 4, distance)
    rows = population.draw(300, np.array([0.5, 0.3, 0.19, 0.01]))
    likelihood = Likelihood(rows)
    prior = likelihood.maximize().prior
    found = likelihood_intervals(likelihood, prior)
    ratios = np.exp(rows - rows.max(axis=1, keepdims=True))
    top, half = highest(ratios, {}), chi2.ppf(0.9, 1) / 2
    for y in range(4):
        fallen = top - highest(ratios, {y: found.lower[y]})
        if found.lower[y] > 0:
            assert fallen == pytest.approx(half, abs=0.05)
        else:
            assert fallen < half + 0.05
        fallen = top - highest(ratios, {y: found.upper[y]})
        assert half - 0.05 < fallen < np.log(10) + 0.05
        if prior.probs[y] > 0.1:
            assert fallen == pytest.approx(half, abs=0.1)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    population, mix, rounds = Population(4, 4, 1.2), np.array([0.6, 0.3, 0.09, 0.01]), 100
    held = np.zeros(4)
    for _ in range(rounds):
        likelihood = Likelihood(population.draw(300, mix))
        found = likelihood_intervals(likelihood, likelihood.maximize().prior)
        held += (found.lower <= mix) & (mix <= found.upper)
    for hits in held:
        assert binom.cdf(hits, rounds, 0.9) > 1e-3
    for hits in held[:3]:
        assert binom.sf(hits - 1, rounds, 0.9) > 1e-3


def test_a_higher_level_and_fewer_samples_give_wider_intervals():
    rows = Population(5, 3, 1.0).draw(400, np.array([0.6, 0.3, 0.1]))
    likelihood = Likelihood(rows)
    prior = likelihood.maximize().prior
    narrow, wide = (likelihood_intervals(likelihood, prior, level=level) for level in (0.5, 0.99))
    assert (wide.lower < narrow.lower).all() and (wide.upper > narrow.upper).all()
    doubled = likelihood_intervals(Likelihood(np.concatenate([rows, rows])), prior)
    once = likelihood_intervals(likelihood, prior)
    assert (doubled.upper - doubled.lower < once.upper - once.lower).all()


@settings(max_examples=5)
@given(st.integers(0, 1000), st.integers(2, 4), st.floats(0.6, 3.0))
def test_intervals_hold_the_estimate_and_do_not_depend_on_order_or_constants(seed, num_classes, distance):
    population = Population(seed, num_classes, distance)
    rows = population.draw(60, population.rng.dirichlet(np.ones(num_classes)))
    prior = Likelihood(rows).maximize(tolerance=1e-10).prior
    found = likelihood_intervals(Likelihood(rows), prior)
    assert (found.lower >= 0).all() and (found.upper <= 1).all()
    assert (found.lower <= prior.probs + 1e-9).all() and (prior.probs <= found.upper + 1e-9).all()
    columns = population.rng.permutation(num_classes)
    permuted = Likelihood((rows + np.arange(60)[:, None])[:, columns])
    moved = likelihood_intervals(permuted, prior.probs[columns])
    np.testing.assert_allclose(moved.upper, found.upper[columns], atol=0.02, rtol=0.02)
    np.testing.assert_allclose(moved.lower, found.lower[columns], atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    "rows",
    [
        np.array([[1.0, 0.0, -1.0]]),
        np.array([[50.0, 0.0, 0.0]] * 20),
        np.array([[0.0, -np.inf, -np.inf], [0.0, 0.0, -np.inf]]),
        np.zeros((5, 3)),
    ],
    ids=["one sample", "one class", "impossible classes", "no information"],
)
def test_small_and_degenerate_samples_have_finite_answers(rows):
    likelihood = Likelihood(rows)
    prior = likelihood.maximize().prior
    known = identifiability(likelihood, prior)
    for found in (likelihood_intervals(likelihood, prior), bootstrap_intervals(likelihood, draws=10)):
        assert np.isfinite(found.lower).all() and np.isfinite(found.upper).all()
        assert (found.lower <= found.upper).all()
    assert np.isfinite(known.standard_errors).all() and np.isfinite(known.pairwise_information).all()
    assert known.effective_sample_size <= len(rows) + 1


def test_without_information_every_share_is_possible():
    found = likelihood_intervals(Likelihood(np.zeros((50, 3))), Prior.uniform(3))
    assert found.lower.tolist() == [0, 0, 0]
    np.testing.assert_allclose(found.upper, 1, atol=1e-6, rtol=0)


def test_labels_are_worth_themselves():
    known = identifiability(perfect([50, 30, 20]), [0.5, 0.3, 0.2])
    expected = [np.sqrt(p * (1 - p) / 100) for p in (0.5, 0.3, 0.2)]
    np.testing.assert_allclose(known.standard_errors, expected, rtol=0.01)
    np.testing.assert_allclose(known.sample_sizes, 100, rtol=0.02)
    assert known.effective_sample_size == pytest.approx(100, rel=0.02)
    assert known.weakest == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(known.pairwise_information, 1, atol=0.02)
    assert known.warnings == ()


def test_an_absent_class_of_perfect_predictions_is_not_called_flat():
    known = identifiability(perfect([70, 30, 0]), [0.7, 0.3, 0.0])
    assert known.weakest == pytest.approx(1, abs=0.02)
    assert known.warnings == ()


def test_standard_errors_are_those_of_the_curvature_between_the_edges():
    rows = Population(6, 3, 1.0).draw(2000, np.array([0.5, 0.3, 0.2]))
    likelihood = Likelihood(rows)
    prior = likelihood.maximize().prior
    ratios = np.exp(rows - rows.max(axis=1, keepdims=True))
    # Shares 0 and 1 as free coordinates, differentiated numerically.
    step, best = 1e-4, prior.probs[:2]

    def value(shares: np.ndarray) -> float:
        return np.log(ratios @ np.append(shares, 1 - shares.sum())).sum()

    hessian = np.zeros((2, 2))
    for i, j in itertools.product(range(2), range(2)):
        e, f = step * np.eye(2)[i], step * np.eye(2)[j]
        hessian[i, j] = (
            value(best + e + f) - value(best + e - f) - value(best - e + f) + value(best - e - f)
        ) / (4 * step**2)
    covariance = np.linalg.inv(-hessian)
    variances = [*np.diag(covariance), covariance.sum()]
    known = identifiability(likelihood, prior)
    np.testing.assert_allclose(known.standard_errors, np.sqrt(variances), rtol=0.02)
    shares = prior.probs
    spread = (shares * (1 - shares)).sum()
    assert known.effective_sample_size == pytest.approx(spread / np.sum(variances), rel=0.03)


def test_classes_that_the_scorer_confuses_are_named():
    rows = Population(7, 2, 2.0).draw(300, np.array([0.6, 0.4]))[:, [0, 1, 1]]
    known = identifiability(Likelihood(rows), Likelihood(rows).maximize().prior)
    assert known.weakest < 0.01
    assert "most of all of classes 1, 2" in known.warnings[0]
    assert known.warnings[1].startswith("Classes 1 and 2 can hardly be told apart")
    assert len(known.warnings) == 2


def test_the_bootstrap_of_perfect_predictions_is_jeffreys_interval():
    counts = [60, 36, 4, 0]
    found = bootstrap_intervals(perfect(counts), draws=800, seed=1)
    for y, count in enumerate(counts):
        high = beta.ppf(0.95, count + 0.5, 100 - count + 0.5)
        assert found.upper[y] == pytest.approx(high, abs=0.015)
        low = beta.ppf(0.05, count, 100 - count) if count else 0.0
        assert found.lower[y] == pytest.approx(low, abs=0.015)


def test_the_bootstrap_repeats_with_its_seed_and_re_fits_the_calibration():
    rows = Population(8, 3, 1.0).draw(200, np.array([0.6, 0.3, 0.1]))
    likelihood = Likelihood(rows)
    once, again, other = (bootstrap_intervals(likelihood, draws=50, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(once.lower, again.lower) and np.array_equal(once.upper, again.upper)
    assert not np.array_equal(once.upper, other.upper)
    seen = []

    def refit(weights: np.ndarray) -> Likelihood:
        seen.append(weights)
        return Likelihood(rows + np.array([4.0, 0.0, 0.0]) * (weights[:5].mean() - 1))

    fitted = bootstrap_intervals(likelihood, draws=50, refit=refit, num_validation=40)
    assert len(seen) == 50
    for weights in seen:
        assert weights.shape == (40,) and (weights > 0).all()
        assert weights.mean() == pytest.approx(1)
    assert (fitted.upper - fitted.lower)[0] > 1.5 * (once.upper - once.lower)[0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda rows: likelihood_intervals(rows, [0.1, 0.9]), "to maximize the likelihood"),
        (lambda rows: likelihood_intervals(rows, [0.5, 0.3, 0.2]), "one entry per class, 2, but got 3"),
        (
            lambda rows: likelihood_intervals(rows, [0.7, 0.3], level=90),
            "between 0 and 1, exclusive, but got 90",
        ),
        (lambda rows: bootstrap_intervals(rows, level=1.0), "between 0 and 1, exclusive, but got 1.0"),
        (lambda rows: bootstrap_intervals(rows, draws=1), "at least 2 and finite, but got 1"),
        (lambda rows: bootstrap_intervals(rows, num_validation=5), "`num_validation=5` without `refit`"),
        (lambda rows: bootstrap_intervals(rows, refit=lambda w: rows), "`num_validation=None` with `refit`"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(perfect([70, 30]))


def test_equal_weights_change_nothing_and_unequal_ones_make_a_sample_worth_less():
    ratios = 2 * np.random.default_rng(3).normal(size=(200, 3))
    likeliest = Likelihood(ratios).maximize().prior
    plain = identifiability(Likelihood(ratios), likeliest)
    equal = identifiability(Likelihood(ratios, [2.0] * 200), likeliest)
    np.testing.assert_allclose(plain.standard_errors, equal.standard_errors)
    none_of_half = identifiability(Likelihood(ratios, [1.0] * 100 + [0.0] * 100), likeliest)
    alone = identifiability(Likelihood(ratios[:100]), likeliest)
    np.testing.assert_allclose(none_of_half.standard_errors, alone.standard_errors)
    assert none_of_half.effective_sample_size == pytest.approx(alone.effective_sample_size)


def test_confused_classes_are_warned_of_by_name():
    pd = pytest.importorskip("pandas")
    rows = Population(7, 2, 2.0).draw(300, np.array([0.6, 0.4]))[:, [0, 1, 1]]
    likelihood = Likelihood(pd.DataFrame(rows, columns=["owl", "cat", "dog"]))
    known = identifiability(likelihood, likelihood.maximize().prior)
    assert "most of all of classes 'cat', 'dog'" in known.warnings[0]
    assert known.warnings[1].startswith("Classes 'cat' and 'dog' can hardly be told apart")


def test_intervals_of_a_large_float32_sample_do_not_fail_the_estimate():
    size, num_classes = 100_000, 50
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(size, num_classes)).astype(np.float32)
    logits[np.arange(size), rng.integers(num_classes, size=size)] += 3
    found = estimate_prior(logits, carried=np.ones(num_classes))
    assert found.intervals is not None
    widths = 2 * 1.645 * found.identifiability.standard_errors
    np.testing.assert_allclose(found.intervals.upper - found.intervals.lower, widths, rtol=0.02)


def test_intervals_are_the_same_in_float32(monkeypatch):
    from priorshift.estimation import _likelihood

    rows = Population(9, 4, 1.0).draw(3000, np.array([0.5, 0.3, 0.19, 0.01]))
    prior = Likelihood(rows).maximize().prior
    precise = likelihood_intervals(Likelihood(rows), prior)
    monkeypatch.setattr(_likelihood, "_EXACT", 0)
    coarse = likelihood_intervals(Likelihood(rows), prior)
    np.testing.assert_allclose(coarse.lower, precise.lower, atol=1e-5)
    np.testing.assert_allclose(coarse.upper, precise.upper, atol=1e-5)


def test_intervals_lie_around_a_maximum_that_is_near_for_the_whole_sample(monkeypatch):
    from priorshift.estimation import _estimate

    rows = Population(10, 3, 1.0).draw(500, np.array([0.5, 0.3, 0.2]))
    expected = estimate_prior(rows, carried=np.ones(3), method="mlls").intervals
    monkeypatch.setattr(_estimate, "_CLOSE", 1e-9)
    closer = estimate_prior(rows, carried=np.ones(3), method="mlls").intervals
    np.testing.assert_allclose(closer.upper, expected.upper, atol=1e-4)


def test_sums_of_logarithms_survive_products_that_underflow():
    from priorshift.estimation._profile import _sum_of_logs

    rng = np.random.default_rng(0)
    for lowest in (-5, -200, -700):
        logs = rng.uniform(lowest, 0, size=(1003, 4))
        np.testing.assert_allclose(_sum_of_logs(np.exp(logs)), logs.sum(axis=0), rtol=1e-12)
