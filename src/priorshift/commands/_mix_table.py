"""The table of an estimated class mix, for the terminal."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from rich.markup import escape
from rich.table import Table

from priorshift.estimation import PriorEstimate
from priorshift.priors import Prior

MOST_CLASSES = 20


def mix_table(
    estimate: PriorEstimate,
    carried: Prior,
    *,
    class_names: Sequence[str] | None = None,
    labels: Int[np.ndarray, " samples"] | None = None,
) -> Table:
    """The classes whose share changed most, largest first.

    Args:
        estimate: The estimate.
        carried: The prior that the scorer's logits carry.
        class_names: One name per class; by default those of the estimate, or the indices.
        labels: The classes of the samples, where they are known, `[N]`.
    """
    class_names = class_names or estimate.prior.names
    before, found = carried.probs, estimate.prior.probs
    changed = np.argsort(-np.abs(found - before), kind="stable")[:MOST_CLASSES]
    shown = changed[np.argsort(-found[changed], kind="stable")].tolist()
    some = (
        f", the {MOST_CLASSES} of {len(found)} classes that changed most" if len(found) > len(shown) else ""
    )
    table = Table(title=f"Class mix estimated from {estimate.num_samples:,} samples, percent{some}")
    headings = ["class", "carried", "estimated"]
    if estimate.intervals is not None:
        headings.append(f"{100 * estimate.intervals.level:g} % interval")
    truth = None
    if labels is not None:
        headings.append("true")
        truth = np.bincount(labels, minlength=len(found)) / len(labels)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for label in shown:
        name = str(label) if class_names is None else class_names[label]
        cells = [escape(name), _percent(before[label]), _percent(found[label])]
        if estimate.intervals is not None:
            lower, upper = estimate.intervals.lower[label], estimate.intervals.upper[label]
            cells.append(f"{_percent(lower)} to {_percent(upper)}")
        if truth is not None:
            cells.append(_percent(truth[label]))
        table.add_row(*cells)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
