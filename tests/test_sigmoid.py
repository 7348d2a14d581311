"""Binary and multi-label models: moving their logits to other rates, and estimating those rates."""

import math
import re

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit

from kinds import every_kind_of, exact
from priorshift import _blocks, adjust
from priorshift.adjustment._sigmoid import adjust_sigmoid
from priorshift.estimation._sigmoid import estimate_rates

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
CARRIED, TARGET = [0.5, 0.1, 0.8], [0.2, 0.6, 0.05]
RATE = st.floats(1e-6, 1 - 1e-6)


def as_tensor(values):
    return pytest.importorskip("torch").tensor(values)


every_container = pytest.mark.parametrize("convert", [np.array, as_tensor])


def scores(*shape):
    return np.random.default_rng(0).normal(scale=3, size=shape)


def log_odds(rate):
    return math.log(rate / (1 - rate))


def simulated_logits(rate, carried, distance, shape, seed):
    """Log-odds of a calibrated scorer of two unit normals at a distance, where positives have some rate."""
    generator = np.random.default_rng(seed)
    positive = generator.random(shape) < rate
    x = generator.normal(size=shape) + distance * (positive - 0.5)
    return distance * x + np.log(carried / (1 - np.asarray(carried)))


# Adjusting


@PROPERTY
@given(st.floats(-40, 40), RATE, RATE)
def test_one_label_is_the_two_class_case(logit, carried, target):
    moved = adjust(np.array([0.0, logit]), carried=[1 - carried, carried], target=[1 - target, target])
    one = adjust_sigmoid(np.array([logit]), carried=carried, target=target)
    assert one[0] == pytest.approx(moved[1] - moved[0], rel=1e-12, abs=1e-9)


def test_every_label_is_moved_by_its_own_log_odds():
    logits = scores(4, 3)
    moved = adjust_sigmoid(logits, carried=CARRIED, target=TARGET)
    for row, result in zip(logits, moved, strict=True):
        expected = [f - log_odds(q) + log_odds(t) for f, q, t in zip(row, CARRIED, TARGET, strict=True)]
        assert result.tolist() == pytest.approx(expected, rel=1e-13)


def test_source_posteriors_become_target_posteriors():
    likelihood, carried, target = np.array([[0.7, 0.1], [0.2, 0.3], [0.1, 0.6]]), 0.3, 0.9
    logits = np.log(likelihood[:, 1] * carried) - np.log(likelihood[:, 0] * (1 - carried))
    joint = likelihood * [1 - target, target]
    probs = 1 / (1 + np.exp(-adjust_sigmoid(logits, carried=carried, target=target)))
    np.testing.assert_allclose(probs, joint[:, 1] / joint.sum(axis=1), rtol=1e-13)


@PROPERTY
@given(st.lists(st.floats(-40, 40), min_size=1, max_size=5), RATE, RATE)
def test_moving_there_and_back_is_the_identity(values, carried, target):
    logits = np.array(values)
    there = adjust_sigmoid(logits, carried=carried, target=target)
    np.testing.assert_allclose(adjust_sigmoid(there, carried=target, target=carried), logits, atol=1e-13)


@every_container
def test_the_carried_rates_as_target_return_the_logits(convert):
    logits = convert(scores(4, 3))
    assert np.array_equal(adjust_sigmoid(logits, carried=CARRIED, target=CARRIED), logits)


@every_container
@pytest.mark.parametrize("extreme", [0.0, math.inf, -math.inf])
def test_rates_of_zero_and_one_are_certain(convert, extreme):
    logits = convert([[extreme, 2.0, extreme]])
    moved = adjust_sigmoid(logits, carried=CARRIED, target=[0.0, 0.5, 1.0])
    assert moved[0].tolist() == pytest.approx([-math.inf, 2.0 - log_odds(0.1), math.inf])


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2), (4, 3, 2, 5)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numpy_and_torch_give_the_same_numbers_at_least_in_float32(shape, dtype):
    array = scores(*shape).astype(dtype)
    carried, target = (0.2, 0.7) if len(shape) == 1 else (CARRIED, [0.0, 0.6, 1.0])
    from_array = adjust_sigmoid(array, carried=carried, target=target)
    from_tensor = adjust_sigmoid(as_tensor(array), carried=carried, target=target)
    assert from_array.dtype == np.promote_types(dtype, "float32")
    assert from_tensor.numpy().dtype == from_array.dtype
    np.testing.assert_array_equal(from_array, from_tensor.numpy())


def test_every_position_of_a_map_is_moved_like_a_row():
    logits = scores(2, 3, 4)
    moved = adjust_sigmoid(logits, carried=CARRIED, target=TARGET)
    for place in range(4):
        expected = adjust_sigmoid(logits[:, :, place], carried=CARRIED, target=TARGET)
        np.testing.assert_array_equal(moved[:, :, place], expected)


@every_container
def test_one_rate_holds_for_all_labels_and_the_input_stays(convert):
    logits = convert(scores(4, 3))
    one = adjust_sigmoid(logits, carried=0.75, target=convert(0.25))
    each = adjust_sigmoid(logits, carried=convert([0.75] * 3), target=[0.25] * 3)
    assert np.array_equal(one, each)
    one[:] = 0.0
    np.testing.assert_array_equal(logits, scores(4, 3))


def test_gradients_pass_through_unchanged_and_stop_at_certain_labels():
    logits = as_tensor(np.zeros((2, 3))).requires_grad_()
    moved = adjust_sigmoid(logits, carried=CARRIED, target=[0.3, 0.0, 1.0])
    moved[:, 0].sum().backward()
    assert logits.grad.tolist() == [[1.0, 0.0, 0.0]] * 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"carried": 0.0}, ValueError, "`carried` above 0 and below 1, but got 0."),
        ({"carried": [0.5, 1.0, 0.5]}, ValueError, "`carried` above 0 and below 1, but got 1 for label 1."),
        ({"carried": [0.5, 0.5, 1.5]}, ValueError, "`carried` between 0 and 1, but got 1.5 for label 2."),
        ({"target": float("nan")}, ValueError, "`target` between 0 and 1, but got nan."),
        (
            {"target": [0.1, 0.2]},
            ValueError,
            "`target` to be one number or one per label, 3, but got shape (2,)",
        ),
        (
            {"logits": np.zeros(3), "target": CARRIED},
            ValueError,
            "`target` to be one number, but got shape (3,)",
        ),
        ({"target": "high"}, TypeError, "`target` to be one number or one per label, but got 'high'"),
        ({"logits": [["a"]]}, TypeError, "`logits` to be real numbers, but got [['a']]"),
        ({"logits": np.zeros((2, 3), int)}, TypeError, "`logits` to be floating-point, but got dtype int64"),
        (
            {"logits": np.float64(0.0)},
            ValueError,
            "`logits` of shape [N], [N, L] or [N, L, …], but got a scalar",
        ),
    ],
)
def test_adjusting_is_refused_in_words(changes, error, message):
    arguments = {"logits": scores(4, 3), "carried": 0.5, "target": 0.5} | changes
    with pytest.raises(error, match=re.escape(message)):
        adjust_sigmoid(arguments.pop("logits"), **arguments)


# Estimating


def slow_rate(logits, carried, steps=20_000):
    """Saerens et al.'s EM with two classes, by loops."""
    ratios = [math.exp(f) * (1 - carried) / carried for f in logits]
    rate = 0.5
    for _ in range(steps):
        posteriors = [rate * r / (1 - rate + rate * r) for r in ratios]
        following = math.fsum(posteriors) / len(ratios)
        if following == rate:
            break
        rate = following
    return rate


def slow_interval(logits, carried, rate):
    """Where the likelihood ratio statistic, summed by loops, passes the 90% point of chi-squared."""

    def statistic(t):
        def likelihood(p):
            terms = [1 - p + p * math.exp(f) * (1 - carried) / carried for f in logits]
            return math.fsum(math.log(term) for term in terms) if min(terms) > 0 else -math.inf

        return 2 * (likelihood(rate) - likelihood(t)) - 2.705543454095404

    lower = 0.0 if rate == 0 or statistic(0.0) <= 0 else brentq(statistic, 1e-12, rate, xtol=1e-14)
    upper = 1.0 if rate == 1 or statistic(1.0) <= 0 else brentq(statistic, rate, 1 - 1e-12, xtol=1e-14)
    return lower, upper


@pytest.mark.parametrize("rate", [0.03, 0.3, 0.8])
@pytest.mark.parametrize("distance", [1.5, 3.0, 6.0])
def test_rates_and_intervals_are_those_of_a_slow_reference(rate, distance):
    logits = simulated_logits(rate, carried=0.4, distance=distance, shape=(60,), seed=5)
    estimate = estimate_rates(logits, carried=0.4)
    reference = slow_rate(logits, 0.4)
    interval = slow_interval(logits, 0.4, float(estimate.rates))
    assert 0.001 < reference < 0.999
    assert float(estimate.rates) == pytest.approx(reference, abs=1e-10)
    assert (float(estimate.lower), float(estimate.upper)) == pytest.approx(interval, abs=1e-10)
    assert bool(estimate.converged)


def test_the_rate_is_the_fixed_point_of_the_adjusted_probabilities():
    logits = simulated_logits(0.3, carried=0.1, distance=2.0, shape=(500, 4), seed=1)
    rates = estimate_rates(logits, carried=0.1).rates
    adjusted = expit(adjust_sigmoid(logits, carried=0.1, target=rates))
    np.testing.assert_allclose(adjusted.mean(axis=0), rates, atol=1e-12)


def test_a_perfect_scorer_gives_the_share_of_positives_and_its_binomial_interval():
    estimate = estimate_rates(np.array([math.inf] * 3 + [-math.inf] * 7), carried=0.9)

    def statistic(t):
        return 2 * (3 * math.log(0.3 / t) + 7 * math.log(0.7 / (1 - t))) - 2.705543454095404

    assert float(estimate.rates) == pytest.approx(0.3, abs=1e-14)
    assert float(estimate.lower) == pytest.approx(brentq(statistic, 1e-9, 0.3), abs=1e-10)
    assert float(estimate.upper) == pytest.approx(brentq(statistic, 0.3, 1 - 1e-9), abs=1e-10)


@pytest.mark.parametrize("strength", [3.0, 50.0, 1000.0, math.inf])
def test_samples_of_one_side_put_the_rate_at_the_boundary_and_the_interval_beside_it(strength):
    negatives = estimate_rates(np.full(20, -strength), carried=0.5)
    positives = estimate_rates(np.full(20, strength), carried=0.5)
    assert (float(negatives.rates), float(negatives.lower)) == (0.0, 0.0)
    assert (float(positives.rates), float(positives.upper)) == (1.0, 1.0)
    # 40 log(1 - t(1 - e^-strength)) = -2.7055
    reach = (1 - math.exp(-2.705543454095404 / 40)) / (1 - math.exp(-strength))
    assert float(negatives.upper) == pytest.approx(reach, abs=1e-10)
    assert float(positives.lower) == pytest.approx(1 - reach, abs=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_that_say_nothing_leave_the_carried_rate_and_the_whole_interval(dtype):
    estimate = estimate_rates(np.full((30, 2), log_odds(0.3), dtype=dtype), carried=[0.3, 0.9])
    assert float(estimate.rates[0]) == 0.3
    assert (float(estimate.lower[0]), float(estimate.upper[0])) == (0.0, 1.0)
    assert float(estimate.rates[1]) == 0.0
    assert estimate.converged.all()


@pytest.mark.parametrize("logit", [-5.0, 0.3, 5.0])
def test_one_sample_tells_little(logit):
    estimate = estimate_rates(np.array([logit]), carried=0.5)
    assert float(estimate.rates) == float(logit > 0)
    assert float(estimate.upper - estimate.lower) > 0.7


@PROPERTY
@given(
    st.lists(st.floats(-800, 800), min_size=1, max_size=12),
    st.floats(1e-9, 1 - 1e-9),
    st.floats(0.01, 0.999),
)
def test_any_logits_give_ordered_rates_within_zero_and_one(values, carried, level):
    estimate = estimate_rates(np.array(values), carried=carried, level=level)
    assert 0 <= estimate.lower <= estimate.rates <= estimate.upper <= 1
    assert bool(estimate.converged)


@PROPERTY
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_what_the_logits_carry_makes_no_difference_once_it_is_named(seed, carried, other):
    logits = simulated_logits(0.3, carried, 2.0, (40, 2), seed)
    moved = adjust_sigmoid(logits, carried=carried, target=other)
    first, second = estimate_rates(logits, carried=carried), estimate_rates(moved, carried=other)
    for name in ("rates", "lower", "upper"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=1e-9)


@PROPERTY
@given(st.integers(0, 2**32 - 1))
def test_swapping_positive_and_negative_mirrors_the_estimate(seed):
    logits = simulated_logits(0.3, 0.2, 2.0, (40, 3), seed)
    there, mirrored = estimate_rates(logits, carried=0.2), estimate_rates(-logits, carried=0.8)
    np.testing.assert_allclose(mirrored.rates, 1 - there.rates, atol=1e-10)
    np.testing.assert_allclose(mirrored.upper, 1 - there.lower, atol=1e-10)
    np.testing.assert_allclose(mirrored.lower, 1 - there.upper, atol=1e-10)


def test_labels_do_not_influence_each_other_whatever_the_blocks(monkeypatch):
    carried = np.array([0.1, 0.5, 0.3, 0.9, 0.2])
    logits = simulated_logits([0.3, 0.0, 1.0, 0.5, 0.01], carried, 2.0, (50, 5), seed=3)
    whole = estimate_rates(logits, carried=carried)
    monkeypatch.setattr(_blocks.for_blocks, "__kwdefaults__", {"entries": 101})
    blocked = estimate_rates(logits, carried=carried)
    for label in range(5):
        alone = estimate_rates(logits[:, label], carried=carried[label])
        for name in ("rates", "lower", "upper", "converged"):
            assert getattr(alone, name).shape == ()
            np.testing.assert_allclose(getattr(alone, name), getattr(whole, name)[label], atol=1e-12)
            np.testing.assert_allclose(getattr(blocked, name)[label], getattr(whole, name)[label], atol=1e-12)


@every_kind_of("scores")
def test_every_kind_of_scores_is_worked_on_in_float64(kind):
    logits = exact(simulated_logits(0.3, 0.5, 2.0, (200, 2), seed=0))
    estimate = estimate_rates(kind(logits), carried=0.5)
    assert estimate.rates.dtype == np.float64
    np.testing.assert_allclose(estimate.rates, estimate_rates(logits, carried=0.5).rates, rtol=1e-12)


@every_kind_of("vector")
def test_every_kind_of_vector_is_a_binary_model_or_rates(kind):
    logits = exact(simulated_logits(0.3, 0.5, 2.0, (200,), seed=0))
    found, expected = estimate_rates(kind(logits), carried=0.5), estimate_rates(logits, carried=0.5)
    assert found.rates.shape == ()
    assert float(found.rates) == pytest.approx(float(expected.rates), rel=1e-12)
    many = exact(simulated_logits(0.3, 0.5, 2.0, (50, 3), seed=0))
    one = estimate_rates(many, carried=kind(np.array([0.25, 0.5, 0.75])))
    np.testing.assert_allclose(one.rates, estimate_rates(many, carried=[0.25, 0.5, 0.75]).rates, rtol=1e-12)


def test_rates_are_matched_to_columns_by_name():
    logits = simulated_logits(0.3, 0.5, 2.0, (50, 3), seed=0)
    table = pandas.DataFrame(logits, columns=["cat", "dog", "owl"])
    found = estimate_rates(table, carried={"owl": 0.7, "cat": 0.1, "dog": 0.5})
    np.testing.assert_allclose(found.rates, estimate_rates(logits, carried=[0.1, 0.5, 0.7]).rates, rtol=1e-12)
    with pytest.raises(ValueError, match="`carried` to name the same classes, but missing are 'owl'"):
        estimate_rates(table, carried={"cow": 0.7, "cat": 0.1, "dog": 0.5})


def test_the_logits_are_left_alone_whatever_their_layout():
    logits = simulated_logits(0.3, 0.5, 2.0, (200, 2), seed=0)
    for values in (logits, np.asfortranarray(logits), logits[:, :1], logits[:, 0].copy()):
        before = values.copy()
        estimate_rates(values, carried=0.4)
        np.testing.assert_array_equal(values, before)


def test_read_only_and_strided_arrays_are_read_and_left_alone():
    logits = simulated_logits(0.3, 0.5, 2.0, (200, 2), seed=0)
    logits.setflags(write=False)
    first = estimate_rates(logits, carried=0.5)
    second = estimate_rates(np.asfortranarray(logits)[::-1], carried=0.5)
    np.testing.assert_allclose(first.rates, second.rates, atol=1e-12)


@pytest.mark.slow
# 2,000 draws have a standard error of 0.7 points at 90%. A rate of 0.01 is 4 positives in 400.
@pytest.mark.parametrize(
    ("rate", "least", "most"),
    [(0.5, 0.88, 0.92), (0.1, 0.88, 0.92), (0.05, 0.88, 0.92), (0.01, 0.85, 0.97), (0.0, 0.94, 0.99)],
)
@pytest.mark.parametrize("distance", [1.5, 3.0])
def test_the_intervals_of_2000_draws_cover_the_true_rate(rate, least, most, distance):
    logits = simulated_logits(rate, carried=0.2, distance=distance, shape=(400, 2000), seed=1)
    estimate = estimate_rates(logits, carried=0.2, level=0.9)
    covered = ((estimate.lower <= rate) & (rate <= estimate.upper)).mean()
    assert least <= covered <= most


def test_a_higher_level_gives_a_wider_interval():
    logits = simulated_logits(0.3, 0.2, 2.0, (100, 3), seed=0)
    narrow, wide = (estimate_rates(logits, carried=0.2, level=level) for level in (0.5, 0.99))
    np.testing.assert_array_equal(narrow.rates, wide.rates)
    assert (wide.lower < narrow.lower).all()
    assert (narrow.upper < wide.upper).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"carried": 1.0}, ValueError, "`carried` above 0 and below 1, but got 1."),
        ({"carried": [0.5, 0.0, 0.5]}, ValueError, "`carried` above 0 and below 1, but got 0 for label 1."),
        (
            {"carried": [0.5]},
            ValueError,
            "`carried` to be one number or one per label, 3, but got shape (1,)",
        ),
        ({"logits": np.zeros(3), "carried": [0.5] * 3}, ValueError, "`carried` to be one number, but got"),
        ({"carried": None}, TypeError, "`carried` to be one number or one per label, but got None"),
        ({"level": 1.0}, ValueError, "`level` between 0 and 1, exclusive, but got 1.0"),
        ({"logits": np.array([[0, 0, np.nan]])}, ValueError, "`logits` without NaN, but got NaN for label 2"),
        ({"logits": np.zeros((0, 3))}, ValueError, "at least one sample and one label, but got shape (0, 3)"),
        ({"logits": np.zeros((2, 3, 4))}, ValueError, "`logits` of shape [N] or [N, L]"),
        ({"logits": np.zeros((2, 3), int)}, TypeError, "`logits` to be floating-point, but got dtype int64"),
        ({"logits": "scores"}, TypeError, "`logits` to be real numbers, but got 'scores'"),
    ],
)
def test_estimating_is_refused_in_words(changes, error, message):
    arguments = {"logits": scores(4, 3), "carried": 0.5} | changes
    with pytest.raises(error, match=re.escape(message)):
        estimate_rates(arguments.pop("logits"), **arguments)
