"""What a target prior is estimated from: read from the caller once, then shared by all solvers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from priorshift._inputs import (
    Array,
    ArrayLike,
    Names,
    align,
    quoted,
    read_labels,
    read_scores,
    require_one_of,
)
from priorshift.adjustment import CALIBRATIONS, Scaling, ScalingMethod, fit_scaling
from priorshift.estimation._confusion import Moments, moments_of
from priorshift.estimation._identifiability import Identifiability, identifiability
from priorshift.estimation._likelihood import Likelihood, LikelihoodSolution
from priorshift.priors import Prior, as_prior


@runtime_checkable
class Scored(Protocol):
    """Logits with the prior they carry, such as `priorshift.Predictions`."""

    @property
    def logits(self) -> Any:
        """Scores, `[N, C]`."""

    @property
    def carried(self) -> Prior:
        """The prior that they carry."""

    @property
    def labels(self) -> Any:
        """Class indices, `[N]`, where they are known."""


class HeldOut(NamedTuple):
    """Labelled source samples that were held out of training."""

    logits: Float[Array, "samples classes"]
    labels: Int[Array, " samples"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Calibrated predictions of the target, and what solvers derive from them; each is computed once.

    Attributes:
        likelihood: Of the calibrated logits of the target; None for a method without one.
        source: The prior that the scorer's logits carry, before the calibration.
        logits: The calibrated logits, for a method without a likelihood, `[N, C]`.
        held_out: Calibrated logits and labels of source samples, where there are any.
    """

    likelihood: Likelihood | None
    source: Prior
    logits: Float[Array, "samples classes"] | None = None
    held_out: HeldOut | None = None

    @cached_property
    def likeliest(self) -> LikelihoodSolution:
        """The prior of highest likelihood."""
        assert self.likelihood is not None
        return self.likelihood.maximize()

    @cached_property
    def identifiability(self) -> Identifiability:
        """What the likelihood tells of the prior, at the likeliest one."""
        assert self.likelihood is not None
        return identifiability(self.likelihood, self.likeliest.prior)

    def confusion(self, *, hard: bool) -> Moments:
        """The scorer's confusion on the held-out samples, and its mean prediction on the target."""
        assert self.held_out is not None and self.logits is not None
        return moments_of(*self.held_out, self.logits, names=self.source.names, hard=hard)


def read_predictions(
    predictions: Scored | ArrayLike, carried: Prior | ArrayLike | None
) -> tuple[Float[Array, "samples classes"], Prior]:
    """Logits of the target, and the prior that they carry, with the class names where either has them.

    Raises:
        TypeError: If the logits are not floating-point.
        ValueError: If a row has nothing finite, the parts do not fit, or `carried` is missing or has a zero.
    """
    names: Names = None
    if isinstance(predictions, Scored):
        logits, names = read_scores(predictions.logits, "predictions")
        names = names or predictions.carried.names
        carried = predictions.carried if carried is None else carried
    else:
        if carried is None:
            raise ValueError("Expected `carried`, the prior that the logits carry, but got None.")
        logits, names = read_scores(predictions, "predictions")
    return logits, as_prior(carried, "carried", logits.shape[1], names=names).require_positive("carried")


def read_validation(validation: Scored | Sequence[Any], source: Prior) -> HeldOut:
    """Labelled source samples: predictions with labels, or a pair of logits and labels.

    Raises:
        TypeError: If it is neither, or the logits are not floating-point.
        ValueError: If there are no labels, or the parts do not fit each other or `source`.
    """
    if isinstance(validation, Scored):
        given, labels, classes_of = validation.logits, validation.labels, validation.carried.names
        if not validation.carried.matches(source):
            raise ValueError(
                "Expected `validation` of the same scorer as `predictions`, but its logits carry another "
                "prior."
            )
    elif isinstance(validation, Sequence) and len(validation) == 2:
        (given, labels), classes_of = validation, None
    else:
        raise TypeError(
            "Expected `validation` to be Predictions or a pair of logits and labels, "
            f"but got {type(validation).__name__}."
        )
    if labels is None:
        raise ValueError("Expected `validation` with labels, but it has none.")
    logits, names = read_scores(given, "validation", num_classes=source.num_classes)
    names = names or classes_of
    classes = read_labels(
        labels,
        "labels of `validation`",
        size=len(logits),
        num_classes=source.num_classes,
        names=names or source.names,
    )
    if names is not None and source.names is not None and names != source.names:
        order = align(names, source.names, "validation")
        logits, classes = logits[:, order], np.argsort(order)[classes]
    return HeldOut(logits, classes)


def read_calibration(
    calibration: str | Scaling,
    held_out: HeldOut | None,
    source: Prior,
    weights: Float[Array, " validation"] | None = None,
) -> Scaling | None:
    """A fitted calibration, one to fit to the held-out samples, or None for none.

    Raises:
        ValueError: If a fitted one is of another scorer, the name is unknown, or there are no such samples.
    """
    if isinstance(calibration, Scaling):
        fitted_for = calibration.source or source
        if not fitted_for.matches(source):
            raise ValueError(
                "Expected `calibration` fitted for logits that carry the prior of `predictions`, but got one "
                f"for {fitted_for}."
            )
        names = calibration.carried.names
        if names is not None and source.names is not None and names != source.names:
            raise ValueError(
                "Expected `calibration` with the classes in the order of `predictions`, "
                f"{quoted(source.names)}, but got {quoted(names)}."
            )
        return calibration
    require_one_of("calibration", calibration, ("none", *CALIBRATIONS))
    if calibration == "none":
        return None
    if held_out is None:
        raise ValueError(f"Expected `validation` data to fit {calibration!r} to, but got None.")
    method = cast(ScalingMethod, calibration)
    return fit_scaling(*held_out, method=method, carried=source, weights=weights)
