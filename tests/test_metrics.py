import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    recall_score,
)
from torchmetrics.classification import MulticlassCalibrationError

from kinds import column_names, every_kind_of, exact
from priorshift import metrics
from priorshift.metrics import _kernels

Values = NDArray[np.float64]
Indices = NDArray[np.int64]


class Case:
    """Random predictions of a classifier that leans to the truth and to the first classes."""

    def __init__(self, seed: int, num_samples: int = 400, num_classes: int = 5) -> None:
        rng = np.random.default_rng(seed)
        mix = rng.dirichlet(np.ones(num_classes))
        self.num_classes = num_classes
        self.labels: Indices = rng.choice(num_classes, size=num_samples, p=mix)
        logits = rng.normal(size=(num_samples, num_classes)) * 2
        logits[np.arange(num_samples), self.labels] += 2
        logits += np.linspace(1.5, -1.5, num_classes)
        masses = np.exp(logits)
        self.probs: Values = masses / masses.sum(axis=1, keepdims=True)
        self.predicted: Indices = self.probs.argmax(axis=1)
        self.weights: Values = rng.exponential(size=num_samples)
        self.counts: Indices = rng.integers(0, 200, size=num_classes)

    def metric(self, name: str) -> Callable[..., Any]:
        """One metric as a function of the selected rows and their weights."""

        def of(weights: Values | None = None, rows: Any = slice(None)) -> Any:
            predicted, labels, probs = self.predicted[rows], self.labels[rows], self.probs[rows]
            with np.errstate(invalid="ignore"):
                log_probs = np.log(probs)
            arguments: dict[str, tuple[Any, ...]] = {
                "accuracy": (predicted, labels),
                "per_class_accuracy": (predicted, labels, self.num_classes),
                "balanced_error": (predicted, labels, self.num_classes),
                "macro_f1": (predicted, labels, self.num_classes),
                "group_accuracy": (predicted, labels, self.counts),
                "expected_calibration_error": (probs, labels),
                "classwise_calibration_error": (probs, labels),
                "reliability": (probs, labels),
                "brier_score": (probs, labels),
                "negative_log_likelihood": (log_probs, labels),
                "mean_class_probs": (probs,),
            }
            return flat(getattr(metrics, name)(*arguments[name], weights=weights))

        return of


NAMES = [
    "accuracy",
    "per_class_accuracy",
    "balanced_error",
    "macro_f1",
    "group_accuracy",
    "expected_calibration_error",
    "classwise_calibration_error",
    "reliability",
    "brier_score",
    "negative_log_likelihood",
    "mean_class_probs",
]


def flat(result: Any) -> Values:
    """Any metric's result as one vector, None as NaN."""
    if isinstance(result, metrics.GroupAccuracy):
        values = (result.many, result.medium, result.few)
        shares = [math.nan if value is None else value for value in values]
        return np.array([*shares, result.num_many, result.num_medium, result.num_few], dtype=np.float64)
    if isinstance(result, metrics.Reliability):
        return np.concatenate([result.edges, result.confidence, result.accuracy, result.weight])
    return np.atleast_1d(np.asarray(result, dtype=np.float64))


def close(got: Any, expected: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(flat(got), flat(expected), rtol=0, atol=tolerance)


# Slow references, written from the definitions.


def slow_per_class(predicted: Indices, labels: Indices, num_classes: int, weights: Values) -> list[float]:
    shares = []
    for wanted in range(num_classes):
        hit = total = 0.0
        for guess, label, weight in zip(predicted, labels, weights, strict=True):
            if label == wanted:
                total += weight
                hit += weight * (guess == label)
        shares.append(hit / total if total > 0 else math.nan)
    return shares


def slow_bin(value: float, num_bins: int) -> int:
    for index in range(num_bins):
        if value <= (index + 1) / num_bins:
            return index
    raise AssertionError(value)


def slow_reliability(
    probs: Values, labels: Indices, weights: Values, num_bins: int
) -> tuple[Values, Values, Values]:
    confidence, hits, mass = np.zeros(num_bins), np.zeros(num_bins), np.zeros(num_bins)
    for row, label, weight in zip(probs, labels, weights, strict=True):
        index = slow_bin(row.max(), num_bins)
        mass[index] += weight
        confidence[index] += weight * row.max()
        hits[index] += weight * (row.argmax() == label)
    with np.errstate(invalid="ignore"):
        return confidence / mass, hits / mass, mass / weights.sum()


def slow_ece(probs: Values, labels: Indices, weights: Values, num_bins: int) -> float:
    confidence, accuracy, share = slow_reliability(probs, labels, weights, num_bins)
    total = 0.0
    for c, a, s in zip(confidence, accuracy, share, strict=True):
        total += s * abs(a - c) if s > 0 else 0.0
    return total


def slow_classwise(probs: Values, labels: Indices, weights: Values, num_bins: int) -> float:
    total = 0.0
    for j in range(probs.shape[1]):
        for m in range(num_bins):
            members = [i for i in range(len(labels)) if slow_bin(probs[i, j], num_bins) == m]
            mass = sum(weights[i] for i in members)
            if mass > 0:
                frequency = sum(weights[i] for i in members if labels[i] == j) / mass
                mean = sum(weights[i] * probs[i, j] for i in members) / mass
                total += mass / weights.sum() * abs(frequency - mean)
    return total / float(probs.shape[1])


def slow_macro_f1(predicted: Indices, labels: Indices, weights: Values) -> float:
    scores = []
    for wanted in sorted(set(predicted) | set(labels)):
        hit = sum(weights[(predicted == wanted) & (labels == wanted)])
        guessed, true = sum(weights[predicted == wanted]), sum(weights[labels == wanted])
        precision = hit / guessed if guessed > 0 else 0.0
        recall = hit / true if true > 0 else 0.0
        both = precision + recall
        scores.append(2 * precision * recall / both if both > 0 else 0.0)
    return sum(scores) / len(scores)


@pytest.fixture(params=["unweighted", "weighted"])
def weighing(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "weighted")


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_equal_slow_loops(seed: int, weighing: bool) -> None:
    case = Case(seed)
    weights = case.weights if weighing else None
    loop = case.weights if weighing else np.ones(len(case.labels))
    hits = sum(w for w, p, y in zip(loop, case.predicted, case.labels, strict=True) if p == y)
    by_class = slow_per_class(case.predicted, case.labels, 6, loop)
    close(metrics.accuracy(case.predicted, case.labels, weights=weights), hits / sum(loop))
    close(metrics.per_class_accuracy(case.predicted, case.labels, 6, weights=weights), by_class)
    close(metrics.balanced_error(case.predicted, case.labels, 6, weights=weights), 1 - np.mean(by_class[:5]))
    close(
        metrics.macro_f1(case.predicted, case.labels, 6, weights=weights),
        slow_macro_f1(case.predicted, case.labels, loop),
    )


@pytest.mark.parametrize("num_bins", [1, 7, 20])
def test_calibration_errors_equal_slow_loops(num_bins: int, weighing: bool) -> None:
    case = Case(3, num_samples=300, num_classes=4)
    weights = case.weights if weighing else None
    loop = case.weights if weighing else np.ones(len(case.labels))
    bins = metrics.reliability(case.probs, case.labels, num_bins=num_bins, weights=weights)
    confidence, accuracy, share = slow_reliability(case.probs, case.labels, loop, num_bins)
    close(bins.confidence, confidence)
    close(bins.accuracy, accuracy)
    close(bins.weight, share)
    close(bins.edges, [m / num_bins for m in range(num_bins + 1)], tolerance=0)
    close(
        metrics.expected_calibration_error(case.probs, case.labels, num_bins=num_bins, weights=weights),
        slow_ece(case.probs, case.labels, loop, num_bins),
    )
    close(
        metrics.classwise_calibration_error(case.probs, case.labels, num_bins=num_bins, weights=weights),
        slow_classwise(case.probs, case.labels, loop, num_bins),
    )


def test_scores_and_means_equal_slow_loops(weighing: bool) -> None:
    case = Case(4)
    weights = case.weights if weighing else None
    loop = case.weights if weighing else np.ones(len(case.labels))
    brier = nll = 0.0
    mean = np.zeros(case.num_classes)
    for row, label, weight in zip(case.probs, case.labels, loop, strict=True):
        brier += weight * sum((p - (c == label)) ** 2 for c, p in enumerate(row))
        nll -= weight * math.log(row[label])
        mean += weight * row
    close(metrics.brier_score(case.probs, case.labels, weights=weights), brier / loop.sum())
    close(metrics.negative_log_likelihood(np.log(case.probs), case.labels, weights=weights), nll / loop.sum())
    close(metrics.mean_class_probs(case.probs, weights=weights), mean / loop.sum())
    close(
        metrics.effective_sample_size(case.weights),
        sum(case.weights) ** 2 / sum(w * w for w in case.weights),
        tolerance=1e-10,
    )


def test_accuracies_and_scores_agree_with_scikit_learn(weighing: bool) -> None:
    case = Case(5)
    weights = case.weights if weighing else None
    labels, predicted, size = case.labels, case.predicted, case.num_classes
    close(
        metrics.accuracy(predicted, labels, weights=weights),
        accuracy_score(labels, predicted, sample_weight=weights),
    )
    close(
        metrics.per_class_accuracy(predicted, labels, size, weights=weights),
        recall_score(labels, predicted, average=None, sample_weight=weights),
    )
    close(
        1 - metrics.balanced_error(predicted, labels, size, weights=weights),
        balanced_accuracy_score(labels, predicted, sample_weight=weights),
    )
    close(
        metrics.macro_f1(predicted, labels, size, weights=weights),
        f1_score(labels, predicted, average="macro", sample_weight=weights),
    )
    close(
        metrics.negative_log_likelihood(np.log(case.probs), labels, weights=weights),
        log_loss(labels, case.probs, sample_weight=weights),
    )
    squares = ((case.probs - np.eye(size)[labels]) ** 2).sum(axis=1)
    close(metrics.brier_score(case.probs, labels, weights=weights), np.average(squares, weights=weights))


def test_macro_f1_averages_over_the_classes_that_scikit_learn_takes() -> None:
    labels, predicted = np.array([0, 0, 1, 1, 3]), np.array([0, 2, 1, 0, 1])
    expected = f1_score(labels, predicted, average="macro", zero_division=0)
    close(metrics.macro_f1(predicted, labels, 6), expected)
    assert expected != pytest.approx(
        f1_score(labels, predicted, average="macro", labels=range(6), zero_division=0)
    )


@pytest.mark.parametrize("num_bins", [10, 20])
def test_expected_calibration_error_agrees_with_torchmetrics(num_bins: int) -> None:
    case = Case(6, num_samples=3000)
    reference = MulticlassCalibrationError(case.num_classes, n_bins=num_bins, norm="l1")
    expected = reference(torch.from_numpy(case.probs), torch.from_numpy(case.labels)).item()
    close(metrics.expected_calibration_error(case.probs, case.labels, num_bins=num_bins), expected, 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_whole_weights_equal_repeated_samples(name: str) -> None:
    case = Case(7)
    repeats = np.random.default_rng(7).integers(0, 4, size=len(case.labels))
    rows = np.repeat(np.arange(len(case.labels)), repeats)
    metric = case.metric(name)
    close(metric(repeats), metric(None, rows))
    assert not np.allclose(flat(metric(repeats)), flat(metric()), equal_nan=True) or name == "group_accuracy"


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, derandomize=True, max_examples=8)
@given(scale=st.floats(1e-200, 1e200))
def test_scaling_all_weights_changes_nothing(name: str, scale: float) -> None:
    case = Case(8, num_samples=60)
    metric = case.metric(name)
    close(metric(case.weights * scale), metric(case.weights))
    close(metric(np.full(60, scale)), metric())
    close(metrics.effective_sample_size(case.weights * scale), metrics.effective_sample_size(case.weights))


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_samples_changes_nothing(name: str) -> None:
    case = Case(9)
    order = np.random.default_rng(9).permutation(len(case.labels))
    metric = case.metric(name)
    close(metric(case.weights[order], order), metric(case.weights))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -3.0])
def test_samples_of_zero_weight_are_dropped_before_their_values_are_read(name: str, junk: float) -> None:
    case = Case(10)
    dropped = np.arange(len(case.labels)) % 3 == 0
    weights = np.where(dropped, 0.0, case.weights)
    expected = case.metric(name)(case.weights[~dropped], ~dropped)
    case.probs[dropped] = junk
    case.labels[dropped] = -100
    case.predicted[dropped] = 99
    close(case.metric(name)(weights), expected, tolerance=0)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_arrays_and_read_only_views_give_the_same(name: str) -> None:
    case = Case(11)
    expected = case.metric(name)(case.weights)
    backwards = Case(11)
    for field in ("probs", "labels", "predicted", "weights"):
        view = np.ascontiguousarray(getattr(backwards, field)[::-1])[::-1]
        view.flags.writeable = False
        setattr(backwards, field, view)
    close(backwards.metric(name)(backwards.weights), expected, tolerance=0)
    tensors = Case(11)
    for field in ("labels", "predicted"):
        setattr(tensors, field, torch.from_numpy(getattr(tensors, field)).to(torch.int32))
    close(tensors.metric(name)(torch.from_numpy(case.weights).requires_grad_()), expected, tolerance=0)


def test_inputs_are_left_as_they_were() -> None:
    case = Case(12)
    case.probs[0] = [1 + 2e-7, -5e-8, -5e-8, -5e-8, -5e-8]
    before = case.probs.copy()
    for name in NAMES:
        if name != "negative_log_likelihood":
            case.metric(name)()
    np.testing.assert_array_equal(case.probs, before)


def test_scalars_are_floats_and_vectors_float64() -> None:
    case = Case(13)
    probs, labels = torch.from_numpy(case.probs).to(torch.float32), torch.from_numpy(case.labels)
    assert type(metrics.accuracy(case.predicted, labels)) is float
    assert type(metrics.brier_score(probs, labels)) is float
    assert type(metrics.effective_sample_size(probs[:, 0])) is float
    for vector in (
        metrics.mean_class_probs(probs),
        metrics.per_class_accuracy(case.predicted, labels, 5),
        *vars(metrics.reliability(probs, labels)).values(),
    ):
        assert isinstance(vector, np.ndarray)
        assert vector.dtype == np.float64


def test_a_float32_softmax_over_many_classes_is_accepted() -> None:
    logits = np.random.default_rng(0).normal(size=(40, 8000)) * 4
    labels = np.arange(40)
    single = logits.astype(np.float32)
    score = metrics.brier_score(softmax(single, axis=1), labels)
    assert score == pytest.approx(metrics.brier_score(softmax(logits, axis=1), labels), abs=1e-6)
    assert math.isfinite(metrics.negative_log_likelihood(log_softmax(single, axis=1), labels))


# Accuracy by class and group.


def test_balanced_error_is_one_minus_accuracy_when_classes_are_equal_in_size() -> None:
    case = Case(14)
    labels = np.arange(400) % 5
    close(
        metrics.balanced_error(case.predicted, labels, 5), 1 - metrics.accuracy(case.predicted, labels), 1e-14
    )


def test_weights_equal_within_a_class_do_not_change_the_balanced_error() -> None:
    case = Case(15)
    weights = np.array([0.1, 7.0, 2.0, 0.5, 30.0])[case.labels]
    plain = metrics.balanced_error(case.predicted, case.labels, 5)
    close(metrics.balanced_error(case.predicted, case.labels, 5, weights=weights), plain)


GROUPS = [
    (np.array([101, 100, 99]), "lade", (1, 2, 0)),
    (np.array([101, 100, 99]), "menon", (2, 1, 0)),
    (np.array([21, 20, 19, 0]), "lade", (0, 2, 2)),
    (np.array([21, 20, 19, 0]), "menon", (0, 1, 3)),
]


@pytest.mark.parametrize(("counts", "convention", "sizes"), GROUPS)
def test_group_boundaries_follow_each_convention(
    counts: Indices, convention: Any, sizes: tuple[int, int, int]
) -> None:
    labels = np.arange(len(counts))
    groups = metrics.group_accuracy(labels, labels, counts, convention=convention)
    assert (groups.num_many, groups.num_medium, groups.num_few) == sizes
    assert [share is None for share in (groups.many, groups.medium, groups.few)] == [s == 0 for s in sizes]


def test_group_accuracy_is_the_mean_of_its_classes_accuracies_not_of_its_samples() -> None:
    labels = np.array([0] * 9 + [1] + [2] * 2 + [3])
    predicted = np.array([0] * 9 + [0] + [2, 0] + [0])
    groups = metrics.group_accuracy(predicted, labels, [500, 400, 50, 3])
    assert groups == metrics.GroupAccuracy(0.5, 0.5, 0.0, 2, 1, 1)


def test_group_accuracies_put_together_are_the_balanced_accuracy() -> None:
    case = Case(16, num_classes=30, num_samples=600)
    groups = metrics.group_accuracy(case.predicted, case.labels, case.counts, weights=case.weights)
    shares = (groups.many, groups.medium, groups.few)
    sizes = (groups.num_many, groups.num_medium, groups.num_few)
    assert min(sizes) > 0
    together = sum(n * (share or 0.0) for share, n in zip(shares, sizes, strict=True)) / sum(sizes)
    close(together, 1 - metrics.balanced_error(case.predicted, case.labels, 30, weights=case.weights))


def test_an_empty_group_is_shown_as_not_available_and_a_failed_one_as_zero() -> None:
    groups = metrics.group_accuracy(np.array([0, 0]), np.array([0, 1]), [500, 50])
    assert str(groups) == "Many 1.0000 (1 class), Medium 0.0000 (1 class), Few n/a"
    assert (groups.medium, groups.few) == (0.0, None)


def test_a_class_without_test_samples_is_left_out_of_its_group() -> None:
    groups = metrics.group_accuracy(np.array([0, 0]), np.array([0, 1]), [500, 400, 300, 2])
    assert (groups.many, groups.num_many) == (0.5, 2)
    assert (groups.few, groups.num_few) == (None, 0)


# Bin edges.


@pytest.mark.parametrize("m", range(1, 21))
def test_a_value_on_an_edge_falls_into_the_bin_below(m: int) -> None:
    edge = m / 20
    above = min(np.nextafter(edge, 2), 1.0)
    # Forty classes share the rest, so that the class in question is always the predicted one.
    for value, expected in ((edge, m - 1), (above, min(m, 19))):
        rest = (1 - value) / 40
        probs = np.array([[value, *[rest] * 40]])
        share = metrics.reliability(probs, np.array([0])).weight
        assert share.argmax().item() == expected
        assert share.sum().item() == 1


def test_edges_are_the_float64_numbers_nearest_to_each_fraction() -> None:
    for num_bins in (3, 10, 15, 20, 49):
        edges = metrics.reliability(np.array([[0.5, 0.5]]), np.array([0]), num_bins=num_bins).edges
        assert edges.tolist() == [m / num_bins for m in range(num_bins + 1)]
    assert 3 * (1 / 20) != 3 / 20


def test_classwise_error_bins_each_probability_by_the_same_rule() -> None:
    on_edge = np.array([[0.15, 0.85], [0.12, 0.88]])
    past_edge = np.array([[np.nextafter(0.15, 1), 0.85], [0.12, 0.88]])
    labels = np.array([1, 0])
    # Class 0: 0.15 and 0.12 share a bin, and part past the edge. Class 1: 0.85 and 0.88 are apart.
    apart = (0.15 + 0.88) / 2
    close(metrics.classwise_calibration_error(on_edge, labels), ((1 - 0.27) / 2 + apart) / 2)
    close(metrics.classwise_calibration_error(past_edge, labels), (apart + apart) / 2)


def test_a_probability_of_zero_is_in_the_first_classwise_bin() -> None:
    probs = np.array([[0.0, 1.0], [0.04, 0.96]])
    # Column 0: one bin, (1 - 0.04) / 2; column 1: one bin, (1.96 - 1) / 2.
    close(metrics.classwise_calibration_error(probs, np.array([0, 1])), 0.48)


def test_certain_and_right_has_no_calibration_error_and_certain_and_wrong_has_all() -> None:
    probs = np.eye(3)[[0, 1, 2, 0]]
    right, wrong = np.array([0, 1, 2, 0]), np.array([1, 2, 0, 1])
    assert metrics.expected_calibration_error(probs, right) == 0
    assert metrics.expected_calibration_error(probs, wrong) == 1
    assert metrics.classwise_calibration_error(probs, right) == 0
    assert metrics.reliability(probs, right).weight.tolist() == [0.0] * 19 + [1.0]
    assert metrics.brier_score(probs, right) == 0
    assert metrics.brier_score(probs, wrong) == 2


def test_rounding_past_one_stays_in_the_last_bin() -> None:
    probs = np.array([[1 + 1e-7, -1e-7]])
    bins = metrics.reliability(probs, np.array([0]))
    assert bins.confidence[-1].item() == 1
    assert metrics.expected_calibration_error(probs, np.array([0])) == 0


def test_one_bin_compares_mean_confidence_with_accuracy() -> None:
    case = Case(17)
    gap = abs(case.probs.max(axis=1).mean() - (case.predicted == case.labels).mean())
    close(metrics.expected_calibration_error(case.probs, case.labels, num_bins=1), gap)


def test_empty_bins_are_nan_with_no_weight() -> None:
    bins = metrics.reliability(np.array([[0.72, 0.28]]), np.array([0]))
    assert np.isnan(bins.accuracy).sum() == np.isnan(bins.confidence).sum() == 19
    assert bins.weight[14].item() == 1


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_samples_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(22)
    weights = case.weights * (np.arange(400) % 3 > 0)
    expected, weighted = case.metric(name)(), case.metric(name)(weights)
    for block in (1, 37, 5 * 399):
        monkeypatch.setattr(_kernels, "BLOCK", block)
        close(case.metric(name)(), expected)
        close(case.metric(name)(weights), weighted)


@pytest.mark.parametrize(
    "metric", ["brier_score", "expected_calibration_error", "classwise_calibration_error"]
)
def test_probabilities_are_not_written_into(metric: str) -> None:
    case = Case(23)
    before = case.probs.copy()
    getattr(metrics, metric)(case.probs, case.labels)
    assert np.array_equal(case.probs, before)


def test_two_classes_have_one_classwise_error_whichever_is_named_first() -> None:
    case = Case(18, num_classes=2)
    error = metrics.classwise_calibration_error(case.probs, case.labels)
    close(metrics.classwise_calibration_error(case.probs[:, ::-1], 1 - case.labels), error)


# Scores at their limits.


def test_log_likelihood_is_infinite_when_a_true_class_was_ruled_out_and_only_then() -> None:
    with np.errstate(divide="ignore"):
        log_probs = np.log([[1.0, 0.0], [0.5, 0.5]])
    assert metrics.negative_log_likelihood(log_probs, np.array([1, 0])) == math.inf
    close(metrics.negative_log_likelihood(log_probs, np.array([0, 0])), math.log(2) / 2)
    assert metrics.negative_log_likelihood(log_probs, np.array([1, 0]), weights=np.array([0, 1])) == math.log(
        2
    )


def test_log_likelihood_keeps_what_probabilities_lose() -> None:
    assert metrics.negative_log_likelihood(np.array([[0.0, -2000.0]]), np.array([1])) == 2000


def test_a_certain_and_right_log_likelihood_is_zero_without_a_sign() -> None:
    log_probs = np.array([[1e-7, -40.0]], dtype=np.float32)
    assert math.copysign(1, metrics.negative_log_likelihood(log_probs, np.array([0]))) == 1


def test_effective_sample_size_lies_between_one_and_the_number_of_samples() -> None:
    assert metrics.effective_sample_size(np.full(7, 3)) == 7
    assert metrics.effective_sample_size(np.array([0.0, 5.0, 0.0])) == 1
    assert metrics.effective_sample_size(np.array([1e-300, 1e-300])) == 2
    assert metrics.effective_sample_size(np.array([1e300, 1e300])) == 2


# Weighting a full test set against drawing one.


def draws(case: Case, target: Values, size: int, rounds: int, seed: int) -> list[Indices]:
    """Test sets of a target mix: classes by the target, samples within a class from the full set."""
    rng = np.random.default_rng(seed)
    chance = (target / np.bincount(case.labels, minlength=case.num_classes))[case.labels]
    return [rng.choice(len(case.labels), size=size, p=chance / chance.sum()) for _ in range(rounds)]


@pytest.mark.parametrize("name", ["accuracy", "brier_score", "negative_log_likelihood"])
def test_weighting_equals_drawing_in_expectation_for_means_over_samples(name: str) -> None:
    case = Case(19, num_samples=1000)
    target = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
    metric = case.metric(name)
    weights = (target / np.bincount(case.labels, minlength=5))[case.labels]
    drawn = np.array([metric(None, rows)[0] for rows in draws(case, target, 50, 600, 19)])
    error = drawn.std(ddof=1) / math.sqrt(len(drawn))
    assert abs(drawn.mean() - metric(weights)[0]) < 4 * error
    assert abs(drawn.mean() - metric()[0]) > 6 * error


def test_the_drawn_calibration_error_is_biased_upward_at_few_samples() -> None:
    case = Case(20, num_samples=4000)
    rng = np.random.default_rng(20)
    case.labels = np.array([rng.choice(5, p=row) for row in case.probs])
    metric = case.metric("expected_calibration_error")
    uniform = np.full(5, 0.2)
    weights = (uniform / np.bincount(case.labels, minlength=5))[case.labels]
    means = [np.mean([metric(None, rows)[0] for rows in draws(case, uniform, n, 60, n)]) for n in (50, 400)]
    full = metric(weights)[0]
    assert means[0] > means[1] + 0.05
    assert means[1] > full + 0.005
    assert metric()[0] < 0.03


# Refusals.

PROBS = np.array([[0.7, 0.3], [0.4, 0.6], [0.5, 0.5]])
LABELS = np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1.0, 1.0], r"Expected `weights` to be finite and non-negative, but got -1.0 for sample 1"),
        ([1.0, 1.0, math.nan], r"non-negative, but got nan for sample 2"),
        ([math.inf, 1.0, 1.0], r"non-negative, but got inf for sample 0"),
        ([0.0, 0.0, 0.0], r"Expected `weights` to have a positive finite sum, .* 0\b"),
        ([1e308, 1e308, 1e308], r"positive finite sum, .* inf\b"),
        ([1.0, 1.0], r"Expected `weights` with one entry per sample, \(3,\), but got shape \(2,\)"),
        ([[1.0], [1.0], [1.0]], r"\(3,\), but got shape \(3, 1\)"),
    ],
)
def test_wrong_weights_are_refused_by_every_function(weights: list[Any], message: str) -> None:
    case = Case(21)
    case.probs, case.labels, case.predicted = PROBS, LABELS, LABELS
    case.num_classes, case.counts = 2, np.array([3, 4])
    for name in NAMES:
        with pytest.raises(ValueError, match=message):
            case.metric(name)(np.array(weights))


@pytest.mark.parametrize("weights", [[-1.0, 2.0], [math.nan, 1.0], [0.0, 0.0], [[1.0]], []])
def test_weights_without_an_effective_size_are_refused(weights: list[Any]) -> None:
    with pytest.raises(ValueError, match="Expected `weights`"):
        metrics.effective_sample_size(np.array(weights))


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (
            [[0.7, 0.3], [0.5, 0.5]],
            r"Expected `labels` with one entry per sample, \(2,\), but got shape \(3,\)",
        ),
        ([0.7, 0.3, 0.5], r"but got shape \(3,\)"),
        ([[1.0], [1.0], [1.0]], r"one sample and two classes, \[N, C\], but got shape \(3, 1\)"),
        (
            [[0.7, 0.3], [1.2, -0.2], [0.5, 0.5]],
            r"between 0 and 1 .*, but row 1 sums to 1 with -0.2",
        ),
        (
            [[0.7, 0.3], [0.4, 0.6], [3.0, 0.5]],
            r"row 2 sums to 3.5 .* Apply a softmax if",
        ),
        ([[math.nan, 0.3], [0.4, 0.6], [0.5, 0.5]], r"row 0 sums to nan with nan as its least value"),
        (
            [[0.7, 0.3], [0.4, 0.5], [0.5, 0.5]],
            r"`probs` .* with rows that sum to 1, but row 1 sums to 0.9 .*\(1 of 3",
        ),
        ([[0.7, 0.3], [0.4, 0.6], [0.5, 0.5002]], r"to sum to 1, but got 1.0002 for sample 2"),
    ],
)
def test_rows_that_are_no_distribution_are_refused(probs: list[Any], message: str) -> None:
    rows = np.array(probs)
    for metric in (
        metrics.expected_calibration_error,
        metrics.reliability,
        metrics.classwise_calibration_error,
        metrics.brier_score,
    ):
        with pytest.raises(ValueError, match=message):
            metric(rows, LABELS)


@pytest.mark.parametrize(
    "row", [[2.0, -1.0], [0.5, 0.5], [math.nan, -0.1], [-math.inf, -math.inf], [math.inf, 0.0]]
)
def test_log_probs_that_are_no_distribution_are_refused(row: list[float]) -> None:
    log_probs = np.log(PROBS)
    log_probs[1] = row
    with pytest.raises(
        ValueError, match=r"exponentials of each row of `log_probs` to sum to 1.*for sample 1"
    ):
        metrics.negative_log_likelihood(log_probs, LABELS)


def test_a_refused_sample_is_named_by_its_place_among_all_samples() -> None:
    weights = np.array([0.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="but got 2 for sample 2"):
        metrics.brier_score(PROBS, np.array([0, 1, 2]), weights=weights)
    with pytest.raises(ValueError, match=r"row 2 sums to 0.5 .*\(1 of 3 rows"):
        metrics.mean_class_probs(PROBS * 0.5, weights=weights)
    with pytest.raises(ValueError, match=r"for sample 2 \(1 of 3 rows"):
        metrics.mean_class_probs(PROBS * 1.0005, weights=weights)
    with pytest.raises(ValueError, match=r"for sample 2 \(1 of 3 rows"):
        metrics.negative_log_likelihood(PROBS, LABELS, weights=weights)


def test_a_wrong_row_is_found_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "BLOCK", 1)
    probs = np.full((7, 2), 0.5)
    probs[5] = 0.7
    labels = np.zeros(7, dtype=np.int64)
    for metric in (metrics.brier_score, metrics.reliability, metrics.classwise_calibration_error):
        with pytest.raises(ValueError, match=r"row 5 sums to 1.4 .*\(1 of 7 rows"):
            metric(probs, labels)
    with pytest.raises(ValueError, match=r"for sample 5 \(1 of 7 rows"):
        metrics.negative_log_likelihood(np.log(probs), labels)


@pytest.mark.parametrize("wrong", [-1, 2])
def test_class_indices_out_of_range_are_refused(wrong: int) -> None:
    indices = np.array([0, wrong, 1])
    message = rf"between 0 and 1, but got {wrong} for sample 1 \(1 of 3"
    for metric in (metrics.brier_score, metrics.expected_calibration_error, metrics.reliability):
        with pytest.raises(ValueError, match=rf"`labels` {message}"):
            metric(PROBS, indices)
    for by_class in (metrics.per_class_accuracy, metrics.balanced_error, metrics.macro_f1):
        with pytest.raises(ValueError, match=rf"`labels` {message}"):
            by_class(LABELS, indices, 2)
        with pytest.raises(ValueError, match=rf"`predicted` {message}"):
            by_class(indices, LABELS, 2)
    with pytest.raises(ValueError, match=rf"`predicted` {message}"):
        metrics.group_accuracy(indices, LABELS, [5, 6])


def test_accuracy_refuses_negative_indices_and_knows_no_upper_bound() -> None:
    with pytest.raises(ValueError, match=r"Expected `labels` to be at least 0, but got -100 for sample 2"):
        metrics.accuracy(np.array([0, 1, 5]), np.array([0, 1, -100]))
    assert metrics.accuracy(np.array([0, 1, 500]), np.array([0, 1, 500])) == 1


@pytest.mark.parametrize("labels", [np.array([0.0, 1.0, 1.0]), np.array([True, False, True])])
def test_class_indices_must_be_whole_number_types(labels: Any) -> None:
    with pytest.raises(TypeError, match="Expected `labels` to be class indices, but got dtype"):
        metrics.brier_score(PROBS, labels)
    with pytest.raises(TypeError, match="Expected `predicted` to be class indices"):
        metrics.accuracy(labels, LABELS)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`predicted` with one entry per sample, \(3,\), but got shape \(2,\)"
    ):
        metrics.accuracy(LABELS[:2], LABELS)
    with pytest.raises(
        ValueError, match=r"`labels` with one entry per sample, \(3,\), but got shape \(3, 1\)"
    ):
        metrics.brier_score(PROBS, LABELS[:, None])


@pytest.mark.parametrize("counts", [[5, 6.5], [5, -1], [5, math.nan], [5], [[5, 6]], [5, math.inf]])
def test_train_counts_that_are_no_counts_are_refused(counts: Any) -> None:
    with pytest.raises(ValueError, match="Expected `train_counts`"):
        metrics.group_accuracy(LABELS, LABELS, np.array(counts))


def test_other_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="Expected `convention` to be one of lade, menon, but got 'mine'"):
        metrics.group_accuracy(LABELS, LABELS, [5, 6], convention="mine")  # type: ignore[arg-type]
    for metric in (metrics.expected_calibration_error, metrics.classwise_calibration_error):
        with pytest.raises(ValueError, match="Expected `num_bins` to be at least 1, but got 0"):
            metric(PROBS, LABELS, num_bins=0)
    with pytest.raises(ValueError, match="Expected `num_classes` to be at least 2, but got 1"):
        metrics.macro_f1(LABELS, LABELS, 1)
    with pytest.raises(ValueError, match="Expected `labels` with at least one sample"):
        metrics.accuracy(LABELS[:0], LABELS[:0])
    with pytest.raises(TypeError, match=r"Expected `probs` to be real numbers, but got array.*0\.7\+0\.j"):
        metrics.mean_class_probs(PROBS + 0j)
    with pytest.raises(TypeError, match=r"Expected `labels` to be class indices, but got names such as 'a'"):
        metrics.accuracy(LABELS, np.array(["a", "b", "c"]))


def test_public_names_are_those_of_the_stub() -> None:
    assert set(NAMES) | {"effective_sample_size", "GroupAccuracy", "Reliability"} == set(dir(metrics))
    for name in dir(metrics):
        assert callable(getattr(metrics, name))


@pytest.mark.parametrize("weighted", [False, True])
def test_brier_score_is_that_of_scikit_learn_summed_over_classes(weighted):
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=60)
    probs = rng.dirichlet(np.ones(4), size=60)
    weights = rng.uniform(size=60) if weighted else None
    expected = brier_score_loss(labels, probs, sample_weight=weights, labels=range(4), scale_by_half=False)
    assert metrics.brier_score(probs, labels, weights=weights) == pytest.approx(expected, rel=1e-12)


# Every kind of array, and inputs that are probably not what was meant.


def exact_probs() -> Values:
    """Probabilities that every kind of array holds exactly."""
    return exact(np.random.default_rng(24).multinomial(64, [0.5, 0.3, 0.2], size=40) / 64)


def of_probs(probs: Any, labels: Any, weights: Any = None) -> list[Values]:
    log_probs = np.log(np.random.default_rng(0).dirichlet([1, 1, 1], size=40))
    return [
        flat(metrics.brier_score(probs, labels, weights=weights)),
        flat(metrics.expected_calibration_error(probs, labels, weights=weights)),
        flat(metrics.classwise_calibration_error(probs, labels, weights=weights)),
        flat(metrics.reliability(probs, labels, weights=weights)),
        flat(metrics.mean_class_probs(probs, weights=weights)),
        flat(metrics.negative_log_likelihood(log_probs, labels, weights=weights)),
    ]


@every_kind_of("scores")
def test_probabilities_of_every_kind_give_the_same(kind: Any) -> None:
    probs, labels = exact_probs(), np.arange(40) % 3
    for found, expected in zip(of_probs(kind(probs), labels), of_probs(probs, labels), strict=True):
        close(found, expected)
    log_probs = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]))
    single = log_probs.astype(np.float32)
    if "float16" not in kind.name:  # too coarse for log-probabilities, and refused
        found = metrics.negative_log_likelihood(kind(single), [0, 1])
        close(found, metrics.negative_log_likelihood(log_probs, [0, 1]), tolerance=1e-6)


@every_kind_of("labels")
def test_labels_of_every_kind_give_the_same(kind: Any) -> None:
    probs, labels, predicted = exact_probs(), np.arange(40) % 3, np.arange(40) % 2
    for found, expected in zip(of_probs(probs, kind(labels)), of_probs(probs, labels), strict=True):
        close(found, expected, tolerance=0)
    for metric in (metrics.per_class_accuracy, metrics.balanced_error, metrics.macro_f1):
        close(metric(kind(predicted), kind(labels), 3), metric(predicted, labels, 3), tolerance=0)
    assert metrics.accuracy(kind(predicted), kind(labels)) == metrics.accuracy(predicted, labels)
    assert metrics.group_accuracy(kind(predicted), kind(labels), kind(np.array([110, 50, 5]))) == (
        metrics.group_accuracy(predicted, labels, [110, 50, 5])
    )


@every_kind_of("vector")
def test_weights_of_every_kind_give_the_same(kind: Any) -> None:
    probs, labels, weights = exact_probs(), np.arange(40) % 3, np.arange(40) % 5.0
    found = of_probs(probs, labels, kind(weights))
    for value, expected in zip(found, of_probs(probs, labels, weights), strict=True):
        close(value, expected, tolerance=0)
    assert metrics.effective_sample_size(kind(weights)) == metrics.effective_sample_size(weights)


def test_labels_may_be_the_column_names_of_a_table() -> None:
    pd = pytest.importorskip("pandas")
    probs, labels = exact_probs(), np.arange(40) % 3
    table = pd.DataFrame(probs, columns=column_names(3))
    named = np.array(column_names(3))[labels]
    weights = np.arange(40) % 4.0
    assert metrics.brier_score(table, named, weights=weights) == metrics.brier_score(
        probs, labels, weights=weights
    )
    with pytest.raises(ValueError, match="but got 'class 9'"):
        metrics.brier_score(table, np.where(labels == 0, "class 9", named))
    with pytest.raises(TypeError, match="to be class indices, but got names such as 'class 0'"):
        metrics.brier_score(probs, named)


def test_what_is_probably_meant_otherwise_is_refused_with_the_remedy() -> None:
    log_probs, one_hot = np.log(PROBS), np.eye(2, dtype=int)[LABELS]
    for metric in (metrics.brier_score, metrics.expected_calibration_error):
        with pytest.raises(ValueError, match=r"These are log-probabilities: .* take `exp`"):
            metric(log_probs, LABELS)
        with pytest.raises(ValueError, match="These are percentages: divide by 100"):
            metric(100 * PROBS, LABELS)
        with pytest.raises(ValueError, match="Apply a softmax if these are logits"):
            metric(10 * log_probs + 3, LABELS)
        with pytest.raises(ValueError, match=r"for one-hot rows pass `labels.argmax\(axis=1\)`"):
            metric(PROBS, one_hot)
        with pytest.raises(ValueError, match=r"labels begin at 1, subtract 1"):
            metric(PROBS, LABELS + 1)
    with pytest.raises(ValueError, match="These are probabilities: pass their logarithm"):
        metrics.negative_log_likelihood(PROBS, LABELS)
    with pytest.raises(ValueError, match="Take the log_softmax of logits"):
        metrics.negative_log_likelihood(10 * log_probs + 3, LABELS)
