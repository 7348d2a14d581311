"""The table of estimation methods. It imports no solver, so that a command line can list them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from priorshift.estimation._confusion import ConfusionEstimate
    from priorshift.estimation._likelihood import LikelihoodSolution
    from priorshift.estimation._problem import Problem

    Solver = Callable[[Problem], LikelihoodSolution | ConfusionEstimate]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table: what a method is called, what it needs, and its solver.

    Attributes:
        title: Name for reports.
        reference: Where it was published.
        solve: From calibrated predictions to the solution.
        needs_validation: True if there is no estimate without labelled validation data.
        by_likelihood: True if it uses the likelihood, and so gains from calibration.
        has_intervals: True if the intervals of maximum likelihood are its own.
    """

    title: str
    reference: str
    solve: Solver
    needs_validation: bool = False
    by_likelihood: bool = False
    has_intervals: bool = False


def _empirical_bayes(problem: Problem) -> LikelihoodSolution:
    from priorshift.estimation._posterior import empirical_bayes

    assert problem.likelihood is not None
    return empirical_bayes(
        problem.likelihood,
        problem.source,
        likeliest=problem.likeliest,
        effective_sample_size=problem.identifiability.effective_sample_size,
    )


def _mapls(problem: Problem) -> LikelihoodSolution:
    from priorshift.estimation._posterior import maximize_posterior

    assert problem.likelihood is not None
    return maximize_posterior(problem.likelihood, problem.source)


def _bbse(problem: Problem, *, hard: bool = False) -> ConfusionEstimate:
    from priorshift.estimation._confusion import match

    return match(problem.confusion(hard=hard))


def _rlls(problem: Problem, *, hard: bool = False) -> ConfusionEstimate:
    from priorshift.estimation._confusion import match_regularized

    return match_regularized(problem.confusion(hard=hard))


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "empirical-bayes": Method(
            title="likelihood, drawn to the carried prior as far as the sample suggests",
            reference="Robbins 1956, for the idea",
            solve=_empirical_bayes,
            by_likelihood=True,
            has_intervals=True,
        ),
        "mlls": Method(
            title="maximum likelihood",
            reference="Saerens et al. 2002",
            solve=lambda problem: problem.likeliest,
            by_likelihood=True,
            has_intervals=True,
        ),
        "mapls": Method(
            title="maximum posterior under a Dirichlet prior",
            reference="Ye et al. 2024",
            solve=_mapls,
            by_likelihood=True,
        ),
        "bbse": Method(
            title="black box shift estimation from probabilities",
            reference="Lipton et al. 2018",
            solve=_bbse,
            needs_validation=True,
        ),
        "bbse-hard": Method(
            title="black box shift estimation from decisions",
            reference="Lipton et al. 2018",
            solve=lambda problem: _bbse(problem, hard=True),
            needs_validation=True,
        ),
        "rlls": Method(
            title="regularized black box shift estimation from probabilities",
            reference="Azizzadenesheli et al. 2019",
            solve=_rlls,
            needs_validation=True,
        ),
        "rlls-hard": Method(
            title="regularized black box shift estimation from decisions",
            reference="Azizzadenesheli et al. 2019",
            solve=lambda problem: _rlls(problem, hard=True),
            needs_validation=True,
        ),
    }
)
"""Name → what `estimate_prior` has to offer under it. A new method is a solver and a row here."""
