"""Read the validation predictions of an estimate, and show its scores where labels are known."""

from pathlib import Path
from typing import TYPE_CHECKING

from priorshift.predictions import Predictions

if TYPE_CHECKING:
    from rich.console import Console

    from priorshift.estimation import PriorEstimate


def load_validation(path: Path | None, predictions: Predictions) -> Predictions | None:
    """Predictions on labelled source samples for an estimate from other predictions; None without a path.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If they name the classes otherwise, or are of the very samples of the estimate.
    """
    if path is None:
        return None
    validation = Predictions.load(path)
    names = (validation.class_names, predictions.class_names)
    if None not in names and names[0] != names[1]:
        raise ValueError(
            f"Expected `--validation` with the classes of the predictions, but {path} has others."
        )
    if validation.fingerprint and validation.fingerprint == predictions.fingerprint:
        raise ValueError(
            f"Expected `--validation` on other samples than the predictions, but {path} has the same."
        )
    return validation


def print_scores(screen: "Console", predictions: Predictions, estimate: "PriorEstimate") -> None:
    """Print scores on the predictions' own samples with no target prior, the estimated and the true one.

    Args:
        screen: Where to print.
        predictions: With labels.
        estimate: Made from them.
    """
    from rich.table import Table

    from priorshift.evaluation import TARGET_PRIORS, scores_by_target_prior
    from priorshift.report.tables import TARGET_TITLES

    scores = scores_by_target_prior(predictions, estimate)
    table = Table(title="On these samples")
    table.add_column("score")
    for prior in TARGET_PRIORS:
        table.add_column(TARGET_TITLES[prior], justify="right")
    for name in scores["none"]:
        values = [scores[prior][name] for prior in TARGET_PRIORS]
        table.add_row(name, *("n/a" if value is None else f"{value:.4f}" for value in values))
    screen.print(table)
    gap = 100 * ((scores["oracle"]["accuracy"] or 0.0) - (scores["estimated"]["accuracy"] or 0.0))
    screen.print(f"accuracy gap to the true prior: {gap:.2f} points", highlight=False)
