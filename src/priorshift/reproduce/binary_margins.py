r"""Menon et al., Figures 5 to 7: link functions and conditional Bayes risks of the binary margin losses.

The captions' settings at $\pi = 0.2$: the balanced loss, an unequal margin, and both weights and margins, the
last with $\delta_- = \pi / (1 - \pi)$ and, in Figure 7, with $\delta_- = \pi$ too. The paper's slips are
put right: $f = f_+ - f_-$, the margins have the factor $1/\gamma$, the risk's second term is that of the
negative class, and the tent is $(1 - \pi) p$ up to $\pi$ and $\pi (1 - p)$ from there.

Reference:
    Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Appendix B.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from priorshift.losses import (
    binary_margin_inverse_link,
    binary_margin_link,
    binary_margin_risk,
    binary_margin_threshold,
)
from priorshift.report.style import PALETTE
from priorshift.report.tables import Table
from priorshift.reproduce import targets
from priorshift.reproduce.outcome import Outcome, drawing, holds, tidy

SHARE = 0.2
TEMPERATURES = (1.0, 8.0)
PROBS = torch.linspace(0, 1, 401, dtype=torch.float64)
SCORES = torch.linspace(-4, 4, 401, dtype=torch.float64)
TENT = "tent"
_WEIGHTS = (1 / SHARE, 1 / (1 - SHARE))
_SECOND = "balanced + margin π/(1−π)"


class Parameters(NamedTuple):
    r"""$(\omega_+, \omega_-)$ and $(\delta_+, \delta_-)$ of a binary margin loss."""

    weights: tuple[float, float]
    margins: tuple[float, float]


def unequal_margin(temperature: float) -> Parameters:
    r"""$\delta_\pm = \pm \frac1\gamma \log \frac{1 - \pi}{\pi}$, the logit-adjusted loss."""
    margin = math.log((1 - SHARE) / SHARE) / temperature
    return Parameters((1.0, 1.0), (margin, -margin))


LOSSES: Mapping[str, Callable[[float], Parameters]] = {
    "balanced": lambda _: Parameters(_WEIGHTS, (1.0, 1.0)),
    "unequal margin": unequal_margin,
    _SECOND: lambda _: Parameters(_WEIGHTS, (1.0, SHARE / (1 - SHARE))),
    "balanced + margin π": lambda _: Parameters(_WEIGHTS, (1.0, SHARE)),
}
r"""Loss → its parameters at a temperature $\gamma$."""
LINKED = tuple(LOSSES)[:3]
"""The losses of Figures 5 and 6."""
COLORS = dict(zip(LOSSES, (PALETTE[3], PALETTE[2], PALETTE[0], PALETTE[5]), strict=True))

Curves = Mapping[tuple[str, float], Float[Tensor, " points"]]
"""(loss, temperature) → values."""


@dataclass(frozen=True)
class Settings(targets.Settings):
    """Nothing: the curves are exact."""


def reproduce(settings: Settings) -> Outcome:
    """Evaluate the curves, judge, draw."""
    links, inverses = (
        {
            (name, temperature): curve(points, **LOSSES[name](temperature)._asdict(), temperature=temperature)
            for temperature in TEMPERATURES
            for name in LINKED
        }
        for curve, points in ((binary_margin_link, PROBS[1:-1]), (binary_margin_inverse_link, SCORES))
    )
    risks = {(name, temperature): risk(name, temperature) for temperature in TEMPERATURES for name in LOSSES}
    with drawing():
        figure = _draw(links, inverses, risks)
    return Outcome(
        title="Logit adjustment, Figures 5, 6 and 7: link functions and Bayes risks of binary margin losses",
        verdict=_verdict(risks),
        summary=_summary(risks),
        numbers={
            "links": _columns("p", PROBS[1:-1], links),
            "inverse_links": _columns("score", SCORES, inverses),
            "risks": {**_columns("p", PROBS, risks), TENT: tent().tolist()},
        },
        figure=figure,
    )


def risk(name: str, temperature: float) -> Float[Tensor, " probs"]:
    """The conditional Bayes risk of a loss on `PROBS`, its largest value there 1."""
    values = binary_margin_risk(PROBS, **LOSSES[name](temperature)._asdict(), temperature=temperature)
    return values / values.max()


def tent() -> Float[Tensor, " probs"]:
    r"""The conditional Bayes risk of the balanced error on `PROBS`, its largest value 1."""
    values = torch.minimum((1 - SHARE) * PROBS, SHARE * (1 - PROBS))
    return values / (SHARE * (1 - SHARE))


def threshold(name: str, temperature: float) -> float:
    r"""$\Psi^{-1}(0)$ of a loss; $\pi$ if and only if it is consistent for the balanced error."""
    return binary_margin_threshold(**LOSSES[name](temperature)._asdict(), temperature=temperature)


def _verdict(risks: Curves) -> str:
    low, high = TEMPERATURES
    consistent = all(
        math.isclose(threshold(name, temperature), SHARE, rel_tol=1e-12)
        for name, temperature in (
            *((name, temperature) for name in LINKED[:2] for temperature in (*TEMPERATURES, 1000.0)),
            (_SECOND, 1000.0),
        )
    )
    log_loss = binary_margin_risk(PROBS) / math.log(2)
    moved = max(float((risks["unequal margin", t] - log_loss).abs().max()) for t in TEMPERATURES)
    distances = {key: _distance(values) for key, values in risks.items()}
    closer = all(
        distances[name, t] < distances["unequal margin", t]
        for t in TEMPERATURES
        for name in LOSSES
        if name != "unequal margin"
    )
    settled = "; ".join(
        f"{name} {threshold(name, low):.4f} and {threshold(name, high):.4f}" for name in LOSSES
    )
    apart = "; ".join(f"{name} {distances[name, low]:.3f} and {distances[name, high]:.3f}" for name in LOSSES)
    return (
        f"π = {SHARE}, γ = {low:g} and {high:g}. Ψ⁻¹(0): {settled}. "
        f"The claim that it is π for the balanced loss and the unequal margin at any γ, and for balanced + "
        f"margin as γ → ∞, {holds(consistent)}. "
        f"Mean distance of the normalised risk from the tent: {apart}. "
        f"The claim that unequal margins alone leave the risk of the log-loss, to 1e-9, "
        f"{holds(moved < 1e-9)}; that the others come closer to the tent, {holds(closer)}."
    )


def _distance(values: Float[Tensor, " probs"]) -> float:
    return float((values - tent()).abs().mean())


def _summary(risks: Curves) -> Table:
    return Table(
        headers=("Loss", "γ", "Ψ⁻¹(0)", "Highest risk at p", "Mean distance from the tent"),
        rows=tuple(
            (
                name,
                f"{temperature:g}",
                f"{threshold(name, temperature):.6f}",
                f"{float(PROBS[risks[name, temperature].argmax()]):.4f}",
                f"{_distance(risks[name, temperature]):.4f}",
            )
            for name in LOSSES
            for temperature in TEMPERATURES
        ),
        caption=(
            f"π = {SHARE}. A loss is consistent for the balanced error if and only if Ψ⁻¹(0) = π. "
            f"Distances are over {len(PROBS)} even steps of p, risks and tent with a largest value of 1."
        ),
    )


def _columns(heading: str, points: Tensor, curves: Curves) -> dict[str, list[float]]:
    named = {f"{name}, γ = {temperature:g}": curve for (name, temperature), curve in curves.items()}
    return {heading: points.tolist(), **{name: curve.tolist() for name, curve in named.items()}}


def _draw(links: Curves, inverses: Curves, risks: Curves) -> Figure:
    figure = Figure(figsize=(11.0, 6.0), layout="constrained")
    panels = figure.subplots(len(TEMPERATURES), 3)
    for temperature, (left, middle, right) in zip(TEMPERATURES, panels, strict=True):
        title = f"γ = {temperature:g}"
        _draw_curves(left, PROBS[1:-1], links, temperature)
        left.set(xlabel="p", ylabel="Ψ(p)", ylim=(-5, 5) if temperature < 2 else (-1.7, 1.7))
        left.set_title(f"Figure 5, {title}")
        _draw_curves(middle, SCORES, inverses, temperature)
        middle.axhline(SHARE, color="black", linewidth=0.8, linestyle=":")
        middle.axvline(0, color="black", linewidth=0.8, linestyle=":")
        middle.set(xlabel="v", ylabel="Ψ⁻¹(v)", title=f"Figure 6, {title}")
        _draw_curves(right, PROBS, risks, temperature)
        right.plot(PROBS.numpy(), tent().numpy(), color="black", linewidth=1, linestyle=":", label=TENT)
        right.set(xlabel="p", ylabel="L(p) / max L", title=f"Figure 7, {title}")
    figure.legend(
        *panels[0, 2].get_legend_handles_labels(), loc="outside lower center", ncols=len(LOSSES) + 1
    )
    return figure


def _draw_curves(ax: Axes, points: Tensor, curves: Curves, temperature: float) -> None:
    for (name, at), values in curves.items():
        if at == temperature:
            ax.plot(points.numpy(), values.numpy(), color=COLORS[name], linewidth=1.6, label=name)
    tidy(ax)
