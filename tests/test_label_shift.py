import re

import numpy as np
import pandas
import pytest
from scipy.optimize import minimize
from scipy.stats import binom, chi2

from kinds import every_kind_of, exact
from priorshift.estimation._label_shift import _cut, _fit, label_shift_test
from priorshift.estimation._simplex import nearest_mix


class World:
    """A scorer of Gaussian classes, miscalibrated on purpose: the test trusts no probabilities."""

    def __init__(self, seed: int, num_classes: int = 4) -> None:
        self.rng = np.random.default_rng(seed)
        self.means = 2.0 * np.eye(num_classes) + self.rng.normal(scale=0.3, size=(num_classes, num_classes))

    def draw(self, size: int, mix: np.ndarray, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        labels = self.rng.choice(len(mix), size=size, p=mix)
        points = self.means[labels] + noise * self.rng.normal(size=(size, self.means.shape[1]))
        return 3 * points, labels


UNIFORM = np.full(4, 0.25)
TAIL = np.array([0.7, 0.2, 0.1, 0.0])


def test_true_label_shift_is_rejected_about_as_often_as_the_level_says():
    world, rejected, rounds = World(0), 0, 200
    for _ in range(rounds):
        source, labels = world.draw(600, UNIFORM)
        target, _ = world.draw(400, world.rng.dirichlet(np.ones(4)))
        rejected += label_shift_test(source, labels, target).p_value < 0.05
    assert binom.cdf(rejected, rounds, 0.05) < 0.999
    assert binom.sf(rejected, rounds, 0.05) < 0.999


def test_an_absent_class_does_not_raise_the_level():
    world, rejected, rounds = World(1), 0, 100
    for _ in range(rounds):
        source, labels = world.draw(600, UNIFORM)
        target, _ = world.draw(400, TAIL)
        rejected += label_shift_test(source, labels, target).p_value < 0.05
    assert binom.cdf(rejected, rounds, 0.05) < 0.999


def test_a_class_that_the_target_has_many_of_wants_labelled_samples():
    world = World(2)
    source, labels = world.draw(1500, np.array([0.6, 0.3, 0.08, 0.02]))
    reversed_mix, _ = world.draw(1000, np.array([0.02, 0.08, 0.3, 0.6]))
    shift = label_shift_test(source, labels, reversed_mix)
    assert shift.p_value is None
    assert "too few labelled source samples of class 3" in shift.words
    alike, _ = world.draw(1000, np.array([0.6, 0.3, 0.08, 0.02]))
    assert label_shift_test(source, labels, alike).p_value > 0.01


def test_noisier_images_and_a_new_class_are_noticed():
    world = World(2)
    source, labels = world.draw(1500, UNIFORM)
    noisy = label_shift_test(source, labels, world.draw(800, TAIL, noise=1.6)[0])
    known = labels < 3
    new = label_shift_test(
        source[known][:, :3], labels[known], world.draw(800, np.array([0.3, 0.3, 0.1, 0.3]))[0][:, :3]
    )
    for result in (noisy, new):
        assert result.p_value < 0.01
        assert result.words.startswith("No class mix explains the predictions")
    assert "Furthest off: samples predicted as class" in new.words


def test_the_p_value_is_that_of_chi_square_and_words_state_it():
    world = World(3)
    source, labels = world.draw(900, UNIFORM)
    result = label_shift_test(source, labels, world.draw(500, TAIL)[0])
    assert result.p_value == pytest.approx(chi2.sf(result.statistic, result.degrees_of_freedom), rel=1e-9)
    assert result.p_value > 0.05
    assert result.words == (
        f"Label shift explains the predictions (J = {result.statistic:.1f} on {result.degrees_of_freedom} "
        f"degrees of freedom, p = {result.p_value:.2g})."
    )


def test_the_order_of_samples_and_classes_and_constants_on_logits_do_not_matter():
    world = World(4)
    source, labels = world.draw(700, UNIFORM)
    target, _ = world.draw(500, TAIL)
    result = label_shift_test(source, labels, target)
    rows, columns = world.rng.permutation(700), np.array([2, 0, 3, 1])
    moved = label_shift_test(
        (source + 5)[rows][:, columns],
        columns.argsort()[labels][rows],
        target[:, columns] - 3,
    )
    assert moved.degrees_of_freedom == result.degrees_of_freedom
    assert moved.statistic == pytest.approx(result.statistic, rel=1e-6)


def test_the_statistic_is_the_smallest_distance_over_the_simplex():
    rng = np.random.default_rng(5)
    counts = np.array([90, 200, 60])
    histograms = np.stack([rng.multinomial(n, rng.dirichlet(np.ones(8))) / n for n in counts], axis=1)
    observed, size = rng.multinomial(400, histograms @ [0.5, 0.5, 0.0]) / 400, 400
    fit = _fit(histograms, counts, observed, size)

    def multinomial(probs):
        return np.diag(probs) - np.outer(probs, probs)

    def distance(mix, at):
        variance = multinomial(histograms @ at) / size
        variance += sum(at[y] ** 2 / counts[y] * multinomial(histograms[:, y]) for y in range(3))
        gap = observed - histograms @ mix
        return gap @ np.linalg.pinv(variance, rcond=1e-10) @ gap

    at = fit.mix
    best = minimize(
        lambda mix: distance(mix, at),
        np.full(3, 1 / 3),
        bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda mix: mix.sum() - 1},
        options={"ftol": 1e-14},
    )
    assert fit.distance == pytest.approx(best.fun, rel=1e-3)
    np.testing.assert_allclose(at, best.x, atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_a_form_is_minimised_over_the_simplex(seed):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(20, 12)) + 1.5 * rng.normal(size=(20, 1))
    form = factor.T @ factor
    mix = nearest_mix(form)
    value, slope = mix @ form @ mix, form @ mix
    assert mix.sum() == pytest.approx(1)
    assert (mix >= 0).all() and (mix == 0).any()
    # The optimum of a convex form: the slope is the value itself where there is mass and no less elsewhere.
    np.testing.assert_allclose(slope[mix > 0], value, rtol=1e-6)
    assert (slope >= value * (1 - 1e-6)).all()


def test_cells_hold_enough_samples_of_both_sets_and_levels_rise_with_confidence():
    rng = np.random.default_rng(6)
    predicted = rng.choice(5, size=400, p=[0.5, 0.3, 0.15, 0.04, 0.01])
    confidence = rng.exponential(size=400)
    shares = rng.uniform(0.05, 1.0, size=400)
    cells = _cut(predicted, confidence, shares, num_classes=5, levels=4)
    where = cells.of(predicted, confidence)
    assert where.max() + 1 == cells.number
    assert np.bincount(where).min() >= 5
    assert np.bincount(where, weights=shares).min() >= 5
    first = predicted == 0
    highest = [confidence[first & (where == cell)].max() for cell in np.unique(where[first])]
    assert len(highest) == 4 and highest == sorted(highest)


def test_what_cannot_be_tested_is_said_and_has_no_p_value():
    world = World(7)
    source, labels = world.draw(300, UNIFORM)
    few = label_shift_test(source, labels, world.draw(8, UNIFORM)[0])
    assert few.p_value is few.statistic is few.degrees_of_freedom is None
    assert few.words.startswith("Label shift cannot be tested: 300 source and 8 target samples fill")
    known = labels != 2
    absent = label_shift_test(source[known], labels[known], source)
    assert absent.p_value is None
    assert absent.words == (
        "Label shift cannot be tested: no labelled source sample shows how class 2 would be predicted."
    )


def test_saturated_and_impossible_classes_are_taken():
    world = World(8)
    source, labels = world.draw(600, UNIFORM)
    target, _ = world.draw(300, TAIL)
    sharp = label_shift_test(100 * source, labels, 100 * target)
    assert sharp.p_value > 0.01
    masked = np.where(source < source.max(axis=1, keepdims=True), -np.inf, source)
    certain = label_shift_test(masked, labels, masked)
    assert certain.p_value is None


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"target_logits": np.zeros((4, 3))},
            ValueError,
            "`target_logits` with 2 classes, but got 3",
        ),
        ({"source_labels": [0, 1]}, ValueError, r"one entry per sample, \(4,\), but got shape \(2,\)"),
        ({"source_labels": [0, 1, 2, 0]}, ValueError, "`source_labels` between 0 and 1, but got 2"),
        ({"levels": 1}, ValueError, "`levels` to be at least 2 and finite, but got 1"),
        ({"target_logits": np.zeros((0, 2))}, ValueError, r"N ≥ 1 and C ≥ 2, but got shape \(0, 2\)"),
        ({"target_logits": np.zeros((4, 2), int)}, TypeError, "to be floating-point, but got dtype"),
        ({"source_logits": "scores"}, TypeError, "`source_logits` to be real numbers, but got 'scores'"),
        ({"target_logits": np.full((4, 2), 0.5)}, ValueError, "these are probabilities"),
        ({"source_labels": np.eye(2)[[0, 1, 0, 1]]}, ValueError, "for one-hot rows pass"),
        ({"source_labels": [1, 2, 1, 2]}, ValueError, "Where labels begin at 1, subtract 1"),
        ({"source_logits": np.full((4, 2), np.nan)}, ValueError, "finite or −inf, and finite for some"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, error, words):
    arguments = {
        "source_logits": np.zeros((4, 2)),
        "source_labels": [0, 1, 0, 1],
        "target_logits": np.zeros((4, 2)),
    }
    with pytest.raises(error, match=words):
        label_shift_test(**(arguments | change))


@every_kind_of("scores")
def test_every_kind_of_scores_gives_the_same_test(kind):
    world = World(9)
    source, labels = world.draw(300, UNIFORM)
    source, target = exact(source), exact(world.draw(200, TAIL)[0])
    found, expected = (
        label_shift_test(kind(source), labels, kind(target)),
        label_shift_test(source, labels, target),
    )
    assert found == expected


@every_kind_of("labels")
def test_every_kind_of_labels_gives_the_same_test(kind):
    world = World(9)
    source, labels = world.draw(300, UNIFORM)
    target, _ = world.draw(200, TAIL)
    assert label_shift_test(source, kind(labels), target) == label_shift_test(source, labels, target)


def test_classes_are_matched_by_name_and_named():
    world, names, turned = World(2), np.array(["cat", "dog", "owl", "yak"]), [3, 1, 0, 2]
    source, labels = world.draw(1500, UNIFORM)
    noisy, _ = world.draw(800, TAIL, noise=1.6)
    expected = label_shift_test(source, labels, noisy)
    table = pandas.DataFrame(source, columns=names)
    found = label_shift_test(table, names[labels], pandas.DataFrame(noisy[:, turned], columns=names[turned]))
    assert found.p_value == expected.p_value
    assert re.search(r"samples predicted as class '(cat|dog|owl|yak)'", found.words)
    few = label_shift_test(table[labels != 2], names[labels[labels != 2]], table)
    assert "no labelled source sample shows how class 'owl' would be predicted" in few.words
