import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from priorshift import Prior
from priorshift.estimation import Likelihood, _ascent, _likelihood, maximize_posterior
from priorshift.estimation._posterior import adaptive_weight

steady = settings(deadline=None, derandomize=True, max_examples=40)


def reference_likelihood(log_ratios, probs, weights=None):
    """The mean over samples of log Σ_y t_y r_y, row by row in logarithms."""
    values = []
    for row in log_ratios:
        terms = [math.log(p) + x for p, x in zip(probs, row, strict=True) if p > 0 and x > -math.inf]
        top = max(terms, default=-math.inf)
        values.append(top + math.log(sum(math.exp(term - top) for term in terms)) if terms else -math.inf)
    return float(np.average(values, weights=weights))


def reference_em(log_ratios, steps, weights=None, pseudo=0.0):
    """Saerens et al., Eq. 2.9: posteriors under the present prior, and their mean with labelled samples."""
    rows = np.exp(log_ratios - log_ratios.max(axis=1, keepdims=True))
    weights = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=float)
    num_classes = rows.shape[1]
    pseudo = np.broadcast_to(pseudo, num_classes)
    prior = np.full(num_classes, 1 / num_classes)
    for _ in range(steps):
        joint = rows * prior
        posterior = joint / joint.sum(axis=1, keepdims=True)
        prior = (weights @ posterior + pseudo) / (weights.sum() + pseudo.sum())
    return prior


def maximize(log_ratios, weights=None, **settings):
    return Likelihood(log_ratios, weights).maximize(**settings)


def simulated(num_samples, num_classes, *, spread=2.0, concentration=1.0, seed=0):
    """Samples of Gaussian classes around random means, whose ratios are known exactly; the mix they have."""
    rng = np.random.default_rng(seed)
    mix = rng.dirichlet(np.full(num_classes, concentration))
    means = rng.normal(scale=spread, size=(num_classes, 3))
    labels = rng.choice(num_classes, size=num_samples, p=mix)
    points = means[labels] + rng.normal(size=(num_samples, 3))
    return -((points[:, None] - means) ** 2).sum(axis=2) / 2, mix


@st.composite
def problems(draw):
    num_classes = draw(st.integers(2, 6))
    num_samples = draw(st.integers(1, 12))
    entry = st.one_of(st.floats(-30, 30), st.sampled_from([0.0, 1.0, -math.inf]))
    rows = draw(
        st.lists(
            st.lists(entry, min_size=num_classes, max_size=num_classes).filter(lambda r: max(r) > -math.inf),
            min_size=num_samples,
            max_size=num_samples,
        )
    )
    rows = np.array(rows)
    assume(not ((rows >= 0).all() and (abs(rows.sum(axis=1) - 1) < 2e-3).all()))  # refused as probabilities
    return rows


def positive(num_classes):
    return st.lists(st.floats(0.01, 1.0), min_size=num_classes, max_size=num_classes)


@pytest.mark.parametrize(
    ("num_samples", "num_classes", "spread", "concentration"),
    [(200, 2, 1.0, 1.0), (300, 5, 1.0, 0.3), (500, 10, 2.0, 0.1), (400, 40, 2.0, 1.0), (60, 30, 1.0, 1.0)],
)
def test_no_long_em_is_likelier(num_samples, num_classes, spread, concentration):
    log_ratios, _ = simulated(num_samples, num_classes, spread=spread, concentration=concentration)
    solution = maximize(log_ratios)
    highest = reference_likelihood(log_ratios, reference_em(log_ratios, 5000))
    assert solution.converged
    assert 0 <= solution.shortfall <= 1e-8
    assert solution.steps < 60
    assert solution.log_likelihood >= highest - 1e-8
    assert solution.log_likelihood == pytest.approx(
        reference_likelihood(log_ratios, solution.prior.probs.tolist()), abs=1e-10
    )


def test_a_well_conditioned_estimate_is_that_of_a_long_em():
    log_ratios, mix = simulated(2000, 4, spread=3.0)
    solution = maximize(log_ratios)
    np.testing.assert_allclose(solution.prior.probs, reference_em(log_ratios, 3000), atol=1e-7)
    np.testing.assert_allclose(solution.prior.probs, mix, atol=0.03)


@given(problems(), st.data())
@steady
def test_the_certificate_bounds_what_any_other_prior_gains(log_ratios, data):
    tolerance = data.draw(st.sampled_from([1.0, 1e-2, 1e-8]))
    other = Prior(data.draw(positive(log_ratios.shape[1])))
    rows = log_ratios
    solution = maximize(rows, tolerance=tolerance)
    assert solution.converged
    assert solution.shortfall <= tolerance
    ceiling = solution.log_likelihood + solution.shortfall + 1e-9
    assert Likelihood(rows).value(other) <= ceiling
    assert reference_likelihood(log_ratios, reference_em(log_ratios, 500)) <= ceiling
    probs = solution.prior.probs
    assert (probs >= 0).all()
    assert probs.sum() == pytest.approx(1)


@given(problems(), st.data())
@steady
def test_an_em_step_never_lowers_the_likelihood(log_ratios, data):
    prior = Prior(data.draw(positive(log_ratios.shape[1])))
    likelihood = Likelihood(log_ratios)
    for _ in range(3):
        after = likelihood.em_step(prior)
        assert likelihood.value(after) >= likelihood.value(prior) - 1e-12
        prior = after


@given(problems(), st.data())
@steady
def test_the_likelihood_is_concave(log_ratios, data):
    first, second = (Prior(data.draw(positive(log_ratios.shape[1]))) for _ in range(2))
    middle = Prior((first.probs + second.probs) / 2)
    likelihood = Likelihood(log_ratios)
    mean = (likelihood.value(first) + likelihood.value(second)) / 2
    assert likelihood.value(middle) >= mean - 1e-12


def test_em_steps_and_likelihoods_are_those_of_the_reference():
    log_ratios, _ = simulated(50, 6)
    weights = np.arange(50) % 4
    likelihood = Likelihood(log_ratios, weights)
    prior = Prior.uniform(6)
    for _ in range(3):
        prior = likelihood.em_step(prior)
    expected = reference_em(log_ratios, 3, weights)
    np.testing.assert_allclose(prior.probs, expected, rtol=1e-12)
    assert likelihood.value(prior) == pytest.approx(
        reference_likelihood(log_ratios, expected, weights), abs=1e-12
    )


def test_many_em_steps_end_where_the_solver_does():
    likelihood = Likelihood(simulated(100, 3, spread=3.0)[0])
    prior = Prior.uniform(3)
    for _ in range(300):
        prior = likelihood.em_step(prior)
    np.testing.assert_allclose(prior.probs, likelihood.maximize().prior.probs, atol=1e-6, rtol=0)


def test_the_curvature_is_minus_the_second_derivative():
    log_ratios, _ = simulated(40, 4)
    weights = np.random.default_rng(0).random(40)
    ratios, share = np.exp(log_ratios), weights / weights.sum()
    probs = np.array([0.4, 0.3, 0.2, 0.1])

    def gradient(t):
        return (share / (ratios @ t)) @ ratios

    step = 1e-30j  # along the imaginary axis the difference quotient has no rounding
    hessian = np.stack([gradient(probs + step * unit).imag / step.imag for unit in np.eye(4)])
    np.testing.assert_allclose(Likelihood(log_ratios, weights).curvature(Prior(probs)), -hessian)


@pytest.mark.parametrize("num_classes", [5, 150])
def test_permuting_classes_permutes_the_estimate(num_classes):
    rows = simulated(400, num_classes)[0]
    order = np.random.default_rng(1).permutation(num_classes)
    straight, permuted = (maximize(x, tolerance=1e-11) for x in (rows, rows[:, order]))
    np.testing.assert_allclose(permuted.prior.probs, straight.prior.probs[order], atol=1e-5, rtol=0)
    assert permuted.log_likelihood == pytest.approx(straight.log_likelihood, abs=1e-10)


def test_the_order_of_samples_is_irrelevant():
    rows = simulated(400, 5)[0]
    forward, backward = (maximize(x, tolerance=1e-11).prior.probs for x in (rows, rows[::-1]))
    np.testing.assert_allclose(forward, backward, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_constants_on_rows_move_the_likelihood_alone(scale):
    rows = simulated(300, 5)[0]
    constants = scale * np.linspace(-1, 1, 300) + 3
    plain, moved = maximize(rows), maximize(rows + constants[:, None])
    np.testing.assert_allclose(moved.prior.probs, plain.prior.probs, atol=1e-6, rtol=0)
    assert moved.log_likelihood == pytest.approx(plain.log_likelihood + 3, abs=1e-7)


@given(st.data())
@steady
def test_weights_equal_repeated_rows(data):
    log_ratios, _ = simulated(12, 3, seed=data.draw(st.integers(0, 5)))
    counts = data.draw(st.lists(st.integers(0, 3), min_size=12, max_size=12).filter(any))
    rows = log_ratios
    weighed = maximize(rows, weights=counts)
    repeated = maximize(np.repeat(rows, counts, axis=0))
    assert weighed.log_likelihood == pytest.approx(repeated.log_likelihood, abs=1e-8)
    np.testing.assert_allclose(weighed.prior.probs, repeated.prior.probs, atol=1e-4, rtol=0)


def test_float32_ratios_give_the_same_estimate(monkeypatch):
    rows = simulated(1000, 250)[0]
    precise = maximize(rows)
    monkeypatch.setattr(_likelihood, "_EXACT", 0)
    fast = maximize(rows.astype(np.float32))
    assert fast.converged
    assert fast.log_likelihood == pytest.approx(precise.log_likelihood, abs=1e-7)
    assert Likelihood(rows).value(fast.prior) >= precise.log_likelihood - 1e-7


def test_many_classes_are_climbed_without_second_derivatives(monkeypatch):
    rows = simulated(300, 30)[0]
    newton = maximize(rows)
    monkeypatch.setattr(_ascent, "_FACTORED", 0)
    climbed = maximize(rows, tolerance=1e-7)
    assert climbed.converged
    assert climbed.steps > newton.steps
    assert climbed.log_likelihood == pytest.approx(newton.log_likelihood, abs=2e-7)


@pytest.mark.parametrize("in_float32", [False, True])
@pytest.mark.parametrize("copies", [2, 5])
def test_identical_classes_share_the_mass_of_one(copies, in_float32, monkeypatch):
    if in_float32:
        monkeypatch.setattr(_likelihood, "_EXACT", 0)
    rows = simulated(300, 4)[0]
    single = maximize(rows)
    tied = maximize(np.concatenate([rows, np.repeat(rows[:, :1], copies - 1, axis=1)], axis=1))
    probs = tied.prior.probs
    assert tied.converged
    assert (probs[0] + probs[4:].sum()) == pytest.approx(single.prior.probs[0], abs=1e-5)
    assert tied.log_likelihood == pytest.approx(single.log_likelihood, abs=2e-8)


def test_a_flat_likelihood_is_at_its_maximum_at_once():
    solution = maximize(np.zeros((7, 4)))
    assert solution.converged
    assert solution.shortfall == pytest.approx(0, abs=1e-12)
    assert solution.log_likelihood == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(solution.prior.probs, 0.25)


@pytest.mark.parametrize("size", [1e4, 100.0])
def test_certain_predictions_are_counted(size):
    rows = np.full((6, 4), -size)
    rows[np.arange(6), [0, 0, 0, 2, 2, 1]] = size
    probs = maximize(rows).prior.probs
    np.testing.assert_allclose(probs, [3 / 6, 1 / 6, 2 / 6, 0], atol=1e-7)


def test_absent_classes_are_estimated_near_zero():
    log_ratios, _ = simulated(2000, 8, spread=4.0)
    means_absent = log_ratios[:, [0]] - 25.0
    never = np.full_like(means_absent, -np.inf)
    rows = np.concatenate([log_ratios, means_absent, never], axis=1)
    solution = maximize(rows)
    probs = solution.prior.probs
    assert solution.converged
    assert np.isfinite(probs).all()
    assert probs[8] < 1e-6
    assert probs[9] == 0
    np.testing.assert_allclose(probs[:8], maximize(log_ratios).prior.probs, atol=1e-5)


def test_one_sample_gives_its_likeliest_class():
    probs = maximize(np.array([[0.0, 1.0, 0.5, -np.inf]])).prior.probs
    np.testing.assert_allclose(probs, [0, 1, 0, 0], atol=1e-6)


def test_one_class_may_take_all():
    rows = 0.1 * np.random.default_rng(0).normal(size=(50, 3))
    rows[:, 1] += 2
    np.testing.assert_allclose(maximize(rows).prior.probs, [0, 1, 0], atol=1e-6)


def test_impossible_classes_of_a_sample_take_none_of_it():
    rows = np.array([[0.0, 5.0, -np.inf], [-np.inf, 0.0, -np.inf], [0.0, -np.inf, 0.0]])
    solution = maximize(rows)
    highest = reference_likelihood(rows, reference_em(rows, 2000))
    assert solution.log_likelihood >= highest - 1e-8
    assert Likelihood(rows).value([1.0, 0.0, 0.0]) == -math.inf


def test_where_it_starts_does_not_matter():
    rows = simulated(300, 5, spread=3.0)[0]
    ends = [
        maximize(rows, start=start, tolerance=1e-10).prior.probs
        for start in (None, [1e-9, 1.0, 1.0, 1.0, 1.0], [1.0, 1e-3, 1e-12, 1e-3, 1e-3])
    ]
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(ends[2], ends[0], atol=1e-5, rtol=0)


def test_too_few_steps_are_reported():
    solution = maximize(simulated(300, 10)[0], max_steps=2)
    assert not solution.converged
    assert solution.steps == 2
    assert solution.shortfall > 1e-8


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_impossible_row_is_named(value):
    rows = np.zeros((4, 3))
    rows[2] = value
    with pytest.raises(ValueError, match=r"`log_ratios` to be finite.*sample 2"):
        maximize(rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [1.0, 1.0]}, r"`weights` with one entry per sample, \(4,\), but got shape \(2,\)"),
        (
            {"weights": [1.0, -1.0, 1.0, 1.0]},
            "`weights` to be finite and non-negative, but got -1.0 for sample 1",
        ),
        ({"weights": [0.0] * 4}, "`weights` to have a positive finite sum"),
        ({"start": [0.5, 0.5, 0.0]}, "`start` to be strictly positive, but it is zero for class 2"),
        ({"start": [0.5, 0.5]}, "`start` with one entry per class, 3, but got 2"),
        ({"tolerance": 0.0}, "`tolerance` and `max_steps` to be positive, but got 0.0 and 1000"),
        ({"max_steps": 0}, "`tolerance` and `max_steps` to be positive"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        maximize(np.zeros((4, 3)), **settings)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (4, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"Expected `log_ratios` of shape \[N, C\]"):
        maximize(np.zeros(shape))


def test_a_prior_that_forbids_a_sample_has_no_em_step():
    with pytest.raises(ValueError, match="`prior` to allow some class of every sample"):
        Likelihood(np.array([[0.0, -np.inf], [0.0, 0.0]])).em_step([0.0, 1.0])


def test_a_flat_dirichlet_is_maximum_likelihood():
    rows = simulated(300, 6)[0]
    likeliest, posterior = maximize(rows), maximize_posterior(Likelihood(rows), concentration=[1.0])
    np.testing.assert_allclose(posterior.prior.probs, likeliest.prior.probs, atol=1e-12, rtol=0)
    assert posterior.log_likelihood == likeliest.log_likelihood


@pytest.mark.parametrize("weights", [None, np.arange(80) % 3])
def test_pseudo_samples_give_the_mode_of_the_posterior(weights):
    log_ratios, _ = simulated(80, 4)
    concentration = np.array([1.0, 1.5, 3.0, 2.0])
    likelihood = Likelihood(log_ratios, weights)
    solution = maximize_posterior(likelihood, concentration=concentration, tolerance=1e-11)
    expected = reference_em(log_ratios, 3000, weights, concentration - 1)
    assert solution.converged
    np.testing.assert_allclose(solution.prior.probs, expected, atol=1e-6)


def test_a_strong_dirichlet_gives_its_own_mode():
    rows = simulated(50, 3)[0]
    probs = maximize_posterior(Likelihood(rows), concentration=[1 + 3e8, 1 + 2e8, 1 + 5e8]).prior.probs
    np.testing.assert_allclose(probs, [0.3, 0.2, 0.5], atol=1e-6)


def test_the_posterior_keeps_unseen_classes_above_zero():
    rows = np.array([[0.0, -50.0, -50.0]] * 20)
    probs = maximize_posterior(Likelihood(rows), concentration=[1.5]).prior.probs
    np.testing.assert_allclose(probs, np.array([20.5, 0.5, 0.5]) / 21.5, rtol=1e-6)


def test_mapls_mixes_the_uniform_prior_into_every_em_step():
    log_ratios, _ = simulated(200, 5)
    rows, source = log_ratios, Prior([0.5, 0.2, 0.1, 0.1, 0.1])
    lam = adaptive_weight(maximize(rows).prior, source)
    prior = np.full(5, 0.2)
    for _ in range(2000):
        joint = np.exp(log_ratios) * prior
        prior = lam * (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0) + (1 - lam) / 5
    found = maximize_posterior(Likelihood(rows), source, tolerance=1e-11)
    np.testing.assert_allclose(found.prior.probs, prior, atol=1e-6)


def test_the_adaptive_weight_is_that_of_the_nested_formulas():
    estimate, source = [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]

    def divergence(p, q):
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    def gamma(lam):
        return (1 / (1 - lam) - 1) / 0.5

    def rising(distance, steepness):
        return steepness * distance / (1 + steepness * distance)

    uniform = [1 / 3] * 3
    regularise = 1 - rising(divergence(source, uniform), gamma(0.2))
    expected = 0.9 * rising(divergence(estimate, uniform), gamma(regularise)) + 0.1 * (
        1 - rising(divergence(estimate, source), gamma(regularise))
    )
    assert adaptive_weight(Prior(estimate), Prior(source)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("estimate", "source", "expected"),
    [([0.5, 0.5], [0.5, 0.5], 1.0), ([0.9, 0.1], [0.5, 0.5], 0.9), ([0.9, 0.1], [0.9, 0.1], 0.82)],
)
def test_the_adaptive_weight_has_its_limits(estimate, source, expected):
    assert adaptive_weight(Prior(estimate), Prior(source)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either `source` or `concentration`"),
        ({"source": [0.5, 0.3, 0.2], "concentration": [2.0]}, "either `source` or `concentration`"),
        ({"concentration": [0.5]}, "`concentration` to be finite and at least 1, but got 0.5"),
        ({"concentration": [2.0, 2.0]}, r"one number or one per class, \(3,\), but got shape \(2,\)"),
        ({"source": [0.5, 0.5, 0.0]}, "`source` to be strictly positive"),
    ],
)
def test_posteriors_that_are_not_concave_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        maximize_posterior(Likelihood(np.zeros((4, 3))), **settings)


# The object


def test_names_of_the_classes_are_matched_and_kept():
    pd = pytest.importorskip("pandas")
    rows = simulated(100, 3)[0]
    named = Likelihood(pd.DataFrame(rows, columns=["a", "b", "c"]))
    found = named.maximize(start={"c": 0.2, "a": 0.5, "b": 0.3})
    assert found.prior.names == ("a", "b", "c")
    np.testing.assert_allclose(found.prior.probs, maximize(rows, start=[0.5, 0.3, 0.2]).prior.probs)
    assert named.value({"c": 0.2, "a": 0.5, "b": 0.3}) == Likelihood(rows).value([0.5, 0.3, 0.2])
    with pytest.raises(ValueError, match=r"`prior` to name the same classes.*'d'"):
        named.value({"a": 0.5, "b": 0.3, "d": 0.2})


def test_pseudo_counts_are_labelled_samples_and_share_the_ratios():
    rows, counts = simulated(60, 3)[0], np.array([2.0, 0.0, 5.0])
    plain = Likelihood(rows)
    viewed, built = plain.with_pseudo_counts(counts), Likelihood(rows, pseudo_counts=counts)
    certain = np.full((7, 3), -np.inf)
    certain[np.arange(7), [0, 0, 2, 2, 2, 2, 2]] = 0
    labelled = Likelihood(np.concatenate([rows, certain]))
    prior = [0.5, 0.3, 0.2]
    assert viewed.ratios is plain.ratios
    for one in (viewed, built):
        assert one.value(prior) == pytest.approx(labelled.value(prior), abs=1e-14)
        np.testing.assert_allclose(one.curvature(prior), labelled.curvature(prior), rtol=1e-12)
        np.testing.assert_allclose(one.em_step(prior).probs, labelled.em_step(prior).probs, rtol=1e-12)
    assert plain.value(prior) == Likelihood(rows).value(prior)
    with pytest.raises(ValueError, match="`pseudo_counts` with a finite non-negative number per class, 3"):
        Likelihood(rows, pseudo_counts=[1.0, -1.0, 0.0])


def test_weights_may_be_changed_without_the_ratios():
    rows, weights = simulated(60, 3)[0], np.arange(60.0)
    likelihood = Likelihood(rows)
    weighed = likelihood.with_weights(weights)
    assert weighed.ratios is likelihood.ratios
    assert weighed.value([0.5, 0.3, 0.2]) == Likelihood(rows, weights).value([0.5, 0.3, 0.2])
    assert likelihood.equal_samples == likelihood.total_weight == 60
    assert weighed.equal_samples == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def test_ratios_of_logits_are_those_of_their_log_ratios():
    rows, carried = simulated(60, 3)[0], Prior({"a": 0.5, "b": 0.3, "c": 0.2})
    likelihood = Likelihood.from_logits(rows + carried.log_probs, carried)
    np.testing.assert_allclose(likelihood.ratios, Likelihood(rows).ratios, rtol=1e-12)
    assert likelihood.names == ("a", "b", "c")
    again = Likelihood.from_ratios(likelihood.ratios)
    assert again.maximize().prior.probs.tolist() == likelihood.maximize().prior.probs.tolist()


def test_blocks_and_float32_do_not_change_the_sums(monkeypatch):
    rows = simulated(5000, 7)[0]
    whole = Likelihood(rows)
    monkeypatch.setattr(_likelihood, "_EXACT", 0)
    monkeypatch.setattr(_likelihood, "_PASS", 700)
    monkeypatch.setattr(_likelihood, "_PRODUCT", 700)
    blocks = Likelihood(rows.astype(np.float32))
    prior = Prior.uniform(7)
    assert blocks.ratios.dtype == np.float32
    assert blocks.value(prior) == pytest.approx(whole.value(prior), abs=1e-7)
    np.testing.assert_allclose(blocks.curvature(prior), whole.curvature(prior), rtol=1e-5)


def test_probabilities_are_refused():
    with pytest.raises(ValueError, match=r"`log_ratios`.*probabilities"):
        Likelihood(np.full((5, 4), 0.25))
