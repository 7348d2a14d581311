"""Judge a predictions file on any class mix, with and without compensation to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from priorshift.commands._choices import MaybePath

if TYPE_CHECKING:
    from priorshift.evaluation import Evaluation
    from priorshift.predictions import Predictions


@dataclass(frozen=True)
class Arguments:
    """Which predictions, on which mix."""

    predictions: Positional[Path]
    """File that `priorshift predict` or `Predictions.save` wrote, with labels."""
    target: str = "uniform"
    """The class mix: uniform, source, forward:RATIO, backward:RATIO, tweak:CLASS:MASS, a JSON file
    with one mass per class (a list, or an object of class names), or `estimated`: that of these very samples,
    estimated from their logits alone."""
    validation: MaybePath = None
    """For `--target estimated`: predictions on labelled source samples held out of training."""
    draws: int = 0
    """0 weighs the full test set exactly; a positive number draws that many subsets instead and shows 90 %
    intervals over them."""
    seed: int = 0
    """Seed of the draws."""


def run(arguments: Arguments) -> None:
    """Print the scores side by side."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from priorshift.evaluation import evaluate
    from priorshift.predictions import Predictions
    from priorshift.shift import target_prior

    predictions = Predictions.load(arguments.predictions)
    if arguments.target == "estimated":
        _evaluate_estimated(predictions, arguments)
        return
    if arguments.validation is not None:
        raise ValueError(f"Expected `--validation` with `--target estimated` only, not {arguments.target}.")
    needs_counts = arguments.target == "source" or arguments.target.startswith(
        ("forward:", "backward:", "tweak:")
    )
    if predictions.train_counts is None and needs_counts:
        raise ValueError(
            f"The mix {arguments.target!r} is defined by training counts, "
            f"and {arguments.predictions} has none."
        )
    counts = [1] * predictions.num_classes if predictions.train_counts is None else predictions.train_counts
    try:
        target = target_prior(arguments.target, counts, class_names=predictions.class_names)
    except ValueError as error:
        raise ValueError(f"Cannot read --target {arguments.target!r}. {error}") from error
    as_they_are, compensated = (
        evaluate(predictions, target, compensate=compensate, draws=arguments.draws, seed=arguments.seed)
        for compensate in (False, True)
    )
    table = Table(title=escape(f"{predictions.method or arguments.predictions} on {arguments.target}"))
    for heading in ("score", "logits as they are", "compensated to the mix"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for name in as_they_are.scores:
        table.add_row(name, _cell(as_they_are, name), _cell(compensated, name))
    console = Console()
    console.print(table)
    console.print(
        f"{as_they_are.sampling}; effective sample size {as_they_are.effective_sample_size:.0f}; "
        f"logits carry {predictions.carried} by {predictions.carried_by}",
        highlight=False,
        markup=False,
    )


def _evaluate_estimated(predictions: "Predictions", arguments: Arguments) -> None:
    """Scores on the samples as they are, with their mix not used, estimated and known."""
    from rich.console import Console

    from priorshift.commands._target_priors import load_validation, print_scores
    from priorshift.estimation import estimate_prior

    if arguments.draws:
        raise ValueError(f"Expected `--draws` to be 0 with `--target estimated`, but got {arguments.draws}.")
    validation = load_validation(arguments.validation, predictions)
    estimate = estimate_prior(predictions, validation=validation, intervals="none")
    console = Console()
    print_scores(console, predictions, estimate)
    for sentence in estimate.warnings:
        console.print(f"warning: {sentence}", highlight=False, markup=False)


def _cell(evaluation: "Evaluation", name: str) -> str:
    value = evaluation.scores[name]
    if value is None:
        return "n/a"
    if evaluation.intervals is None:
        return f"{value:.4f}"
    low, high = evaluation.intervals[name]
    return f"{value:.4f} ({low:.4f} to {high:.4f})"
