"""Sentences on the figures and tables, computed from the same numbers."""

from collections.abc import Mapping, Sequence

import numpy as np

from priorshift.evaluation import Comparison, Row, Spread
from priorshift.predictions import Predictions
from priorshift.report.measures import ByClass, PooledReliability
from priorshift.report.tables import mix_name

Gains = Mapping[str, Mapping[str, Spread]]
"""Mix → method → what compensation changed."""
_NAMED_AT_MOST = 4


def focal_mixes(mixes: Sequence[str]) -> tuple[str, ...]:
    """The mixes that the verdict compares: the first, the uniform one and the last."""
    return tuple(dict.fromkeys([mixes[0], *(mix for mix in mixes if mix == "uniform"), mixes[-1]]))


def verdict(comparison: Comparison, gains: Gains) -> list[str]:
    """The best method on the first, the uniform and the last mix, and the change by compensation there.

    Two scores count as different only where the ranges mean ± sd do not overlap, a change only where it is
    larger than its standard deviation.
    """
    sentences = [_leader(comparison, mix) for mix in gains]
    sentences += _compensation(gains)
    if all(spread.sd is None for changes in gains.values() for spread in changes.values()):
        sentences.append("Each method has one run, so the spread over seeds is unknown.")
    return sentences


def describe_mixes(comparison: Comparison) -> str:
    """The figure of accuracy over mixes in words."""
    shown = " ".join(_leader(comparison, mix) for mix in focal_mixes(comparison.mixes))
    return f"Line chart of accuracy over {len(comparison.mixes)} class mixes. {shown}"


def describe_class_accuracy(by_class: ByClass) -> str:
    """The figure of accuracy against training count in words."""
    rare, frequent = by_class.train_counts[-1], by_class.train_counts[0]
    shown = "; ".join(
        f"{row.label} {100 * row.spreads[0].mean:.0f} % and {100 * row.spreads[-1].mean:.0f} %"
        for row in by_class.rows
    )
    return (
        "Line chart of class accuracy against training count. "
        f"At {frequent:,} training images per class, the most, and at {rare:,}, the fewest: {shown}."
    )


def describe_class_probs(by_class: ByClass, method: str) -> str:
    """One panel of mean predicted probabilities in words."""
    target = 1 / len(by_class.names)
    shown = "; ".join(
        f"{'compensated' if row.compensated else 'as trained'} {row.spreads[0].mean:.3f} for the most "
        f"frequent and {row.spreads[-1].mean:.3f} for the rarest class"
        for row in by_class.rows
        if row.method == method
    )
    return f"{method}, mean predicted probability where the target is {target:.3f}: {shown}."


def describe_reliability(diagram: PooledReliability) -> str:
    """One reliability diagram in words."""
    gap = diagram.confidence - diagram.accuracy
    leaning = "overconfident" if gap > 0 else "underconfident"
    return (
        f"Reliability of {diagram.label}: mean confidence {100 * diagram.confidence:.1f} %, accuracy "
        f"{100 * diagram.accuracy:.1f} %, {leaning} by {100 * abs(gap):.1f} points on the whole; pooled ECE "
        f"{diagram.error:.3f}."
    )


def describe_carried(run: Predictions) -> str:
    """The prior that the logits of a run carry, and whether by theory or by convention."""
    carried = run.carried.probs
    counts = run.train_counts
    if np.allclose(carried, 1 / len(carried)):
        prior = "uniform"
    elif counts is not None and np.allclose(carried, counts / counts.sum()):
        prior = "training mix"
    else:
        prior = f"largest to smallest {float(carried.max() / carried.min()):.3g} : 1"
    return f"{prior}, by {run.carried_by}"


def listed(names: Sequence[str]) -> str:
    """The names in a sentence: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _leader(comparison: Comparison, mix: str) -> str:
    ranking = sorted(_best_of_each_method(comparison, mix), key=lambda entry: -entry[1].mean)
    (name, best), rivals = ranking[0], ranking[1:]
    where = f"At {mix_name(mix)}, {name}"
    score = f"({best.percent()} %)"
    if not rivals:
        return f"{where} is the most accurate {score}."
    level = [other for other, spread in rivals if spread.mean == best.mean]
    if level:
        return f"{where} {score} is level with {listed(level)}."
    close = [
        other for other, spread in rivals if best.mean - spread.mean <= (best.sd or 0) + (spread.sd or 0)
    ]
    if close:
        return (
            f"{where} has the highest mean accuracy {score}, but {listed(close)} "
            f"{'is' if len(close) == 1 else 'are'} within the seed spread: no clear winner."
        )
    second, runner_up = rivals[0]
    beyond = "" if best.sd is None else " by more than the seed spread"
    return f"{where} is the most accurate {score}, ahead of {second} ({runner_up.percent()} %){beyond}."


def _best_of_each_method(comparison: Comparison, mix: str) -> list[tuple[str, Spread]]:
    rows: dict[str, list[tuple[Row, Spread]]] = {}
    for row in comparison.rows:
        if (spread := row.spreads[mix]["accuracy"]) is not None:
            rows.setdefault(row.method, []).append((row, spread))
    best = []
    for method, pairs in rows.items():
        row, spread = max(pairs, key=lambda pair: pair[1].mean)
        same = all(other.mean == spread.mean for _, other in pairs)
        best.append((f"compensated {method}" if row.compensated and not same else method, spread))
    return best


def _compensation(gains: Gains) -> list[str]:
    mixes = list(gains)
    methods = sorted(gains[mixes[0]], key=lambda method: -sum(gains[mix][method].mean for mix in mixes))
    shown = methods if len(methods) <= _NAMED_AT_MOST else [methods[0], methods[-1]]
    extremes = "" if shown == methods else f" (of {len(methods)} methods the most and the least helped)"
    changes = [
        f"{listed([_change(gains[mix][method]) for mix in mixes])} points for {method}" for method in shown
    ]
    there = "there" if len(mixes) == 1 else "at these mixes, in this order,"
    sentences = [
        f"Compensating for the known mix changed accuracy {there} by {'; '.join(changes)}{extremes}."
    ]
    doubtful = [
        f"{method} at {mix_name(mix)}"
        for method in shown
        for mix in mixes
        if (sd := gains[mix][method].sd) and abs(gains[mix][method].mean) <= sd
    ]
    if doubtful:
        sentences.append(f"Within the seed spread is the change of {listed(doubtful)}.")
    return sentences


def _change(change: Spread) -> str:
    if change.mean == 0 and not change.sd:
        return "0"
    sd = "" if change.sd is None else f" ± {100 * change.sd:.1f}"
    return f"{100 * change.mean:+.1f}{sd}".replace("-", "−")
