"""Estimate the class mix of unlabelled predictions with its uncertainty, and adapt them to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from priorshift.commands._choices import CalibrationName, MaybePath, MethodName


@dataclass(frozen=True)
class Arguments:
    """Which predictions, how, and where to."""

    predictions: Positional[Path]
    """File that `priorshift predict` or `Predictions.save` wrote. Labels only score the result."""
    validation: MaybePath = None
    """Predictions of the same scorer on labelled source samples held out of its training: for calibration,
    for the methods that need them, and to test whether label shift explains the predictions."""
    method: MethodName = "empirical-bayes"
    """Maximum likelihood, drawn to the carried prior if the sample is near it, or another method of
    `priorshift.estimation.estimate_prior`."""
    calibration: CalibrationName | None = None
    """Scaling fitted to the validation predictions first; by default bcts where there are some and the method
    uses a likelihood."""
    intervals: Literal["likelihood", "bootstrap", "none"] | None = None
    """Profile likelihood, the default, or a bootstrap, which also includes the error of the calibration."""
    level: float = 0.9
    """Confidence level of the intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    output: Annotated[MaybePath, arg(aliases=("-o",))] = None
    """File for the adapted predictions; by default the name of the input with `-adapted` in it."""
    report: MaybePath = None
    """HTML page to write."""


def run(arguments: Arguments) -> None:
    """Estimate, print, adapt and save."""
    from rich.console import Console

    from priorshift.commands._mix_table import mix_table
    from priorshift.commands._target_priors import load_validation, print_scores
    from priorshift.estimation import estimate_prior
    from priorshift.evaluation import adapt
    from priorshift.predictions import Predictions

    path = arguments.predictions
    output = arguments.output or path.with_stem(f"{path.stem}-adapted")
    if output.resolve() == path.resolve():
        raise ValueError(f"Expected `--output` to be another file than the predictions, but got {output}.")
    predictions = Predictions.load(path)
    validation = load_validation(arguments.validation, predictions)
    estimate = estimate_prior(
        predictions,
        method=arguments.method,
        calibration=arguments.calibration,
        validation=validation,
        intervals=arguments.intervals,
        level=arguments.level,
        seed=arguments.seed,
    )
    screen = Console()
    screen.print(
        mix_table(
            estimate, predictions.carried, class_names=predictions.class_names, labels=predictions.labels
        )
    )
    for sentence in estimate.warnings:
        screen.print(f"warning: {sentence}", highlight=False, markup=False)
    if predictions.labels is not None:
        print_scores(screen, predictions, estimate)
    adapt(predictions, estimate).save(output)
    screen.print(f"adapted predictions: {output}", soft_wrap=True, highlight=False, markup=False)
    if arguments.report is not None:
        from priorshift.report import write_adaptation_report

        page = write_adaptation_report(
            predictions, estimate, arguments.report, title=f"The class mix of {path.name}"
        )
        screen.print(f"report: {page}", soft_wrap=True, highlight=False, markup=False)
