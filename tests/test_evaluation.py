"""Judging predictions on a class mix, and comparing methods over their runs."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinds import every_kind_of
from priorshift import Predictions, Prior, _inputs, metrics
from priorshift.evaluation import Spread, by_method, compare, evaluate, score
from priorshift.metrics import _kernels, _samples
from priorshift.shift import STANDARD_MIXES, target_prior

COUNTS = np.array([300, 150, 50, 10])
SOURCE = Prior.from_counts(COUNTS)
BACKWARD = [0.05, 0.1, 0.25, 0.6]


def some_run(seed=0, method="Softmax", *, separation=1.5, per_class=(90, 80, 70, 60), **changes):
    """The exact posterior, under the source prior, of four Gaussians on a line, with noise from the seed."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(per_class)), per_class)
    points = separation * labels + np.random.default_rng(99).normal(size=len(labels))
    log_likelihood = -0.5 * (points[:, None] - separation * np.arange(4)) ** 2
    logits = log_likelihood + np.log(SOURCE.probs) + 0.1 * rng.normal(size=log_likelihood.shape)
    parts = {
        "logits": logits,
        "labels": labels,
        "carried": SOURCE,
        "train_counts": COUNTS,
        "method": method,
        "fingerprint": "0123456789abcdef",
        "facts": {"seed": seed},
    }
    return Predictions(**(parts | changes))


def class_means(run, target):
    """Per class, the mean over its samples of being right, Brier score and NLL after compensation."""
    means = {"accuracy": [], "brier": [], "nll": []}
    carried = run.carried.probs
    scores = {name: [[] for _ in range(run.num_classes)] for name in means}
    for row, label in zip(run.logits, run.labels.tolist(), strict=True):
        joint = np.exp(row - row.max()) / carried * np.asarray(target)
        posterior = joint / joint.sum()
        scores["accuracy"][label].append(float(posterior.argmax() == label))
        scores["brier"][label].append(sum((p - (y == label)) ** 2 for y, p in enumerate(posterior)))
        scores["nll"][label].append(-math.log(posterior[label]))
    return {name: [np.array(values) for values in by_class] for name, by_class in scores.items()}


# One run on one mix


@pytest.mark.parametrize("target", [BACKWARD, [0.25] * 4, [0.7, 0.2, 0.08, 0.02]])
def test_weighted_scores_are_the_means_over_the_classes_under_the_target(target):
    run = some_run()
    evaluation = evaluate(run, target)
    for name, by_class in class_means(run, target).items():
        expected = sum(mass * values.mean() for mass, values in zip(target, by_class, strict=True))
        assert evaluation.scores[name] == pytest.approx(expected, rel=1e-12)


def test_drawing_in_expectation_gives_the_weighted_scores():
    run = some_run()
    drawn = evaluate(run, BACKWARD, draws=200, seed=5)
    weighted = evaluate(run, drawn.target)
    counts = (drawn.target.probs * drawn.effective_sample_size).round().astype(int)
    rng = np.random.default_rng(0)
    for name, by_class in class_means(run, drawn.target.probs).items():
        independent = [
            np.concatenate(
                [rng.choice(values, n, replace=False) for values, n in zip(by_class, counts, strict=True)]
            ).mean()
            for _ in range(1000)
        ]
        deviation = np.std(independent, ddof=1)
        assert deviation > 0.003
        assert abs(np.mean(independent) - weighted.scores[name]) < 4 * deviation / math.sqrt(1000)
        assert abs(drawn.scores[name] - weighted.scores[name]) < 4 * deviation / math.sqrt(200)


def test_calibration_error_of_small_draws_is_biased_upwards():
    run = some_run()
    drawn = evaluate(run, BACKWARD, draws=50)
    weighted = evaluate(run, drawn.target)
    assert drawn.effective_sample_size < 0.5 * run.num_samples
    assert drawn.scores["ece"] > weighted.scores["ece"] + 0.01


def test_draws_are_judged_on_the_mix_they_realise_not_the_nominal_one():
    run = some_run(per_class=(9, 8, 7, 6))
    evaluation = evaluate(run, BACKWARD, draws=3)
    largest = min(n / mass for n, mass in zip((9, 8, 7, 6), BACKWARD, strict=True))
    counts = [math.floor(largest * mass + 1e-9) for mass in BACKWARD]
    assert counts == [0, 1, 2, 6]
    assert evaluation.target == Prior(counts)
    assert evaluation.target != Prior(BACKWARD)
    assert evaluation.effective_sample_size == sum(counts)
    assert evaluation.sampling == "3 draws of 9 of 30 samples"


def test_intervals_are_the_quantiles_of_single_draws_and_cover_nine_in_ten():
    run = some_run()
    together = evaluate(run, BACKWARD, draws=40, seed=7)
    single = [evaluate(run, BACKWARD, draws=1, seed=7 + draw) for draw in range(40)]
    for name in together.scores:
        values = [evaluation.scores[name] for evaluation in single]
        low, high = together.intervals[name]
        assert together.scores[name] == pytest.approx(statistics.fmean(values), rel=1e-12)
        assert (low, high) == pytest.approx(np.quantile(values, [0.05, 0.95]))
        assert low <= together.scores[name] <= high
    weighted = evaluate(run, together.target)
    for name in ("accuracy", "brier", "nll"):
        low, high = together.intervals[name]
        assert low < weighted.scores[name] < high
        inside = sum(low <= evaluation.scores[name] <= high for evaluation in single)
        assert 32 <= inside <= 38


def test_draws_depend_on_their_seed_alone():
    run = some_run()
    first = evaluate(run, BACKWARD, draws=2, seed=1)
    np.random.seed(123)
    assert evaluate(run, BACKWARD, draws=2, seed=1).scores == first.scores
    assert evaluate(run, BACKWARD, draws=2, seed=10).scores != first.scores


def test_weighting_draws_nothing_and_states_the_effective_sample_size():
    run = some_run()
    evaluation = evaluate(run, BACKWARD)
    weights = [BACKWARD[label] / (90, 80, 70, 60)[label] for label in run.labels.tolist()]
    assert evaluation.intervals is None
    assert evaluation.target == Prior(BACKWARD)
    assert evaluation.sampling == "all 300 samples weighted to the mix"
    assert evaluation.effective_sample_size == pytest.approx(sum(weights) ** 2 / sum(w**2 for w in weights))
    assert evaluate(run, np.bincount(run.labels)).effective_sample_size == pytest.approx(300)


@pytest.mark.parametrize("draws", [0, 5])
def test_compensation_is_adjusting_to_the_mix_that_is_judged_on(draws):
    run = some_run()
    with_it = evaluate(run, BACKWARD, draws=draws)
    without = evaluate(run, BACKWARD, draws=draws, compensate=False)
    beforehand = evaluate(run.adjusted(with_it.target), BACKWARD, draws=draws, compensate=False)
    assert with_it.compensated and not without.compensated
    assert with_it.scores == beforehand.scores
    assert with_it.scores["accuracy"] > without.scores["accuracy"] + 0.1
    assert with_it.scores["nll"] < without.scores["nll"] - 0.1


def test_logits_that_carry_the_mix_already_are_left_alone():
    run = some_run()
    assert evaluate(run, SOURCE).scores == evaluate(run, SOURCE, compensate=False).scores


def test_a_mix_without_one_class_leaves_out_its_samples():
    run = some_run()
    target = [0.5, 0.0, 0.25, 0.25]
    kept = run.labels != 1
    evaluation = evaluate(run, target)
    fewer = replace(run, logits=run.logits[kept], labels=run.labels[kept])
    assert evaluation.scores["nll"] == pytest.approx(evaluate(fewer, target).scores["nll"])
    assert math.isfinite(evaluation.scores["nll"])
    assert evaluation.effective_sample_size <= kept.sum()


@settings(max_examples=20)
@given(masses=st.lists(st.floats(0.01, 1), min_size=4, max_size=4), compensate=st.booleans())
def test_scores_stay_in_their_ranges_on_any_mix(masses, compensate):
    scores = evaluate(some_run(), masses, compensate=compensate).scores
    for name in ("accuracy", "balanced_error", "macro_f1", "ece", "classwise_ece", "many", "medium", "few"):
        assert 0 <= scores[name] <= 1
    assert 0 <= scores["brier"] <= 2
    assert scores["nll"] >= 0


def test_group_accuracies_are_means_over_classes_of_many_medium_and_few_training_images():
    run = some_run()
    right = run.logits.argmax(axis=1) == run.labels
    by_class = [right[run.labels == label].mean().item() for label in range(4)]
    scores = score(run)
    assert scores["many"] == pytest.approx(statistics.fmean(by_class[:2]))
    assert scores["medium"] == pytest.approx(by_class[2])
    assert scores["few"] == pytest.approx(by_class[3])
    assert scores["balanced_error"] == pytest.approx(1 - statistics.fmean(by_class))
    assert scores["accuracy"] == pytest.approx(right.mean().item())


def test_without_training_counts_there_are_no_groups():
    assert "many" not in score(some_run(train_counts=None))


@pytest.mark.parametrize("draws", [0, 2])
def test_an_empty_group_is_none_not_zero(draws):
    run = some_run(train_counts=np.array([300, 250, 200, 150]))
    evaluation = evaluate(run, BACKWARD, draws=draws)
    assert evaluation.scores["few"] is None and evaluation.scores["medium"] is None
    assert evaluation.scores["many"] > 0
    if draws:
        assert "few" not in evaluation.intervals


@pytest.mark.parametrize("judge", [score, lambda run: evaluate(run, [0.25] * 4)])
def test_predictions_without_labels_are_refused(judge):
    with pytest.raises(ValueError, match="`labels`"):
        judge(some_run(labels=None))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": [0.5, 0.5]}, "`target` with one entry per class, 4, but got 2"),
        ({"target": [0.5, 0.5, -1, 1]}, "`target` to be finite and non-negative"),
        ({"target": BACKWARD, "draws": -1}, "`draws` .* but got -1"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        evaluate(some_run(), **options)


@pytest.mark.parametrize("draws", [0, 1])
def test_a_class_of_the_mix_that_was_never_tested_is_refused_by_index(draws):
    run = some_run()
    kept = run.labels != 2
    without = replace(run, logits=run.logits[kept], labels=run.labels[kept])
    with pytest.raises(ValueError, match="no sample of class 2"):
        evaluate(without, BACKWARD, draws=draws)


# Spreads


def test_a_spread_is_mean_and_sample_standard_deviation():
    spread = Spread.of([0.50, 0.60, 0.55])
    assert spread.mean == pytest.approx(0.55)
    assert spread.sd == pytest.approx(math.sqrt((0.05**2 + 0.05**2) / 2))
    assert spread.runs == 3
    assert str(spread) == "0.550 ± 0.050"
    assert spread.percent() == "55.0 ± 5.0"


def test_one_run_has_no_standard_deviation():
    spread = Spread.of([0.5])
    assert (spread.mean, spread.sd, spread.runs) == (0.5, None, 1)
    assert (str(spread), spread.percent()) == ("0.500", "50.0")


# Several runs on several mixes


def test_a_comparison_has_a_row_for_each_method_with_and_without_compensation():
    runs = [some_run(seed, method) for seed in (0, 1) for method in ("LADE", "Softmax")]
    comparison = compare(runs)
    assert [(row.method, row.compensated) for row in comparison.rows] == [
        ("LADE", False),
        ("LADE", True),
        ("Softmax", False),
        ("Softmax", True),
    ]
    assert [row.label for row in comparison.rows[:2]] == ["LADE", "LADE, compensated"]
    assert comparison.mixes == STANDARD_MIXES
    assert comparison.num_samples == 300
    assert all(tuple(row.spreads) == STANDARD_MIXES for row in comparison.rows)


def test_each_cell_is_the_spread_over_the_runs_of_its_method_alone():
    runs = [some_run(seed, "A") for seed in range(3)] + [some_run(3, "B", separation=1.0)]
    comparison = compare(runs, ["backward:5", "uniform", "source"])
    masses = {
        "backward:5": [5 ** (-(3 - rank) / 3) for rank in range(4)],
        "uniform": [1.0] * 4,
        "source": COUNTS,
    }
    for row in comparison.rows:
        group = [run for run in runs if run.method == row.method]
        for mix, spreads in row.spreads.items():
            tables = [evaluate(run, masses[mix], compensate=row.compensated).scores for run in group]
            for name, spread in spreads.items():
                values = [table[name] for table in tables]
                assert spread.mean == pytest.approx(statistics.fmean(values), rel=1e-9)
                assert spread.runs == len(group)
                if len(group) == 1:
                    assert spread.sd is None
                else:
                    assert spread.sd == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-12)
    for mix, size in comparison.effective_sample_sizes.items():
        by_class = np.asarray(masses[mix], dtype=float) / (90, 80, 70, 60)
        weights = by_class[runs[0].labels]
        assert size == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def test_an_empty_group_has_no_spread():
    counts = np.array([300, 250, 200, 150])
    comparison = compare([some_run(seed, train_counts=counts) for seed in range(2)], ["uniform"])
    for row in comparison.rows:
        assert row.spreads["uniform"]["few"] is None
        assert row.spreads["uniform"]["many"].runs == 2


def test_methods_keep_the_order_of_their_first_run():
    runs = [some_run(seed, method) for seed, method in enumerate(["B", "A", "B", "C", "A"])]
    groups = by_method(runs)
    assert list(groups) == ["B", "A", "C"]
    assert [[run.facts["seed"] for run in group] for group in groups.values()] == [[0, 2], [1, 4], [3]]


def flipped(labels):
    changed = labels.copy()
    changed[0] = 3
    return changed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"fingerprint": "other"},
            r"same test set, but Second .* \(fingerprint other against 0123",
        ),
        ({"fingerprint": ""}, r"\(fingerprint unknown against 0123"),
        ({"labels": flipped(some_run().labels)}, "one and the same test set, but Second"),
        ({"train_counts": COUNTS + 1}, "same `train_counts`, but those of Second differ"),
        ({"train_counts": None}, "`labels` and `train_counts`, but Second lacks them"),
        ({"labels": None}, "`labels` and `train_counts`, but Second lacks them"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        compare([some_run(), some_run(1, "Second", **changes)], ["uniform"])


def test_other_test_sets_of_other_sizes_are_refused():
    shorter = some_run(1, "Second", per_class=(9, 8, 7, 6))
    with pytest.raises(ValueError, match="one and the same test set"):
        compare([some_run(), shorter], ["uniform"])


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="at least one set of predictions"):
        compare([])
    with pytest.raises(ValueError, match="sideways"):
        compare([some_run()], ["sideways:5"])


def test_the_same_run_twice_is_no_second_seed():
    with pytest.raises(ValueError, match="differ by their seed, but Softmax has seed 0 more than once"):
        compare([some_run(0), some_run(0)], ["uniform"])


# Reading once


class Counted(np.ndarray):
    """Logits that count how many of their rows are read, and how often they are read whole."""

    rows = 0
    whole = 0

    def __getitem__(self, part):
        found = np.asarray(self)[part]
        type(self).rows += len(found)
        return found

    def __array_ufunc__(self, *arguments, **options):
        type(self).whole += 1
        return super().__array_ufunc__(*arguments, **options)

    def __array_function__(self, *arguments, **options):
        type(self).whole += 1
        return super().__array_function__(*arguments, **options)


@pytest.fixture
def counting(monkeypatch):
    """Makes runs whose logits count their reads; any other reading of arguments fails."""
    monkeypatch.setattr(Counted, "rows", 0)
    monkeypatch.setattr(Counted, "whole", 0)
    monkeypatch.setattr(_kernels, "BLOCK", 64)
    runs = [some_run(seed, method) for seed, method in enumerate(["A", "A", "B"])]

    def read_again(*arguments, **options):
        raise AssertionError("validated arrays were checked again")

    for name in ("_scan", "refuse_probs", "check_probs", "read_labels", "read_scores", "read_weights"):
        monkeypatch.setattr(_inputs, name, read_again)
    for name in ("read_labels", "read_weights", "read_rows", "check_probs"):
        monkeypatch.setattr(_samples, name, read_again)
    return [run._with(logits=run.logits.view(Counted)) for run in runs]


@pytest.mark.parametrize("compensate", [False, True])
def test_evaluating_reads_the_logits_once_and_checks_nothing_again(counting, compensate):
    run = counting[0]
    evaluate(run, BACKWARD, compensate=compensate)
    assert (Counted.rows, Counted.whole) == (run.num_samples, 0)


def test_comparing_on_eleven_mixes_reads_the_logits_of_each_run_once(counting):
    mixes = ["uniform", *(f"{way}:{r}" for way in ("forward", "backward") for r in (2, 5, 10, 25, 50))]
    assert len(mixes) == 11
    compare(counting, mixes)
    assert (Counted.rows, Counted.whole) == (sum(run.num_samples for run in counting), 0)


def test_draws_read_the_logits_of_the_samples_drawn_once(monkeypatch):
    run = some_run()
    monkeypatch.setattr(Counted, "rows", 0)
    evaluate(run._with(logits=run.logits.view(Counted)), BACKWARD, draws=20)
    assert 0 < Counted.rows <= run.num_samples


# One pass gives what the metrics give one by one


def by_metrics(run, weights):
    logits = run.logits.astype(np.float64)
    log_probs = logits - logits.max(axis=1, keepdims=True)
    log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
    probs, predicted, labels = np.exp(log_probs), run.predicted, run.labels
    groups = metrics.group_accuracy(predicted, labels, run.train_counts, weights=weights)
    return {
        "accuracy": metrics.accuracy(predicted, labels, weights=weights),
        "balanced_error": metrics.balanced_error(predicted, labels, run.num_classes, weights=weights),
        "macro_f1": metrics.macro_f1(predicted, labels, run.num_classes, weights=weights),
        "ece": metrics.expected_calibration_error(probs, labels, weights=weights),
        "classwise_ece": metrics.classwise_calibration_error(probs, labels, weights=weights),
        "brier": metrics.brier_score(probs, labels, weights=weights),
        "nll": metrics.negative_log_likelihood(log_probs, labels, weights=weights),
        "many": groups.many,
        "medium": groups.medium,
        "few": groups.few,
    }


def near(value, tolerance):
    return None if value is None else pytest.approx(value, rel=tolerance, abs=1e-12)


def random_run(num_samples, num_classes, dtype=np.float64, scale=2.0):
    rng = np.random.default_rng(num_samples + num_classes)
    labels = rng.permutation(np.arange(num_samples) % num_classes)
    logits = scale * rng.normal(size=(num_samples, num_classes))
    logits[np.arange(num_samples), labels] += scale
    counts = np.geomspace(500, 5, num_classes).round().astype(int)
    return Predictions(
        logits=logits.astype(dtype), labels=labels, carried=Prior.from_counts(counts), train_counts=counts
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_classes", [2, 7, 40])
@pytest.mark.parametrize("block", [1, 90, 2**16])
def test_one_pass_gives_every_score_that_the_metrics_give_alone(num_classes, block, dtype, monkeypatch):
    monkeypatch.setattr(_kernels, "BLOCK", block)
    run = random_run(150, num_classes, dtype)
    weights = np.random.default_rng(0).exponential(size=150) * (np.arange(150) % 4 > 0)
    for masses in (None, weights):
        expected = by_metrics(run, masses)
        found = score(run, masses)
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert found[name] == near(value, 1e-10), name


@pytest.mark.parametrize("scale", [2.0, 300.0])
def test_a_comparison_gives_what_each_mix_gives_alone_also_where_exponentials_underflow(scale):
    run = random_run(200, 6, scale=scale)
    for row in compare(
        [run], ["uniform", f"forward:{10**12}", f"backward:{10**12}", "tweak:5:0", "tweak:3:1"]
    ).rows:
        for mix, spreads in row.spreads.items():
            alone = evaluate(run, target_prior(mix, run.train_counts), compensate=row.compensated).scores
            for name, value in alone.items():
                mean = None if spreads[name] is None else spreads[name].mean
                assert mean == near(value, 1e-9), (mix, name)


def test_logits_that_rule_out_every_class_of_the_mix_are_refused_where_they_count():
    logits = np.array([[0.0, -np.inf, 1.0], [0.0, 0.5, -np.inf], [-np.inf, 0.0, 0.0]])
    run = Predictions(logits=logits, labels=[1, 1, 2], carried=[0.3, 0.3, 0.4], train_counts=[3, 3, 4])
    with pytest.raises(ValueError, match=r"sample 0 gives no probabilities \(1 of 2"):
        evaluate(run, [0.0, 1.0, 0.0])
    scores = evaluate(run, [0.0, 0.0, 1.0], compensate=False).scores
    assert math.isfinite(scores["nll"])


# Names and kinds


def test_a_target_given_by_name_is_matched_by_name():
    run = some_run(class_names=("ape", "bee", "cat", "dog"))
    by_name = dict(zip(("dog", "ape", "cat", "bee"), (0.6, 0.05, 0.25, 0.1), strict=True))
    for draws in (0, 2):
        by_position = evaluate(run, BACKWARD, draws=draws)
        assert evaluate(run, by_name, draws=draws).scores == by_position.scores
        assert by_position.target.names == run.class_names
    with pytest.raises(ValueError, match="missing are 'dog' and unknown are 'fox'"):
        evaluate(run, {"ape": 1, "bee": 1, "cat": 1, "fox": 1})


@every_kind_of("vector")
def test_weights_of_every_kind_weigh_a_score(kind):
    run = some_run()
    weights = np.arange(run.num_samples) % 3 + 1.0
    assert score(run, kind(weights)) == score(run, weights)
