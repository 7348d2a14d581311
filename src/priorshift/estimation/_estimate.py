"""One call from unlabelled predictions to the target prior: calibrate, estimate, and give its uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, final, get_args

import numpy as np
from jaxtyping import Float
from scipy.special import xlogy

from priorshift._inputs import Array, ArrayLike, require_between, require_one_of
from priorshift.adjustment import Scaling, adjust
from priorshift.estimation._identifiability import Identifiability
from priorshift.estimation._intervals import PriorIntervals, bootstrap_intervals, likelihood_intervals
from priorshift.estimation._label_shift import ShiftTest, test_of
from priorshift.estimation._likelihood import Likelihood, LikelihoodSolution
from priorshift.estimation._methods import METHODS
from priorshift.estimation._problem import (
    HeldOut,
    Problem,
    Scored,
    read_calibration,
    read_predictions,
    read_validation,
)
from priorshift.priors import Prior, name_classes

IntervalKind: TypeAlias = Literal["likelihood", "bootstrap", "none"]

_PROFILED = 200
"""Classes up to which the likelihood is profiled by default."""
_UNINFORMATIVE = 0.99
"""Share of the entropy of the class frequencies from which a calibrated NLL shows no information."""
_SIGNIFICANT = 0.05
"""Significance level below which the label-shift test raises a warning."""
_CLOSE = 0.02
"""Nats of the whole sample by which the center of intervals may fall short of the highest likelihood."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class PriorEstimate:
    """A target prior estimated from unlabelled predictions, and how far to trust it.

    Attributes:
        prior: The estimate, with the class names where they are known. A class may have a share of exactly 0.
        method: Name of the method, a key of `METHODS`.
        num_samples: Number of target samples, $N$.
        carried: The prior that the logits carry, after the calibration where there is one.
        scaling: The calibration that was applied first; None for none.
        intervals: One for each class, around the estimate of highest likelihood; None where they were not
            asked for, or the search for that did not converge.
        identifiability: What the likelihood can and cannot tell, with an effective sample size; None for a
            method that has no likelihood.
        shift_test: Whether label shift explains the predictions at all; None without validation data.
        log_likelihood: Of the estimate less that of `carried`, in nats per sample: the evidence of the target
            against the carried prior; None for a method that has no likelihood.
        shortfall: How far below the maximum the likelihood, or the posterior, may be, in nats per sample;
            None likewise. It bounds the likelihood, not the prior: see `identifiability` for that.
        converged: True if the search ended within its tolerance.
        steps: Passes over the data that the search took; 0 for a method that solves for the prior.
        warnings: One sentence each.
    """

    prior: Prior
    method: str
    num_samples: int
    carried: Prior
    scaling: Scaling | None = None
    intervals: PriorIntervals | None = None
    identifiability: Identifiability | None = None
    shift_test: ShiftTest | None = None
    log_likelihood: float | None = None
    shortfall: float | None = None
    converged: bool = True
    steps: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def target(self) -> Prior:
        r"""The prior to adapt to: $(N \hat t_y + 1/C) / (N + 1)$, one sample spread over all classes.

        The estimate itself may rule out a class that merely was not seen, and no prediction would ever come
        back to it.
        """
        return with_one_sample(self.prior, self.num_samples)

    def adapt(self, logits: ArrayLike) -> Any:
        """Calibrate logits of the same scorer as the estimate was, and move them to `target`.

        Args:
            logits: Scores as the scorer gives them, `[C]` or `[N, C]`, of any kind. A table is matched by
                its column names.

        Returns:
            Logits of the same kind.

        Raises:
            TypeError: If `logits` are not floating-point.
            ValueError: If they are of other classes.
        """
        calibrated = logits if self.scaling is None else self.scaling(logits)
        return adjust(calibrated, carried=self.carried, target=self.target)


def estimate_prior(
    predictions: Scored | ArrayLike,
    *,
    carried: Prior | ArrayLike | None = None,
    method: str = "empirical-bayes",
    calibration: str | Scaling | None = None,
    validation: Scored | Sequence[Any] | None = None,
    intervals: IntervalKind | None = None,
    level: float = 0.9,
    draws: int = 200,
    seed: int = 0,
) -> PriorEstimate:
    r"""Estimate the class mix of a target population from unlabelled predictions on samples of it.

    Only the class mix may differ from the source: the samples of a class must be the same (label shift).
    The logits may carry any prior: the training mix, as those of plain cross-entropy do, or the uniform one,
    as those of Balanced Softmax and LADE. **Then** `estimate.adapt(logits)` gives logits for the target.

    | method | what it is | needs validation data |
    | :--- | :--- | :--- |
    | `empirical-bayes` | maximum likelihood, drawn to the carried mix if that is near | no, but they help |
    | `mlls` | maximum likelihood (Saerens et al.) | likewise |
    | `mapls` | maximum likelihood drawn to the uniform mix (Ye et al.) | likewise |
    | `bbse`, `bbse-hard` | black box shift estimation (Lipton et al.) by probabilities or decisions | yes |
    | `rlls`, `rlls-hard` | the same, regularized (Azizzadenesheli et al.) | yes |

    Args:
        predictions: Scores of unlabelled target samples: `Predictions`, or logits or log-probabilities,
            `[N, C]`, of any array library, or a table whose columns are named by class. Labels are not used.
        carried: The prior that the logits carry, `[C]`, strictly positive. Required with bare logits;
            `Predictions` have theirs. Given by name it is matched by name.
        method: See the table, which is `METHODS`.
        calibration: Name of a scaling to fit to `validation`, `"none"`, or a fitted `Scaling`. By default
            bias-corrected temperature scaling where the method uses a likelihood and `validation` is given.
        validation: Labelled samples of the *source* that were held out of training, scored by the same
            scorer: `Predictions` with labels, or a pair of logits and labels. Any class mix will do for the
            estimate; the test of label shift needs samples of every class that is frequent in the target.
        intervals: `"likelihood"` for profile likelihood, `"bootstrap"` to draw the samples, and the
            validation data if the calibration is fitted to them here, again and again; `"none"`. Both are of
            maximum likelihood and go with `empirical-bayes` and `mlls` alone. By default the first for these
            two with at most 200 classes, beyond which it takes long, and else none.
        level: Confidence level of the intervals, each class for itself.
        draws: Draws of the bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        TypeError: If logits are not floating-point.
        ValueError: If the parts do not fit, the carried prior has a zero, the method needs validation data
            that are not given, or a setting is unknown.

    Example:
        >>> import numpy as np
        >>> probs = np.array([[0.9, 0.1]] * 35 + [[0.1, 0.9]] * 5)
        >>> estimate = estimate_prior(np.log(probs), carried={"cat": 0.5, "dog": 0.5})
        >>> round(estimate.prior["cat"], 3)
        0.969
        >>> estimate.intervals.lower.round(2)
        array([0.84, 0.  ])
        >>> int(estimate.adapt(np.array([[0.0, 0.3]])).argmax())
        0

    References:
        Saerens et al., Neural Computation 2002; Lipton et al., ICML 2018; Azizzadenesheli et al., ICLR 2019;
        Alexandari et al., ICML 2020: see the functions of each method.
    """
    require_one_of("method", method, tuple(METHODS))
    row = METHODS[method]
    require_between("level", level, 0, 1)
    scores, source = read_predictions(predictions, carried)
    if intervals is None:
        intervals = "likelihood" if row.has_intervals and source.num_classes <= _PROFILED else "none"
    require_one_of("intervals", intervals, get_args(IntervalKind))
    if intervals != "none" and not row.has_intervals:
        raise ValueError(
            f"Expected `intervals` to be 'none' for the method {method!r}, but got {intervals!r}."
        )
    held_out = None if validation is None else read_validation(validation, source)
    if row.needs_validation and held_out is None:
        raise ValueError(f"Expected `validation` data for the method {method!r}, but got None.")
    if calibration is None:
        calibration = "bcts" if row.by_likelihood and held_out is not None else "none"
    scaling = read_calibration(calibration, held_out, source)
    logits, prior = (scores, source) if scaling is None else (scaling(scores), scaling.carried)
    if row.by_likelihood:
        likelihood = Likelihood.from_logits(logits, prior, names=source.names)
        found, likeliest = estimate_by_likelihood(method, likelihood, prior, source)
        refit = None
        if held_out is not None and not isinstance(calibration, Scaling) and calibration != "none":
            refit = _Refit(calibration, held_out, source, scores)
        around = _intervals(intervals, likelihood, likeliest, refit, level=level, draws=draws, seed=seed)
    else:
        calibrated = held_out
        if held_out is not None and scaling is not None:
            calibrated = HeldOut(scaling(held_out.logits), held_out.labels)
        found, around = _estimate(method, Problem(None, source, logits, calibrated), len(logits), prior), None
    test = None if held_out is None else test_of(*held_out, scores, names=source.names)
    warnings = (*doubts_of(scaling, test, by_likelihood=row.by_likelihood), *found.warnings)
    return replace(found, scaling=scaling, shift_test=test, intervals=around, warnings=warnings)


def with_one_sample(prior: Prior, num_samples: int) -> Prior:
    """A prior estimated from some samples, with one more that is spread over all classes."""
    probs = prior.probs
    return Prior((num_samples * probs + 1 / len(probs)) / (num_samples + 1), names=prior.names)


def estimate_by_likelihood(
    method: str, likelihood: Likelihood, carried: Prior, source: Prior
) -> tuple[PriorEstimate, LikelihoodSolution]:
    """The estimate, and the solution of highest likelihood, around which intervals lie.

    Args:
        method: A method with a likelihood.
        likelihood: Of calibrated logits; the sum of its weights stands against pseudo-samples.
        carried: The prior that these carry.
        source: The prior that the scorer's logits carry.
    """
    problem = Problem(likelihood, source)
    found = _estimate(method, problem, likelihood.num_samples, carried)
    gained = likelihood.value(found.prior) - likelihood.value(carried)
    known = problem.identifiability
    warnings = (*known.warnings, *found.warnings)
    found = replace(found, identifiability=known, log_likelihood=gained, warnings=warnings)
    return found, problem.likeliest


def _estimate(method: str, problem: Problem, num_samples: int, carried: Prior) -> PriorEstimate:
    solution = METHODS[method].solve(problem)
    found = PriorEstimate(
        prior=solution.prior.named(problem.source.names),
        method=method,
        num_samples=num_samples,
        carried=carried.named(problem.source.names),
    )
    if isinstance(solution, LikelihoodSolution):
        doubts: tuple[str, ...] = ()
        if not solution.converged:
            doubts = (
                f"The search stopped after {solution.steps} steps, at most {solution.shortfall:.2g} nats a "
                "sample below the maximum.",
            )
        return replace(
            found,
            shortfall=solution.shortfall,
            converged=solution.converged,
            steps=solution.steps,
            warnings=doubts,
        )
    if not solution.unidentifiable:
        return found
    confused = name_classes(solution.unidentifiable, problem.source.names)
    return replace(
        found,
        warnings=(f"The scorer confuses {confused} in such a way that their shares cannot be told apart.",),
    )


def doubts_of(scaling: Scaling | None, test: ShiftTest | None, *, by_likelihood: bool) -> list[str]:
    """Warnings on the calibration and on label shift, one sentence each."""
    doubts = []
    if by_likelihood and scaling is None:
        doubts.append(
            "The logits were not calibrated, and an overconfident scorer biases the estimate: pass labelled "
            "source predictions that were held out of training as `validation`."
        )
    if scaling is not None:
        frequencies = scaling.carried.probs
        entropy = -float(xlogy(frequencies, frequencies).sum())
        if scaling.nll_after > _UNINFORMATIVE * entropy:
            doubts.append(
                "The scores hold next to no information on the classes: on the samples of the calibration "
                f"their NLL is {scaling.nll_after:.3f}, and that of the class mix alone {entropy:.3f}. Do "
                "not rely on the estimate."
            )
    if test is not None and (test.p_value is None or test.p_value < _SIGNIFICANT):
        doubts.append(test.words)
    return doubts


@dataclass(frozen=True, eq=False)
class _Refit:
    """Fits the calibration again with other weights of the validation samples."""

    calibration: str
    held_out: HeldOut
    source: Prior
    scores: Float[Array, "samples classes"]

    def __call__(self, weights: Float[np.ndarray, " validation"]) -> Likelihood:
        scaling = read_calibration(self.calibration, self.held_out, self.source, weights)
        assert scaling is not None
        return Likelihood.from_logits(scaling(self.scores), scaling.carried, names=self.source.names)


def _closer(likelihood: Likelihood, likeliest: LikelihoodSolution) -> LikelihoodSolution:
    """A solution as near to the maximum, in nats of the whole sample, as intervals around it need."""
    size = likelihood.num_samples
    if not likeliest.converged or size * likeliest.shortfall <= _CLOSE:
        return likeliest
    start = Prior(likelihood.half_a_sample_inside(likeliest.prior.probs))
    return likelihood.maximize(start=start, tolerance=_CLOSE / size)


def _intervals(
    kind: IntervalKind,
    likelihood: Likelihood,
    likeliest: LikelihoodSolution,
    refit: _Refit | None,
    *,
    level: float,
    draws: int,
    seed: int,
) -> PriorIntervals | None:
    if kind == "none":
        return None
    if kind == "likelihood":
        likeliest = _closer(likelihood, likeliest)
        return likelihood_intervals(likelihood, likeliest.prior, level=level) if likeliest.converged else None
    return bootstrap_intervals(
        likelihood,
        level=level,
        draws=draws,
        seed=seed,
        refit=refit,
        num_validation=None if refit is None else len(refit.held_out.labels),
    )
