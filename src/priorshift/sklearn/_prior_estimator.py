"""The class mix of unlabelled samples, by a classifier fitted to the source."""

# ruff: noqa: N803 (scikit-learn calls samples `X`)

from typing import final

from priorshift.estimation import PriorEstimate
from priorshift.sklearn._calibrated import Calibrated, Table


@final
class PriorEstimator(Calibrated):
    r"""Estimate the class mix of unlabelled samples, by a classifier fitted to the source.

    `fit` learns from labelled samples of the source; `estimate` gives the class mix $\hat t$ of any other
    samples of the same classes with its uncertainty, and changes nothing in the estimator. There is no
    `predict`, since a class mix belongs to a population and not to a sample. To predict for that population
    as well, use [`PriorShiftClassifier`][priorshift.sklearn.PriorShiftClassifier], whose `adapt` makes the
    same estimate.

    Args:
        estimator: A classifier with `predict_proba` or `decision_function`; None for `LogisticRegression()`.
            A `FrozenEstimator` stays as it is, and all samples of `fit` go to the calibration.
        method: How to estimate: see [`estimate_prior`][priorshift.estimation.estimate_prior].
        calibration: A scaling, fitted to out-of-fold scores: see
            [`fit_scaling`][priorshift.adjustment.fit_scaling]. None or "none" for none.
        carried: The class mix that the scores of `estimator` carry, a share for each class by name or in the
            order of `classes_`; None for that of `y`. Pass it for a frozen one that was fitted to another
            mix, and `np.ones(C)` for `class_weight="balanced"`.
        cv: Anything that `check_cv` takes. None is 5 folds; that or a number are lowered to the size of the
            rarest class, down to 2.

    Attributes:
        classes_: The classes, sorted, `[C]`.
        estimator_: The classifier, fitted to all samples.
        scaling_: The calibration; None without.
        source_prior_: The class mix of `y`, `[C]`.
        floor_: Smaller probabilities of the classifier are raised to it before their logarithm.
        n_features_in_: Number of features, where the classifier knows it.
        feature_names_in_: Their names, where `X` has names.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.linear_model import LogisticRegression
        >>> X, y = load_iris(return_X_y=True, as_frame=True)
        >>> estimator = PriorEstimator(LogisticRegression(max_iter=1000)).fit(X[::2], y[::2])
        >>> estimate = estimator.estimate(X[1::2][y[1::2] != 1])
        >>> estimate.prior.probs.round(2), estimate.intervals.lower.round(2)
        (array([0.5, 0. , 0.5]), array([0.39, 0.  , 0.39]))

    References:
        Saerens et al., *Adjusting the Outputs of a Classifier to New a Priori Probabilities*, Neural
        Computation 14(1), 2002, Section 2.2.
    """

    def estimate(self, X: Table) -> PriorEstimate:
        """Estimate the class mix of unlabelled samples.

        Args:
            X: Samples of the target, `[N, D]`.

        Returns:
            The estimate: `prior`, named by `classes_`, with `intervals`, `shift_test` and `warnings`.
        """
        return self._estimate(X)
