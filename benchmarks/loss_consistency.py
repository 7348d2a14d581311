"""What each loss converges to on exact populations: its distance from the Bayes scorer of the balanced error.

Run from the repository root; it prints the table and writes `benchmarks/results/loss_consistency.md`.

    python -m benchmarks.loss_consistency
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.populations import Population, random_population
from priorshift.adjustment import adjust
from priorshift.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedFocalLoss,
    ClassBalancedLoss,
    CrossEntropyLoss,
    EqualisedLoss,
    FocalLoss,
    LADELoss,
    LDAMLoss,
    LogitAdjustedAdaptiveLoss,
    LogitAdjustedLoss,
    PairwiseMarginLoss,
    WeightedCrossEntropyLoss,
)
from priorshift.priors import Prior

RESULTS = Path(__file__).parent / "results" / "loss_consistency.md"

SEEDS = range(10)
IMBALANCE = 50.0

Verdict = Literal["yes", "argmax only", "after `adjust`", "no"]
"""Whether the plain logits are those of the Bayes scorer; only their argmax is; the adjusted are; or none."""


@dataclass(frozen=True)
class Row:
    """A loss of the table and what theory says of it.

    Args:
        name: As in the table.
        build: From the class prior of the population to the loss.
        verdict: Is it consistent for the balanced error?
        carried: The prior that it states, up to a factor; a key of `CARRIED`.
        by: By theory or by convention.
        scale: Factor on the logits before they are compared or adjusted.
    """

    name: str
    build: Callable[..., Any]
    verdict: Verdict
    carried: str
    by: Literal["theory", "convention"]
    scale: float = 1.0


CARRIED: dict[str, Callable[[Population], Float[np.ndarray, " classes"]]] = {
    "π": lambda population: population.prior.probs,
    "uniform": lambda population: np.ones(len(population.prior)),
    "π^0.5": lambda population: population.prior.probs**0.5,
    "π^2": lambda population: population.prior.probs**2,
    "πα": lambda population: population.prior.probs / (1 - 0.99 ** population.counts.sum(0).numpy()),
}

ROWS = (
    Row("cross-entropy", CrossEntropyLoss, "after `adjust`", "π", "theory"),
    Row(
        "cross-entropy, label smoothing 0.1",
        partial(CrossEntropyLoss, label_smoothing=0.1),
        "no",
        "π",
        "convention",
    ),
    Row("balanced (weights 1/π)", WeightedCrossEntropyLoss, "yes", "uniform", "theory"),
    Row("Balanced Softmax", BalancedSoftmaxLoss, "yes", "uniform", "theory"),
    Row("logit-adjusted, τ = 1", LogitAdjustedLoss, "yes", "uniform", "theory"),
    Row("logit-adjusted, τ = 0.5", partial(LogitAdjustedLoss, tau=0.5), "after `adjust`", "π^0.5", "theory"),
    Row("LADE, α = 0.1, λ = 0.5", partial(LADELoss, alpha=0.1, lam=0.5), "yes", "uniform", "theory"),
    Row(
        "LADE as released, α = 1, λ = 0.5",
        partial(LADELoss, alpha=1.0, lam=0.5, variant="released"),
        "no",
        "uniform",
        "convention",
    ),
    Row("focal, γ = 2", FocalLoss, "no", "π", "convention"),
    Row(
        "class-balanced cross-entropy, β = 0.99",
        partial(ClassBalancedLoss, beta=0.99),
        "after `adjust`",
        "πα",
        "theory",
    ),
    Row(
        "class-balanced cross-entropy, β = 1",
        partial(ClassBalancedLoss, beta=1.0),
        "yes",
        "uniform",
        "theory",
    ),
    Row(
        "class-balanced focal, β = 0.99, γ = 2",
        partial(ClassBalancedFocalLoss, beta=0.99),
        "no",
        "uniform",
        "convention",
    ),
    Row(
        "class-balanced focal, β = 1, γ = 2",
        partial(ClassBalancedFocalLoss, beta=1.0),
        "argmax only",
        "uniform",
        "convention",
    ),
    Row("LDAM, scale 1", partial(LDAMLoss, scale=1.0), "no", "uniform", "convention"),
    Row("LDAM, scale 4", partial(LDAMLoss, scale=4.0), "no", "uniform", "convention", scale=4.0),
    Row(
        "LDAM, scale 4, second stage, β = 0.99",
        partial(LDAMLoss, scale=4.0, reweight_beta=0.99),
        "no",
        "uniform",
        "convention",
        scale=4.0,
    ),
    Row(
        "equalised, λ = 0.03, γ = 0.9",
        partial(EqualisedLoss, threshold=0.03),
        "no",
        "uniform",
        "convention",
    ),
    Row(
        "adaptive margin, Δ = π_y^(−1/4)",
        partial(LogitAdjustedAdaptiveLoss, tau=0.0),
        "no",
        "uniform",
        "convention",
    ),
    Row(
        "logit-adjusted plus adaptive, τ = 1",
        LogitAdjustedAdaptiveLoss,
        "no",
        "uniform",
        "convention",
    ),
    Row(
        "pairwise margin, τ₁ = 0, τ₂ = 1",
        partial(PairwiseMarginLoss, tau1=0.0),
        "no",
        "uniform",
        "convention",
    ),
    Row("pairwise margin, τ₁ = τ₂ = 1", PairwiseMarginLoss, "yes", "uniform", "theory"),
    Row(
        "the same with the sign that §5.3 prints",
        partial(PairwiseMarginLoss, tau1=-1.0, tau2=-1.0),
        "after `adjust`",
        "π^2",
        "theory",
    ),
)


@dataclass(frozen=True)
class Outcome:
    r"""What the optimum of a loss on a population is worth.

    Args:
        lost: Balanced accuracy lost to the Bayes scorer by the argmax of the plain logits, in points.
        lost_adjusted: The same after `adjust` from the stated prior to uniform.
        distance: Largest distance of the adjusted logits from $\log p(x \mid y)$, both centred at each point.
    """

    lost: float
    lost_adjusted: float
    distance: float


def population_of(seed: int) -> Population:
    """The population of a seed: 4 overlapping classes on 12 points, only the last rarer than 3 %."""
    return random_population(seed, imbalance=IMBALANCE)


def outcome(row: Row, population: Population) -> Outcome:
    """Fit a table of logits to the optimum of the row's loss and compare it with the Bayes scorer."""
    loss = row.build(population.prior)
    logits = row.scale * population.fit(population_loss(loss))
    adjusted = adjust(logits, carried=loss.carried_prior, target=Prior.uniform(len(population.prior)))
    best = population.best_balanced_accuracy
    return Outcome(
        lost=100 * (best - population.balanced_accuracy(logits)),
        lost_adjusted=100 * (best - population.balanced_accuracy(adjusted)),
        distance=float((centred(adjusted) - centred(population.likelihood.log())).abs().max()),
    )


def population_loss(loss: torch.nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss as a function of `(logits, labels, log_prior)`, in expectation where it draws at random.

    With a single rare class, what the equalised loss draws is one coin for each sample, and its expectation
    the mixture of never and always leaving that class out.
    """
    if not isinstance(loss, EqualisedLoss):
        return lambda logits, labels, _: loss(logits, labels)
    source, gamma = loss.source.prior, loss.drop_probability
    if int((source.probs < loss.threshold).sum()) != 1:
        raise ValueError(f"Expected one class below `threshold`, but got {source} and {loss.threshold}.")
    never, always = (EqualisedLoss(source, threshold=loss.threshold, drop_probability=p) for p in (0, 1))
    return lambda logits, labels, _: (1 - gamma) * never(logits, labels) + gamma * always(logits, labels)


def centred(logits: Float[Tensor, "points classes"]) -> Float[Tensor, "points classes"]:
    """Logits without their mean for each point, which softmax does not see."""
    return logits - logits.mean(1, keepdim=True)


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """The table in Markdown."""
    head = (
        "loss",
        "consistent?",
        "carried prior ∝",
        "by",
        "points lost",
        "points lost, adjusted",
        "distance, adjusted",
    )
    lines = [head, ["---"] * len(head)]
    for row in ROWS:
        results = outcomes[row.name]
        lost, adjusted = (
            mean_sd([getattr(result, part) for result in results]) for part in ("lost", "lost_adjusted")
        )
        distance = max(result.distance for result in results)
        shown = "< 1e-5" if distance < 1e-5 else f"{distance:.2f}"
        lines.append((row.name, row.verdict, row.carried, row.by, lost, adjusted, shown))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def mean_sd(values: list[float]) -> str:
    """Mean and standard deviation over populations; exact zeros come out as ±1e-14."""
    numbers = torch.tensor(values, dtype=torch.float64)
    return f"{numbers.mean().clamp(min=0):.2f} ± {numbers.std():.2f}"


def main() -> None:
    began = time.perf_counter()
    outcomes = {row.name: [outcome(row, population_of(seed)) for seed in SEEDS] for row in ROWS}
    seconds = time.perf_counter() - began
    report = (
        "# What each loss converges to\n\n"
        f"{date.today()}, {len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), float64, "
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, {seconds:.0f} s.\n\n"
        "Command: `python -m benchmarks.loss_consistency`. What the columns mean: `docs/losses.md`.\n\n"
        f"Seeds {SEEDS[0]}–{SEEDS[-1]}: random populations of 4 classes on 12 points, imbalance "
        f"{IMBALANCE:g}; ± is the standard deviation over them, the distance is the largest.\n\n"
    ) + table(outcomes)
    print(report)
    RESULTS.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
