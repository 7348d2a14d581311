"""The scikit-learn estimators against scikit-learn's own checks, NumPy references and its own ways of use."""

import pickle
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    RepeatedStratifiedKFold,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from priorshift import Prior
from priorshift.sklearn import PriorEstimator, PriorShiftClassifier

ROOT = Path(__file__).parents[1]
CALIBRATIONS = ["ts", "bcts", "vs", "nbvs"]


def sampled(size, mix, seed=0, spread=1.5):
    """Gaussian classes in the plane, drawn from a mix."""
    rng = np.random.default_rng(seed)
    y = rng.choice(len(mix), size=size, p=np.array(mix) / np.sum(mix))
    means = spread * np.array([[0, 0], [1, 0.5], [-0.5, 1]])
    return means[y] + rng.normal(size=(size, 2)), y


X, Y = sampled(300, [0.6, 0.3, 0.1])
X_NEW, Y_NEW = sampled(400, [0.1, 0.3, 0.6], seed=1)


@parametrize_with_checks(
    [
        PriorShiftClassifier(),
        PriorShiftClassifier(RidgeClassifier(), target="uniform", calibration="vs"),
        PriorShiftClassifier(
            DecisionTreeClassifier(random_state=0), target="estimated", method="rlls", calibration=None
        ),
        PriorEstimator(),
    ]
)
def test_it_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)


# What it computes


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        GaussianNB(),
        KNeighborsClassifier(3),
        DecisionTreeClassifier(random_state=0),
        RandomForestClassifier(10, random_state=0),
        HistGradientBoostingClassifier(max_iter=5),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
@pytest.mark.parametrize("calibration", ["none", None])
def test_without_calibration_and_shift_the_probabilities_are_those_of_the_classifier(estimator, calibration):
    ours = PriorShiftClassifier(estimator, target="source", calibration=calibration).fit(X, Y)
    plain = clone(estimator).fit(X, Y)
    np.testing.assert_allclose(ours.predict_proba(X_NEW), plain.predict_proba(X_NEW), atol=1e-12)
    np.testing.assert_array_equal(ours.predict(X_NEW), plain.predict(X_NEW))
    assert ours.scaling_ is None and ours.floor_ == 0


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda shares: sum(shares) > 0.01))
def test_a_known_target_is_the_posterior_weighted_by_hand(shares):
    plain = GaussianNB().fit(X, Y)
    ours = PriorShiftClassifier(FrozenEstimator(plain), target=shares, calibration=None).fit(X, Y)
    expected = plain.predict_proba(X_NEW) * np.array(shares) / np.bincount(Y)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours.predict_proba(X_NEW), expected, atol=1e-9)
    assert ours.predict_proba(X_NEW)[:, np.array(shares) == 0].sum() == 0


def reference_temperature(evidence, offset, labels):
    """Maximum likelihood of a common scale, held above zero by one nat of a − 1 − log a."""

    def objective(log_scale):
        scale = np.exp(log_scale)
        logs = log_softmax(scale * evidence + offset, axis=1)
        return -logs[np.arange(len(labels)), labels].sum() + scale - 1 - log_scale

    return np.exp(minimize_scalar(objective, bounds=(-4, 4), method="bounded", options={"xatol": 1e-10}).x)


@pytest.mark.parametrize("target", ["source", "uniform"])
def test_the_temperature_is_fitted_to_scores_out_of_fold(target):
    scores = cross_val_predict(GaussianNB(), X, Y, cv=StratifiedKFold(5), method="predict_proba")
    prior = np.bincount(Y) / len(Y)
    scale = reference_temperature(np.log(scores) - np.log(prior), np.log(prior), Y)
    plain = GaussianNB().fit(X, Y).predict_proba(X_NEW)
    moved_to = prior if target == "source" else np.ones(3)
    expected = softmax(scale * (np.log(plain) - np.log(prior)) + np.log(moved_to), axis=1)
    ours = PriorShiftClassifier(GaussianNB(), target=target, calibration="ts").fit(X, Y)
    assert ours.scaling_.scale.item() == pytest.approx(scale, rel=1e-6)
    np.testing.assert_allclose(ours.predict_proba(X_NEW), expected, atol=1e-7)


def test_margins_are_scaled_as_they_are():
    folds = StratifiedKFold(5)
    margins = cross_val_predict(RidgeClassifier(), X, Y, cv=folds, method="decision_function")
    scale = reference_temperature(margins, 0.0, Y)
    plain = RidgeClassifier().fit(X, Y).decision_function(X_NEW)
    ours = PriorShiftClassifier(RidgeClassifier(), calibration="ts", cv=folds).fit(X, Y)
    np.testing.assert_allclose(ours.predict_proba(X_NEW), softmax(scale * plain, axis=1), atol=1e-6)


def test_one_column_of_margins_is_two_classes():
    few = Y < 2
    margins = cross_val_predict(
        LinearSVC(), X[few], Y[few], cv=StratifiedKFold(5), method="decision_function"
    )
    logits = np.stack([np.zeros_like(margins), margins], axis=1)
    scale = reference_temperature(logits, 0.0, Y[few])
    plain = LinearSVC().fit(X[few], Y[few]).decision_function(X_NEW)
    ours = PriorShiftClassifier(LinearSVC(), calibration="ts").fit(X[few], Y[few])
    expected = 1 / (1 + np.exp(-scale * plain))
    np.testing.assert_allclose(ours.predict_proba(X_NEW)[:, 1], expected, atol=1e-6)


def test_adapting_is_expectation_maximisation_of_the_posteriors():
    plain = GaussianNB().fit(X, Y)
    probs, prior = plain.predict_proba(X_NEW), np.bincount(Y) / len(Y)
    mix = prior
    for _ in range(5000):
        posterior = probs * mix / prior
        mix = (posterior / posterior.sum(axis=1, keepdims=True)).mean(axis=0)
    ours = PriorShiftClassifier(GaussianNB(), method="mlls", calibration=None).fit(X, Y).adapt(X_NEW)
    np.testing.assert_allclose(ours.estimate_.prior.probs, mix, atol=1e-6)
    smoothed = (len(X_NEW) * mix + 1 / 3) / (len(X_NEW) + 1)
    np.testing.assert_allclose(ours.target_prior_, smoothed, atol=1e-6)
    np.testing.assert_allclose(mix, [0.1, 0.3, 0.6], atol=0.08)


@pytest.mark.parametrize("calibration", [None, *CALIBRATIONS])
@pytest.mark.parametrize("estimator", [GaussianNB(), RidgeClassifier()])
def test_adapted_probabilities_are_those_of_the_estimate(estimator, calibration):
    ours = PriorShiftClassifier(estimator, calibration=calibration).fit(X, Y).adapt(X_NEW)
    outputs = (
        np.log(ours.estimator_.predict_proba(X_NEW))
        if isinstance(estimator, GaussianNB)
        else ours.estimator_.decision_function(X_NEW)
    )
    np.testing.assert_allclose(
        ours.predict_log_proba(X_NEW), log_softmax(ours.estimate_.adapt(outputs), axis=1), atol=1e-9
    )


@pytest.mark.parametrize(
    "method", ["empirical-bayes", "mlls", "mapls", "bbse", "bbse-hard", "rlls", "rlls-hard"]
)
@pytest.mark.parametrize("calibration", ["none", "bcts"])
def test_every_method_finds_the_mix_and_gains_by_it(method, calibration):
    ours = PriorShiftClassifier(GaussianNB(), method=method, calibration=calibration).fit(X, Y)
    before = ours.score(X_NEW, Y_NEW)
    assert ours.adapt(X_NEW).score(X_NEW, Y_NEW) > before + 0.1
    assert np.abs(ours.target_prior_ - [0.1, 0.3, 0.6]).mean() < 0.1


def test_adapting_leaves_no_trace():
    ours = PriorShiftClassifier(GaussianNB()).fit(X, Y)
    first = ours.adapt(X_NEW).predict_proba(X_NEW)
    ours.adapt(X)
    assert not np.allclose(ours.predict_proba(X_NEW), first)
    np.testing.assert_array_equal(ours.adapt(X_NEW).predict_proba(X_NEW), first)
    assert not hasattr(ours.fit(X, Y), "estimate_")


def test_an_estimated_target_is_the_source_until_it_is_adapted():
    ours = PriorShiftClassifier(GaussianNB(), target="estimated").fit(X, Y)
    np.testing.assert_allclose(ours.target_prior_, np.bincount(Y) / len(Y))
    adapted = ours.adapt(X_NEW).target_prior_
    assert ours.set_target("uniform").target_prior_.tolist() == [1 / 3] * 3
    np.testing.assert_array_equal(ours.set_target("estimated").target_prior_, adapted)
    np.testing.assert_allclose(ours.set_target("source").target_prior_, ours.source_prior_)


def test_a_target_may_be_a_dict_a_series_an_array_or_a_prior():
    names = np.array(["c", "a", "b"])[Y]
    ours = PriorShiftClassifier(GaussianNB(), target={"c": 3, "b": 1, "a": 0}).fit(X, names)
    assert ours.classes_.tolist() == ["a", "b", "c"]
    assert ours.target_prior_.tolist() == [0, 0.25, 0.75]
    assert set(ours.predict(X_NEW)) == {"b", "c"}
    counts = pd.Series([*names[Y > 0].tolist(), "c"]).value_counts()
    expected = [np.mean(Y[Y > 0] == 1), np.mean(Y[Y > 0] == 2)]
    assert ours.set_target(counts).target_prior_[:2] == pytest.approx(expected, abs=0.01)
    by_name = Prior([1, 1, 2], names=["c", "b", "a"])
    for mix in ([2, 1, 1], np.array([2.0, 1, 1]), Prior([2, 1, 1]), by_name, Counter("cbaa")):
        assert ours.set_target(mix).target_prior_.tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize("classes", [[3, 7, 11], [1, 2, 3], [1.0, 2.0, 3.0], ["x", "y", "z"]])
def test_shares_are_matched_to_the_classes_by_name_whatever_their_type(classes):
    y = np.array(classes)[Y]
    shares = dict(zip(classes, [0.2, 0.3, 0.5], strict=True))
    backwards = dict(reversed(shares.items()))
    for target in (backwards, pd.Series(backwards), {str(name): share for name, share in backwards.items()}):
        ours = PriorShiftClassifier(GaussianNB(), target=target, carried=target).fit(X, y)
        assert ours.target_prior_.tolist() == [0.2, 0.3, 0.5]
    estimate = ours.adapt(X_NEW).estimate_
    assert estimate.prior.names == tuple(map(str, classes))
    assert estimate.prior[str(classes[2])] == estimate.prior.probs[2]


def test_positions_are_no_names():
    ours = PriorShiftClassifier(GaussianNB()).fit(X, Y + 1)
    with pytest.raises(ValueError, match="`target` to name the same classes, but missing are '3'"):
        ours.set_target({0: 0.2, 1: 0.3, 2: 0.5})
    with pytest.raises(ValueError, match="missing are '1', '2', '3' and unknown are 'a', 'b', 'c'"):
        ours.set_target(Prior({"a": 1, "b": 1, "c": 1}))


def test_the_estimator_gives_what_adapt_keeps():
    ours = PriorShiftClassifier(GaussianNB()).fit(X, Y).adapt(X_NEW)
    estimator = PriorEstimator(GaussianNB()).fit(X, Y)
    before = pickle.dumps(vars(estimator)["source_prior_"])
    estimate = estimator.estimate(X_NEW)
    assert estimate.prior == ours.estimate_.prior
    assert pickle.dumps(vars(estimator)["source_prior_"]) == before and not hasattr(estimator, "estimate_")
    assert estimate.shift_test is not None and estimate.intervals is not None


# Decisions


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.lists(st.floats(-1, 10), min_size=9, max_size=9))
def test_decisions_have_the_least_expected_cost(entries):
    costs = np.reshape(entries, (3, 3))
    ours = PriorShiftClassifier(GaussianNB(), calibration=None, costs=costs).fit(X, Y)
    for probs, decided in zip(ours.predict_proba(X_NEW[:40]), ours.predict(X_NEW[:40]), strict=True):
        expected = [sum(probs[true] * costs[true, guess] for true in range(3)) for guess in range(3)]
        assert expected[decided] <= min(expected) + 1e-9


def test_equal_costs_of_all_mistakes_are_the_most_probable_class():
    plain = PriorShiftClassifier(GaussianNB(), target="uniform").fit(X, Y)
    priced = clone(plain).set_params(costs=1 - np.eye(3)).fit(X, Y)
    np.testing.assert_array_equal(priced.predict(X_NEW), plain.predict(X_NEW))
    np.testing.assert_array_equal(priced.predict_top_k(X_NEW, 3), plain.predict_top_k(X_NEW, 3))


def test_the_row_of_costs_is_the_true_class():
    costs = [[0, 1, 1], [0, 0, 0], [1e6, 1e6, 0]]
    ours = PriorShiftClassifier(GaussianNB(), costs=costs).fit(X, Y)
    assert (ours.predict(X_NEW) == 2).all()


def test_top_k_ranks_classes_in_the_target_mix():
    ours = PriorShiftClassifier(GaussianNB(), target=[0.05, 0.05, 0.9]).fit(X, np.array(["x", "y", "z"])[Y])
    ranked = ours.predict_top_k(X_NEW, 3)
    probs = ours.predict_proba(X_NEW)
    for row, names in zip(probs, ranked, strict=True):
        assert list(names) == sorted("xyz", key=lambda name: -row["xyz".index(name)])
    np.testing.assert_array_equal(ours.predict_top_k(X_NEW, 1)[:, 0], ours.predict(X_NEW))


# What it is fitted to


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_weights_count_samples(calibration):
    rng = np.random.default_rng(0)
    weights, groups = rng.integers(0, 4, size=len(Y)), rng.integers(0, 3, size=len(Y))
    rows = rng.permutation(np.repeat(np.arange(len(Y)), weights))
    # GaussianNB sums in such an order that its own equivalence holds to 1e-7 only.
    ours = PriorShiftClassifier(
        LogisticRegression(solver="newton-cholesky", tol=1e-10), target="uniform", calibration=calibration
    )
    folds = [(np.flatnonzero(groups != fold), np.flatnonzero(groups == fold)) for fold in range(3)]
    weighted = clone(ours).set_params(cv=folds).fit(X, Y, sample_weight=weights)
    groups = groups[rows]
    folds = [(np.flatnonzero(groups != fold), np.flatnonzero(groups == fold)) for fold in range(3)]
    repeated = clone(ours).set_params(cv=folds).fit(X[rows], Y[rows])
    np.testing.assert_allclose(weighted.predict_proba(X_NEW), repeated.predict_proba(X_NEW), rtol=1e-9)
    np.testing.assert_allclose(
        weighted.adapt(X_NEW).target_prior_, repeated.adapt(X_NEW).target_prior_, atol=1e-9
    )


def test_a_frozen_classifier_is_calibrated_with_every_sample_and_not_fitted_again():
    overconfident = GaussianNB().fit(np.repeat(X, 2, axis=1), Y)
    held, labels = sampled(500, [1, 1, 1], seed=2)
    ours = PriorShiftClassifier(FrozenEstimator(overconfident), carried=np.bincount(Y), target="uniform")
    ours.fit(np.repeat(held, 2, axis=1), labels)
    assert ours.estimator_.estimator is overconfident
    assert ours.scaling_.num_samples == 500
    assert ours.scaling_.scale.item() == pytest.approx(0.5, abs=0.1)
    probs = ours.predict_proba(np.repeat(X_NEW, 2, axis=1))
    exact = GaussianNB(priors=[1 / 3] * 3).fit(X, Y).predict_proba(X_NEW)
    assert np.abs(probs - exact).mean() < 0.03


def test_a_class_that_the_samples_of_a_frozen_classifier_lack_is_half_a_sample():
    fitted = GaussianNB().fit(X, Y)
    held = Y < 2
    ours = PriorShiftClassifier(FrozenEstimator(fitted), carried=np.bincount(Y)).fit(X[held], Y[held])
    assert ours.classes_.tolist() == [0, 1, 2]
    np.testing.assert_allclose(ours.source_prior_[2], 0.5 / (held.sum() + 0.5))
    assert np.mean(ours.set_target([0, 0.2, 0.8]).predict(X_NEW[Y_NEW == 2]) == 2) > 0.8


def test_class_weights_of_the_classifier_are_undone_by_the_mix_that_it_carries():
    balanced = LogisticRegression(class_weight="balanced", C=np.inf, tol=1e-8)
    plain = LogisticRegression(C=np.inf, tol=1e-8).fit(X, Y).predict_proba(X_NEW)
    ours = PriorShiftClassifier(balanced, carried=np.ones(3), calibration="ts").fit(X, Y)
    assert np.abs(ours.predict_proba(X_NEW) - plain).mean() < 0.03
    unaware = PriorShiftClassifier(balanced, calibration="ts").fit(X, Y)
    assert np.abs(unaware.predict_proba(X_NEW) - plain).mean() > 0.05


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_class_that_is_seen_once_is_learnt_and_not_calibrated(num_classes):
    last = num_classes - 1
    rows = np.concatenate([np.flatnonzero(last > Y), np.flatnonzero(last == Y)[:1]])
    for calibration in CALIBRATIONS:
        ours = PriorShiftClassifier(LogisticRegression(), calibration=calibration).fit(X[rows], Y[rows])
        assert len(ours.classes_) == num_classes
        assert ours.scaling_.num_samples == len(rows) - 1
        probs = ours.predict_proba(X_NEW)
        assert np.isfinite(probs).all() and (probs[:, -1] > 0).all()


class Recorder(ClassifierMixin, BaseEstimator):
    """Remembers what it was fitted with."""

    fits: list = []  # noqa: RUF012

    def fit(self, X, y, sample_weight=None, tag=None):
        self.classes_ = np.unique(y)
        Recorder.fits.append((len(y), sample_weight, tag))
        return self

    def predict_proba(self, X):
        return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))


@pytest.mark.parametrize(("cv", "folds"), [(None, 5), (7, 7), (2, 2)])
@pytest.mark.parametrize("rarest", [2, 4, 40])
def test_folds_shrink_with_the_rarest_class(cv, folds, rarest):
    Recorder.fits = []
    y = np.repeat([0, 1, 2], [50, rarest, 1])
    PriorShiftClassifier(Recorder(), cv=cv).fit(np.zeros((len(y), 1)), y)
    assert len(Recorder.fits) == 1 + min(folds, rarest)
    assert max(size for size, _, _ in Recorder.fits[1:]) < len(y)


@pytest.mark.parametrize(
    "cv",
    [LeaveOneOut(), RepeatedStratifiedKFold(n_splits=3, n_repeats=2, random_state=0), KFold(4, shuffle=True)],
    ids=lambda cv: type(cv).__name__,
)
def test_any_splitter_will_do(cv):
    rows = np.arange(60)
    ours = PriorShiftClassifier(GaussianNB(), cv=cv).fit(X[rows], Y[rows])
    assert ours.scaling_.num_samples == pytest.approx(60)


def test_a_fold_whose_training_part_lacks_a_class_is_left_out():
    order = np.argsort(Y, kind="stable")
    first = np.flatnonzero(Y[order] == 0)
    half = len(first) // 2
    without = (np.arange(len(first), len(Y)), first)
    complete = (np.setdiff1d(np.arange(len(Y)), first[:half]), first[:half])
    ours = PriorShiftClassifier(GaussianNB(), cv=[without, complete]).fit(X[order], Y[order])
    assert ours.scaling_.num_samples == half
    with pytest.raises(ValueError, match="Expected `cv` with a fold whose training part holds every class"):
        PriorShiftClassifier(GaussianNB(), cv=[without]).fit(X[order], Y[order])


def test_zeros_of_trees_count_as_half_the_least_probability_they_give():
    forest = RandomForestClassifier(10, min_samples_leaf=5, random_state=0)
    ours = PriorShiftClassifier(forest).fit(X, Y)
    scores = cross_val_predict(forest, X, Y, cv=StratifiedKFold(5), method="predict_proba")
    assert (scores == 0).any()
    assert ours.floor_ == pytest.approx(min(scores[scores > 0].min() / 2, 1 / (2 * len(Y))))
    tree = PriorShiftClassifier(DecisionTreeClassifier(random_state=0)).fit(X, Y)
    assert tree.floor_ == 1 / (2 * len(Y))
    calibrated, right = (
        tree.predict_proba(X_NEW).max(axis=1),
        DecisionTreeClassifier(random_state=0).fit(X, Y),
    )
    assert calibrated.max() < 0.95 and (right.predict_proba(X_NEW).max(axis=1) == 1).all()


# Ways of use


def test_it_works_in_a_pipeline_and_around_one():
    around = PriorShiftClassifier(make_pipeline(StandardScaler(), LogisticRegression()), target="uniform")
    inside = make_pipeline(StandardScaler(), PriorShiftClassifier(LogisticRegression(), target="uniform"))
    for model in (around, inside):
        assert cross_val_score(model, X, Y, cv=3, scoring="balanced_accuracy").mean() > 0.6
    assert around.fit(X, Y).n_features_in_ == 2


def test_a_grid_search_chooses_target_and_calibration():
    grid = {"target": ["source", "uniform", [0.2, 0.3, 0.5]], "calibration": ["none", *CALIBRATIONS]}
    search = GridSearchCV(PriorShiftClassifier(GaussianNB(), cv=3), grid, scoring="balanced_accuracy", cv=3)
    search.fit(X, Y)
    assert search.best_params_["target"] != "source"
    assert len(search.cv_results_["params"]) == 15
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_clones_and_pickles_are_the_same():
    ours = PriorShiftClassifier(GaussianNB(), target={0: 1, 1: 2, 2: 3}, costs=1 - np.eye(3)).fit(X, Y)
    ours.adapt(X_NEW)
    loaded = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(loaded.predict_proba(X_NEW), ours.predict_proba(X_NEW))
    assert loaded.estimate_.prior == ours.estimate_.prior
    np.testing.assert_array_equal(loaded.adapt(X).target_prior_, ours.adapt(X).target_prior_)
    fresh = clone(ours)
    assert not hasattr(fresh, "classes_") and fresh.target == ours.target
    estimator = PriorEstimator(GaussianNB(), method="bbse").fit(X, Y)
    loaded = pickle.loads(pickle.dumps(estimator))
    assert loaded.estimate(X_NEW).prior == estimator.estimate(X_NEW).prior


def test_frames_keep_their_names():
    frame, names = load_wine(return_X_y=True, as_frame=True)
    names = names.map({0: "Barolo", 1: "Grignolino", 2: "Barbera"})
    model = make_pipeline(StandardScaler().set_output(transform="pandas"), LogisticRegression())
    ours = PriorShiftClassifier(model).fit(frame, names)
    assert ours.feature_names_in_.tolist() == frame.columns.tolist()
    assert ours.n_features_in_ == 13
    assert ours.classes_.tolist() == ["Barbera", "Barolo", "Grignolino"]
    assert ours.adapt(frame[names == "Barolo"]).target_prior_[1] > 0.97
    assert ours.score(frame, names) > 0.9
    with pytest.raises(ValueError, match="feature names should match"):
        ours.predict(frame.rename(columns={"alcohol": "spirit"}))


@pytest.mark.parametrize("container", [sp.csr_matrix, sp.csc_array, sp.coo_array])
def test_sparse_samples_give_what_dense_ones_do(container):
    dense = PriorShiftClassifier(LogisticRegression(), target="uniform").fit(X, Y)
    sparse = PriorShiftClassifier(LogisticRegression(), target="uniform").fit(container(X), Y)
    np.testing.assert_allclose(sparse.predict_proba(container(X_NEW)), dense.predict_proba(X_NEW), atol=1e-5)


def test_weights_reach_the_classifier_in_every_fold():
    Recorder.fits = []
    weights = np.arange(1, 301)
    ours = PriorShiftClassifier(Recorder(), cv=3).fit(X, Y, sample_weight=weights, tag="x")
    assert [len(given) == size and tag == "x" for size, given, tag in Recorder.fits] == [True] * 4
    shares = np.bincount(Y, weights=weights) / weights.sum()
    np.testing.assert_allclose(ours.source_prior_, shares)
    assert ours.scaling_.num_samples == weights.sum()


def test_metadata_are_routed_where_they_are_asked_for():
    weights, groups = np.linspace(0.5, 1.5, 300), np.arange(300) % 6
    with sklearn.config_context(enable_metadata_routing=True):
        Recorder.fits = []
        asking = Recorder().set_fit_request(sample_weight=True, tag=True)
        ours = PriorShiftClassifier(asking, cv=GroupKFold(3)).set_fit_request(sample_weight=True)
        ours.fit(X, Y, sample_weight=weights, groups=groups, tag="x")
        assert [(len(given), tag) for _, given, tag in Recorder.fits] == [(300, "x"), *[(200, "x")] * 3]
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), ours)
        pipeline.fit(X, Y, sample_weight=weights, groups=groups, tag="x")
        np.testing.assert_allclose(
            pipeline[-1].source_prior_, np.bincount(Y, weights=weights) / weights.sum()
        )

        Recorder.fits = []
        deaf = Recorder().set_fit_request(sample_weight=False, tag=False)
        PriorShiftClassifier(deaf).fit(X, Y, sample_weight=weights)
        assert all(given is None for _, given, _ in Recorder.fits)
        PriorShiftClassifier().fit(X, Y, sample_weight=weights)


@pytest.mark.slow
def test_importing_it_is_the_only_way_to_load_scikit_learn():
    code = (
        "import sys, priorshift.evaluation, priorshift.estimation, priorshift.metrics\n"
        "from priorshift import adjust\n"
        "assert 'sklearn' not in sys.modules\n"
        "import priorshift.sklearn, sklearn\n"
        "assert sklearn is not priorshift.sklearn and sklearn.__version__\n"
        "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# Mistakes


class Mute(ClassifierMixin, BaseEstimator):
    """Decides, and says no more."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target": "balanced"},
            "Expected `target` to be one of source, uniform, estimated, but got 'balanced'",
        ),
        ({"target": [0.5, 0.5]}, "Expected `target` with one entry per class, 3, but got 2"),
        ({"target": [0.5, 0.7, -0.2]}, "Expected `target` to be finite and non-negative, but got -0.2"),
        (
            {"target": {0: 1, 1: 1}},
            "Expected `target` to name the same classes, but missing are '2'",
        ),
        (
            {"target": {0: 1, 1: 1, 2: 1, 7: 1}},
            "Expected `target` to name the same classes, but missing are none and unknown are '7'",
        ),
        ({"carried": [1, 1, 0]}, "Expected `carried` to be strictly positive, but it is zero for class '2'"),
        (
            {"carried": {0: 1, 2: 1}},
            "Expected `carried` to name the same classes, but missing are '1'",
        ),
        (
            {"carried": {0: 1}},
            "Expected `carried` with one entry per class, at least two, but got shape (1,)",
        ),
        ({"method": "em"}, "Expected `method` to be one of empirical-bayes, mlls"),
        ({"calibration": "isotonic"}, "Expected `calibration` to be one of none, ts, bcts, vs, nbvs, None"),
        ({"costs": [[0, 1], [1, 0]]}, "Expected `costs` of shape (3, 3), true class by predicted class"),
        ({"costs": np.full((3, 3), np.inf)}, "but got shape (3, 3): [[inf"),
        (
            {"estimator": LinearRegression()},
            "`predict_proba` or `decision_function`, but got LinearRegression",
        ),
        ({"estimator": Mute()}, "`predict_proba` or `decision_function`, but got Mute"),
        ({"cv": 1}, "n_splits=1"),
    ],
)
def test_mistakes_are_named(change, message):
    ours = PriorShiftClassifier(GaussianNB()).set_params(**change)
    with pytest.raises(ValueError, match=re.escape(message)):
        ours.fit(X, Y)


def test_more_mistakes_are_named():
    ours = PriorShiftClassifier(GaussianNB()).fit(X, Y)
    with pytest.raises(ValueError, match=re.escape("Expected `k` between 1 and 3, but got 4.")):
        ours.predict_top_k(X, 4)
    with pytest.raises(ValueError, match="Expected `target` to be one of"):
        ours.set_target("backward")
    with pytest.raises(ValueError, match=r"Expected `y` of at least two classes, but got one class, 0\."):
        ours.fit(X, np.zeros(len(X), dtype=int))
    with pytest.raises(ValueError, match="Expected a class of at least two samples to calibrate with"):
        ours.fit(X[:3], [0, 1, 2])
    with pytest.raises(ValueError, match="takes `sample_weight`, but got KNeighborsClassifier"):
        PriorShiftClassifier(KNeighborsClassifier()).fit(X, Y, sample_weight=np.ones(len(Y)))
    frozen = FrozenEstimator(GaussianNB().fit(X[Y < 2], Y[Y < 2]))
    with pytest.raises(ValueError, match="Expected `y` of classes that `estimator` knows, but got"):
        PriorShiftClassifier(frozen).fit(X, Y)
    four = np.where(X[:, 0] > 1, 3, Y)
    with pytest.raises(ValueError, match=r"one score per class, 4, but got scores of shape \(\d+, 6\)"):
        PriorShiftClassifier(SVC(decision_function_shape="ovo")).fit(X, four)


# The page and the examples


def test_every_python_block_of_the_page_runs_in_order(capsys):
    page = (ROOT / "docs" / "sklearn.md").read_text(encoding="utf-8")
    cancer, target = load_breast_cancer(return_X_y=True, as_frame=True)
    cancer = cancer.iloc[:, :4]
    source = np.arange(len(target)) % 2 == 0
    deployed = ~source & ((target == 1) | (np.arange(len(target)) < 60)).to_numpy()
    namespace = {
        "X_train": cancer[source],
        "y_train": target[source],
        "X_new": cancer[deployed],
        "X_held": cancer[source],
        "y_held": target[source],
        "weights": np.ones(source.sum()),
        "fitted": GaussianNB().fit(cancer[~source], target[~source]),
        "train_counts": target[~source].value_counts(),
    }
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for index, block in enumerate(blocks):
        exec(compile(block, f"docs/sklearn.md, block {index}", "exec"), namespace)
    assert "Label shift" in capsys.readouterr().out
    assert namespace["classifier"].target_prior_.sum() == pytest.approx(1)


EXAMPLES = ROOT / "examples"


def output_of(name, capsys):
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_the_example_of_logistic_regression_saves_alarms(capsys):
    printed = output_of("sklearn_logistic_regression.py", capsys)
    costs = [float(cost) for cost in re.findall(r"cost (\d+)", printed)]
    assert costs[1] < costs[0]


@pytest.mark.slow
def test_the_example_of_gradient_boosting_gains_by_the_estimate(capsys):
    printed = output_of("sklearn_gradient_boosting.py", capsys)
    plain, estimated, known = (float(each) for each in re.findall(r" accuracy ([\d.]+)%, b", printed))
    assert plain + 5 < estimated <= known + 2


def test_the_example_of_lightgbm_gains_by_the_estimate(capsys):
    pytest.importorskip("lightgbm", reason="LightGBM is not installed")
    printed = output_of("sklearn_lightgbm.py", capsys)
    plain, adapted = (float(each) for each in re.findall(r"accuracy ([\d.]+)%", printed))
    assert adapted > plain + 5
