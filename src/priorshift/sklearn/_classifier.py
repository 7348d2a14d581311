"""A classifier that predicts for the class mix of its deployment."""

# ruff: noqa: N803 (scikit-learn calls samples `X`)

from typing import Any, Literal, Self, TypeAlias, final

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Shaped
from scipy.special import log_softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from priorshift._inputs import read_array, require_between, require_one_of
from priorshift.adjustment import adjust
from priorshift.estimation import PriorEstimate
from priorshift.priors import Prior
from priorshift.sklearn._calibrated import Calibrated, Calibration, Shares, Table

Target: TypeAlias = Literal["source", "uniform", "estimated"] | Shares

_TARGETS = ("source", "uniform", "estimated")


@final
class PriorShiftClassifier(ClassifierMixin, Calibrated):  # type: ignore[misc]
    r"""Any classifier, calibrated and adjusted to the class mix of its deployment.

    $$p_t(y \mid x) \propto p(y \mid x) \, t(y) / q(y)$$

    with the calibrated $p(y \mid x)$ of the classifier, the class mix $q$ that it carries and the target $t$.

    `fit` fits the classifier to all samples, and a calibration to out-of-fold scores: those of copies of the
    classifier on samples that they were not fitted to. **At test time** pass the class mix as `target`, or
    later to `set_target`, without fitting again; or pass unlabelled samples of the target to `adapt`, which
    estimates the class mix.

    A class that occurs once in `y` is in the training part of every fold, so no sample of it calibrates. A
    fold of another `cv` whose training part lacks a class is left out. With a frozen classifier a class that
    `y` lacks counts as half a sample.

    Args:
        estimator: A classifier with `predict_proba` or `decision_function`; None for `LogisticRegression()`.
            A `FrozenEstimator` stays as it is, and all samples of `fit` go to the calibration.
        target: The class mix to predict for. "source" is that of `y`; "uniform" weighs every class alike,
            for balanced accuracy; "estimated" is the last estimate of `adapt`, and "source" before; else a
            share for each class: a dict, a Counter, a Series or a `Prior` with names, matched to the classes
            by name (as text: class 3 is "3"), or an array in the order of `classes_`.
        method: How `adapt` estimates: see [`estimate_prior`][priorshift.estimation.estimate_prior].
        calibration: A scaling, fitted to out-of-fold scores: see
            [`fit_scaling`][priorshift.adjustment.fit_scaling]. None or "none" for none.
        carried: The class mix that the scores of `estimator` carry, in a form of `target`; None for that of
            `y`. Pass it for a frozen one that was fitted to another mix, and `np.ones(C)` for
            `class_weight="balanced"`.
        costs: Cost of predicting the class of the column where that of the row is true, `[C, C]`, as in
            `sklearn.metrics.confusion_matrix`. Then `predict` minimizes the expected cost. None costs 1 for
            every mistake.
        cv: Anything that `check_cv` takes. None is 5 folds; that or a number are lowered to the size of the
            rarest class, down to 2.

    Attributes:
        classes_: The classes, sorted, `[C]`.
        estimator_: The classifier, fitted to all samples.
        scaling_: The calibration; None without.
        source_prior_: The class mix of `y`, `[C]`.
        target_prior_: The class mix that predictions are for, `[C]`.
        estimate_: The last estimate of `adapt`, with `intervals`, `shift_test` and `warnings`; absent before.
        floor_: Smaller probabilities of the classifier are raised to it before their logarithm: half the
            least out-of-fold probability that is not 0, at most 1/(2N), and at least the precision of the
            number format, which alone is used without calibration.
        n_features_in_: Number of features, where the classifier knows it.
        feature_names_in_: Their names, where `X` has names.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.linear_model import LogisticRegression
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> X, y, X_new, y_new = X[::2, :5], y[::2], X[1::2, :5], y[1::2]
        >>> classifier = PriorShiftClassifier(LogisticRegression(max_iter=5000)).fit(X, y)
        >>> classifier.source_prior_.round(2), classifier.predict_proba(X_new[73:74]).round(2)
        (array([0.36, 0.64]), array([[0.54, 0.46]]))
        >>> mostly_benign = X_new[(y_new == 1) | (np.arange(len(y_new)) < 20)]
        >>> classifier.adapt(mostly_benign).target_prior_.round(2)
        array([0.06, 0.94])
        >>> classifier.predict_proba(X_new[73:74]).round(2)
        array([[0.12, 0.88]])
        >>> classifier.set_target({1: 0.8, 0: 0.2}).target_prior_
        array([0.2, 0.8])

    References:
        Elkan, *The Foundations of Cost-Sensitive Learning*, IJCAI 2001, Eq. 1 (the costs, transposed) and
        Theorem 2 (the adjustment). Saerens et al., Neural Computation 14(1), 2002, Eq. 2.4.
    """

    target_prior_: npt.NDArray[np.float64]
    estimate_: PriorEstimate

    def __init__(
        self,
        estimator: Any = None,
        *,
        target: Target = "source",
        method: str = "empirical-bayes",
        calibration: Calibration | None = "bcts",
        carried: Shares | None = None,
        costs: Float[npt.ArrayLike, "classes classes"] | None = None,
        cv: Any = None,
    ) -> None:
        super().__init__(estimator, method=method, calibration=calibration, carried=carried, cv=cv)
        self.target = target
        self.costs = costs

    def fit(
        self,
        X: Table,
        y: Shaped[npt.ArrayLike, " samples"],
        sample_weight: Float[npt.ArrayLike, " samples"] | None = None,
        **fit_params: Any,
    ) -> Self:
        """Fit the classifier to labelled samples of the source, its calibration out of fold, and the target.

        Args:
            X: Samples of the source, `[N, D]`.
            y: Their classes, `[N]`.
            sample_weight: Non-negative, `[N]`; a weight of 2 counts a sample twice. Goes to the classifier,
                the calibration and the class mix.
            **fit_params: For `fit` of the classifier, or wherever metadata routing sends them.

        Raises:
            ValueError: If a setting is unknown or does not fit the classes, or samples do not suffice.
        """
        if isinstance(self.target, str):
            require_one_of("target", self.target, _TARGETS)
        super().fit(X, y, sample_weight, **fit_params)
        if hasattr(self, "estimate_"):
            del self.estimate_
        self._costs = _read_costs(self.costs, len(self.classes_))
        return self.set_target(self.target)

    def set_target(self, target: Target) -> Self:
        """Predict for another class mix from now on, without fitting again.

        Args:
            target: As the argument of the class.

        Raises:
            ValueError: If it is no class mix of these classes.
        """
        check_is_fitted(self)
        if isinstance(target, str):
            require_one_of("target", target, _TARGETS)
        mix: Prior
        if not isinstance(target, str):
            mix = self._prior(target, "target")
        elif target == "uniform":
            mix = Prior.uniform(len(self.classes_), names=self._names)
        elif target == "estimated" and hasattr(self, "estimate_"):
            mix = self.estimate_.target
        else:
            mix = Prior(self.source_prior_, names=self._names)
        self.target_prior_ = mix.probs
        return self

    def adapt(self, X: Table) -> Self:
        """Estimate the class mix of unlabelled samples, and predict for it from now on.

        Whatever `target` is, `estimate_` keeps the estimate and `target_prior_` becomes its `target`. The
        result does not depend on earlier calls, and the classifier stays as it is.

        Args:
            X: Samples of the target, `[N, D]`.
        """
        self.estimate_ = self._estimate(X)
        return self.set_target("estimated")

    def predict(self, X: Table) -> Shaped[np.ndarray, " samples"]:
        """The most probable classes in the target mix, or those of least expected cost, `[N]`."""
        best = self._expected_costs(X).argmin(axis=1)
        classes: npt.NDArray[Any] = self.classes_[best]
        return classes

    def predict_top_k(self, X: Table, k: int) -> Shaped[np.ndarray, "samples k"]:
        """The `k` most probable classes in the target mix, or those of least expected cost, best first.

        Args:
            X: Samples, `[N, D]`.
            k: Between 1 and the number of classes. The first column is what `predict` gives.

        Raises:
            ValueError: If `k` is out of range.
        """
        check_is_fitted(self)
        require_between("k", k, 1, len(self.classes_), closed=True)
        order = self._expected_costs(X).argsort(axis=1, kind="stable")
        classes: npt.NDArray[Any] = self.classes_[order[:, :k]]
        return classes

    def predict_proba(self, X: Table) -> Float[np.ndarray, "samples classes"]:
        """Probabilities of the classes in the target mix, `[N, C]`; 0 for a class that it lacks."""
        probs: npt.NDArray[np.float64] = np.exp(self.predict_log_proba(X))
        return probs

    def predict_log_proba(self, X: Table) -> Float[np.ndarray, "samples classes"]:
        """The logarithms of `predict_proba`, exact where the probabilities underflow."""
        logits, carried = self._scores(X), self._carried
        if self.scaling_ is not None:
            logits, carried = self.scaling_(logits), self.scaling_.carried
        adjusted = adjust(logits, carried=carried, target=self.target_prior_)
        logs: npt.NDArray[np.float64] = log_softmax(adjusted, axis=1)
        return logs

    def _expected_costs(self, X: Table) -> Float[np.ndarray, "samples classes"]:
        log_probs = self.predict_log_proba(X)
        return -log_probs if self._costs is None else np.exp(log_probs) @ self._costs


def _read_costs(
    costs: Float[npt.ArrayLike, "classes classes"] | None, num_classes: int
) -> Float[np.ndarray, "classes classes"] | None:
    if costs is None:
        return None
    matrix = read_array(costs, "costs").astype(np.float64)
    if matrix.shape != (num_classes, num_classes) or not np.isfinite(matrix).all():
        raise ValueError(
            f"Expected `costs` of shape ({num_classes}, {num_classes}), true class by predicted class, and "
            f"finite, but got shape {matrix.shape}: {matrix.tolist()}."
        )
    return matrix
