"""Self-contained HTML page from saved predictions, with a panel for any other mix."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType

import numpy as np
from markupsafe import Markup

from priorshift import shift
from priorshift.estimation import estimate_prior
from priorshift.evaluation import Comparison, Spread, by_method, compare
from priorshift.predictions import Predictions
from priorshift.priors import Prior
from priorshift.report import adaptation_words, figures, measures, tables, what_if, words
from priorshift.report.html import (
    Section,
    as_json,
    as_text,
    inline_svg,
    page_style,
    render_page,
    save_page,
    unbroken,
)
from priorshift.report.measures import ByClass, OracleGapRow, OracleGaps, PooledReliability
from priorshift.report.tables import Table
from priorshift.report.what_if import CompactCopy, Error

MOST_BYTES = 5_000_000
"""The size that a page does not exceed: the copy of the predictions in it takes what the rest leaves."""
_GROUPS = ("accuracy", "many", "medium", "few")
_CALIBRATION = ("ece", "classwise_ece", "brier", "nll")
_SCRIPT = resources.files("priorshift.report").joinpath("templates/what_if.js").read_text(encoding="utf-8")
_SENTENCES = 1_000
"""Bytes by which the sentences about the panel may differ in length."""


@dataclass(frozen=True)
class _Panel:
    """The what-if panel: the data for its script, and the sentence on its precision."""

    data: Markup
    codes: str
    parts: tuple[what_if.Part, ...]
    precision: str


def write_report(
    runs: Sequence[Predictions],
    path: str | Path,
    *,
    title: str,
    mixes: Sequence[str] = shift.STANDARD_MIXES,
    facts: Mapping[str, str] = MappingProxyType({}),
    oracle_gaps: OracleGaps = MappingProxyType({}),
) -> Path:
    """Compares runs on a list of class mixes and writes one HTML page of verdict, tables and figures.

    The same runs give the same page, byte for byte. It holds every number it draws, as tables and as JSON.
    In a panel the reader sets any other mix; it scores a compact copy of the predictions in the page, of as
    many test samples as keep the page below 5 MB.

    Args:
        runs: Predictions on one and the same test set, with labels and training counts; those of one method
            differ by their seed.
        path: The file to write, whole or not at all.
        title: Heading of the page.
        mixes: Spelled as `priorshift.shift.target_prior` reads them.
        facts: Further facts about the runs for the page, such as data set and command.
        oracle_gaps: For methods of `runs`, for each mix, the result of `priorshift.evaluation.oracle_gap` for
            each run; the page then shows the loss of estimating the mix against knowing it.

    Returns:
        The path.

    Raises:
        ValueError: If there is no run or no mix, the runs are not of one test set, one lacks labels or
            counts, or `oracle_gaps` are not of these methods or incomplete.
        OSError: If the file cannot be written.
    """
    if not mixes:
        raise ValueError("Expected at least one mix in `mixes`, but got none.")
    runs = [run if run.method else run._with(method="unnamed method") for run in runs]
    comparison = compare(runs, mixes)
    unknown = set(oracle_gaps) - set(by_method(runs))
    if unknown:
        raise ValueError(
            f"Expected `oracle_gaps` of methods of `runs`, but got {', '.join(sorted(unknown))}."
        )
    gap_rows = measures.oracle_gap_rows(oracle_gaps)
    uniform = comparison if "uniform" in mixes else compare(runs, ["uniform"])
    gains = {mix: measures.compensation_gains(runs, mix) for mix in words.focal_mixes(mixes)}
    accuracies, probs = measures.class_accuracies(runs), measures.class_probs(runs)
    diagrams = measures.pooled_reliability(runs)
    with page_style():
        sections = {
            "by_mix": _by_mix(comparison),
            "by_class": _by_class(accuracies, runs[0].num_classes),
            "average": _average(probs),
            "calibration": _calibration(diagrams),
            "oracle_gaps": _oracle_gaps(gap_rows) if gap_rows else None,
        }
    shared, per_run = _facts(runs)
    estimates = _estimates(runs)
    presets = _presets(runs, comparison.mixes, estimates)

    def page(panel: _Panel | None) -> str:
        return render_page(
            "report.html.j2",
            script=_SCRIPT if panel else "",
            panel=panel,
            **sections,
            title=title,
            summary=_summary(runs),
            verdict=words.verdict(comparison, gains),
            accuracy_table=tables.comparison_table(comparison),
            group_table=tables.score_table(uniform, "uniform", _GROUPS),
            estimate_table=_estimate_table(runs, estimates),
            oracle_gap_table=tables.oracle_gap_table(gap_rows) if gap_rows else None,
            oracle_gap_verdict=[
                unbroken(sentence) for sentence in adaptation_words.oracle_gap_verdict(gap_rows)
            ]
            if gap_rows
            else (),
            calibration_table=tables.score_table(uniform, "uniform", _CALIBRATION),
            sizes=Table(
                headers=("Mix", "Effective sample size"),
                rows=tuple(
                    (tables.mix_name(mix), f"{size:.1f}")
                    for mix, size in comparison.effective_sample_sizes.items()
                ),
                caption=f"Of {comparison.num_samples:,} test images.",
            ),
            standard_error=50 / math.sqrt(min(comparison.effective_sample_sizes.values())),
            facts={**facts, **shared},
            per_run=per_run,
            data={
                "facts": facts,
                "comparison": comparison,
                "compensation_gains": gains,
                "class_accuracies": accuracies,
                "class_probs": probs,
                "reliability": diagrams,
                "estimates": estimates,
                **({"oracle_gaps": gap_rows} if gap_rows else {}),
                "runs": [{"method": run.method, "carried": run.carried.probs, **run.facts} for run in runs],
            },
        )

    nothing = what_if.CompactCopy.of_nothing(runs)
    taken = len(page(_panel(runs, presets, nothing, None)).encode())
    copy = what_if.compact(runs, MOST_BYTES - taken - _SENTENCES)
    if copy is None:
        return save_page(path, page(None))
    some = list(presets.values())[:: max(1, len(presets) // 3)]
    return save_page(path, page(_panel(runs, presets, copy, what_if.largest_error(copy, runs, some))))


def _by_mix(comparison: Comparison) -> Section:
    return Section(
        heading="Accuracy over the class mix",
        panels=(inline_svg(figures.plot_mixes(comparison), "mixes", words.describe_mixes(comparison)),),
        caption=(
            "Accuracy on the test set weighted to each mix. Forward mixes lean like the training set, "
            "backward mixes the other way; the ratio is that of the most to the least frequent class, 1 the "
            "uniform mix. Dashed: as trained. Solid: compensated, for which the mix must be known. Bands: ± "
            "one standard deviation over seeds. Where both coincide, only the solid line is visible."
        ),
        numbers=(tables.mix_numbers(comparison),),
    )


def _by_class(accuracies: ByClass, num_classes: int) -> Section:
    points = len(accuracies.names)
    grouped = (
        ""
        if points == num_classes
        else f" Each of the {points} points is the mean over about {num_classes / points:.3g} classes of "
        "neighbouring training counts."
    )
    alt = words.describe_class_accuracy(accuracies)
    return Section(
        heading="Accuracy against class frequency",
        panels=(inline_svg(figures.plot_class_accuracy(accuracies), "classes", alt),),
        caption=(
            "Accuracy on the test images of each class against its number of training images. Dashed: as "
            "trained. Solid: compensated to the uniform mix. Mean over seeds; bands: ± one standard "
            f"deviation.{grouped}"
        ),
        numbers=(tables.class_numbers(accuracies, "Accuracy of each class, percent.", percent=True),),
    )


def _average(probs: ByClass) -> Section:
    target = f"Mean predicted probability; the target is {1 / len(probs.names):.4f} for every class."
    return Section(
        heading="Average predicted probability",
        panels=tuple(
            inline_svg(
                figures.plot_class_probs(probs, method),
                f"probs{index}",
                words.describe_class_probs(probs, method),
            )
            for index, method in enumerate(probs.methods)
        ),
        caption=(
            "Mean predicted probability of each class, from most to fewest training images, on the test set "
            "weighted to the uniform mix. Dotted: that mix, which a classifier that fits it predicts on "
            "average. Dashed: as trained. Solid: compensated to it. Mean over seeds; bands: ± one standard "
            "deviation."
        ),
        numbers=(tables.class_numbers(probs, target, percent=False),),
    )


def _calibration(diagrams: Sequence[PooledReliability]) -> Section:
    colors = figures.method_colors(list(dict.fromkeys(diagram.method for diagram in diagrams)))
    return Section(
        heading="Calibration",
        panels=tuple(
            inline_svg(
                figures.plot_reliability(diagram, color=colors[diagram.method]),
                f"reliability{index}",
                words.describe_reliability(diagram),
            )
            for index, diagram in enumerate(diagrams)
        ),
        caption=(
            "Accuracy (colored) and its gap to mean confidence (gray) in 20 bins of confidence, on the test "
            "set weighted to the uniform mix; above, predictions per bin. Dashed edges: as trained. Solid: "
            "compensated to that mix. The runs of a method are pooled over seeds, so the pooled ECE is not "
            "the mean ECE of the table. Bins of few predictions scatter by chance."
        ),
        numbers=tuple(map(tables.reliability_numbers, diagrams)),
    )


def _oracle_gaps(rows: Sequence[OracleGapRow]) -> Section:
    methods = tuple(dict.fromkeys(row.method for row in rows))
    return Section(
        heading="When the mix is not known",
        panels=tuple(
            inline_svg(
                figures.plot_oracle_gaps(rows, method),
                f"oracle-gaps{index}",
                adaptation_words.describe_oracle_gaps(rows, method),
            )
            for index, method in enumerate(methods)
        ),
        caption=(
            "Accuracy on the test set weighted to each mix. Dashed: the mix is not used. Solid: it is "
            "estimated from unlabeled samples. Dotted: it is known. Bands: ± one standard deviation over "
            "runs of the first two. The error of the estimates is in the table of the numbers."
        ),
        numbers=tuple(tables.oracle_gap_numbers(rows, method) for method in methods),
    )


def _summary(runs: Sequence[Predictions]) -> str:
    methods = by_method(runs)
    numbers = sorted({len(group) for group in methods.values()})
    each = " to ".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))
    return (
        f"{len(methods)} {'method' if len(methods) == 1 else 'methods'} · {each} "
        f"{'run' if each == '1' else 'runs'} each · {runs[0].num_classes} classes · "
        f"{runs[0].num_samples:,} test images"
    )


def _estimates(runs: Sequence[Predictions]) -> dict[str, list[Prior]]:
    """The mix of the test images as estimated from each run, without labels."""
    return {
        method: [estimate_prior(run, intervals="none").prior for run in group]
        for method, group in by_method(runs).items()
    }


def _presets(
    runs: Sequence[Predictions], mixes: Sequence[str], estimates: Mapping[str, Sequence[Prior]]
) -> dict[str, Prior]:
    """The mixes that the panel can start from, by name."""
    first = runs[0]
    assert first.train_counts is not None
    spelled = {
        mix: shift.target_prior(mix, first.train_counts, class_names=first.class_names)
        for mix in dict.fromkeys(("uniform", "source", *mixes))
    }
    return {
        **{
            "training mix" if mix == "source" else tables.mix_name(mix): prior
            for mix, prior in spelled.items()
        },
        "test images": _label_mix(first),
        **{
            f"test images, estimated by {method}": Prior(np.mean([each.probs for each in found], axis=0))
            for method, found in estimates.items()
        },
    }


def _estimate_table(runs: Sequence[Predictions], estimates: Mapping[str, Sequence[Prior]]) -> Table:
    first = runs[0]
    assert first.train_counts is not None
    truth = _label_mix(first).probs
    sliders = _parts(first)

    def line(name: str, mixes: Sequence[Prior]) -> tuple[str, ...]:
        shares = [
            Spread.of([float(mix.probs[list(part.classes)].sum()) for mix in mixes]).percent()
            for part in sliders
        ]
        misplaced = Spread.of([float(np.abs(mix.probs - truth).sum()) / 2 for mix in mixes])
        return (name, *shares, misplaced.percent())

    return Table(
        headers=("Mix", *(part.name for part in sliders), "Misplaced"),
        rows=(
            line("Training images", [Prior(first.train_counts)]),
            line("Test images, by their labels", [Prior(truth)]),
            *(line(f"Test images, estimated by {method}", found) for method, found in estimates.items()),
        ),
        caption=(
            "Shares, percent. Misplaced: the total variation distance to the mix of the labels. "
            "Estimated by empirical Bayes from logits as they are, not calibrated; mean ± sd over runs."
        ),
    )


def _label_mix(run: Predictions) -> Prior:
    assert run.labels is not None
    return Prior(np.bincount(run.labels, minlength=run.num_classes))


def _parts(run: Predictions) -> tuple[what_if.Part, ...]:
    assert run.train_counts is not None
    return what_if.parts(run.train_counts, run.class_names or tuple(map(str, range(run.num_classes))))


def _panel(
    runs: Sequence[Predictions], presets: Mapping[str, Prior], copy: CompactCopy, error: Error | None
) -> _Panel:
    kept, every = len(copy.rows), runs[0].num_samples
    images = (
        f"all {every:,} test images"
        if kept == every
        else f"{kept:,} of the {every:,} test images (from easy to hard ones of each class, as many as keep "
        f"this page below {MOST_BYTES / 1e6:g} MB; on fewer images ECE reads higher)"
    )
    words_ = f"The panel judges {images} from logits rounded to one byte each."
    if error is not None:
        words_ += (
            f" Over {error.num_mixes} mixes its top-1 was within {_above(100 * error.accuracy, 2)} points, "
            f"its group accuracies within {_above(100 * error.groups, 2)} points and its ECE within "
            f"{_above(error.ece, 4)} of those of the full predictions."
        )
    return _Panel(
        data=as_json({**what_if.panel_data(runs, copy, presets), "error": error}),
        codes=what_if.as_base64(copy),
        parts=_parts(runs[0]),
        precision=words_,
    )


def _above(value: float, decimals: int) -> str:
    """The value rounded up to so many decimals."""
    return f"{math.ceil(value * 10**decimals) / 10**decimals:.{decimals}f}"


def _facts(runs: Sequence[Predictions]) -> tuple[dict[str, str], Table]:
    """The facts that all runs share, and a table of those that differ."""
    texts = [{key: as_text(value) for key, value in run.facts.items()} for run in runs]
    keys = dict.fromkeys(key for text in texts for key in text)
    shared = {
        key: texts[0][key]
        for key in keys
        if len(runs) > 1 and all(text.get(key) == texts[0].get(key) for text in texts)
    }
    differing = [key for key in keys if key not in shared]
    per_run = Table(
        headers=("Method", "Carried prior", *differing),
        rows=tuple(
            (run.method, words.describe_carried(run), *(text.get(key, "") for key in differing))
            for run, text in zip(runs, texts, strict=True)
        ),
        caption="The runs. A carried prior holds by theory where the loss implies it, else by convention.",
    )
    fingerprint = {"fingerprint of the test images": runs[0].fingerprint} if runs[0].fingerprint else {}
    return {**fingerprint, **shared}, per_run
