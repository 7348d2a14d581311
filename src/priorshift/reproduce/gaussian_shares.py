"""Menon et al., Figure 10: the losses of Figure 2 while the rare class grows from 1 % to 40 %."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from priorshift.report.tables import Table
from priorshift.reproduce.gaussian_losses import COLORS
from priorshift.reproduce.gaussians import (
    BAYES_ERROR,
    LOGIT_ADJUSTED,
    LOSSES,
    GaussianSettings,
    Spread,
    simulate,
    spread,
)
from priorshift.reproduce.outcome import Columns, Outcome, drawing, holds, tidy

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
_PAPER_ORDER = (LOGIT_ADJUSTED, "equalised", "adaptive", "cross-entropy")

Settings = GaussianSettings
Spreads = Mapping[str, list[Spread]]
"""Loss → errors at each share."""


def reproduce(settings: Settings) -> Outcome:
    """Simulate at every share, judge, draw.

    Raises:
        ValueError: If `settings` do not fit, or a trial leaves a loss without a minimum.
    """
    simulations = [simulate(share, settings) for share in SHARES]
    exact, test = (
        {name: [spread(getattr(one, kind)[name]) for one in simulations] for name in LOSSES}
        for kind in ("exact_errors", "test_errors")
    )
    with drawing():
        figure = _draw(exact)
    return Outcome(
        title="Logit adjustment, Figure 10: the losses of Figure 2 at other shares of the rare class",
        verdict=_verdict(exact),
        summary=_summary(exact, settings),
        numbers={"errors": _columns(exact, test)},
        figure=figure,
    )


def _verdict(exact: Spreads) -> str:
    means = {name: np.array([100 * error.mean for error in exact[name]]) for name in _PAPER_ORDER}
    gaps = np.max(list(means.values()), 0) - np.min(list(means.values()), 0)
    ordered = all(bool((means[better] < means[worse]).all()) for better, worse in pairwise(_PAPER_ORDER))
    shrinks = bool((np.diff(gaps) < 0).all())
    above = means[LOGIT_ADJUSTED] - 100 * BAYES_ERROR
    return (
        f"From P(+1) = {SHARES[0]:.0%} to {SHARES[-1]:.0%} the best and the worst of the paper's losses come "
        f"from {gaps[0]:.2f} to {gaps[-1]:.2f} points of exact balanced error apart, and the logit-adjusted "
        f"loss from {above[0]:.3f} to {above[-1]:.3f} points above the Bayes error. "
        f"The claim that the methods become equitable, the gap smaller at every step, {holds(shrinks)}; "
        f"that their order {' < '.join(_PAPER_ORDER)} is the same at every share, {holds(ordered)}."
    )


def _summary(exact: Spreads, settings: Settings) -> Table:
    return Table(
        headers=("Loss", *(f"{share:.0%}" for share in SHARES)),
        rows=tuple((name, *map(str, errors)) for name, errors in exact.items()),
        caption=(
            f"Exact balanced error, percent, by P(+1): mean ± standard error of {settings.trials} trials of "
            f"{settings.samples:,} training samples, seed {settings.seed}. Bayes: {100 * BAYES_ERROR:.3f} at "
            "every share."
        ),
    )


def _columns(exact: Spreads, test: Spreads) -> Columns:
    rows = [(name, place) for name in exact for place in range(len(SHARES))]
    return {
        "loss": [name for name, _ in rows],
        "share": [SHARES[place] for _, place in rows],
        **{
            f"{kind}_error_{field}": [getattr(spreads[name][place], field) for name, place in rows]
            for kind, spreads in (("exact", exact), ("test", test))
            for field in Spread._fields
        },
    }


def _draw(exact: Spreads) -> Figure:
    figure = Figure(figsize=(8.6, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_curves(left, exact, "sd", 0.0)
    left.axhline(100 * BAYES_ERROR, color="black", linewidth=1, linestyle=":", label="Bayes")
    left.set(ylabel="Exact balanced error (%)", title="Mean ± standard deviation over trials")
    left.legend(loc="upper right")
    # Not the sd: below the mean it would reach zero, which a log scale does not have.
    _draw_curves(right, exact, "se", BAYES_ERROR)
    right.set_yscale("log")
    right.set(ylabel="Points above the Bayes error (log scale)", title="Mean ± standard error")
    return figure


def _draw_curves(ax: Axes, exact: Spreads, band: Literal["sd", "se"], base: float) -> None:
    shares = 100 * np.array(SHARES)
    for name, errors in exact.items():
        mean = 100 * np.array([error.mean - base for error in errors])
        half = 100 * np.array([getattr(error, band) for error in errors])
        ax.plot(shares, mean, "o-", color=COLORS[name], linewidth=1.6, markersize=4, label=name)
        ax.fill_between(shares, mean - half, mean + half, color=COLORS[name], alpha=0.16, linewidth=0)
    ax.set_xscale("log")
    ax.set_xticks(shares, [f"{share:g}" for share in shares])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("P(+1) (%, log scale)")
    tidy(ax)
