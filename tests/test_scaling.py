import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from kinds import column_names, every_kind_of, every_named_kind, exact
from priorshift import Prior, adjust
from priorshift.adjustment import CALIBRATIONS, Scaling, fit_scaling

METHODS = ["ts", "bcts", "vs", "nbvs"]
every_method = pytest.mark.parametrize("method", METHODS)


def scored_samples(num_samples=400, num_classes=4, *, scale=1.0, bias=None, prior=None, seed=0):
    """Samples whose true log posterior is `scale · logits + bias`, with labels drawn from it."""
    generator = np.random.default_rng(seed)
    prior = np.full(num_classes, 1 / num_classes) if prior is None else np.array(prior)
    bias = np.zeros(num_classes) if bias is None else np.array(bias)
    drawn = generator.choice(num_classes, size=num_samples, p=prior)
    points = generator.normal(size=(num_samples, num_classes)) + 1.5 * np.eye(num_classes)[drawn]
    # The exact posterior of these Gaussians is softmax(1.5 · point + log prior).
    logits = (1.5 * points + np.log(prior) - bias) / scale
    return logits, drawn


def reference_nll(z, labels, weights=None):
    weights = np.ones(len(labels)) if weights is None else weights
    return -(weights * log_softmax(z, axis=1)[np.arange(len(labels)), labels]).sum()


def reference_fit(logits, labels, method, ridge, carried=None):
    """Scales and biases by a general-purpose minimiser, in the logarithms of the scales."""
    num_classes = logits.shape[1]
    evidence, offset = logits, np.zeros(num_classes)
    if carried is not None:
        counts = np.maximum(np.bincount(labels, minlength=num_classes), 0.5)
        evidence, offset = logits - np.log(carried), np.log(counts / counts.sum())
    evidence = evidence - evidence.mean(axis=1, keepdims=True)
    hold = min(ridge, 1.0)

    def best(objective, size):
        found = minimize(objective, np.zeros(size), method="BFGS", options={"gtol": 1e-7, "maxiter": 2000})
        return found.x

    def temperature_objective(x):
        a = math.exp(x[0])
        return reference_nll(a * evidence + offset, labels) + hold * (a - 1 - x[0])

    a_ts = math.exp(best(temperature_objective, 1)[0])
    if method == "ts":
        return np.array([a_ts]), None
    shared, has_bias = method == "bcts", method != "nbvs"
    probs = np.exp(log_softmax(a_ts * evidence + offset, axis=1))
    information = probs * (1 - probs)
    unit = (information * (a_ts * evidence) ** 2).sum() / information.sum()
    num_scales = 1 if shared else num_classes

    def objective(x):
        rho, b = np.exp(x[:num_scales]), x[num_scales:] if has_bias else np.zeros(num_classes)
        strength = hold if shared else ridge * unit
        penalty = strength * (rho - 1 - x[:num_scales]).sum() + ridge / 2 * (b**2).sum()
        return reference_nll(a_ts * rho * evidence + b + offset, labels) + penalty

    x = best(objective, num_scales + (num_classes if has_bias else 0))
    return a_ts * np.exp(x[:num_scales]), x[num_scales:] if has_bias else None


@every_method
@pytest.mark.parametrize("carried", [None, [0.1, 0.2, 0.3, 0.4]])
@pytest.mark.parametrize("ridge", [0.3, 20.0])
def test_the_fit_is_the_one_of_a_general_purpose_minimiser(method, carried, ridge):
    logits, labels = scored_samples(bias=[0.5, -0.5, 1.0, -1.0], scale=0.6, prior=[0.4, 0.3, 0.2, 0.1])
    scaling = fit_scaling(logits, labels, method=method, carried=carried, ridge=ridge)
    scales, biases = reference_fit(logits, labels, method, ridge, carried)
    np.testing.assert_allclose(scaling.scale, scales, atol=2e-6)
    if biases is None:
        assert scaling.bias is None
    else:
        np.testing.assert_allclose(scaling.bias, biases, atol=1e-5)


def test_two_classes_without_shrinkage_are_plain_logistic_regression():
    logits, labels = scored_samples(300, 2, scale=0.5, bias=[1.0, 0.0])
    scaling = fit_scaling(logits, labels, ridge=1e-9)
    margin = (logits[:, 1] - logits[:, 0])[:, None]
    regression = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(margin, labels)
    assert scaling.scale.item() == pytest.approx(regression.coef_.item(), rel=1e-5)
    assert (scaling.bias[1] - scaling.bias[0]).item() == pytest.approx(regression.intercept_.item(), rel=1e-5)


@every_method
@pytest.mark.parametrize("ridge", [None, 5.0])
def test_the_gradient_vanishes_at_the_fit(method, ridge):
    torch = pytest.importorskip("torch")
    logits, labels = scored_samples(500, 6, scale=0.7, bias=[0.4, 0.1, 0, 0, -0.2, -0.3])
    scaling = fit_scaling(logits, labels, method=method, carried=np.ones(6), ridge=ridge)
    hold = 1.0 if ridge is None else min(ridge, 1.0)
    mix = np.bincount(labels, minlength=6) / 500
    evidence = torch.from_numpy(logits - logits.mean(axis=1, keepdims=True))
    ts = fit_scaling(logits, labels, method="ts", carried=np.ones(6), ridge=ridge).scale
    scale, ts = torch.tensor(scaling.scale), torch.tensor(ts)
    rho = (scale / ts).requires_grad_()
    bias = torch.tensor(np.zeros(6) if scaling.bias is None else scaling.bias).requires_grad_()

    def objective(temperature, rho, bias):
        z = temperature * rho * evidence + bias + torch.from_numpy(np.log(mix))
        return torch.nn.functional.cross_entropy(z, torch.from_numpy(labels), reduction="sum")

    if method == "ts":
        scale = scale.requires_grad_()
        loss = objective(scale, torch.ones(1), torch.zeros(6)) + hold * (scale - 1 - scale.log()).sum()
        wanted = [scale]
    else:
        probs = (ts * evidence + torch.from_numpy(np.log(mix))).softmax(1)
        spread = probs * (1 - probs)
        unit = (spread * (ts * evidence) ** 2).sum() / spread.sum()
        strength = hold if method == "bcts" else scaling.ridge * unit
        loss = (
            objective(ts, rho, bias)
            + strength * (rho - 1 - rho.log()).sum()
            + scaling.ridge / 2 * bias.square().sum()
        )
        wanted = [rho] if method == "nbvs" else [rho, bias]
    for gradient in torch.autograd.grad(loss, wanted):
        assert gradient.norm() / 500 <= 1e-10


def test_bias_corrected_probabilities_average_to_the_class_frequencies():
    logits, labels = scored_samples(prior=[0.55, 0.25, 0.15, 0.05], bias=[1, 0, 0, -1])
    scaling = fit_scaling(logits, labels, carried=[0.25] * 4, ridge=1e-9)
    mean = np.exp(log_softmax(scaling(logits), axis=1)).mean(axis=0)
    np.testing.assert_allclose(mean, np.bincount(labels) / len(labels), atol=1e-9)


@every_method
def test_a_known_miscalibration_is_recovered(method):
    bias = np.zeros(4) if method in ("ts", "nbvs") else np.array([0.6, 0.2, -0.3, -0.5])
    logits, labels = scored_samples(40_000, bias=bias, scale=0.5)
    scaling = fit_scaling(logits, labels, method=method, carried=[0.25] * 4)
    np.testing.assert_allclose(scaling.scale, 0.5, atol=0.02)
    if scaling.bias is not None:
        np.testing.assert_allclose(scaling.bias, bias, atol=0.08)
    assert scaling.nll_after < scaling.nll_before


def test_calibrated_logits_carry_the_mix_of_the_samples_of_the_fit():
    prior = np.array([0.7, 0.2, 0.08, 0.02])
    truth, labels = scored_samples(50_000, prior=prior)
    balanced = (truth - np.log(prior)) / 0.5
    scaling = fit_scaling(balanced, labels, carried=Prior.uniform(4))
    np.testing.assert_allclose(scaling.carried.probs, np.bincount(labels) / 50_000, atol=1e-12)
    answer = adjust(scaling(balanced), carried=scaling.carried, target=prior)
    np.testing.assert_allclose(
        np.exp(log_softmax(answer, axis=1)), np.exp(log_softmax(truth, axis=1)), atol=0.03
    )


@every_method
def test_a_sample_that_tells_nothing_gets_the_carried_mix_and_its_bias(method):
    logits, labels = scored_samples(prior=[0.55, 0.25, 0.15, 0.05])
    source = Prior([0.1, 0.2, 0.3, 0.4])
    scaling = fit_scaling(logits, labels, method=method, carried=source)
    bias = np.zeros(4) if scaling.bias is None else scaling.bias
    answer = scaling(source.log_probs[None] + 3)
    np.testing.assert_allclose(
        log_softmax(answer[0]), log_softmax(scaling.carried.log_probs + bias), rtol=1e-7, atol=1e-7
    )


def evidence_of(ridge, logits, labels):
    """Log marginal likelihood of "bcts" by Laplace's approximation, one sample at a time."""
    num_classes = logits.shape[1]
    (a,), b = reference_fit(logits, labels, "bcts", ridge)
    evidence = logits - logits.mean(axis=1, keepdims=True)
    probs = np.exp(log_softmax(a * evidence + b, axis=1))
    hessian = np.zeros((num_classes + 1, num_classes + 1))
    for row, p in zip(evidence, probs, strict=True):
        design = np.hstack([row[:, None], np.eye(num_classes)])
        hessian += design.T @ (np.diag(p) - np.outer(p, p)) @ design
    precision = hessian + np.diag([1e-6, *[ridge] * num_classes])
    nll = reference_nll(a * evidence + b, labels)
    return (
        -nll
        - ridge / 2 * (b**2).sum()
        + num_classes / 2 * math.log(ridge)
        - np.linalg.slogdet(precision)[1] / 2
    )


@pytest.mark.parametrize("size", [0.3, 1.0])
def test_the_ridge_chosen_has_nearly_the_highest_marginal_likelihood(size):
    bias = size * np.random.default_rng(3).normal(size=6)
    logits, labels = scored_samples(600, 6, bias=bias)
    chosen = fit_scaling(logits, labels).ridge
    around = {ridge: evidence_of(ridge, logits, labels) for ridge in np.geomspace(0.1, 1000, 13)}
    assert evidence_of(chosen, logits, labels) > max(around.values()) - 0.1
    assert min(around.values()) < max(around.values()) - 1


def test_a_bias_that_few_samples_cannot_show_is_left_out():
    errors = {None: [], 1e-6: []}
    for seed in range(10):
        logits, labels = scored_samples(80, 8, seed=seed)
        for ridge in errors:
            errors[ridge].append(np.linalg.norm(fit_scaling(logits, labels, ridge=ridge).bias))
    assert np.mean(errors[None]) < 0.3 * np.mean(errors[1e-6])


def test_a_large_bias_is_hardly_drawn():
    logits, labels = scored_samples(3000, 4, bias=[2.0, -2.0, 1.0, -1.0])
    drawn, plain = fit_scaling(logits, labels), fit_scaling(logits, labels, ridge=1e-6)
    np.testing.assert_allclose(drawn.bias, plain.bias, atol=0.05)


@pytest.mark.parametrize("method", ["bcts", "vs", "nbvs"])
def test_an_infinite_ridge_is_temperature_scaling(method):
    logits, labels = scored_samples(bias=[0.5, -0.5, 1.0, -1.0])
    stiff = fit_scaling(logits, labels, method=method, ridge=1e9)
    temperature = fit_scaling(logits, labels, method="ts").scale
    np.testing.assert_allclose(stiff.scale, np.broadcast_to(temperature, stiff.scale.shape), rtol=1e-3)
    assert stiff.bias is None or np.abs(stiff.bias).max() < 1e-5


def test_richer_methods_fit_their_own_samples_better():
    logits, labels = scored_samples(bias=[0.5, -0.5, 1.0, -1.0], prior=[0.4, 0.3, 0.2, 0.1])
    nll = {m: fit_scaling(logits, labels, method=m, ridge=1e-8).nll_after for m in METHODS}
    assert nll["vs"] < nll["bcts"] < nll["ts"]
    assert nll["vs"] < nll["nbvs"] < nll["ts"]


@every_method
def test_the_likelihoods_reported_are_those_of_the_samples(method):
    logits, labels = scored_samples(prior=[0.55, 0.25, 0.15, 0.05])
    carried = np.array([0.1, 0.2, 0.3, 0.4])
    scaling = fit_scaling(logits, labels, method=method, carried=carried)
    mix = np.bincount(labels) / len(labels)
    before = reference_nll(logits - np.log(carried) + np.log(mix), labels) / len(labels)
    assert scaling.nll_before == pytest.approx(before, rel=1e-12)
    assert scaling.nll_after == pytest.approx(reference_nll(scaling(logits), labels) / len(labels), rel=1e-12)
    assert scaling.num_samples == len(labels)


@every_method
def test_a_constant_on_a_sample_changes_nothing(method):
    logits, labels = scored_samples()
    constants = np.random.default_rng(1).normal(scale=30, size=(len(logits), 1))
    one, other = (fit_scaling(scores, labels, method=method) for scores in (logits, logits + constants))
    np.testing.assert_allclose(one.scale, other.scale, rtol=1e-8)
    np.testing.assert_allclose(
        log_softmax(one(logits), axis=1), log_softmax(other(logits + constants), axis=1), atol=1e-8
    )


@every_method
@settings(max_examples=10)
@given(order=st.permutations(range(4)))
def test_renaming_the_classes_renames_the_fit(method, order):
    logits, labels = scored_samples(bias=[0.5, -0.5, 1.0, -1.0], prior=[0.4, 0.3, 0.2, 0.1])
    carried = np.array([0.1, 0.2, 0.3, 0.4])
    fitted = fit_scaling(logits, labels, method=method, carried=carried)
    renamed = fit_scaling(
        logits[:, order], np.argsort(order)[labels], method=method, carried=carried[list(order)]
    )
    np.testing.assert_allclose(renamed(logits[:, order]), fitted(logits)[:, order], atol=1e-8)


@every_method
def test_a_weight_counts_a_sample_so_many_times(method):
    logits, labels = scored_samples(120)
    times = np.random.default_rng(2).integers(0, 4, size=120)
    weighted = fit_scaling(logits, labels, method=method, weights=times, carried=[0.25] * 4)
    repeated = fit_scaling(
        logits.repeat(times, axis=0), labels.repeat(times), method=method, carried=[0.25] * 4
    )
    np.testing.assert_allclose(weighted(logits), repeated(logits), atol=1e-8)
    assert weighted.num_samples == repeated.num_samples == times.sum()
    assert weighted.nll_after == pytest.approx(repeated.nll_after, rel=1e-10)


@every_method
@pytest.mark.parametrize("ridge", [None, 1.0])
def test_separable_samples_have_a_finite_fit(method, ridge):
    labels = np.arange(60) % 3
    logits = 10.0 * np.eye(3)[labels] + np.random.default_rng(0).normal(size=(60, 3))
    scaling = fit_scaling(logits, labels, method=method, ridge=ridge)
    assert (scaling.scale > 0).all()
    assert scaling.scale.max() < 20
    assert scaling.bias is None or np.abs(scaling.bias).max() < 5


@every_method
def test_a_useless_scorer_keeps_a_positive_scale(method):
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=500)
    logits = generator.normal(size=(500, 3)) - 2 * np.eye(3)[labels]
    scaling = fit_scaling(logits, labels, method=method)
    assert (scaling.scale > 0).all()
    assert (scaling.scale < 0.2).all()


@every_method
def test_rare_and_absent_classes_of_a_long_tail_keep_a_sane_fit(method):
    num_classes, counts = 20, [400 // (rank + 1) ** 2 for rank in range(20)]
    counts[-3:] = [1, 1, 0]
    labels = np.repeat(np.arange(num_classes), counts)
    logits = 2 * (1.5 * np.random.default_rng(0).normal(size=(len(labels), 20)) + 2.25 * np.eye(20)[labels])
    scaling = fit_scaling(logits, labels, method=method, carried=Prior.uniform(20))
    assert ((scaling.scale > 0.3) & (scaling.scale < 0.8)).all()
    assert scaling.bias is None or np.abs(scaling.bias).max() < 1
    assert scaling.carried.probs[-1] == pytest.approx(0.5 / (len(labels) + 0.5))


@every_method
@pytest.mark.parametrize("factor", [1e-2, 1e4])
def test_the_units_of_the_logits_hardly_matter(method, factor):
    logits, labels = scored_samples(5000)
    usual, other = (fit_scaling(scores, labels, method=method) for scores in (logits, factor * logits))
    np.testing.assert_allclose(other.scale * factor, usual.scale, rtol=0.05)
    assert other.nll_after == pytest.approx(usual.nll_after, abs=1e-3)


@every_method
@pytest.mark.parametrize("labels", [[0], [1, 1, 1]])
def test_one_sample_or_one_class_has_a_finite_fit(method, labels):
    logits = np.random.default_rng(0).normal(size=(len(labels), 3))
    scaling = fit_scaling(logits, labels, method=method, carried=[0.5, 0.3, 0.2])
    assert np.isfinite(scaling(logits)).all()
    assert scaling.carried.probs.argmax() == labels[0]


@every_method
@pytest.mark.parametrize("carried", [None, [0.1, 0.2, 0.3, 0.4]])
@every_kind_of("scores")
def test_logits_of_every_kind_come_back_in_kind_at_least_in_float32(method, carried, kind):
    logits, labels = scored_samples(60)
    scaling = fit_scaling(logits, labels, method=method, carried=carried)
    array = exact(logits)
    given = kind(array)
    found = scaling(given)
    kind.require_same(found, given)
    np.testing.assert_allclose(kind.numbers(found), scaling(array), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(kind.numbers(given), array)
    if not kind.table:
        np.testing.assert_allclose(
            kind.numbers(scaling(kind(array[3]))), scaling(array)[3], rtol=1e-5, atol=1e-5
        )


@every_kind_of("scores")
def test_scores_of_every_kind_give_one_fit(kind):
    logits, labels = scored_samples(100)
    expected, found = (fit_scaling(scores, labels) for scores in (exact(logits), kind(exact(logits))))
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-12)
    assert found.carried.names == (tuple(column_names(4)) if kind.table else None)


@every_kind_of("labels")
def test_labels_of_every_kind_give_one_fit(kind):
    logits, labels = scored_samples(100)
    assert fit_scaling(logits, kind(labels)).scale == fit_scaling(logits, labels).scale


@every_kind_of("vector")
def test_weights_and_priors_of_every_kind_give_one_fit(kind):
    logits, labels = scored_samples(100)
    weights, carried = exact(np.linspace(0.5, 2, 100)), np.array([0.5, 0.25, 0.125, 0.125])
    found = fit_scaling(logits, labels, weights=kind(weights), carried=kind(carried))
    expected = fit_scaling(logits, labels, weights=weights, carried=carried)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-12)


@every_named_kind
def test_names_are_matched_in_the_fit_and_in_the_call(kind):
    pd = pytest.importorskip("pandas")
    logits, labels = scored_samples(100)
    names, carried = column_names(4), [0.4, 0.3, 0.2, 0.1]
    table = pd.DataFrame(logits, columns=names)
    by_name = fit_scaling(table, np.array(names)[labels], carried=kind(carried, names), method="vs")
    by_place = fit_scaling(logits, labels, carried=carried, method="vs")
    np.testing.assert_array_equal(by_name.bias, by_place.bias)
    turned = by_name(table[names[::-1]])
    np.testing.assert_allclose(turned[names].to_numpy(), by_place(logits), rtol=1e-12)
    with pytest.raises(ValueError, match="`logits` to name the same classes"):
        by_name(table.rename(columns={"class 0": "klass 0"}))


@every_method
@pytest.mark.parametrize("carried", [None, Prior([0.1, 0.2, 0.3, 0.4], names=list("abcd"))])
def test_a_state_gives_the_scaling_back(method, carried):
    logits, labels = scored_samples(100)
    scaling = fit_scaling(logits, labels, method=method, carried=carried)
    facts, arrays = scaling.state()
    assert json.loads(json.dumps(facts)) == facts
    restored = Scaling.from_state(facts, arrays)
    np.testing.assert_allclose(restored(logits), scaling(logits), rtol=1e-12, atol=1e-13)
    assert restored.carried.names == scaling.carried.names
    assert (restored.method, restored.ridge) == (scaling.method, scaling.ridge)


def test_a_state_of_the_first_version_is_read():
    logits, labels = scored_samples(100)
    scaling = fit_scaling(logits, labels, carried=[0.1, 0.2, 0.3, 0.4])
    facts = {key: value for key, value in scaling.state()[0].items() if key != "class_names"}
    first = {
        "scale": scaling.scale,
        "bias": scaling.bias,
        "carried": scaling.carried.probs,
        "moved_from": scaling.source.probs,
    }
    restored = Scaling.from_state(facts, first)
    np.testing.assert_allclose(restored(logits), scaling(logits), rtol=1e-12, atol=1e-13)
    assert restored.source.matches(scaling.source)


def test_every_calibration_has_a_title():
    assert list(CALIBRATIONS) == METHODS
    assert len(set(CALIBRATIONS.values())) == len(METHODS)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"method": "platt"},
            ValueError,
            "Expected `method` to be one of ts, bcts, vs, nbvs, but got 'platt'",
        ),
        ({"ridge": 0.0}, ValueError, "Expected `ridge` to be a positive finite number, but got 0.0."),
        ({"ridge": math.nan}, ValueError, "Expected `ridge` to be a positive finite number, but got nan."),
        ({"labels": [0, 1, 3]}, ValueError, "Expected `labels` between 0 and 2, but got 3"),
        ({"labels": [0, 1]}, ValueError, "Expected `labels` with one entry per sample, (3,)"),
        ({"labels": [0.0, 1.0, 2.0]}, TypeError, "Expected `labels` to be class indices"),
        ({"logits": np.zeros(3)}, ValueError, "Expected `logits` of shape [N, C]"),
        ({"logits": np.zeros((0, 3)), "labels": np.zeros(0, int)}, ValueError, "N ≥ 1"),
        ({"logits": np.zeros((3, 3), int)}, TypeError, "Expected `logits` to be floating-point"),
        ({"logits": np.array([[0, -np.inf, 0], [0.0, 0, 0], [0, 0, 0]])}, ValueError, "got -inf for class 1"),
        ({"carried": [0.5, 0.5]}, ValueError, "Expected `carried` with one entry per class, 3, but got 2."),
        ({"carried": [0.5, 0.5, 0]}, ValueError, "Expected `carried` to be strictly positive"),
        ({"weights": [1, 1]}, ValueError, "Expected `weights` with one entry per sample, (3,)"),
        (
            {"weights": [1, -1, 1]},
            ValueError,
            "Expected `weights` to be finite and non-negative, but got -1.0",
        ),
        ({"logits": np.eye(3)}, ValueError, "these are probabilities"),
        ({"weights": [0, 0, 0]}, ValueError, "Expected `weights` to have a positive finite sum"),
    ],
)
def test_mistakes_are_named(change, error, message):
    arguments = {"logits": 2 * np.eye(3), "labels": [0, 1, 2]} | change
    with pytest.raises(error, match=re.escape(message)):
        fit_scaling(**arguments)


def test_logits_of_other_classes_are_refused():
    scaling = fit_scaling(2 * np.eye(3), [0, 1, 2])
    with pytest.raises(
        ValueError, match=re.escape("Expected `logits` of shape [N, 3], but got shape (2, 4).")
    ):
        scaling(np.zeros((2, 4)))
