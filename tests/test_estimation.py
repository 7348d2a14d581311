"""The target prior in one call, what is done with it, and the commands that do both."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priorshift import Prior, adjust
from priorshift.adjustment import CALIBRATIONS, fit_scaling
from priorshift.cli import main
from priorshift.estimation import METHODS as TABLE
from priorshift.estimation import Likelihood, empirical_bayes, estimate_prior, label_shift_test
from priorshift.evaluation import (
    adapt,
    evaluate,
    oracle_gap,
    oracle_gaps_by_method,
    scores_by_target_prior,
)
from priorshift.predictions import Predictions

CENTERS = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.5, 2.5]])
SOURCE = Prior([0.6, 0.2, 0.15, 0.05])
METHODS = ("empirical-bayes", "mlls", "mapls", "bbse", "bbse-hard", "rlls", "rlls-hard")


def population(mix, size, seed, carried=SOURCE, sharpness=1.0):
    """Samples of four Gaussians with this mix, with the exact log-posterior under `carried` as logits."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, size=size, p=Prior(mix).probs)
    points = CENTERS[labels] + rng.normal(size=(size, 2))
    evidence = -((points[:, None] - CENTERS) ** 2).sum(axis=2) / 2
    logits = sharpness * (evidence + as_prior(carried).log_probs)
    return Predictions(
        logits=logits,
        labels=labels,
        carried=as_prior(carried),
        train_counts=(1000 * as_prior(carried).probs).round().astype(int),
        class_names=("a", "b", "c", "d"),
        method="Exact",
    )


def as_prior(mix):
    return mix if isinstance(mix, Prior) else Prior(mix)


def unlabelled(predictions):
    return replace(predictions, labels=None)


@pytest.fixture(scope="module")
def held_out():
    return population(SOURCE.probs, 1500, seed=100)


# What every method does


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mix", [[0.1, 0.2, 0.3, 0.4], [0.6, 0.2, 0.15, 0.05], [0.0, 0.5, 0.5, 0.0]])
def test_a_shifted_mix_is_found_to_within_a_few_points(method, mix, held_out):
    predictions = population(mix, 2000, seed=3)
    estimate = estimate_prior(unlabelled(predictions), method=method, validation=held_out)
    error = np.abs(estimate.prior.probs - mix).max()
    assert error < (0.15 if method == "mapls" else 0.07)
    assert estimate.prior.probs.min() >= 0
    assert estimate.prior.probs.sum() == pytest.approx(1.0, abs=1e-12)
    assert estimate.num_samples == 2000 and estimate.method == method


@pytest.mark.parametrize("method", METHODS)
def test_classes_in_another_order_give_the_same_shares_in_that_order(method, held_out):
    order = np.array([2, 0, 3, 1])
    predictions = population([0.1, 0.2, 0.3, 0.4], 300, seed=4)

    def reordered(each):
        return replace(
            each,
            logits=each.logits[:, order],
            labels=np.argsort(order)[each.labels],
            carried=Prior(each.carried.probs[order]),
            train_counts=None,
            class_names=None,
        )

    straight = estimate_prior(predictions, method=method, validation=held_out).prior.probs
    crossed = estimate_prior(
        reordered(predictions), method=method, validation=reordered(held_out)
    ).prior.probs
    np.testing.assert_allclose(crossed, straight[order], atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_constants_on_the_logits_of_a_sample_and_the_order_of_samples_change_nothing(method, held_out):
    predictions = population([0.1, 0.2, 0.3, 0.4], 300, seed=5)
    rng = np.random.default_rng(0)
    moved = predictions.logits + 50 * rng.normal(size=(300, 1))
    shuffled = rng.permutation(moved)
    first = estimate_prior(predictions, method=method, validation=held_out)
    second = estimate_prior(shuffled, carried=SOURCE, method=method, validation=held_out)
    np.testing.assert_allclose(first.prior.probs, second.prior.probs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_torch_and_numpy_logits_in_either_precision_give_the_same(method, held_out):
    torch = pytest.importorskip("torch")
    logits = population([0.1, 0.2, 0.3, 0.4], 300, seed=6).logits
    validation = (torch.from_numpy(held_out.logits), torch.from_numpy(held_out.labels))
    expected = estimate_prior(logits, carried=SOURCE, method=method, validation=held_out).prior.probs
    tensor = torch.from_numpy(logits)
    for form in (tensor, tensor.float().requires_grad_(), logits.astype(np.float32), logits.tolist()):
        found = estimate_prior(form, carried=torch.tensor(SOURCE.probs), method=method, validation=validation)
        assert isinstance(found.prior.probs, np.ndarray)
        np.testing.assert_allclose(found.prior.probs, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 3])
def test_one_sample_and_samples_of_one_class_are_estimated_without_nan(method, size, held_out):
    logits = np.array([[0.0, -30.0, -30.0, -30.0]] * size)
    estimate = estimate_prior(logits, carried=SOURCE, method=method, validation=held_out)
    assert np.isfinite(estimate.prior.probs).all()
    assert estimate.prior.probs.argmax() == 0
    assert np.isfinite(estimate.adapt(logits)).all()


# Maximum likelihood


@given(seed=st.integers(0, 2**16), size=st.integers(50, 400))
@settings(deadline=None, derandomize=True, max_examples=15)
def test_what_an_exact_model_says_of_any_mix_lies_within_the_interval_for_nearly_every_class(seed, size):
    mix = np.random.default_rng(seed).dirichlet(np.ones(4))
    predictions = population(mix, size, seed)
    estimate = estimate_prior(predictions, intervals="likelihood", level=0.999)
    assert (estimate.intervals.lower <= mix).all() and (mix <= estimate.intervals.upper).all()


def test_many_classes_are_profiled_when_asked_for_alone(monkeypatch):
    from priorshift.estimation import _estimate

    predictions = population([0.1, 0.2, 0.3, 0.4], 60, seed=42)
    monkeypatch.setattr(_estimate, "_PROFILED", 3)
    assert estimate_prior(predictions).intervals is None
    assert estimate_prior(predictions, intervals="likelihood").intervals is not None


@pytest.mark.parametrize("kind", ["likelihood", "bootstrap"])
def test_without_shift_the_source_lies_within_the_interval(kind, held_out):
    predictions = population(SOURCE.probs, 1000, seed=9)
    estimate = estimate_prior(predictions, validation=held_out, intervals=kind, level=0.99, draws=60)
    assert (estimate.intervals.lower <= SOURCE.probs).all()
    assert (SOURCE.probs <= estimate.intervals.upper).all()
    assert estimate.log_likelihood < 0.01


def test_an_absent_class_gets_a_share_near_zero_and_an_interval_from_zero():
    predictions = population([0.3, 0.3, 0.4, 0.0], 3000, seed=9)
    estimate = estimate_prior(predictions)
    assert estimate.prior.probs[3] < 0.02
    assert estimate.intervals.lower[3] == 0


@pytest.mark.parametrize("carried", [[0.25, 0.25, 0.25, 0.25], [0.1, 0.1, 0.1, 0.7]])
def test_logits_that_carry_any_prior_give_the_same_estimate(carried):
    mix = [0.2, 0.3, 0.4, 0.1]
    usual, other = population(mix, 500, 10), population(mix, 500, 10, carried=carried)
    np.testing.assert_allclose(
        estimate_prior(usual, method="mlls").prior.probs,
        estimate_prior(other, method="mlls").prior.probs,
        atol=1e-6,
        rtol=0,
    )


def test_the_certificate_and_the_gain_are_those_of_the_likelihood():
    predictions = population([0.1, 0.2, 0.3, 0.4], 800, seed=11)
    estimate = estimate_prior(predictions, method="mlls")
    densities = np.exp(predictions.logits - SOURCE.log_probs)
    density = densities @ estimate.prior.probs
    gradient = (densities / density[:, None]).mean(axis=0)
    gain = (np.log(density) - np.log(densities @ SOURCE.probs)).mean()
    assert np.log(gradient.max()) <= max(estimate.shortfall, 1e-9) + 1e-9
    assert estimate.log_likelihood == pytest.approx(gain, abs=1e-9)
    assert estimate.converged and estimate.steps > 0


def test_empirical_bayes_is_maximum_likelihood_after_a_clear_shift_and_nearer_the_source_without_one():
    far = population([0.02, 0.08, 0.2, 0.7], 400, seed=30)
    np.testing.assert_allclose(
        estimate_prior(far).prior.probs, estimate_prior(far, method="mlls").prior.probs, atol=0.01, rtol=0
    )
    errors = {"empirical-bayes": 0.0, "mlls": 0.0}
    for seed in range(31, 41):
        near = population(SOURCE.probs, 100, seed=seed)
        for method in errors:
            found = estimate_prior(near, method=method, intervals="none").prior.probs
            errors[method] += np.abs(found - SOURCE.probs).mean()
    assert errors["empirical-bayes"] < 0.6 * errors["mlls"]


def test_empirical_bayes_maximizes_the_dirichlet_multinomial_evidence_of_what_the_sample_is_worth():
    from scipy.special import gammaln

    near = population(SOURCE.probs, 150, seed=41)
    ratios = near.logits - SOURCE.log_probs
    likelihood = Likelihood(ratios)
    counts = 120.0 * likelihood.maximize().prior.probs

    def evidence(strength):
        alpha = 1 + strength * SOURCE.probs
        return (
            gammaln(alpha.sum())
            - gammaln(alpha.sum() + counts.sum())
            + (gammaln(alpha + counts) - gammaln(alpha)).sum()
        )

    strengths = np.concatenate([[0.0], np.logspace(-1, 6, 141)])
    best = strengths[np.argmax([evidence(strength) for strength in strengths])]
    found = empirical_bayes(likelihood, SOURCE, effective_sample_size=120.0)
    densities = np.exp(ratios)
    share = densities * found.prior.probs / (densities @ found.prior.probs)[:, None]
    posterior_mean = (share.sum(axis=0) + best * SOURCE.probs) / (150 + best)
    assert best > 0
    np.testing.assert_allclose(found.prior.probs, posterior_mean, atol=1e-4, rtol=0)


# Calibration, tests of the assumption, warnings


def test_calibration_undoes_overconfidence_and_its_absence_is_said(held_out):
    mix = np.array([0.1, 0.2, 0.3, 0.4])
    predictions = population(mix, 4000, seed=12, sharpness=2.5)
    validation = population(SOURCE.probs, 3000, seed=13, sharpness=2.5)
    crude = estimate_prior(predictions, method="mlls")
    careful = estimate_prior(predictions, method="mlls", validation=validation)
    assert careful.scaling.method == "bcts"
    assert np.abs(careful.prior.probs - mix).max() < np.abs(crude.prior.probs - mix).max()
    assert "not calibrated" in crude.warnings[0]
    assert not any("not calibrated" in sentence for sentence in careful.warnings)
    assert careful.carried.probs == pytest.approx(np.bincount(validation.labels) / 3000)


def test_a_fitted_scaling_is_used_as_it_is(held_out):
    predictions = population([0.1, 0.2, 0.3, 0.4], 400, seed=14)
    scaling = fit_scaling(held_out.logits, held_out.labels, method="ts", carried=SOURCE)
    given_one = estimate_prior(predictions, calibration=scaling)
    named = estimate_prior(predictions, calibration="ts", validation=held_out)
    np.testing.assert_allclose(given_one.prior.probs, named.prior.probs, atol=1e-9, rtol=0)
    assert given_one.scaling is scaling and given_one.shift_test is None


def test_the_test_of_label_shift_is_made_of_the_raw_logits_and_warns(held_out):
    fine = population([0.1, 0.2, 0.3, 0.4], 1500, seed=15)
    few = estimate_prior(fine, validation=held_out)
    assert few.shift_test.p_value is None and "too few labelled source samples" in few.warnings[0]
    held_out = population(SOURCE.probs, 4000, seed=101)
    estimate = estimate_prior(fine, validation=held_out)
    expected = label_shift_test(held_out.logits, held_out.labels, fine.logits)
    assert estimate.shift_test == expected
    broken = replace(fine, logits=fine.logits * 0.3)
    warned = estimate_prior(broken, validation=held_out)
    assert warned.shift_test.p_value < 0.001
    assert warned.shift_test.words in warned.warnings
    assert fine.logits is not None and estimate_prior(fine).shift_test is None


def test_a_scorer_that_says_nothing_is_named():
    silent = np.zeros((50, 3))
    found = estimate_prior(silent, carried=[0.5, 0.3, 0.2], validation=(silent, np.arange(50) % 3))
    assert any("next to no information" in sentence for sentence in found.warnings)


def test_a_bootstrap_holds_the_estimate_even_where_classes_cannot_be_told_apart():
    logits = population([0.1, 0.2, 0.3, 0.4], 60, seed=43).logits
    doubled = np.concatenate([logits, logits[:, :1]], axis=1)
    found = estimate_prior(doubled, carried=[0.2] * 5, method="mlls", intervals="bootstrap", draws=20)
    assert (found.intervals.lower <= found.prior.probs + 1e-9).all()
    assert (found.prior.probs <= found.intervals.upper + 1e-9).all()


def test_a_bootstrap_fits_the_calibration_again_and_is_wider_than_without(held_out):
    predictions = population([0.4, 0.3, 0.2, 0.1], 300, seed=16)
    few = population(SOURCE.probs, 60, seed=17)
    fitted = estimate_prior(predictions, validation=few, intervals="bootstrap", draws=80)
    fixed = estimate_prior(predictions, calibration=fitted.scaling, intervals="bootstrap", draws=80)
    np.testing.assert_allclose(fitted.prior.probs, fixed.prior.probs)
    widths = [each.intervals.upper - each.intervals.lower for each in (fitted, fixed)]
    assert widths[0].sum() > 1.02 * widths[1].sum()
    again = estimate_prior(predictions, validation=few, intervals="bootstrap", draws=80)
    assert np.array_equal(again.intervals.lower, fitted.intervals.lower)


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"carried": [0.5, 0.5, 0.0, 0.0]}, "`carried`.*class"),
        ({"carried": None}, "Expected `carried`"),
        ({"carried": [0.5, 0.5]}, "`carried`"),
        ({"method": "em"}, "`method` to be one of empirical-bayes, mlls.*'em'"),
        ({"method": "bbse"}, "`validation` data for the method 'bbse'"),
        ({"calibration": "bcts"}, "`validation` data to fit 'bcts'"),
        ({"calibration": "platt"}, "`calibration` to be one of none.*'platt'"),
        ({"intervals": "normal"}, "`intervals` to be one of likelihood.*'normal'"),
        ({"method": "mapls", "intervals": "bootstrap"}, "`intervals` to be 'none' for the method 'mapls'"),
        ({"level": 1.5}, "`level`"),
        ({"predictions": np.zeros((0, 4))}, r"`predictions` of shape \[N, C\], N ≥ 1"),
        ({"predictions": np.zeros(4)}, r"shape \[N, C\]"),
        ({"predictions": np.full((2, 4), np.nan)}, r"`predictions` to be finite.*sample 0"),
        ({"predictions": np.full((2, 4), -np.inf)}, r"`predictions` to be finite.*sample 0"),
        ({"predictions": np.full((2, 4), 0.25)}, r"`predictions`.*probabilities.*`Predictions.from_probs`"),
        ({"validation": (np.full((3, 4), 0.25), [0, 1, 2])}, r"`validation`.*probabilities"),
        ({"validation": (np.zeros((3, 4)), [0, 1])}, r"labels of `validation`.*one entry per sample, \(3,\)"),
        ({"validation": (np.zeros((3, 4)), [1, 2, 4])}, r"labels of `validation`.*subtract 1"),
        ({"validation": (np.zeros((3, 4)), np.eye(4)[:3])}, r"labels of `validation`.*one-hot"),
        ({"validation": (np.zeros((3, 4)), None)}, "`validation` with labels"),
        ({"level": 0.0, "intervals": "none"}, "`level` between 0 and 1"),
        ({"validation": (np.zeros((3, 5)), [0, 1, 2])}, "`validation` with 4 classes, but got 5"),
    ],
)
def test_bad_input_is_named(change, message):
    options = {"predictions": np.zeros((3, 4)), "carried": SOURCE, **change}
    with pytest.raises(ValueError, match=message):
        estimate_prior(options.pop("predictions"), **options)


def test_integer_logits_and_validation_of_another_scorer_or_without_labels_are_refused(held_out):
    with pytest.raises(TypeError, match="floating-point"):
        estimate_prior(np.zeros((3, 4), dtype=int), carried=SOURCE)
    predictions = population([0.1, 0.2, 0.3, 0.4], 20, seed=18)
    with pytest.raises(ValueError, match="with labels"):
        estimate_prior(predictions, validation=unlabelled(held_out))
    other = population(SOURCE.probs, 100, seed=19, carried=[0.25] * 4)
    with pytest.raises(ValueError, match="same scorer"):
        estimate_prior(predictions, validation=other)


def test_a_scaling_for_logits_that_carry_another_prior_is_refused(held_out):
    predictions = population([0.1, 0.2, 0.3, 0.4], 20, seed=18)
    scaling = fit_scaling(held_out.logits, held_out.labels, carried=[0.25] * 4)
    with pytest.raises(ValueError, match="`calibration` fitted for logits that carry the prior"):
        estimate_prior(predictions, calibration=scaling)


def test_validation_of_another_number_of_classes_is_refused_as_predictions_too():
    predictions = population([0.1, 0.2, 0.3, 0.4], 20, seed=18)
    other = Predictions(logits=np.zeros((3, 5)), carried=Prior.uniform(5), labels=[0, 1, 2])
    with pytest.raises(ValueError, match=r"`validation` with 4 classes, but got 5|of the same scorer"):
        estimate_prior(predictions, validation=other)


def test_arrays_of_any_layout_are_read_and_other_kinds_refused(held_out):
    logits = population([0.1, 0.2, 0.3, 0.4], 50, seed=18).logits
    expected = estimate_prior(logits, carried=SOURCE, validation=[held_out.logits, held_out.labels])
    for form in (logits[::-1], logits.astype(">f8"), np.asfortranarray(logits), logits.astype(np.longdouble)):
        form.setflags(write=False)
        found = estimate_prior(form, carried=SOURCE, validation=held_out)
        np.testing.assert_allclose(found.prior.probs, expected.prior.probs, atol=1e-8, rtol=0)
    for other in ("logits", object(), {"a": 1.0}):
        with pytest.raises(TypeError, match="`predictions`"):
            estimate_prior(other, carried=SOURCE)
    with pytest.raises(TypeError, match="`validation` to be Predictions or a pair"):
        estimate_prior(logits, carried=SOURCE, validation=(logits, [0], 1))


def test_impossible_classes_are_estimated_but_not_weighed_apart(held_out):
    logits = population([0.3, 0.3, 0.4, 0.0], 200, seed=18).logits.copy()
    logits[:, 3] = -np.inf
    found = estimate_prior(logits, carried=SOURCE, method="mlls", validation=held_out)
    assert found.prior.probs[3] < 1e-6
    with pytest.raises(ValueError, match="finite `logits` for the scaling 'vs'"):
        estimate_prior(logits, carried=SOURCE, validation=held_out, calibration="vs")


# Adapting


def test_predictions_that_carry_another_prior_or_are_adapted_already_are_refused(held_out):
    predictions = population([0.3, 0.3, 0.4, 0.0], 200, seed=20)
    estimate = estimate_prior(predictions, validation=held_out)
    for wrong in (adapt(predictions, estimate), predictions.adjusted([0.25] * 4)):
        for use in (adapt, scores_by_target_prior):
            with pytest.raises(ValueError, match="of another scorer, or adapted already"):
                use(wrong, estimate)


def test_adapting_is_calibrating_and_moving_to_the_estimate_with_one_sample_spread_over_all(held_out):
    predictions = population([0.3, 0.3, 0.4, 0.0], 200, seed=20)
    estimate = estimate_prior(predictions, validation=held_out)
    target = (200 * estimate.prior.probs + 0.25) / 201
    np.testing.assert_allclose(estimate.target.probs, target)
    expected = adjust(estimate.scaling(predictions.logits), carried=estimate.scaling.carried, target=target)
    adapted = adapt(predictions, estimate)
    np.testing.assert_allclose(adapted.logits, expected)
    assert np.isfinite(adapted.logits).all()
    np.testing.assert_allclose(adapted.carried.probs, target)
    assert "estimated from 200 samples by empirical-bayes" in adapted.facts["target"]
    assert isinstance(estimate.adapt(predictions.logits), np.ndarray)


def test_adapted_predictions_can_be_saved_and_moved_on_to_another_mix(tmp_path):
    predictions = population([0.3, 0.3, 0.4, 0.0], 200, seed=21)
    adapted = adapt(predictions, estimate_prior(predictions))
    adapted.save(tmp_path / "a.safetensors")
    back = Predictions.load(tmp_path / "a.safetensors").adjusted(SOURCE)
    np.testing.assert_allclose(back.log_probs, predictions.log_probs, atol=1e-9, rtol=0)


def test_scores_by_target_prior_are_those_of_three_priors():
    predictions = population([0.05, 0.15, 0.3, 0.5], 1000, seed=22)
    estimate = estimate_prior(predictions)
    scores = scores_by_target_prior(predictions, estimate)
    truth = np.bincount(predictions.labels) / 1000.0
    for known, prior in (("none", SOURCE), ("estimated", estimate.target), ("oracle", Prior(truth))):
        predicted = predictions.adjusted(prior).predicted
        assert scores[known]["accuracy"] == pytest.approx((predicted == predictions.labels).mean())
    calibrated = estimate_prior(
        predictions,
        calibration=fit_scaling(predictions.logits, predictions.labels, method="ts", carried=SOURCE),
    )
    assert scores_by_target_prior(predictions, calibrated)["none"] == scores["none"]
    assert scores["none"]["nll"] > scores["estimated"]["nll"] > scores["oracle"]["nll"] - 0.01
    with pytest.raises(ValueError, match="`labels`"):
        scores_by_target_prior(unlabelled(predictions), estimate)


def test_the_gap_is_the_oracle_less_the_estimate_on_the_exact_mix():
    predictions = population([0.25] * 4, 1200, seed=23)
    target = Prior([0.1, 0.1, 0.3, 0.5])
    gap = oracle_gap(
        predictions, target, size=400, draws=6, estimate=lambda drawn: estimate_prior(drawn, intervals="none")
    )
    oracle = evaluate(predictions, target).scores["accuracy"]
    nothing = evaluate(predictions, target, compensate=False).scores["accuracy"]
    assert gap.accuracy["oracle"].mean == pytest.approx(oracle)
    assert gap.accuracy["oracle"].sd == pytest.approx(0, abs=1e-12)
    assert gap.accuracy["none"].mean == pytest.approx(nothing)
    assert gap.gap.mean == pytest.approx(oracle - gap.accuracy["estimated"].mean)
    assert nothing < gap.accuracy["estimated"].mean and abs(gap.gap.mean) < 0.01
    assert 0.005 < gap.sampling_error.mean < gap.error.mean < 0.05
    assert gap.size == 400 and gap.gap.runs == 6


def test_a_gap_draws_samples_of_the_mix_without_their_labels():
    predictions = population([0.25] * 4, 600, seed=24)
    seen = []

    def estimate(drawn):
        seen.append(drawn)
        return estimate_prior(drawn, intervals="none")

    oracle_gap(predictions, [0.5, 0.5, 0.0, 0.0], size=300, draws=3, estimate=estimate)
    assert all(drawn.labels is None and drawn.num_samples == 300 for drawn in seen)
    far = [(drawn.logits[:, 3] > drawn.logits[:, :3].max(axis=1)).mean() for drawn in seen]
    assert max(far) < 0.05
    assert not np.array_equal(seen[0].logits, seen[1].logits)


@pytest.mark.parametrize("option", ["size", "draws"])
def test_a_gap_needs_labels_and_positive_numbers(option):
    predictions = population([0.25] * 4, 60, seed=25)
    with pytest.raises(ValueError, match=f"`{option}` to be at least 1.*but got 0"):
        oracle_gap(predictions, SOURCE, estimate=estimate_prior, **{option: 0})
    with pytest.raises(ValueError, match="`labels`"):
        oracle_gap(unlabelled(predictions), SOURCE, estimate=estimate_prior)


def test_oracle_gaps_by_method_are_one_per_run_and_mix(held_out):
    runs = [(population([0.25] * 4, 400, seed=seed), held_out) for seed in (26, 27)]
    gaps = oracle_gaps_by_method(runs, ("uniform", "backward:5"), size=200, draws=2)
    assert {method: {mix: len(each) for mix, each in mixes.items()} for method, mixes in gaps.items()} == {
        "Exact": {"uniform": 2, "backward:5": 2}
    }
    with pytest.raises(ValueError, match="`train_counts`"):
        oracle_gaps_by_method([(replace(runs[0][0], train_counts=None), held_out)])


# The commands


@pytest.fixture
def files(tmp_path, held_out):
    population([0.1, 0.2, 0.3, 0.4], 400, seed=28).save(tmp_path / "test.safetensors")
    held_out.save(tmp_path / "validation.safetensors")
    return tmp_path


def test_adapt_prints_the_mix_with_intervals_and_saves_what_python_gives(files, capsys, held_out):
    path = files / "test.safetensors"
    assert main(["adapt", str(path), "--validation", str(files / "validation.safetensors"),
                 "--report", str(files / "page.html")]) == 0  # fmt: skip
    said = capsys.readouterr().out
    predictions = Predictions.load(path)
    estimate = estimate_prior(predictions, validation=held_out)
    for share in estimate.prior.probs.tolist():
        assert f"{100 * share:.2f}" in said
    assert "90 % interval" in said and "accuracy gap" in said and "not calibrated" not in said
    saved = Predictions.load(files / "test-adapted.safetensors")
    np.testing.assert_allclose(saved.logits, adapt(predictions, estimate).logits)
    assert (files / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_adapt_without_labels_or_validation_prints_the_warnings(files, capsys):
    path = files / "bare.safetensors"
    unlabelled(Predictions.load(files / "test.safetensors")).save(path)
    assert main(["adapt", str(path), "--intervals", "none", "--output", str(files / "out.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "warning: The logits were not calibrated" in " ".join(said.split())
    assert "gap" not in said and "true" not in said and "interval" not in said


def test_adapt_shows_the_most_changed_of_many_classes(tmp_path, capsys):
    logits = 4 * np.random.default_rng(0).normal(size=(200, 50))
    Predictions(logits=logits, carried=Prior.uniform(50)).save(tmp_path / "many.safetensors")
    assert main(["adapt", str(tmp_path / "many.safetensors")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the 20 of 50 classes that changed most" in said


def test_validation_with_other_classes_or_of_the_same_samples_and_an_output_over_the_input_are_refused(
    files, capsys, held_out
):
    path, other = files / "test.safetensors", files / "other.safetensors"
    replace(held_out, class_names=("d", "c", "b", "a")).save(other)
    assert main(["adapt", str(path), "--validation", str(other)]) == 2
    assert "with the classes of the predictions" in capsys.readouterr().err
    replace(Predictions.load(path), fingerprint="ab12").save(path)
    assert main(["adapt", str(path), "--validation", str(path)]) == 2
    assert "on other samples than the predictions" in capsys.readouterr().err
    assert main(["adapt", str(path), "--output", str(path)]) == 2
    assert "another file than the predictions" in capsys.readouterr().err


def test_a_method_that_needs_validation_data_says_so_in_a_sentence(files, capsys):
    assert main(["adapt", str(files / "test.safetensors"), "--method", "bbse"]) == 2
    assert "`validation` data for the method 'bbse'" in capsys.readouterr().err


def test_evaluate_estimated_judges_the_samples_as_they_are(files, capsys, held_out):
    path = files / "test.safetensors"
    validation = str(files / "validation.safetensors")
    assert main(["evaluate", str(path), "--target", "estimated", "--validation", validation]) == 0
    said = capsys.readouterr().out
    predictions = Predictions.load(path)
    scores = scores_by_target_prior(predictions, estimate_prior(predictions, validation=held_out))
    for known in ("none", "estimated", "oracle"):
        assert f"{scores[known]['accuracy']:.4f}" in said
    assert main(["evaluate", str(path), "--target", "estimated", "--draws", "3"]) == 2
    assert main(["evaluate", str(path), "--validation", validation]) == 2
    assert "`--target estimated` only" in capsys.readouterr().err


def test_the_table_of_methods_is_what_the_function_and_the_command_take():
    from typing import get_args, get_type_hints

    from priorshift.commands.adapt import Arguments

    hints = get_type_hints(Arguments)
    assert get_args(hints["method"]) == tuple(TABLE) == METHODS
    assert get_args(get_args(hints["calibration"])[0]) == ("none", *CALIBRATIONS)
    assert inspect.signature(estimate_prior).parameters["level"].default == Arguments.level
    for name, row in TABLE.items():
        assert f"`{name}`" in estimate_prior.__doc__
        assert row.title and row.by_likelihood != row.needs_validation
        assert row.by_likelihood or not row.has_intervals


# Names


def named(predictions, names):
    return replace(predictions, class_names=names, carried=Prior(predictions.carried.probs))


@pytest.mark.parametrize("method", METHODS)
def test_shares_have_the_names_of_the_classes(method, held_out):
    predictions = population([0.1, 0.2, 0.3, 0.4], 300, seed=50)
    estimate = estimate_prior(predictions, method=method, validation=held_out)
    assert estimate.prior.names == estimate.target.names == estimate.carried.names == ("a", "b", "c", "d")
    bare = estimate_prior(
        predictions.logits,
        carried=SOURCE,
        method=method,
        validation=(held_out.logits, held_out.labels),
    )
    assert bare.prior.names is None
    np.testing.assert_allclose(bare.prior.probs, estimate.prior.probs, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_validation_with_its_classes_in_another_order_is_matched_by_name(method, held_out):
    predictions = population([0.1, 0.2, 0.3, 0.4], 300, seed=50)
    order = [2, 0, 3, 1]
    other = replace(
        held_out,
        logits=held_out.logits[:, order],
        labels=np.argsort(order)[held_out.labels],
        carried=Prior(SOURCE.probs[order]),
        train_counts=None,
        class_names=("c", "a", "d", "b"),
    )
    expected = estimate_prior(predictions, method=method, validation=held_out, intervals="none")
    found = estimate_prior(predictions, method=method, validation=other, intervals="none")
    np.testing.assert_allclose(found.prior.probs, expected.prior.probs, atol=1e-9)
    assert found.shift_test.statistic == pytest.approx(expected.shift_test.statistic, rel=1e-6)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_and_priors_are_matched_by_name_and_tables_come_back(library):
    frames = pytest.importorskip(library)
    logits = population([0.1, 0.2, 0.3, 0.4], 300, seed=51).logits
    table = frames.DataFrame({name: logits[:, index] for index, name in enumerate("abcd")})
    expected = estimate_prior(logits, carried=SOURCE)
    found = estimate_prior(table, carried={"d": 0.05, "c": 0.15, "b": 0.2, "a": 0.6})
    assert found.prior.names == ("a", "b", "c", "d")
    np.testing.assert_allclose(found.prior.probs, expected.prior.probs, atol=1e-9)
    adapted = found.adapt(table)
    assert type(adapted) is type(table) and list(adapted.columns) == ["a", "b", "c", "d"]
    np.testing.assert_allclose(adapted.to_numpy(), expected.adapt(logits), atol=1e-9)
    with pytest.raises(ValueError, match=r"`carried` to name the same classes.*'e'"):
        estimate_prior(table, carried={"e": 0.05, "c": 0.15, "b": 0.2, "a": 0.6})


def test_labels_may_be_names(held_out):
    predictions = population([0.1, 0.2, 0.3, 0.4], 300, seed=52)
    texts = np.array(["a", "b", "c", "d"])[held_out.labels]
    expected = estimate_prior(predictions, validation=(held_out.logits, held_out.labels))
    found = estimate_prior(predictions, validation=(held_out.logits, texts))
    np.testing.assert_allclose(found.prior.probs, expected.prior.probs)


def test_a_scaling_with_its_classes_in_another_order_is_refused(held_out):
    predictions = population([0.1, 0.2, 0.3, 0.4], 300, seed=53)
    order = [2, 0, 3, 1]
    scaling = fit_scaling(
        held_out.logits[:, order],
        np.argsort(order)[held_out.labels],
        carried=Prior(SOURCE.probs[order], names=("c", "a", "d", "b")),
    )
    with pytest.raises(ValueError, match="`calibration` with the classes in the order of `predictions`"):
        estimate_prior(predictions, calibration=scaling)


@pytest.mark.parametrize("method", METHODS)
def test_adapting_gives_back_the_kind_it_got(method, held_out):
    torch = pytest.importorskip("torch")
    predictions = population([0.1, 0.2, 0.3, 0.4], 100, seed=54)
    estimate = estimate_prior(predictions, method=method, validation=held_out)
    tensor = torch.from_numpy(predictions.logits).requires_grad_()
    adapted = estimate.adapt(tensor)
    assert isinstance(adapted, torch.Tensor) and adapted.requires_grad
    np.testing.assert_allclose(adapted.detach().numpy(), estimate.adapt(predictions.logits), atol=1e-12)
    row = estimate.adapt(predictions.logits[0])
    np.testing.assert_allclose(row, estimate.adapt(predictions.logits)[0], atol=1e-12)


def test_the_likelihood_is_built_once(held_out, monkeypatch):
    from priorshift.estimation import _likelihood

    calls, build = [], _likelihood._exponentials
    monkeypatch.setattr(_likelihood, "_exponentials", lambda *parts: calls.append(parts) or build(*parts))
    predictions = population([0.55, 0.2, 0.2, 0.05], 300, seed=55)
    estimate = estimate_prior(predictions, validation=held_out)
    assert estimate.intervals is not None and estimate.identifiability is not None
    assert len(calls) == 1
    estimate_prior(predictions, method="mapls")
    assert len(calls) == 2
