"""Menon et al., Figure 2: losses, their separators, and post-hoc methods on two Gaussians, one of 5 %."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from priorshift.report.style import PALETTE
from priorshift.report.tables import Table
from priorshift.reproduce.gaussians import (
    BAYES_ERROR,
    LOGIT_ADJUSTED,
    LOSSES,
    POST_HOC,
    GaussianSettings,
    Sample,
    Simulation,
    draw,
    exact_balanced_error,
    post_hoc,
    simulate,
    spread,
)
from priorshift.reproduce.outcome import Columns, Outcome, drawing, holds, tidy

SHARE = 0.05
CLOSE = 0.05
"""Points of balanced error that count as none."""
TAUS = torch.arange(61, dtype=torch.float64) / 20
COLORS = {
    "cross-entropy": PALETTE[0],
    "adaptive": PALETTE[1],
    "equalised": PALETTE[4],
    "balanced": PALETTE[3],
    LOGIT_ADJUSTED: PALETTE[2],
    POST_HOC: PALETTE[5],
}
_POINTS_DRAWN = 400
_LIMIT = 4.5

Settings = GaussianSettings


class Normalisation(NamedTuple):
    r"""A way of weight normalisation: two logits $\pm f/2$, each divided by $\nu_y^\tau$.

    Attributes:
        name: What it is called.
        divisor: $\nu$ of both classes, from the separators and the class prior.
        with_bias: Whether the bias of a logit is divided too, or its weights alone.
    """

    name: str
    divisor: Callable[[Tensor, Tensor], Tensor]
    with_bias: bool

    def __call__(
        self,
        separators: Float[Tensor, "trials 3"],
        prior: Float[Tensor, "trials 2"],
        taus: Float[Tensor, " taus"],
    ) -> Float[Tensor, "taus trials 3"]:
        """The separators after it, for each strength."""
        divisors = torch.pow(self.divisor(separators, prior), taus.view(-1, 1, 1))
        scale = divisors.reciprocal().mean(2, keepdim=True)
        weights, bias = separators[:, :2] * scale, separators[:, 2:] * torch.ones_like(scale)
        return torch.cat([weights, bias * scale if self.with_bias else bias], 2)


def _norm_of_difference(separators: Tensor, prior: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(separators[:, :2], dim=1, keepdim=True)
    return norms.expand_as(prior)


def _norm(separators: Tensor, prior: Tensor) -> Tensor:
    return _norm_of_difference(separators, prior) / 2


def _prior(_: Tensor, prior: Tensor) -> Tensor:
    return prior


NORMALISATIONS = (
    Normalisation("÷ norm, bias too", _norm, True),
    Normalisation("÷ prior, bias too", _prior, True),
    Normalisation("÷ norm, weights only", _norm, False),
    Normalisation("÷ norm of difference, weights only", _norm_of_difference, False),
    Normalisation("÷ prior, weights only", _prior, False),
)
ADJUSTMENT = "logit adjustment"


def reproduce(settings: Settings) -> Outcome:
    """Simulate, sweep the post-hoc methods, judge, draw.

    Raises:
        ValueError: If `settings` do not fit, or a trial leaves a loss without a minimum.
    """
    simulation = simulate(SHARE, settings)
    sweep = sweep_post_hoc(simulation.separators["cross-entropy"], simulation.prior)
    shown = draw(SHARE, settings, "train", range(1))
    sample = Sample(shown.points[:, :_POINTS_DRAWN], shown.labels[:, :_POINTS_DRAWN])
    numbers = {
        "errors": _error_columns(simulation),
        "sweep": _sweep_columns(sweep),
        "sample": _sample_columns(sample),
    }
    with drawing():
        figure = _draw(simulation, sweep, sample)
    return Outcome(
        title="Logit adjustment, Figure 2: losses and post-hoc methods on two Gaussians",
        verdict=_verdict(simulation, sweep),
        summary=_summary(simulation, settings),
        numbers=numbers,
        figure=figure,
    )


def sweep_post_hoc(
    separators: Float[Tensor, "trials 3"], prior: Float[Tensor, "trials 2"]
) -> dict[str, Float[Tensor, "taus trials"]]:
    r"""Exact balanced errors after each post-hoc method at each strength $\tau$ of `TAUS`."""
    adjusted = post_hoc(separators.expand(len(TAUS), -1, -1), prior, TAUS.unsqueeze(1))
    return {
        ADJUSTMENT: exact_balanced_error(adjusted),
        **{way.name: exact_balanced_error(way(separators, prior, TAUS)) for way in NORMALISATIONS},
    }


def _verdict(simulation: Simulation, sweep: Mapping[str, Tensor]) -> str:
    errors = {name: spread(values) for name, values in simulation.exact_errors.items()}
    above = {name: 100 * (error.mean - BAYES_ERROR) for name, error in errors.items()}
    inconsistent = ("cross-entropy", "adaptive", "equalised")
    difference = (simulation.exact_errors[LOGIT_ADJUSTED] - simulation.exact_errors[POST_HOC]).abs().max()
    tracks = above[LOGIT_ADJUSTED] < CLOSE and all(above[name] >= CLOSE for name in inconsistent)
    others = ", ".join(f"{name} {errors[name]}" for name in (*inconsistent, "balanced"))
    best = int(sweep[ADJUSTMENT].mean(1).argmin())
    return (
        f"Exact balanced error, percent, mean ± standard error of {len(simulation.prior)} trials: "
        f"logit-adjusted loss {errors[LOGIT_ADJUSTED]}, {above[LOGIT_ADJUSTED]:.3f} points above the Bayes "
        f"error {100 * BAYES_ERROR:.3f}; cross-entropy + post-hoc τ = 1 {errors[POST_HOC]}, "
        f"{'' if difference < 1e-8 else 'not '}the same in every trial to 1e-6 points; {others}. "
        f"The claim that the logit-adjusted loss attains the Bayes error, to {CLOSE} points, unlike "
        f"{', '.join(inconsistent)}, {holds(tracks)}. "
        f"Post-hoc logit adjustment is best at τ = {TAUS[best]:.2f}. {_judge_normalisation(sweep)}"
    )


def _judge_normalisation(sweep: Mapping[str, Tensor]) -> str:
    means = {way.name: 100 * sweep[way.name].mean(1) for way in NORMALISATIONS}
    start = 100 * float(sweep[ADJUSTMENT][0].mean())
    at_two = int((TAUS == 2).nonzero())
    hampers = [bool((errors[1:] > start + 1e-6).all()) for errors in means.values()]
    fails = [float(errors.min()) > 100 * BAYES_ERROR + CLOSE for errors in means.values()]
    judged = ", ".join(
        f"{'flat' if bool(((errors - start).abs() < 1e-6).all()) else f'{errors[at_two]:.1f}'} ({name})"
        for name, errors in means.items()
    )
    return (
        f"Weight normalisation goes from {start:.1f} at τ = 0 to, at τ = 2: {judged}. "
        f"The claim that any weight normalisation hampers {holds(all(hampers))} "
        f"({sum(hampers)} of {len(means)} ways do), that any fails to come within {CLOSE} points of the "
        f"Bayes error {holds(all(fails))} ({sum(fails)} of {len(means)})."
    )


def _summary(simulation: Simulation, settings: Settings) -> Table:
    return Table(
        headers=("Method", "Exact", "Above Bayes", "On the test set", "sd of a test set"),
        rows=tuple(
            (
                name,
                str(exact := spread(simulation.exact_errors[name])),
                f"{100 * (exact.mean - BAYES_ERROR):.3f}",
                str(test := spread(simulation.test_errors[name])),
                f"{100 * test.sd:.2f}",
            )
            for name in simulation.separators
        ),
        caption=(
            f"Balanced error, percent: mean ± standard error of {settings.trials} trials of "
            f"{settings.samples:,} training and as many test samples, seed {settings.seed}. "
            f"Exact: under the true distribution. Bayes: {100 * BAYES_ERROR:.3f}."
        ),
    )


def _error_columns(simulation: Simulation) -> Columns:
    names, trials = list(simulation.separators), len(simulation.prior)

    def column(values: Mapping[str, Tensor]) -> list[float]:
        return [value for name in names for value in values[name].tolist()]

    parameters = {
        parameter: column({name: fitted[:, index] for name, fitted in simulation.separators.items()})
        for index, parameter in enumerate(("w1", "w2", "b"))
    }
    return {
        "method": [name for name in names for _ in range(trials)],
        "trial": list(range(trials)) * len(names),
        "test_error": column(simulation.test_errors),
        "exact_error": column(simulation.exact_errors),
        **parameters,
    }


def _sweep_columns(sweep: Mapping[str, Tensor]) -> Columns:
    spreads = {name: [spread(errors) for errors in rows] for name, rows in sweep.items()}
    return {
        "method": [name for name, rows in spreads.items() for _ in rows],
        "tau": TAUS.tolist() * len(spreads),
        "exact_error_mean": [row.mean for rows in spreads.values() for row in rows],
        "exact_error_sd": [row.sd for rows in spreads.values() for row in rows],
        "exact_error_se": [row.se for rows in spreads.values() for row in rows],
    }


def _sample_columns(sample: Sample) -> Columns:
    return {
        "x1": sample.points[0, :, 0].tolist(),
        "x2": sample.points[0, :, 1].tolist(),
        "y": sample.labels[0].int().tolist(),
    }


def _draw(simulation: Simulation, sweep: Mapping[str, Tensor], sample: Sample) -> Figure:
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_errors(left, simulation)
    _draw_separators(middle, simulation, sample)
    _draw_sweep(right, sweep)
    return figure


def _draw_errors(ax: Axes, simulation: Simulation) -> None:
    names = list(simulation.test_errors)
    boxes = ax.boxplot(
        [100 * simulation.test_errors[name].numpy() for name in names],
        widths=0.6,
        patch_artist=True,
        medianprops={"color": "black"},
        flierprops={"marker": ".", "markersize": 3},
    )
    for box, name in zip(boxes["boxes"], names, strict=True):
        box.set(facecolor=(COLORS[name], 0.55), edgecolor=COLORS[name])
    exact = [100 * float(simulation.exact_errors[name].mean()) for name in names]
    ax.plot(range(1, len(names) + 1), exact, "D", color="black", markersize=4, label="exact, mean")
    ax.axhline(100 * BAYES_ERROR, color="black", linewidth=1, linestyle=":", label="Bayes")
    ax.set_xticks(range(1, len(names) + 1), [name.replace(" + ", "\n+ ") for name in names])
    ax.tick_params(axis="x", rotation=35)
    for label in ax.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    ax.set(ylabel="Balanced error (%)", title=f"Test sets of {len(simulation.prior)} trials")
    ax.legend(loc="upper right")
    tidy(ax)


def _draw_separators(ax: Axes, simulation: Simulation, sample: Sample) -> None:
    points, positive = sample.points[0].numpy(), sample.labels[0].numpy() > 0
    for among, marker, color, label in (
        (~positive, ".", "0.75", "y = −1"),
        (positive, "+", "0.25", "y = +1"),
    ):
        x1, x2 = points[among].T
        ax.plot(x1, x2, marker, color=color, markersize=5, label=label)
    ends = np.array([-_LIMIT, _LIMIT])
    for name in LOSSES:
        w1, w2, b = simulation.separators[name][0].tolist()
        ax.plot(ends, -(w1 * ends + b) / w2, color=COLORS[name], linewidth=1.6, label=name)
    ax.plot(ends, -ends, color="black", linewidth=1.2, linestyle=":", label="Bayes")
    ax.set(xlim=(-_LIMIT, _LIMIT), ylim=(-_LIMIT, _LIMIT), xlabel="$x_1$", ylabel="$x_2$")
    ax.set_title("Separators of the first trial")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0.2, handlelength=1.4)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_sweep(ax: Axes, sweep: Mapping[str, Tensor]) -> None:
    styles = ("-", "-", (0, (4, 4)), "--", "-.", "-")
    colors = (COLORS[LOGIT_ADJUSTED], *PALETTE[:2], PALETTE[0], PALETTE[5], PALETTE[1])
    taus = TAUS.numpy()
    for (name, errors), color, style in zip(sweep.items(), colors, styles, strict=True):
        mean, sd = 100 * errors.mean(1).numpy(), 100 * errors.std(1).numpy()
        ax.plot(taus, mean, color=color, linestyle=style, linewidth=1.6, label=name)
        ax.fill_between(taus, mean - sd, mean + sd, color=color, alpha=0.15, linewidth=0)
    ax.axhline(100 * BAYES_ERROR, color="black", linewidth=1, linestyle=":", label="Bayes")
    ax.set(xlabel="Strength τ", ylabel="Exact balanced error (%)", title="Cross-entropy, then post-hoc")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    tidy(ax)
