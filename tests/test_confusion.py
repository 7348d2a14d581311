import itertools
import math
import re

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from scipy.special import softmax

from kinds import column_names, every_kind_of, exact
from priorshift import _blocks
from priorshift.estimation._confusion import bbse, rlls

ESTIMATORS = {
    "bbse soft": bbse,
    "bbse hard": lambda *args, **kwargs: bbse(*args, hard=True, **kwargs),
    "rlls soft": rlls,
    "rlls hard": lambda *args, **kwargs: rlls(*args, hard=True, **kwargs),
}
every_estimator = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS.keys())


def population(num_classes=4, num_points=12, seed=0):
    """A table p(x | y) over some points, `[X, C]`, and a scorer's log-probabilities at them."""
    generator = np.random.default_rng(seed)
    likelihood = generator.dirichlet(np.full(num_points, 0.4), size=num_classes).T
    logits = np.log(likelihood + 0.01) + generator.normal(scale=0.3, size=likelihood.shape)
    return likelihood, logits


def weighted_samples(likelihood, logits, prior):
    """Every point with every label, weighted by p(x | y) p(y): the whole population as labelled samples."""
    num_points, num_classes = likelihood.shape
    labels = np.tile(np.arange(num_classes), num_points)
    return np.repeat(logits, num_classes, axis=0), labels, (likelihood * prior).ravel()


def drawn(seed=0, num_classes=4, size=300, target=(0.1, 0.2, 0.3, 0.4)):
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), generator.integers(num_classes, size=size)])
    there = generator.choice(num_classes, size=size, p=target)

    def score(classes):
        return generator.normal(size=(len(classes), num_classes)) + 1.2 * np.eye(num_classes)[classes]

    return score(labels), labels, score(there)


def reference_confusion(logits, labels, *, hard):
    num_classes = logits.shape[1]
    columns = np.zeros((num_classes, num_classes))
    for y in range(num_classes):
        mine = [row for row, label in zip(logits, labels, strict=True) if label == y]
        for row in mine:
            columns[:, y] += (np.arange(num_classes) == row.argmax() if hard else softmax(row)) / len(mine)
    return columns


def reference_mean(logits, *, hard):
    return np.mean([np.eye(len(row))[row.argmax()] if hard else softmax(row) for row in logits], axis=0)


def simplex_grid(num_classes, steps):
    for cuts in itertools.combinations(range(steps + num_classes - 1), num_classes - 1):
        edges = np.array([-1, *cuts, steps + num_classes - 1])
        yield (np.diff(edges) - 1) / steps


@pytest.mark.parametrize("target", [[0.1, 0.2, 0.3, 0.4], [0.0, 0.9, 0.0, 0.1], [0.0, 0.0, 0.0, 1.0]])
@pytest.mark.parametrize("source", [[0.25] * 4, [0.7, 0.2, 0.08, 0.02]])
@pytest.mark.parametrize("hard", [False, True])
def test_a_whole_population_gives_its_prior_exactly(source, target, hard):
    likelihood, logits = population()
    samples, labels, weights = weighted_samples(likelihood, logits, np.array(source))
    mass = likelihood @ np.array(target)
    estimate = bbse(samples, labels, logits, hard=hard, source_weights=weights, target_weights=mass)
    np.testing.assert_allclose(estimate.prior.probs, target, atol=1e-7)
    assert estimate.residual < 1e-8
    assert estimate.unidentifiable == ()


@every_estimator
def test_blocks_of_samples_change_nothing(estimate, monkeypatch):
    source, labels, target = drawn()
    expected = estimate(source, labels, target)
    for block in (1, 50, 4 * 299):
        monkeypatch.setattr(_blocks.for_blocks, "__kwdefaults__", {"entries": block})
        found = estimate(source, labels, target)
        np.testing.assert_allclose(found.prior.probs, expected.prior.probs, rtol=0, atol=1e-9)
        wrong = target.copy()
        wrong[200, 1] = math.inf
        with pytest.raises(
            ValueError,
            match=r"`target_logits` to be finite or −inf, .* inf for class 1 of sample 200",
        ):
            estimate(source, labels, wrong)


@pytest.mark.parametrize("target", [[0.1, 0.2, 0.3, 0.4], [0.0, 0.9, 0.0, 0.1]])
@pytest.mark.parametrize("hard", [False, True])
def test_rlls_recovers_a_whole_population_as_its_sample_grows(target, hard):
    likelihood, logits = population()
    samples, labels, weights = weighted_samples(likelihood, logits, np.array([0.4, 0.3, 0.2, 0.1]))
    mass = likelihood @ np.array(target)
    errors = []
    for size in (1e3, 1e9):
        estimate = rlls(
            samples,
            labels,
            logits,
            hard=hard,
            alpha=1.0,
            source_weights=size * weights,
            target_weights=mass,
        )
        errors.append(np.abs(estimate.prior.probs - target).max())
    assert errors[0] > 1e-3
    assert errors[1] < 1e-5


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("num_classes", [3, 10])
def test_bbse_is_the_least_squares_solution_of_another_solver(hard, num_classes):
    target = np.random.default_rng(0).dirichlet(np.full(num_classes, 0.3))
    scores, labels, unlabelled = drawn(1, num_classes, 400, target)
    confusion, mean = reference_confusion(scores, labels, hard=hard), reference_mean(unlabelled, hard=hard)
    # A heavy row makes non-negative least squares keep the sum at 1.
    expected, _ = nnls(np.vstack([confusion, np.full(num_classes, 1e5)]), np.append(mean, 1e5))
    estimate = bbse(scores, labels, unlabelled, hard=hard)
    np.testing.assert_allclose(estimate.prior.probs, expected, atol=1e-7)
    assert estimate.residual == pytest.approx(np.linalg.norm(confusion @ expected - mean), abs=1e-9)
    values = np.linalg.svd(confusion, compute_uv=False)
    assert estimate.smallest_singular_value == pytest.approx(values[-1])
    assert estimate.condition == pytest.approx(values[0] / values[-1])


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0])
def test_rlls_is_nowhere_above_the_best_point_of_a_fine_grid(alpha, seed, hard):
    target = np.random.default_rng(seed).dirichlet(np.full(3, 0.3))
    scores, labels, unlabelled = drawn(seed, 3, 150, target)
    confusion, mean = reference_confusion(scores, labels, hard=hard), reference_mean(unlabelled, hard=hard)
    source = np.bincount(labels) / len(labels)
    # The regularizer of the released code, written out.
    bound = 2 * math.log(2 * 3 / 0.05) / (3 * len(labels)) + math.sqrt(
        2 * math.log(2 * 3 / 0.05) / len(labels)
    )

    def objective(t):
        return np.linalg.norm(confusion @ t - mean) + alpha * 3 * bound * np.linalg.norm(t / source - 1)

    best = min(simplex_grid(3, 120), key=objective)
    found = rlls(scores, labels, unlabelled, hard=hard, alpha=alpha).prior.probs
    assert objective(found) <= objective(best) + 1e-7
    assert np.abs(found - best).max() < 0.03


def test_rlls_objective_cannot_be_lowered_nearby_with_many_classes():
    target = np.random.default_rng(0).dirichlet(np.full(12, 0.3))
    scores, labels, unlabelled = drawn(2, 12, 400, target)
    confusion, mean = reference_confusion(scores, labels, hard=False), reference_mean(unlabelled, hard=False)
    source = np.bincount(labels) / len(labels)
    odds = 2 * math.log(2 * 12 / 0.05) / len(labels)
    rho = 0.05 * 3 * (odds / 3 + math.sqrt(odds))

    def objective(t):
        return np.linalg.norm(confusion @ t - mean) + rho * np.linalg.norm(t / source - 1)

    found = rlls(scores, labels, unlabelled, alpha=0.05).prior.probs
    rivals = np.random.default_rng(1).dirichlet(np.ones(12), size=300)
    rivals = np.vstack([rivals, np.eye(12), source])
    for step in (1e-1, 1e-2, 1e-3, 1e-4):
        for rival in rivals:
            assert objective((1 - step) * found + step * rival) >= objective(found) - 1e-9


def test_rlls_without_regularizer_is_bbse_and_with_a_strong_one_the_source():
    scores, labels, unlabelled = drawn()
    source = np.bincount(labels) / len(labels)
    none, strong = (rlls(scores, labels, unlabelled, alpha=alpha).prior.probs for alpha in (0.0, 1e4))
    np.testing.assert_allclose(none, bbse(scores, labels, unlabelled).prior.probs, atol=1e-9, rtol=0)
    np.testing.assert_array_equal(strong, source)


def test_rlls_moves_from_bbse_to_the_source_as_its_regularizer_grows():
    scores, labels, unlabelled = drawn()
    source = np.bincount(labels) / len(labels)
    distances = [
        np.linalg.norm(rlls(scores, labels, unlabelled, alpha=alpha).prior.probs / source - 1)
        for alpha in (0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 1.0)
    ]
    assert all(near <= far + 1e-7 for far, near in itertools.pairwise(distances))
    assert distances[-1] < 0.5 * distances[0]


def test_damping_goes_part_of_the_way_to_the_source():
    scores, labels, unlabelled = drawn()
    source = np.bincount(labels) / len(labels)
    full, half, none = (rlls(scores, labels, unlabelled, lam=lam).prior.probs for lam in (1.0, 0.5, 0.0))
    np.testing.assert_allclose(half, (full + source) / 2)
    np.testing.assert_allclose(none, source)


@every_estimator
@settings(max_examples=25)
@given(seed=st.integers(0, 1000), num_classes=st.integers(2, 8), size=st.integers(1, 40))
def test_the_estimate_is_a_distribution(estimate, seed, num_classes, size):
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), generator.integers(num_classes, size=size)])
    scores = 5 * generator.normal(size=(len(labels), num_classes))
    probs = estimate(scores, labels, 5 * generator.normal(size=(size, num_classes))).prior.probs
    assert (probs >= 0).all()
    assert probs.sum() == pytest.approx(1, abs=1e-12)


@every_estimator
def test_renaming_the_classes_renames_the_estimate(estimate):
    scores, labels, unlabelled = drawn()
    order = [2, 0, 3, 1]
    plain = estimate(scores, labels, unlabelled).prior.probs
    renamed = estimate(scores[:, order], np.argsort(order)[labels], unlabelled[:, order]).prior.probs
    np.testing.assert_allclose(renamed, plain[order], atol=1e-8, rtol=0)


@every_estimator
def test_a_weight_counts_a_sample_so_many_times(estimate):
    scores, labels, unlabelled = drawn()
    generator = np.random.default_rng(5)
    times, there = generator.integers(1, 4, size=len(labels)), generator.integers(0, 3, size=len(unlabelled))
    weighted = estimate(scores, labels, unlabelled, source_weights=times, target_weights=there)
    repeated = estimate(scores.repeat(times, axis=0), labels.repeat(times), unlabelled.repeat(there, axis=0))
    np.testing.assert_allclose(weighted.prior.probs, repeated.prior.probs, atol=1e-8, rtol=0)


@pytest.mark.parametrize("hard", [False, True])
def test_bbse_does_not_see_the_mix_of_the_labelled_samples(hard):
    scores, labels, unlabelled = drawn()
    mix = np.array([8.0, 4.0, 2.0, 1.0])[labels]
    one = bbse(scores, labels, unlabelled, hard=hard)
    other = bbse(scores, labels, unlabelled, hard=hard, source_weights=mix)
    np.testing.assert_allclose(one.prior.probs, other.prior.probs, atol=1e-9, rtol=0)


@every_estimator
def test_constants_on_samples_change_nothing(estimate):
    scores, labels, unlabelled = drawn()
    shifted = estimate(scores + 7.0, labels, unlabelled - np.arange(300)[:, None])
    np.testing.assert_allclose(
        shifted.prior.probs, estimate(scores, labels, unlabelled).prior.probs, atol=1e-9, rtol=0
    )


@every_estimator
def test_the_target_being_the_source_gives_its_mix(estimate):
    scores, labels, _ = drawn()
    probs = estimate(scores, labels, scores).prior.probs
    np.testing.assert_allclose(probs, np.bincount(labels) / len(labels), atol=1e-7)


@every_kind_of("scores")
@pytest.mark.parametrize("method", [bbse, rlls])
def test_every_kind_of_scores_gives_the_same_estimate(method, kind):
    scores, labels, unlabelled = drawn(size=40)
    scores, unlabelled = exact(scores), exact(unlabelled)
    found, expected = method(kind(scores), labels, kind(unlabelled)), method(scores, labels, unlabelled)
    np.testing.assert_allclose(found.prior.probs, expected.prior.probs, atol=1e-9)
    assert found.prior.names == (tuple(column_names(4)) if kind.table else None)


@every_kind_of("labels")
def test_every_kind_of_labels_gives_the_same_estimate(kind):
    scores, labels, unlabelled = drawn(size=40)
    assert bbse(scores, kind(labels), unlabelled) == bbse(scores, labels, unlabelled)


@every_kind_of("vector")
def test_every_kind_of_weights_gives_the_same_estimate(kind):
    scores, labels, unlabelled = drawn(size=40)
    weights = exact(np.random.default_rng(0).uniform(0.5, 2, size=len(labels)))
    found = rlls(scores, labels, unlabelled, source_weights=kind(weights), target_weights=kind(weights[:40]))
    expected = rlls(scores, labels, unlabelled, source_weights=weights, target_weights=weights[:40])
    np.testing.assert_allclose(found.prior.probs, expected.prior.probs, rtol=1e-9)


@every_estimator
def test_classes_are_matched_by_name(estimate):
    scores, labels, unlabelled = drawn()
    names, turned = np.array(["cat", "dog", "owl", "yak"]), [2, 0, 3, 1]
    source = pandas.DataFrame(scores, columns=names)
    target = pandas.DataFrame(unlabelled[:, turned], columns=names[turned])
    found, expected = estimate(source, names[labels], target), estimate(scores, labels, unlabelled)
    assert found.prior.names == tuple(names)
    np.testing.assert_allclose(found.prior.probs, expected.prior.probs, atol=1e-12)
    with pytest.raises(ValueError, match="`target_logits` to name the same classes, but missing are 'cat'"):
        estimate(source, labels, target.rename(columns={"cat": "cow"}))


def test_an_absent_class_is_named():
    scores = pandas.DataFrame(np.zeros((2, 3)), columns=["cat", "dog", "owl"])
    with pytest.raises(ValueError, match="but there is none of class 'dog'"):
        bbse(scores, ["cat", "owl"], scores)


@every_estimator
def test_scores_far_apart_are_no_less_exact(estimate):
    scores, labels, unlabelled = drawn()
    far = 1e5 * np.arange(len(scores) % 7, len(scores) % 7 + len(scores))[::-1, None]
    shifted = estimate(scores + far, labels, unlabelled)
    np.testing.assert_allclose(
        shifted.prior.probs, estimate(scores, labels, unlabelled).prior.probs, atol=1e-8
    )


@every_estimator
def test_a_probability_of_zero_is_a_log_probability_of_minus_infinity(estimate):
    with np.errstate(divide="ignore"):
        scores, unlabelled = np.log(np.eye(3)), np.log(np.eye(3)[[0, 2, 2, 2]])
    tenfold = {"scores": scores.repeat(10, axis=0), "labels": np.arange(3).repeat(10)}
    probs = estimate(tenfold["scores"], tenfold["labels"], unlabelled).prior.probs
    np.testing.assert_allclose(probs, [0.25, 0, 0.75], atol=0.1)


@pytest.mark.parametrize("method", [bbse, rlls])
def test_classes_that_the_scorer_cannot_tell_apart_are_named(method):
    likelihood, logits = population(5)
    likelihood[:, 3] = likelihood[:, 1]
    samples, labels, weights = weighted_samples(likelihood, logits, np.full(5, 0.2))
    mass = likelihood @ np.array([0.4, 0.3, 0.2, 0.1, 0.0])
    estimate = method(samples, labels, logits, source_weights=weights, target_weights=mass)
    assert estimate.unidentifiable == (1, 3)
    assert estimate.condition > 1e10
    assert estimate.prior.probs[[1, 3]].sum() == pytest.approx(0.4, abs=0.1)
    assert estimate.prior.probs[2] == pytest.approx(0.2, abs=0.06)


def test_a_class_never_predicted_makes_the_hard_confusion_singular_only():
    scores, labels, unlabelled = drawn()
    scores[:, 2], unlabelled[:, 2] = scores[:, 2] - 20, unlabelled[:, 2] - 20
    hard = bbse(scores, labels, unlabelled, hard=True)
    assert 2 in hard.unidentifiable
    assert np.isfinite(hard.prior.probs).all()
    assert bbse(scores, labels, unlabelled).unidentifiable == ()


def test_a_scorer_that_tells_nothing_identifies_no_class():
    estimate = bbse(np.zeros((6, 3)), [0, 1, 2, 0, 1, 2], np.zeros((4, 3)))
    assert estimate.unidentifiable == (0, 1, 2)
    assert estimate.residual == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(estimate.prior.probs, 1 / 3, atol=1e-9)


def test_a_target_that_no_mix_explains_leaves_a_residual():
    scores, labels, _ = drawn()
    elsewhere = np.tile([30.0, 0, 0, 0], (50, 1))
    assert bbse(scores, labels, elsewhere).residual > 0.3


@every_estimator
def test_one_target_sample_is_enough(estimate):
    scores, labels, unlabelled = drawn()
    assert np.isfinite(estimate(scores, labels, unlabelled[:1]).prior.probs).all()


def test_a_thousand_classes_are_solved_to_the_least_residual():
    generator = np.random.default_rng(0)
    labels = np.arange(1000).repeat(3)
    scores = generator.normal(size=(3000, 1000)) + 6 * np.eye(1000)[labels]
    target = generator.dirichlet(np.full(1000, 0.1))
    there = generator.choice(1000, size=2000, p=target)
    unlabelled = generator.normal(size=(2000, 1000)) + 6 * np.eye(1000)[there]
    probs = bbse(scores, labels, unlabelled).prior.probs
    confusion = np.stack([softmax(scores[labels == y], axis=1).mean(axis=0) for y in range(1000)], axis=1)
    slope = confusion.T @ (confusion @ probs - softmax(unlabelled, axis=1).mean(axis=0))
    # By convexity the squared residual is above its least value by no more than twice this.
    assert slope @ probs - slope.min() < 1e-12


@pytest.mark.parametrize("method", [bbse, rlls])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": [0, 1, 0]}, ValueError, "but there is none of class 2."),
        ({"labels": [0, 1, 3]}, ValueError, "Expected `labels` between 0 and 2, but got 3"),
        ({"labels": [1, 2, 3]}, ValueError, "Where labels begin at 1, subtract 1."),
        ({"labels": np.eye(3)}, ValueError, "for one-hot rows pass `labels.argmax(axis=1)`"),
        ({"labels": ["a", "b", "c"]}, TypeError, "but got names such as 'a'"),
        ({"source_logits": np.eye(3)}, ValueError, "these are probabilities"),
        ({"target_logits": np.full((2, 3), 1 / 3)}, ValueError, "these are probabilities"),
        ({"labels": [0, 1]}, ValueError, "Expected `labels` with one entry per sample"),
        ({"labels": [0.0, 1, 2]}, TypeError, "class indices"),
        ({"source_logits": np.eye(3, dtype=int)}, TypeError, "Expected `source_logits` to be floating-point"),
        ({"target_logits": np.zeros(3)}, ValueError, "Expected `target_logits` of shape [N, C]"),
        ({"target_logits": np.zeros((0, 3))}, ValueError, "Expected `target_logits` of shape [N, C]"),
        (
            {"target_logits": np.zeros((2, 4))},
            ValueError,
            "`target_logits` with 3 classes, but got 4",
        ),
        ({"target_logits": np.array([[0, np.nan, 0]])}, ValueError, "but got nan for class 1 of sample 0"),
        ({"source_weights": [1, 1, 0]}, ValueError, "but there is none of class 2."),
        (
            {"source_weights": [1, 1, -1]},
            ValueError,
            "`source_weights` to be finite and non-negative",
        ),
        ({"target_weights": [1.0]}, ValueError, "Expected `target_weights` with one entry per sample"),
        ({"target_weights": [0, 0]}, ValueError, "Expected `target_weights` to have a positive finite sum"),
    ],
)
def test_mistakes_are_named(method, change, error, message):
    arguments = {
        "source_logits": 3 * np.eye(3),
        "labels": [0, 1, 2],
        "target_logits": np.zeros((2, 3)),
    } | change
    with pytest.raises(error, match=re.escape(message)):
        method(**arguments)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"alpha": -1.0}, "Expected `alpha` to be at least 0 and finite, but got -1.0."),
        ({"alpha": math.inf}, "Expected `alpha` to be at least 0 and finite, but got inf."),
        ({"delta": 0.0}, "Expected `delta` between 0 and 1, exclusive, but got 0.0."),
        ({"lam": 1.5}, "Expected `lam` between 0 and 1, but got 1.5."),
    ],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rlls(3 * np.eye(3), [0, 1, 2], np.zeros((2, 3)), **setting)
