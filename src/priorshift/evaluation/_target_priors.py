"""Adapt predictions to an estimated prior, and measure the accuracy gap to the true prior."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from priorshift import shift
from priorshift._inputs import ArrayLike, quoted, require_at_least
from priorshift.adjustment import fit_scaling
from priorshift.estimation import PriorEstimate, estimate_prior
from priorshift.evaluation._compare import Spread
from priorshift.evaluation._scores import Scores, labels_of, score
from priorshift.metrics._summaries import mean
from priorshift.predictions import Predictions
from priorshift.priors import Prior, as_prior
from priorshift.shift._evaluation_sets import weights_by_class

TARGET_PRIORS = ("none", "estimated", "oracle")
"""Target priors that predictions are adapted to: none, the estimate, the true class frequencies."""
GAP_MIXES = ("forward:50", "forward:5", "uniform", "backward:5", "backward:50")
"""The mixes on which the accuracy gap of an estimated prior is measured by default."""


def adapt(predictions: Predictions, estimate: PriorEstimate) -> Predictions:
    """The predictions for the population whose mix was estimated.

    Args:
        predictions: Of the scorer whose predictions the estimate was made from, on the same or other samples.
        estimate: The result of `priorshift.estimation.estimate_prior`.

    Returns:
        Predictions whose logits are calibrated as for the estimate and carry `estimate.target`.

    Raises:
        ValueError: If the predictions do not carry the prior that those of the estimate did: they are of
            another scorer, or adapted already.

    Example:
        >>> logits = [[2.0, 0.0], [1.0, 0.0], [0.4, 0.0], [-0.5, 0.0], [3.0, 0.0], [2.0, 0.0]]
        >>> predictions = Predictions(logits=logits, carried=[0.5, 0.5])
        >>> adapted = adapt(predictions, estimate_prior(predictions))
        >>> predictions.predicted.tolist(), adapted.predicted.tolist()
        ([0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0])
    """
    _require_same_scorer(predictions, estimate)
    return predictions._with(
        logits=estimate.adapt(predictions.logits),
        carried=estimate.target,
        facts={
            **predictions.facts,
            "target": f"estimated from {estimate.num_samples:,} samples by {estimate.method}",
        },
    )


def scores_by_target_prior(predictions: Predictions, estimate: PriorEstimate) -> dict[str, Scores]:
    """Scores on the predictions' own samples without a target prior, with the estimated and the true one.

    `"none"` are the scores of the logits as they are. For the other two, logits are calibrated as for the
    estimate and adjusted to its `target` or to the frequencies of the labels.

    Args:
        predictions: With labels, the samples that the estimate was made from.
        estimate: The estimate.

    Returns:
        A table of scores for each of `TARGET_PRIORS`.

    Raises:
        ValueError: If there are no labels, or the estimate is of another scorer's predictions.
    """
    labels = labels_of(predictions, "score")
    _require_same_scorer(predictions, estimate)
    truth = Prior(np.bincount(labels, minlength=predictions.num_classes))
    calibrated = _calibrated(predictions, estimate)
    adapted = (predictions, calibrated.adjusted(estimate.target), calibrated.adjusted(truth))
    return {name: score(each) for name, each in zip(TARGET_PRIORS, adapted, strict=True)}


@dataclass(frozen=True)
class OracleGap:
    """Accuracy lost by estimating the target prior instead of knowing it, over draws of unlabelled samples.

    Attributes:
        target: The class mix.
        size: Samples of a draw.
        accuracy: For each of `TARGET_PRIORS`, accuracy on the mix.
        gap: Accuracy with the true prior less accuracy with the estimated one, draw by draw.
        error: Mean absolute error of the estimate over classes, as a share.
        sampling_error: The same of the class frequencies among the drawn labels: what an estimator that sees
            the labels would have.
    """

    target: Prior
    size: int
    accuracy: dict[str, Spread]
    gap: Spread
    error: Spread
    sampling_error: Spread


def oracle_gap(
    predictions: Predictions,
    target: Prior | ArrayLike,
    *,
    size: int = 500,
    draws: int = 20,
    seed: int = 0,
    estimate: Callable[[Predictions], PriorEstimate],
) -> OracleGap:
    """Draw unlabelled samples of a mix, estimate its prior from them, and measure accuracy on that mix.

    A draw is of `size` samples with replacement, so it may be larger than the test set. Accuracy is that on
    the full test set weighted to the mix exactly.

    Args:
        predictions: With labels; every class of target mass must occur.
        target: The class mix, `[C]`.
        size: Samples of a draw.
        draws: Number of draws, with seeds `seed`, `seed` + 1, …
        seed: The first seed.
        estimate: From unlabelled predictions to the estimate, such as a partial of
            `priorshift.estimation.estimate_prior`.

    Raises:
        ValueError: If there are no labels, a class of target mass has no sample, or `size` or `draws` is not
            positive.
    """
    labels = labels_of(predictions, "draw from")
    require_at_least("size", size, 1)
    require_at_least("draws", draws, 1)
    mix = as_prior(target, "target", predictions.num_classes, names=predictions.class_names)
    num_classes = predictions.num_classes
    weights = weights_by_class(np.bincount(labels, minlength=num_classes), mix)[labels]
    chances = weights / weights.sum()

    def accuracy(judged: Predictions) -> float:
        return mean(judged.predicted == labels, weights)

    accuracies: dict[str, list[float]] = {name: [] for name in TARGET_PRIORS}
    errors, sampling_errors = [], []
    unadapted, calibrated, known, last = accuracy(predictions), predictions, 0.0, None
    for draw in range(draws):
        rows = np.random.default_rng(seed + draw).choice(len(labels), size, p=chances)
        found = estimate(predictions._with(logits=predictions.logits[rows], labels=None))
        _require_same_scorer(predictions, found)
        if last is None or found.scaling is not last.scaling:  # a calibration is often that of all draws
            calibrated = _calibrated(predictions, found)
            known = accuracy(calibrated.adjusted(mix))
        last = found
        estimated = accuracy(calibrated.adjusted(found.target))
        for name, value in zip(TARGET_PRIORS, (unadapted, estimated, known), strict=True):
            accuracies[name].append(value)
        frequencies = np.bincount(labels[rows], minlength=num_classes) / size
        errors.append(float(np.abs(found.prior.probs - mix.probs).mean()))
        sampling_errors.append(float(np.abs(frequencies - mix.probs).mean()))
    gaps = [oracle - got for oracle, got in zip(accuracies["oracle"], accuracies["estimated"], strict=True)]
    return OracleGap(
        target=mix,
        size=size,
        accuracy={name: Spread.of(values) for name, values in accuracies.items()},
        gap=Spread.of(gaps),
        error=Spread.of(errors),
        sampling_error=Spread.of(sampling_errors),
    )


def oracle_gaps_by_method(
    runs: Sequence[tuple[Predictions, Predictions]],
    mixes: Sequence[str] = GAP_MIXES,
    *,
    size: int = 500,
    draws: int = 10,
) -> dict[str, dict[str, list[OracleGap]]]:
    """The accuracy gap of an estimated prior for each method on each mix, one per run.

    Each run is calibrated once, on its validation predictions, and its target priors are estimated by the
    default method.

    Args:
        runs: For each run its test predictions, with labels and training counts, and its validation
            predictions, with labels.
        mixes: Spelled as `priorshift.shift.target_prior` reads them.
        size: Unlabelled samples of a draw.
        draws: Draws for each run and mix.

    Returns:
        Method → mix → one gap per run of that method.

    Raises:
        ValueError: If predictions lack labels or training counts.
    """
    gaps: dict[str, dict[str, list[OracleGap]]] = {}
    for test, validation in runs:
        if test.train_counts is None or validation.labels is None:
            raise ValueError(
                f"Expected predictions of {test.method or 'a run'} with `train_counts` and validation "
                "predictions with `labels`, but they lack them."
            )
        scaling = fit_scaling(validation.logits, validation.labels, carried=validation.carried)
        estimate = partial(estimate_prior, calibration=scaling, intervals="none")
        for mix in mixes:
            target = shift.target_prior(mix, test.train_counts, class_names=test.class_names)
            gap = oracle_gap(test, target, size=size, draws=draws, estimate=estimate)
            gaps.setdefault(test.method, {}).setdefault(mix, []).append(gap)
    return gaps


def _calibrated(predictions: Predictions, estimate: PriorEstimate) -> Predictions:
    if estimate.scaling is None:
        return predictions
    return predictions._with(logits=estimate.scaling(predictions.logits), carried=estimate.carried)


def _require_same_scorer(predictions: Predictions, estimate: PriorEstimate) -> None:
    scaling = estimate.scaling
    assumed = estimate.carried if scaling is None else scaling.source or scaling.carried
    names = predictions.carried.names
    if assumed.matches(predictions.carried) and assumed.names and names and assumed.names != names:
        raise ValueError(
            "Expected `predictions` with their classes in the order of the estimate's, "
            f"{quoted(assumed.names)}, but got {quoted(names)}."
        )
    if not assumed.matches(predictions.carried):
        raise ValueError(
            f"Expected `predictions` that carry the prior of the estimate's, {assumed}, but they carry "
            f"{predictions.carried}: they are of another scorer, or adapted already."
        )
