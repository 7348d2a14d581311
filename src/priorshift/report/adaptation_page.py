"""HTML page on one estimated target mix: shares, intervals, warnings, and the effect of adapting."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from priorshift.estimation import PriorEstimate
from priorshift.evaluation import adapt, scores_by_target_prior
from priorshift.predictions import Predictions
from priorshift.report import adaptation_words, figures, measures, tables, words
from priorshift.report.html import Section, as_text, inline_svg, page_style, write_page
from priorshift.report.measures import ClassShare


def write_adaptation_report(
    predictions: Predictions,
    estimate: PriorEstimate,
    path: str | Path,
    *,
    title: str,
    facts: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Writes one HTML page on an estimated class mix and on the effect of adapting to it.

    Where labels are known, the page shows the true mix beside the estimated one, and scores with the mix not
    used, estimated and known. The same input gives the same page, byte for byte. It holds every number it
    draws, as tables and as JSON.

    Args:
        predictions: Those that the estimate was made from, with or without labels.
        estimate: What `priorshift.estimation.estimate_prior` gave.
        path: The file to write, whole or not at all.
        title: Heading of the page.
        facts: Further facts for the page, such as the origin of the samples.

    Returns:
        The path.

    Raises:
        ValueError: If the estimate is of other predictions.
        OSError: If the file cannot be written.
    """
    shares = measures.class_shares(predictions, estimate)
    scores = None if predictions.labels is None else scores_by_target_prior(predictions, estimate)
    changed = int((adapt(predictions, estimate).predicted != predictions.predicted).sum())
    shown, rest = _most_changed(shares)
    level = None if estimate.intervals is None else estimate.intervals.level
    with page_style():
        mix = _mix(shares, estimate.num_samples)
    return write_page(
        path,
        "adaptation.html.j2",
        title=title,
        summary=_summary(predictions),
        verdict=adaptation_words.adaptation_verdict(shares, estimate, scores, changed),
        warnings=estimate.warnings,
        mix=mix,
        shares=tables.share_table(shown, estimate.num_samples, level, _caption(shown, rest)),
        rest=tables.share_table(rest, estimate.num_samples, level, "The other classes, percent.")
        if rest
        else None,
        scores=None
        if scores is None
        else tables.target_table(
            scores,
            f"On the {predictions.num_samples:,} samples as they are. Accuracy and balanced error in "
            "percent; ↓ lower is better, ↑ higher is better. The oracle gap is the loss of the estimated "
            "mix against the known one.",
        ),
        method=adaptation_words.describe_method(estimate),
        facts=_facts(predictions, facts),
        data={
            "facts": facts,
            "classes": shares,
            "estimate": _estimate_data(estimate),
            "scores": scores,
            "changed_decisions": changed,
            "run": {"method": predictions.method, **predictions.facts},
        },
    )


def _most_changed(shares: Sequence[ClassShare]) -> tuple[list[ClassShare], list[ClassShare]]:
    """The classes that the page shows and the others, each in the order of `shares`."""
    changed = sorted(shares, key=lambda share: -abs(share.estimated - share.carried))
    shown = {share.index for share in changed[: figures.MOST_NAMED]}
    return (
        [share for share in shares if share.index in shown],
        [share for share in shares if share.index not in shown],
    )


def _mix(shares: Sequence[ClassShare], num_samples: int) -> Section:
    labeled = shares[0].true is not None
    if len(shares) <= figures.MOST_NAMED:
        caption = (
            "Share of each class: carried by the logits (circles), estimated (dots)"
            f"{', true by the labels (upright strokes)' if labeled else ''}."
        )
    else:
        shown = (
            "Each class at its true share, by the labels: carried (circles) and estimated (dots)."
            if labeled
            else "The estimated share of each class over its carried share."
        )
        caption = f"{shown} On the dotted line both are equal. Below one sample's share the axes are linear."
    if shares[0].interval is not None:
        caption += " Lines: intervals of the estimate."
    return Section(
        heading="The class mix",
        panels=(
            inline_svg(
                figures.plot_shares(shares, num_samples), "shares", adaptation_words.describe_shares(shares)
            ),
        ),
        caption=f"{caption} The numbers stand in the table below.",
    )


def _caption(shown: Sequence[ClassShare], rest: Sequence[ClassShare]) -> str:
    true = (
        " True: the frequencies of the labels; the intervals are for the population that they are from."
        if shown[0].true is not None
        else ""
    )
    if rest:
        return (
            f"The {len(shown)} of {len(shown) + len(rest):,} classes whose share changed most, percent, by "
            f"estimated share.{true}"
        )
    return f"Share of each class, percent, by estimated share.{true}"


def _summary(predictions: Predictions) -> str:
    method = [predictions.method] if predictions.method else []
    return " · ".join(
        [
            *method,
            f"{predictions.num_classes:,} classes",
            f"{predictions.num_samples:,} target samples",
            "with labels" if predictions.labels is not None else "without labels",
        ]
    )


def _facts(predictions: Predictions, facts: Mapping[str, str]) -> dict[str, str]:
    fingerprint = (
        {"fingerprint of the target samples": predictions.fingerprint} if predictions.fingerprint else {}
    )
    return {
        **facts,
        "Carried prior": words.describe_carried(predictions),
        **fingerprint,
        **{key: as_text(value) for key, value in predictions.facts.items()},
    }


def _estimate_data(estimate: PriorEstimate) -> dict[str, object]:
    known, scaling = estimate.identifiability, estimate.scaling
    return {
        "method": estimate.method,
        "num_samples": estimate.num_samples,
        "interval_level": None if estimate.intervals is None else estimate.intervals.level,
        "interval_kind": None if estimate.intervals is None else estimate.intervals.kind,
        "target": estimate.target.probs,
        "calibration": None
        if scaling is None
        else {
            "method": scaling.method,
            "num_samples": scaling.num_samples,
            "scale": scaling.scale,
            "bias": scaling.bias,
            "carried": scaling.carried.probs,
            "nll_before": scaling.nll_before,
            "nll_after": scaling.nll_after,
        },
        "effective_sample_size": None if known is None else known.effective_sample_size,
        "weakest": None if known is None else known.weakest,
        "shift_test": estimate.shift_test,
        "log_likelihood": estimate.log_likelihood,
        "shortfall": estimate.shortfall,
        "converged": estimate.converged,
        "steps": estimate.steps,
        "warnings": estimate.warnings,
    }
