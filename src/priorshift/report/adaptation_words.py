"""Sentences on an estimated target mix and on its effect, computed from the numbers of the page."""

from collections.abc import Mapping, Sequence

from priorshift.adjustment import CALIBRATIONS
from priorshift.estimation import METHODS, PriorEstimate
from priorshift.evaluation import TARGET_PRIORS, Scores, Spread
from priorshift.report.measures import ClassShare, OracleGapRow
from priorshift.report.tables import mix_name
from priorshift.report.words import listed

_SMALL = 0.01
"""Oracle gap, as a share of samples, below which the verdict calls it small."""
_LEAST = 0.00005
"""Smallest difference of accuracies that is visible in points of two decimals."""
_NAMED_AT_MOST = 4


def adaptation_verdict(
    shares: Sequence[ClassShare], estimate: PriorEstimate, scores: Mapping[str, Scores] | None, changed: int
) -> list[str]:
    """The estimated mix, its uncertainty, the test of label shift, and the effect of adapting.

    Args:
        shares: What `priorshift.report.class_shares` returned.
        estimate: The estimate.
        scores: What `priorshift.evaluation.scores_by_target_prior` returned; None without labels.
        changed: Samples whose decision adapting changes.
    """
    sentences = [_mix(shares), _certainty(shares, estimate)]
    sentences += _moved(shares, estimate)
    sentences.append(_belief(estimate))
    sentences += _against_labels(shares, estimate)
    sentences.append(_decisions(changed, estimate.num_samples, scores))
    return sentences


def describe_shares(shares: Sequence[ClassShare]) -> str:
    """The figure of shares in words."""
    shown = "; ".join(
        f"{_called(share)} {_percent(share.estimated)} % ({', '.join(_details(share))})"
        for share in sorted(shares, key=lambda share: -share.estimated)[:3]
    )
    against = "carried" if shares[0].true is None else "carried and true"
    held = _held(shares)
    return f"Estimated against {against} shares of {len(shares):,} classes. The largest: {shown}.{held}"


def describe_method(estimate: PriorEstimate) -> dict[str, str]:
    """How an estimate was made, fact by fact."""
    facts = {
        "Estimated by": f"{METHODS[estimate.method].title} ({estimate.method})",
        "From": f"{estimate.num_samples:,} target samples; their labels were not used",
    }
    scaling = estimate.scaling
    if scaling is None:
        facts["Calibration"] = "none"
    else:
        facts["Calibration"] = (
            f"{CALIBRATIONS[scaling.method]} ({scaling.method}), fitted to {scaling.num_samples:,.0f} "
            f"labeled source samples; their NLL changes from {scaling.nll_before:.4f} to "
            f"{scaling.nll_after:.4f}"
        )
    if estimate.intervals is None:
        facts["Intervals"] = "none"
    else:
        by = "profile likelihood" if estimate.intervals.kind == "likelihood" else "bootstrap"
        facts["Intervals"] = f"{100 * estimate.intervals.level:g} %, by {by}, for each class separately"
    if estimate.identifiability is not None:
        known = estimate.identifiability
        facts["Effective sample size"] = _count(known.effective_sample_size)
        facts["Information of a prediction about the mix"] = (
            f"at least {100 * known.weakest:.2g} % of that of a label, in every direction of change"
        )
    if estimate.log_likelihood is not None:
        facts["Log-likelihood"] = (
            f"{estimate.log_likelihood:.4g} nats per sample above that of the carried prior after calibration"
        )
    if estimate.shortfall is not None:
        facts["Search"] = (
            f"{'converged' if estimate.converged else 'stopped'} after {estimate.steps} steps, at most "
            f"{estimate.shortfall:.1g} nats per sample below the best"
        )
    if estimate.shift_test is not None:
        facts["Test of label shift"] = estimate.shift_test.words
    return facts


def oracle_gap_verdict(rows: Sequence[OracleGapRow]) -> list[str]:
    """Where the oracle gap is small, where it is not, where adapting does harm, and the estimation error.

    Args:
        rows: What `priorshift.report.oracle_gap_rows` returned.
    """
    sizes = listed(list(dict.fromkeys(f"{row.size:,}" for row in rows)))
    large = sorted((row for row in rows if row.gap.mean >= _SMALL), key=lambda row: -row.gap.mean)
    most = max(rows, key=lambda row: row.gap.mean)
    start = f"With the mix estimated from {sizes} unlabeled samples, the oracle gap is"
    if not large:
        sentences = [
            f"{start} below 1 point of accuracy for every method at every mix; the largest is "
            f"{_points(most.gap)} ({_where(most)})."
        ]
    else:
        small = len(rows) - len(large)
        named = _named([f"{_points(row.gap)} for {_where(row)}" for row in large])
        sentences = [
            f"{start} below 1 point of accuracy in {small} of {len(rows)} cases, but {named}."
            if small
            else f"{start} 1 point of accuracy or more in all cases: {named}."
        ]
    harmed = sorted((row for row in rows if row.gain.mean <= -_LEAST), key=lambda row: row.gain.mean)
    if harmed:
        named = _named([f"by {_points(_negative(row.gain))} for {_where(row)}" for row in harmed])
        sentences.append(
            f"Adapting to the estimate is worse than not adapting in {len(harmed)} of {len(rows)} cases: "
            f"{named}."
        )
    else:
        sentences.append("In no case is adapting to the estimate worse than not adapting.")
    worst = max(rows, key=lambda row: row.error.mean)
    error = sum(row.error.mean for row in rows) / len(rows)
    sampling_error = sum(row.sampling_error.mean for row in rows) / len(rows)
    sentences.append(
        f"The mean absolute error of the estimated shares is {_fine(error)} points, that of the frequencies "
        f"of the drawn labels {_fine(sampling_error)}; the largest is that of {_where(worst)}, "
        f"{_fine(worst.error.mean)} against {_fine(worst.sampling_error.mean)}."
    )
    return sentences


def describe_oracle_gaps(rows: Sequence[OracleGapRow], method: str) -> str:
    """One panel of accuracies by target prior in words."""
    shown = [row for row in rows if row.method == method]
    ends = "; ".join(
        f"at {mix_name(row.mix)} {100 * row.accuracy['none'].mean:.1f} % with the mix not used, "
        f"{100 * row.accuracy['estimated'].mean:.1f} % with it estimated, "
        f"{100 * row.accuracy['oracle'].mean:.1f} % with it known"
        for row in (shown if len(shown) < 3 else (shown[0], shown[-1]))
    )
    return f"Accuracy of {method} over {len(shown)} class {'mix' if len(shown) == 1 else 'mixes'}: {ends}."


def _mix(shares: Sequence[ClassShare]) -> str:
    moved = sum(abs(share.estimated - share.carried) for share in shares) / 2
    if moved < 0.0005:
        return "The estimated target mix equals the one that the logits carry."
    up = max(shares, key=lambda share: share.estimated - share.carried)
    down = min(shares, key=lambda share: share.estimated - share.carried)
    return (
        f"The estimated target mix differs from the one that the logits carry by {100 * moved:.1f} points, "
        f"the total variation distance: most of all, {_called(up)} goes from "
        f"{_percent(up.carried)} up to {_percent(up.estimated)} % and {_called(down)} from "
        f"{_percent(down.carried)} down to {_percent(down.estimated)} %."
    )


def _certainty(shares: Sequence[ClassShare], estimate: PriorEstimate) -> str:
    known = estimate.identifiability
    size = f"{estimate.num_samples:,} {'sample' if estimate.num_samples == 1 else 'samples'}"
    worth = (
        f"The {size} are as informative about the mix as {_count(known.effective_sample_size)} labels"
        if known is not None
        else f"The estimate is from {size}"
    )
    intervals = [(share, share.interval) for share in shares if share.interval is not None]
    if not intervals or estimate.intervals is None:
        return f"{worth}; there are no intervals, so the uncertainty of each share is unknown."
    share, (low, high) = max(intervals, key=lambda pair: pair[1][1] - pair[1][0])
    return (
        f"{worth}; the widest {100 * estimate.intervals.level:g} % interval is that of {_called(share)}, "
        f"{_percent(low)} to {_percent(high)} %."
    )


def _moved(shares: Sequence[ClassShare], estimate: PriorEstimate) -> list[str]:
    if estimate.intervals is None:
        return []
    moved = sum(share.moved for share in shares)
    by_chance = round((1 - estimate.intervals.level) * len(shares), 6)
    level = f"{100 * estimate.intervals.level:g} %"
    verb = "excludes" if moved == 1 else "exclude"
    said = f"Of the {level} intervals, {moved:,} of {len(shares):,} {verb} the carried share"
    if moved <= by_chance:
        return [f"{said}, no more than by chance: there is no clear sign that the mix has changed."]
    return [f"{said}; if the mix had not changed, about {_count(by_chance)} would."]


def _belief(estimate: PriorEstimate) -> str:
    test = estimate.shift_test
    said = (
        "Label shift was not tested, since the test needs labeled source predictions."
        if test is None
        else test.words
    )
    number = len(estimate.warnings)
    if not number:
        return f"{said} There are no warnings."
    read = "warning" if number == 1 else f"{number} warnings"
    return f"{said} Before using the estimate, read the {read} below."


def _against_labels(shares: Sequence[ClassShare], estimate: PriorEstimate) -> list[str]:
    pairs = [(share, share.true) for share in shares if share.true is not None]
    if not pairs:
        return []
    estimated = sum(abs(share.estimated - true) for share, true in pairs) / len(pairs)
    carried = sum(abs(share.carried - true) for share, true in pairs) / len(pairs)
    return [
        f"Compared with the labels, the mean absolute error of the estimated shares is {_fine(estimated)} "
        f"points, that of the carried prior {_fine(carried)}.{_held(shares)}"
    ]


def _held(shares: Sequence[ClassShare]) -> str:
    judged = [share for share in shares if share.interval is not None and share.true is not None]
    if not judged:
        return ""
    held = sum(share.held for share in judged)
    return f" {held:,} of the {len(judged):,} intervals {'holds' if held == 1 else 'hold'} the true share."


def _decisions(changed: int, num_samples: int, scores: Mapping[str, Scores] | None) -> str:
    said = (
        f"Adapting to the estimate changes the decision on {changed:,} of {num_samples:,} samples "
        f"({100 * changed / num_samples:.1f} %)."
    )
    if scores is None:
        return f"{said} Without labels the effect on accuracy is unknown."
    none, estimated, oracle = (scores[known]["accuracy"] or 0.0 for known in TARGET_PRIORS)
    return (
        f"{said} Accuracy on them is {100 * none:.1f} % with the mix not used, {100 * estimated:.1f} % with "
        f"it estimated and {100 * oracle:.1f} % with it known. {_judged(none, estimated, oracle)}"
    )


def _judged(none: float, estimated: float, oracle: float) -> str:
    gap, gain = oracle - estimated, estimated - none
    worse = " Here adapting to the estimate is worse than not adapting." if gain <= -_LEAST else ""
    if gap < _LEAST:
        return f"There is no oracle gap here.{worse}"
    return f"The oracle gap is {_points(Spread.of([gap]))}.{worse}"


def _details(share: ClassShare) -> list[str]:
    details = [f"carried {_percent(share.carried)} %"]
    if share.interval is not None:
        details.append(f"interval {_percent(share.interval[0])} to {_percent(share.interval[1])} %")
    if share.true is not None:
        details.append(f"true {_percent(share.true)} %")
    return details


def _called(share: ClassShare) -> str:
    if share.name is None:
        return f"class {share.index}"
    name = " ".join(share.name.split())
    return f"“{name if len(name) <= 40 else f'{name[:39]}…'}”"


def _percent(share: float) -> str:
    percent = 100 * share
    if percent < 0.0005:
        return "0"
    return f"{percent:.1f}" if percent >= 1 else f"{percent:.2g}"


def _fine(share: float) -> str:
    points = 100 * share
    return f"{points:.2f}" if points >= 0.1 or points == 0 else f"{points:.2g}"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _where(row: OracleGapRow) -> str:
    return f"{row.method} at {mix_name(row.mix)}"


def _points(change: Spread) -> str:
    sd = "" if change.sd is None else f" ± {100 * change.sd:.2f}"
    return f"{100 * change.mean:.2f}{sd} points".replace("-", "−")


def _negative(change: Spread) -> Spread:
    return Spread(-change.mean, change.sd, change.runs)


def _named(cases: Sequence[str]) -> str:
    shown = list(cases[:_NAMED_AT_MOST])
    rest = len(cases) - len(shown)
    return listed([*shown, f"less in {rest} more"] if rest else shown)
