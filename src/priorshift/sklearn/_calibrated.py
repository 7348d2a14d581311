"""A classifier fitted on source data and calibrated on out-of-fold scores: what both estimators share."""

# ruff: noqa: N803 (scikit-learn calls samples `X`)

import inspect
import numbers
from collections.abc import Mapping
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int, Shaped
from sklearn import get_config
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, check_cv, cross_validate
from sklearn.utils import Bunch, assert_all_finite, column_or_1d, get_tags, indexable
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    get_routing_for_object,
    process_routing,
)
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from priorshift._inputs import ArrayLike, read_array, read_names, read_per_class, read_weights, require_one_of
from priorshift.adjustment import CALIBRATIONS, Scaling, ScalingMethod, fit_scaling
from priorshift.estimation import METHODS, PriorEstimate, estimate_prior
from priorshift.priors import Prior, as_prior

Table: TypeAlias = Any
"""What the estimators take as `X`, `[N, D]`: an array, a data frame, a sparse matrix, a list."""
Shares: TypeAlias = Mapping[Any, float] | ArrayLike | Prior
"""A class mix: class → share (a dict or a pandas Series), or one number per class as in `classes_`."""
Calibration: TypeAlias = ScalingMethod | Literal["none"]
Fold: TypeAlias = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]

_FOLDS = 5


class Calibrated(BaseEstimator):  # type: ignore[misc]
    """A classifier fitted on source data and calibrated on out-of-fold scores."""

    estimator_: Any
    classes_: npt.NDArray[Any]
    n_features_in_: int
    feature_names_in_: npt.NDArray[Any]
    source_prior_: npt.NDArray[np.float64]
    scaling_: Scaling | None
    floor_: float

    def __init__(
        self,
        estimator: Any = None,
        *,
        method: str = "empirical-bayes",
        calibration: Calibration | None = "bcts",
        carried: Shares | None = None,
        cv: Any = None,
    ) -> None:
        self.estimator = estimator
        self.method = method
        self.calibration = calibration
        self.carried = carried
        self.cv = cv

    def fit(
        self,
        X: Table,
        y: Shaped[npt.ArrayLike, " samples"],
        sample_weight: Float[npt.ArrayLike, " samples"] | None = None,
        **fit_params: Any,
    ) -> Self:
        """Fit the classifier to labelled samples of the source, and its calibration out of fold.

        Args:
            X: Samples of the source, `[N, D]`.
            y: Their classes, `[N]`.
            sample_weight: Non-negative, `[N]`; a weight of 2 counts a sample twice. Goes to the classifier,
                the calibration and the class mix.
            **fit_params: For `fit` of the classifier, or wherever metadata routing sends them.

        Raises:
            ValueError: If a setting is unknown or does not fit the classes, or samples do not suffice.
        """
        require_one_of("method", self.method, tuple(METHODS))
        require_one_of("calibration", self.calibration, ("none", *CALIBRATIONS, None))
        if y is None:
            raise ValueError(
                f"Expected `y`: {type(self).__name__} requires y to be passed, but the target y is None."
            )
        X, y = indexable(X, y)
        classes = column_or_1d(y, warn=True)
        assert_all_finite(classes, input_name="y")
        check_classification_targets(classes)
        weights = None
        if sample_weight is not None:
            weights = read_weights(sample_weight, len(classes), "sample_weight")
        given = {**fit_params, **({} if weights is None else {"sample_weight": weights})}
        routed = self._route(given)
        self.estimator_ = clone(self._classifier()).fit(X, classes, **routed.estimator.fit)
        self._adopt(self.estimator_)
        labels = self._indices(classes)
        masses = np.ones(len(labels)) if weights is None else weights
        counts = np.bincount(labels, weights=masses, minlength=len(self.classes_))
        source = Prior(np.where(counts > 0, counts, 0.5), names=self._names)
        self.source_prior_ = source.probs
        self._carried = source if self.carried is None else self._prior(self.carried, "carried")
        self._carried.require_positive("carried")
        self.floor_, self.scaling_, self._held_out = 0.0, None, None
        calibration = None if self.calibration == "none" else self.calibration
        if calibration is not None or METHODS[self.method].needs_validation:
            folds = self._folds(X, classes, labels, routed.splitter.split)
            outputs, rows = self._out_of_fold(X, classes, folds, given)
            # A sample that `cv` scores several times counts no more than others.
            masses = masses[rows] / np.bincount(rows)[rows]
            counted = masses > 0
            outputs, labels, masses = outputs[counted], labels[rows][counted], masses[counted]
            if self._gives_probs():
                least = outputs[outputs > 0].min() / 2
                self.floor_ = float(min(least, 1 / (2 * max(1.0, masses.sum()))))
            self._held_out = self._logits(outputs), labels
            if calibration is not None:
                known = self._gives_probs() or self.carried is not None
                self.scaling_ = fit_scaling(
                    *self._held_out,
                    method=calibration,
                    carried=self._carried if known else None,
                    weights=masses,
                )
        return self

    def get_metadata_routing(self) -> MetadataRouter:
        """Who may ask for metadata: the classifier in its `fit`, and the splitter, if `cv` is one."""
        fits = MethodMapping().add(caller="fit", callee="fit")
        splits = MethodMapping().add(caller="fit", callee="split")
        return (
            MetadataRouter(owner=type(self).__name__)
            .add_self_request(self)
            .add(estimator=self._classifier(), method_mapping=fits)
            .add(splitter=self.cv, method_mapping=splits)
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        inner = get_tags(self._classifier())
        tags.input_tags.sparse = inner.input_tags.sparse
        tags.input_tags.allow_nan = inner.input_tags.allow_nan
        tags.target_tags.required = True
        return tags

    def _classifier(self) -> Any:
        if self.estimator is not None:
            return self.estimator
        default = LogisticRegression()
        return default.set_fit_request(sample_weight=True) if _routing() else default

    def _route(self, given: dict[str, Any]) -> Bunch:
        """The metadata for `fit` of the classifier, and those for the splitter."""
        if _routing():
            return process_routing(self, "fit", **given)
        classifier = self._classifier()
        if isinstance(classifier, FrozenEstimator):
            given = {name: value for name, value in given.items() if name != "sample_weight"}
        elif "sample_weight" in given and not _takes_weights(classifier):
            raise ValueError(
                "Expected `estimator` with a `fit` that takes `sample_weight`, "
                f"but got {type(classifier).__name__}."
            )
        return Bunch(estimator=Bunch(fit=given), splitter=Bunch(split={}))

    def _adopt(self, fitted: Any) -> None:
        name = type(fitted).__name__
        if not (hasattr(fitted, "predict_proba") or hasattr(fitted, "decision_function")):
            raise ValueError(
                f"Expected `estimator` with `predict_proba` or `decision_function`, but got {name}."
            )
        if not hasattr(fitted, "classes_"):
            raise ValueError(f"Expected `estimator` to be a classifier with `classes_`, but got {name}.")
        self.classes_ = np.asarray(fitted.classes_)
        if len(self.classes_) < 2:
            raise ValueError(f"Expected `y` of at least two classes, but got one class, {self.classes_[0]}.")
        self._names = read_names(self.classes_, "classes_")
        for learnt in ("n_features_in_", "feature_names_in_"):
            if hasattr(fitted, learnt):
                setattr(self, learnt, getattr(fitted, learnt))

    def _indices(self, y: npt.NDArray[Any]) -> Int[np.ndarray, " samples"]:
        order = np.argsort(self.classes_)
        places = np.searchsorted(self.classes_, y, sorter=order).clip(max=len(order) - 1)
        labels: npt.NDArray[np.intp] = order[places]
        unknown = y[self.classes_[labels] != y]
        if len(unknown):
            raise ValueError(f"Expected `y` of classes that `estimator` knows, but got {unknown[0]!r}.")
        return labels

    def _prior(self, shares: Shares, argument: str) -> Prior:
        if not isinstance(shares, Prior):
            # By name, even where the names are numbers such as 1, 2, 3 and the keys 0, 1, 2.
            shares, _ = read_per_class(shares, argument, names=self._names)
        return as_prior(shares, argument, len(self.classes_), names=self._names)

    def _folds(
        self, X: Table, y: npt.NDArray[Any], labels: Int[np.ndarray, " samples"], split_params: dict[str, Any]
    ) -> list[Fold]:
        """The folds whose training part holds every class of `y`; none for a frozen classifier."""
        if isinstance(self._classifier(), FrozenEstimator):
            return []
        if self.cv is None or isinstance(self.cv, numbers.Integral):
            return _stratified_folds(labels, _FOLDS if self.cv is None else int(self.cv))
        splits = check_cv(self.cv, y, classifier=True).split(X, y, **split_params)
        present = len(np.unique(labels))
        folds = [(train, test) for train, test in splits if len(np.unique(labels[train])) == present]
        if not folds:
            raise ValueError(
                "Expected `cv` with a fold whose training part holds every class, but got none. Without a "
                "fold, pass `calibration=None`."
            )
        return folds

    def _out_of_fold(
        self, X: Table, y: npt.NDArray[Any], folds: list[Fold], given: dict[str, Any]
    ) -> tuple[Float[np.ndarray, "scored classes"], Int[np.ndarray, " scored"]]:
        """Scores of samples by classifiers that were not fitted to them, and the rows of these samples."""
        if not folds:
            return self._outputs(self.estimator_, X), np.arange(len(y))
        classifier, outputs = self._classifier(), []

        def collect(model: Any, X_test: Table, y_test: object) -> float:
            outputs.append(self._outputs(model, X_test))
            return 0.0

        if _routing():
            asked = get_routing_for_object(classifier).consumes("fit", given)
            given = {name: given[name] for name in asked}
        # One job, whatever the configuration of joblib: `collect` keeps what it sees in this process.
        cross_validate(
            classifier, X, y, cv=folds, scoring=collect, params=given, error_score="raise", n_jobs=1
        )
        return np.concatenate(outputs), np.concatenate([test for _, test in folds])

    def _gives_probs(self) -> bool:
        return hasattr(self.estimator_, "predict_proba")

    def _outputs(self, model: Any, X: Table) -> Float[np.ndarray, "samples classes"]:
        """Probabilities, or margins, with a column for each class."""
        score = model.predict_proba if self._gives_probs() else model.decision_function
        outputs = read_array(score(X), "estimator")
        if outputs.ndim == 1:
            pair = (1 - outputs, outputs) if self._gives_probs() else (-outputs / 2, outputs / 2)
            outputs = np.stack(pair, axis=1)
        if outputs.ndim != 2 or outputs.shape[1] != len(self.classes_):
            raise ValueError(
                f"Expected `estimator` to give one score per class, {len(self.classes_)}, "
                f"but got scores of shape {outputs.shape}."
            )
        return outputs

    def _logits(self, outputs: Float[np.ndarray, "samples classes"]) -> Float[np.ndarray, "samples classes"]:
        if not self._gives_probs():
            return outputs.astype(np.float64)
        least = max(self.floor_, float(np.finfo(outputs.dtype).eps))
        logs: npt.NDArray[np.float64] = np.log(outputs.astype(np.float64).clip(min=least))
        return logs

    def _scores(self, X: Table) -> Float[np.ndarray, "samples classes"]:
        check_is_fitted(self)
        return self._logits(self._outputs(self.estimator_, X))

    def _estimate(self, X: Table) -> PriorEstimate:
        return estimate_prior(
            self._scores(X),
            carried=self._carried,
            method=self.method,
            calibration="none" if self.scaling_ is None else self.scaling_,
            validation=self._held_out,
        )


def _stratified_folds(labels: Int[np.ndarray, " samples"], num_folds: int) -> list[Fold]:
    """Stratified folds, as many as the rarest class allows; a class of one sample is in no test part."""
    counts = np.bincount(labels)
    often, once = np.flatnonzero(counts[labels] > 1), np.flatnonzero(counts[labels] == 1)
    if not len(often):
        raise ValueError(
            "Expected a class of at least two samples to calibrate with, but `y` has one of each class. "
            "Pass `calibration=None`."
        )
    splitter = StratifiedKFold(min(num_folds, counts[counts > 1].min()))
    return [
        (np.concatenate([often[train], once]), often[test])
        for train, test in splitter.split(often, labels[often])
    ]


def _routing() -> bool:
    return bool(get_config()["enable_metadata_routing"])


def _takes_weights(classifier: Any) -> bool:
    parameters = inspect.signature(classifier.fit).parameters
    return "sample_weight" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
