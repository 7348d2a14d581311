import re
from dataclasses import replace

import numpy as np
import pytest

from priorshift import Predictions, Prior, report, shift
from priorshift.adjustment import CALIBRATIONS, fit_scaling
from priorshift.estimation import (
    METHODS as ESTIMATION_METHODS,
)
from priorshift.estimation import (
    Identifiability,
    PriorEstimate,
    PriorIntervals,
    ShiftTest,
    estimate_prior,
)
from priorshift.evaluation import (
    TARGET_PRIORS,
    OracleGap,
    Spread,
    adapt,
    oracle_gap,
    scores_by_target_prior,
)
from priorshift.report import adaptation_words, figures, tables
from priorshift.report.measures import ClassShare, OracleGapRow
from test_report import COUNTS, HOSTILE, METHODS, Page, assert_all_stand_in, count_scans, make_run, numbers_of

NAMES = ("alder", "birch", "cedar", "dogwood", "elm", "fir", "ginkgo", "hazel", "ironwood", "juniper")
SOURCE = Prior.from_counts(COUNTS)
MIXES = ("forward:10", "uniform")


def draw(mix, size, seed, *, sharpness=1.3, **changes):
    """Samples of a mix, and logits that carry the source prior."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(mix.num_classes, size, p=mix.probs)
    likelihood = generator.standard_normal((size, mix.num_classes))
    likelihood += 2.5 * np.eye(mix.num_classes)[labels]
    parts = {
        "logits": 2.5 * sharpness * likelihood + SOURCE.log_probs,
        "carried": SOURCE,
        "labels": labels,
        "train_counts": COUNTS,
        "class_names": NAMES,
        "method": "Softmax",
        "facts": {"seed": seed},
    }
    return Predictions(**(parts | changes))


@pytest.fixture(scope="module")
def target():
    return draw(Prior(SOURCE.probs[::-1]), 400, 1, fingerprint="ab12")


@pytest.fixture(scope="module")
def estimate(target):
    return estimate_prior(target, validation=draw(SOURCE, 1200, 2))


@pytest.fixture(scope="module")
def page(target, estimate, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "page.html"
    written = report.write_adaptation_report(
        target, estimate, path, title="The camera", facts={"data": "noise"}
    )
    assert written == path
    return Page(path)


def make_estimate(probs, num_samples=100, *, interval=None, ess=None, p_value=None, **changes):
    """An estimate by hand: intervals of ± `interval`, and a test of label shift where a p-value is given."""
    prior = Prior(probs)
    nothing = np.zeros(prior.num_classes)
    known = None
    if ess is not None:
        known = Identifiability(nothing, nothing, ess, 0.25, np.eye(prior.num_classes), ())
    parts = {
        "prior": prior,
        "method": "mlls",
        "num_samples": num_samples,
        "carried": Prior.uniform(prior.num_classes),
        "identifiability": known,
        "shift_test": None if p_value is None else ShiftTest(9.0, 8, p_value, f"It says p = {p_value}."),
    }
    if interval is not None:
        ends = (np.maximum(prior.probs - interval, 0), np.minimum(prior.probs + interval, 1))
        parts["intervals"] = PriorIntervals(*ends, 0.9, "likelihood")
    return PriorEstimate(**(parts | changes))


def write(predictions, estimate, tmp_path):
    if estimate.scaling is None:
        estimate = replace(estimate, carried=predictions.carried)
    path = tmp_path / "p.html"
    return Page(report.write_adaptation_report(predictions, estimate, path, title="t"))


def make_many(num_classes=1000, num_samples=2000, *, labelled=True):
    shares = 100.0 ** (-np.arange(num_classes) / num_classes)
    labels = np.arange(num_samples) % num_classes
    logits = 6.0 * np.eye(num_classes)[labels] + np.log(shares)
    predictions = Predictions(logits=logits, carried=Prior(shares), labels=labels if labelled else None)
    found = shares[::-1] * (np.arange(num_classes) % 50 > 0)
    return predictions, make_estimate(found, num_samples, interval=0.0005)


def shares_of(estimated, carried, *, interval=None, true=None, names=None):
    return [
        ClassShare(
            index,
            None if names is None else names[index],
            carried[index],
            share,
            None if interval is None else (share - interval, share + interval),
            None if true is None else true[index],
        )
        for index, share in enumerate(estimated)
    ]


def scores(none, estimated, oracle):
    return dict(zip(TARGET_PRIORS, ({"accuracy": value} for value in (none, estimated, oracle)), strict=True))


def verdict(estimated=(0.5, 0.5), carried=(0.5, 0.5), *, known=None, changed=7, true=None, **changes):
    estimate = make_estimate(estimated, **changes)
    shares = shares_of(estimated, carried, interval=changes.get("interval"), true=true)
    return " ".join(adaptation_words.adaptation_verdict(shares, estimate, known, changed))


def gap_row(method, mix, none, estimated, oracle, *, error=0.012, sampling_error=0.01, sd=0.001):
    runs = 1 if sd is None else 3
    accuracy = {
        known: Spread(value, sd, runs)
        for known, value in zip(TARGET_PRIORS, (none, estimated, oracle), strict=True)
    }
    gain, gap = Spread(estimated - none, sd, runs), Spread(oracle - estimated, sd, runs)
    errors = Spread(error, None, 1), Spread(sampling_error, None, 1)
    return OracleGapRow(method, mix, 500, 20, accuracy, gain, gap, *errors)


# The page


def test_page_is_one_file_that_fetches_nothing_and_is_made_for_every_reader(page):
    assert [tag for tag, _ in page.elements if tag in ("link", "img", "iframe", "object", "base")] == []
    assert [script["type"] for script in page.tags("script")] == ["application/json"]
    assert page.attributes("src") == [] and re.findall(r"https?:|@import", page.source) == []
    assert all(link.startswith("#") for link in page.attributes("href"))
    assert page.tags("html") == [{"lang": "en"}]
    headings = [tag for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1" and set(headings[1:]) == {"h2"}
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    for rule in ("prefers-color-scheme: dark", ":focus-visible", "@media print"):
        assert rule in page.source


def test_both_pages_look_the_same(page, tmp_path):
    other = Page(
        report.write_report([make_run(num_samples=60)], tmp_path / "p", title="t", mixes=["uniform"])
    )
    ours = re.search(r"<style>(.*?)\.warnings", page.source, re.DOTALL)[1].rstrip()
    theirs = re.search(r"<style>(.*?)\.what-if", other.source, re.DOTALL)[1].rstrip()
    assert theirs == ours
    assert len(theirs) > 1000 and "--warn" not in theirs


def test_table_of_the_page_holds_what_the_estimate_found(page, target, estimate):
    header, *rows = page.tables[0]
    assert header == ["Class", "Index", "Carried", "Estimated", "90 % interval", "True", "Interval holds it"]
    found, ends = estimate.prior.probs, estimate.intervals
    true = np.bincount(target.labels, minlength=10) / 400
    assert [int(row[1]) for row in rows] == np.argsort(-found, kind="stable").tolist()
    for name, index, carried, estimated, interval, share, held in rows:
        index = int(index)
        low, high = map(float, interval.split(" – "))
        assert name == NAMES[index]
        assert float(carried) == pytest.approx(100 * SOURCE.probs[index].item(), abs=0.0051)
        assert float(estimated) == pytest.approx(100 * found[index].item(), abs=0.0051)
        assert low == pytest.approx(100 * ends.lower[index].item(), abs=0.0051)
        assert high == pytest.approx(100 * ends.upper[index].item(), abs=0.0051)
        assert float(share) == pytest.approx(100 * true[index].item(), abs=0.0051)
        assert held == ("yes" if ends.lower[index] <= true[index] <= ends.upper[index] else "no")
    assert {row[-1] for row in rows} >= {"yes"}


def test_every_number_of_the_figure_stands_in_a_table(page, target, estimate):
    shares = report.class_shares(target, estimate)
    ax = report.plot_shares(shares, 400)
    numbers = numbers_of(page.tables[:1])
    lines = ax.get_lines()
    assert [line.get_label() for line in lines] == ["carried", "estimated", "true"]
    for line in lines:
        assert len(line.get_xdata()) == 10 and list(line.get_ydata()) == list(range(10))
        assert_all_stand_in(line.get_xdata(), numbers, 0.0051)
    (bars,) = ax.collections
    assert_all_stand_in([x for path in bars.get_paths() for x in path.vertices[:, 0]], numbers, 0.0051)
    assert [label.get_text() for label in ax.get_yticklabels()] == [share.label for share in shares]


def test_scores_of_the_page_are_those_of_the_three_target_priors(page, target, estimate):
    expected = scores_by_target_prior(target, estimate)
    header, *rows = page.tables[1]
    assert header == ["Target prior", "Accuracy ↑", "Balanced error ↓", "NLL ↓", "ECE ↓"]
    for row, known in zip(rows, TARGET_PRIORS, strict=False):
        of = expected[known]
        assert row[1:] == [
            f"{100 * of['accuracy']:.2f}",
            f"{100 * of['balanced_error']:.2f}",
            f"{of['nll']:.4f}",
            f"{of['ece']:.4f}",
        ]
    assert [row[0] for row in rows] == ["mix not used", "mix estimated", "mix known", "Oracle gap"]
    gaps = [float(cell.replace("−", "-")) for cell in rows[3][1:]]
    oracle, estimated = expected["oracle"], expected["estimated"]
    assert gaps == pytest.approx(
        [
            100 * (oracle["accuracy"] - estimated["accuracy"]),
            100 * (estimated["balanced_error"] - oracle["balanced_error"]),
            estimated["nll"] - oracle["nll"],
            estimated["ece"] - oracle["ece"],
        ],
        abs=0.0051,
    )


def test_page_says_how_the_estimate_was_made(page, estimate):
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for said in (
        f"{ESTIMATION_METHODS['empirical-bayes'].title} (empirical-bayes)",
        "400 target samples; their labels were not used",
        "bias-corrected temperature scaling (bcts), fitted to 1,200 labeled source samples",
        "90 %, by profile likelihood",
        estimate.shift_test.words,
        "training mix, by theory",
        "ab12",
        "noise",
        "The camera",
        "400 target samples · with labels",
    ):
        assert said in text


def test_json_of_the_page_holds_estimate_classes_and_scores(page, target, estimate):
    data = page.data()
    assert [row["estimated"] for row in data["classes"]] == sorted(
        estimate.prior.probs.tolist(), reverse=True
    )
    assert data["estimate"]["shift_test"]["p_value"] == estimate.shift_test.p_value
    assert data["estimate"]["effective_sample_size"] == estimate.identifiability.effective_sample_size
    assert data["estimate"]["calibration"]["num_samples"] == 1200
    assert data["estimate"]["target"] == estimate.target.probs.tolist()
    assert data["scores"]["oracle"]["nll"] == scores_by_target_prior(target, estimate)["oracle"]["nll"]
    changed = (adapt(target, estimate).predicted != target.predicted).sum().item()
    assert data["changed_decisions"] == changed > 0
    assert f"changes the decision on {changed} of 400 samples" in page.text


def test_figure_says_its_finding_and_takes_the_color_of_the_text(page, estimate):
    (svg,) = page.tags("svg")
    first = estimate.prior.probs.argmax().item()
    assert svg["role"] == "img" and "viewbox" in svg and "width" not in svg
    assert f"“{NAMES[first]}” {100 * estimate.prior.probs[first]:.1f} %" in svg["aria-label"]
    assert "intervals hold the true share" in svg["aria-label"]
    assert "currentColor" in page.source and "#010203" not in page.source


def test_same_estimate_gives_the_same_page(target, estimate, tmp_path):
    pages = [
        report.write_adaptation_report(target, estimate, tmp_path / name, title="t").read_bytes()
        for name in "ab"
    ]
    assert pages[0] == pages[1]


def test_without_labels_there_are_no_scores(target, estimate, tmp_path):
    page = write(replace(target, labels=None), estimate, tmp_path)
    assert page.tables[0][0] == ["Class", "Index", "Carried", "Estimated", "90 % interval"]
    assert len(page.tables) == 1 and page.data()["scores"] is None
    assert "cannot be compared" in page.text and "Compared with the labels" not in page.text
    assert "true" not in page.tags("svg")[0]["aria-label"]


def test_without_intervals_none_are_shown_and_the_page_says_so(target, tmp_path):
    page = write(target, make_estimate(SOURCE.probs, 400), tmp_path)
    assert page.tables[0][0] == ["Class", "Index", "Carried", "Estimated", "True"]
    assert "there are no intervals, so the uncertainty of each share is unknown" in page.text
    assert "Lines: intervals" not in page.text


def test_two_nameless_classes_have_a_page(tmp_path):
    logits = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    run = Predictions(logits=logits, carried=Prior([0.5, 0.5]), labels=np.array([0, 0, 1]))
    page = write(run, make_estimate([0.25, 0.75], 3, interval=0.1), tmp_path)
    assert page.tables[0][1:] == [
        ["1", "50.00", "75.00", "65.00 – 85.00", "33.33", "no"],
        ["0", "50.00", "25.00", "15.00 – 35.00", "66.67", "no"],
    ]
    assert "class 1 goes from 50.0 up to 75.0" in page.text


@pytest.mark.parametrize("labelled", [True, False])
def test_a_thousand_classes_show_the_most_changed_and_fold_the_rest(labelled, tmp_path):
    predictions, estimate = make_many(labelled=labelled)
    page = write(predictions, estimate, tmp_path)
    (folded,) = page.details
    shown, rest = page.tables[0][1:], folded[0][1:]
    assert (len(shown), len(rest)) == (30, 970)
    change = np.abs(estimate.prior.probs - predictions.carried.probs)
    assert sorted(int(row[0]) for row in shown) == sorted(np.argsort(-change, kind="stable")[:30].tolist())
    for rows in (shown, rest):
        assert [float(row[2]) for row in rows] == sorted((float(row[2]) for row in rows), reverse=True)
    ax = report.plot_shares(report.class_shares(predictions, estimate), 2000)
    assert ax.get_xscale() == ax.get_yscale() == "symlog"
    numbers = numbers_of([page.tables[0], *folded])
    points = [line for line in ax.get_lines() if len(line.get_xdata()) == 1000]
    assert [line.get_label() for line in points] == (["carried"] if labelled else []) + ["estimated"]
    for line in points:
        assert_all_stand_in(np.unique([*line.get_xdata(), *line.get_ydata()]), numbers, 0.00051)
    assert ax.get_xlabel().startswith("True" if labelled else "Carried")
    assert "The other 970 classes" in page.text and len(page.source) < 1_500_000


def test_thirty_classes_have_a_line_each_and_fold_nothing(tmp_path):
    predictions, estimate = make_many(figures.MOST_NAMED, 60)
    page = write(predictions, estimate, tmp_path)
    assert page.details == [] and len(page.tables[0]) == 31


def test_hostile_names_stay_text(target, tmp_path):
    hostile = replace(
        target,
        carried=SOURCE,
        class_names=HOSTILE,
        method="</script><b>x",
        facts={"<i>": "</script><b>x", "n": float("nan")},
    )
    path = tmp_path / "p.html"
    report.write_adaptation_report(
        hostile, estimate_prior(hostile), path, title="</title><b>x", facts={"<b>": "</script><b>x"}
    )
    page = Page(path)
    assert page.tags("b") == page.tags("img") == page.tags("i") == []
    assert len(page.tags("script")) == 1 and page.text.count("</script><b>x") > 3
    assert {row[0] for row in page.tables[0][1:]} == set(HOSTILE)
    assert "a $b_$c" in " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", page.source))
    assert {row["name"] for row in page.data()["classes"]} == set(HOSTILE)
    assert page.data()["run"]["n"] is None


def test_warnings_stand_on_the_page_as_they_are(target, estimate, tmp_path):
    warned = replace(estimate, warnings=("Beware of <dogs>.", "And of cats."))
    page = write(target, warned, tmp_path)
    assert "Beware of <dogs>." in page.text and "And of cats." in page.text
    assert "Warnings" in page.text and "read the 2 warnings below" in page.text
    assert "Warnings" not in write(target, replace(estimate, warnings=()), tmp_path).text


def test_a_page_checks_no_scores_again(target, estimate, tmp_path, monkeypatch):
    scans = count_scans(monkeypatch)
    report.write_adaptation_report(target, estimate, tmp_path / "p.html", title="t")
    assert scans == []


def test_estimate_of_other_predictions_is_refused_and_nothing_is_written(target, tmp_path):
    for wrong, words in (
        (make_estimate([0.5, 0.5], 400), "of 2 classes, but got 10"),
        (make_estimate(SOURCE.probs, 399), "of 399 samples, but got 400"),
    ):
        with pytest.raises(ValueError, match=words):
            report.write_adaptation_report(target, wrong, tmp_path / "p.html", title="t")
    assert list(tmp_path.iterdir()) == []


# Sentences on an estimate


def test_every_method_and_calibration_has_words():
    for name, method in ESTIMATION_METHODS.items():
        said = adaptation_words.describe_method(make_estimate([0.5, 0.5], method=name))
        assert said["Estimated by"] == f"{method.title} ({name})" and method.title
    logits = np.random.default_rng(0).standard_normal((40, 2))
    for name, title in CALIBRATIONS.items():
        scaling = fit_scaling(logits, np.arange(40) % 2, method=name)
        said = adaptation_words.describe_method(make_estimate([0.5, 0.5], scaling=scaling, method="rlls"))
        assert said["Calibration"].startswith(f"{title} ({name}), fitted to 40 labeled source samples")
    assert said["Estimated by"].startswith("regularized black box") and said["Intervals"] == "none"
    stopped = make_estimate([0.5, 0.5], converged=False, steps=9, shortfall=0.02, log_likelihood=0.5)
    assert adaptation_words.describe_method(stopped)["Search"].startswith(
        "stopped after 9 steps, at most 0.02"
    )


def test_verdict_says_how_the_mix_moved():
    assert "equals the one that the logits carry" in verdict()
    text = verdict((0.6, 0.3, 0.1), (0.2, 0.3, 0.5))
    assert "by 40.0 points" in text
    assert "class 0 goes from 20.0 up to 60.0 % and class 2 from 50.0 down to 10.0 %" in text


def test_verdict_says_how_sure_that_is():
    text = verdict((0.6, 0.4), ess=43.7, interval=0.05)
    assert "The 100 samples are as informative about the mix as 44 labels" in text
    assert "the widest 90 % interval is that of class 0, 55.0 to 65.0 %" in text
    assert "as 0.51 labels; there are no intervals" in verdict(ess=0.512)
    assert "The estimate is from 1 sample; there are no intervals" in verdict(num_samples=1)


def test_verdict_calls_a_mix_changed_only_beyond_chance():
    far = verdict((0.6, 0.4), (0.4, 0.6), interval=0.05)
    assert "2 of 2 exclude the carried share; if the mix had not changed, about 0.2 would" in far
    near = verdict((0.52, 0.48), (0.5, 0.5), interval=0.05)
    assert "0 of 2 exclude the carried share, no more than by chance" in near
    assert "no clear sign that the mix has changed" in near
    twenty = [0.05] * 20
    one = [0.1, 0.04, 0.05, 0.06, *twenty[4:-1], 0.0]
    assert "2 of 20 exclude the carried share, no more than by chance" in verdict(one, twenty, interval=0.03)
    one[4], one[5] = 0.0, 0.1
    assert "4 of 20 exclude the carried share; if the mix" in verdict(one, twenty, interval=0.03)


def test_verdict_says_whether_to_believe_it():
    assert (
        "was not tested, since the test needs labeled source predictions. There are no warnings." in verdict()
    )
    assert "It says p = 0.4. There are no warnings." in verdict(p_value=0.4)
    assert "It says p = 0.001. Before using the estimate, read the warning below." in verdict(
        p_value=0.001, warnings=("w",)
    )


def test_verdict_judges_by_labels_where_there_are_some():
    text = verdict((0.6, 0.4), (0.3, 0.7), true=(0.62, 0.38), interval=0.01)
    assert "the estimated shares is 2.00 points, that of the carried prior 32.00" in text
    assert "0 of the 2 intervals hold the true share" in text
    assert "Compared with the labels" not in verdict()
    assert "intervals" not in verdict(true=(0.5, 0.5)).split("Compared with the labels")[1]


def test_verdict_says_what_adapting_changes_and_the_oracle_gap():
    assert "on 7 of 100 samples (7.0 %). Without labels the effect on accuracy is unknown." in verdict()
    text = verdict(known=scores(0.8, 0.85, 0.86))
    assert "80.0 % with the mix not used, 85.0 % with it estimated and 86.0 % with it known" in text
    assert "The oracle gap is 1.00 points." in text and "worse" not in text
    assert "There is no oracle gap here." in verdict(known=scores(0.8, 0.87, 0.86))
    text = verdict(known=scores(0.8, 0.75, 0.86))
    assert "The oracle gap is 11.00 points. Here adapting to the estimate is worse than not adapting." in text


def test_long_names_are_cut_in_sentences_and_kept_in_tables():
    shares = shares_of((0.7, 0.3), (0.5, 0.5), names=("x" * 99, "a\nb"))
    text = adaptation_words.describe_shares(shares)
    assert f"“{'x' * 39}…” 70.0 %" in text and "“a b” 30.0 %" in text
    assert tables.share_table(shares, 100, None, "c").rows[0][0] == "x" * 99


def test_tables_show_so_many_digits_that_a_sample_makes_a_difference():
    share = shares_of((0.25 + 1 / 50_000,), (0.25,))
    assert tables.share_table(share, 500, None, "c").rows[0][1:] == ("25.00", "25.00")
    assert tables.share_table(share, 50_000, None, "c").rows[0][1:] == ("25.0000", "25.0020")


# When the mix is not known


@pytest.fixture(scope="module")
def gaps():
    def of(run, mix):
        return oracle_gap(
            run,
            shift.target_prior(mix, COUNTS),
            size=100,
            draws=2,
            estimate=lambda predictions: estimate_prior(predictions, intervals="none"),
        )

    return {
        method: {
            mix: [of(make_run(method, seed, num_samples=200), mix) for seed in range(2)] for mix in MIXES
        }
        for method in METHODS[:2]
    }


@pytest.fixture(scope="module")
def gap_page(gaps, tmp_path_factory):
    runs = [make_run(method, seed, num_samples=200) for method in METHODS[:2] for seed in range(2)]
    path = tmp_path_factory.mktemp("report") / "page.html"
    return Page(report.write_report(runs, path, title="t", mixes=["uniform"], oracle_gaps=gaps))


def test_gap_rows_take_every_run_by_itself(gaps):
    rows = report.oracle_gap_rows(gaps)
    assert [(row.method, row.mix) for row in rows] == [(m, mix) for m in METHODS[:2] for mix in MIXES]
    row, runs = rows[0], gaps[METHODS[0]][MIXES[0]]
    for known in TARGET_PRIORS:
        assert row.accuracy[known].mean == pytest.approx(sum(run.accuracy[known].mean for run in runs) / 2)
    losses = [run.accuracy["oracle"].mean - run.accuracy["estimated"].mean for run in runs]
    assert row.gap.mean == pytest.approx(sum(losses) / 2)
    assert row.gap.sd == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    gains = [run.accuracy["estimated"].mean - run.accuracy["none"].mean for run in runs]
    assert row.gain.mean == pytest.approx(sum(gains) / 2)
    assert row.error.mean == pytest.approx((runs[0].error.mean + runs[1].error.mean) / 2)
    assert (row.size, row.draws, row.gap.runs) == (100, 2, 2)


def test_gaps_have_a_section_and_every_number_of_its_figure_stands_in_its_table(gap_page, gaps):
    assert "When the mix is not known" in gap_page.text
    rows = report.oracle_gap_rows(gaps)
    table = next(table for table in gap_page.tables if table[1][0] == "Softmax, mix not used")
    shown = report.tables.oracle_gap_table(rows)
    assert table == [list(shown.headers), *map(list, shown.rows)]
    assert [line[0].partition(", ")[2] for line in table[1:5]] == [
        "mix not used",
        "mix estimated",
        "mix known",
        "oracle gap in points",
    ]
    assert table[1][1] == rows[0].accuracy["none"].percent()
    assert "estimated from 100 unlabeled samples; means over 2 draws, mean ± sd over 2 runs" in shown.caption
    for method, details in zip(METHODS[:2], gap_page.details[-1], strict=True):
        ax = report.plot_oracle_gaps(rows, method)
        lines = ax.get_lines()
        assert [line.get_label() for line in lines] == ["mix not used", "mix estimated", "mix known"]
        assert [line.get_linestyle() for line in lines] == ["--", "-", ":"]
        for line in lines:
            assert_all_stand_in(line.get_ydata(), numbers_of([details]), 0.0051)
        of_method = [row for row in rows if row.method == method]
        assert_all_stand_in([100 * row.error.mean for row in of_method], numbers_of([details]), 0.0051)
        assert_all_stand_in(
            [100 * row.sampling_error.mean for row in of_method], numbers_of([details]), 0.0051
        )
    stored = gap_page.data()["oracle_gaps"]
    assert [row["gap"]["mean"] for row in stored] == [row.gap.mean for row in rows]
    labels = [svg["aria-label"] for svg in gap_page.tags("svg")]
    assert sum(label.startswith("Accuracy of ") and "with it estimated" in label for label in labels) == 2


def test_without_gaps_there_is_no_such_section(tmp_path):
    run = make_run(num_samples=60)
    plain, empty = (
        report.write_report([run], tmp_path / "p", title="t", mixes=["uniform"], **given).read_text()
        for given in ({}, {"oracle_gaps": {}})
    )
    assert plain == empty and "When the mix is not known" not in plain and '"oracle_gaps"' not in plain


def test_wrong_gaps_are_refused(gaps, tmp_path):
    run = make_run(num_samples=60)
    softmax = gaps["Softmax"]
    for wrong, words in (
        ({"ERM": softmax}, "methods of `runs`, but got ERM"),
        ({"Softmax": {"uniform": []}}, "at least one run of Softmax at uniform"),
    ):
        with pytest.raises(ValueError, match=words):
            report.write_report([run], tmp_path / "p", title="t", mixes=["uniform"], oracle_gaps=wrong)
    with pytest.raises(ValueError, match="same mixes for every method"):
        report.oracle_gap_rows({"Softmax": softmax, "LADE": {"uniform": softmax["uniform"]}})
    with pytest.raises(ValueError, match=r"`method` to be one of .*'ERM'"):
        report.plot_oracle_gaps(report.oracle_gap_rows(gaps), "ERM")
    assert list(tmp_path.iterdir()) == []


def test_one_run_shows_no_spread():
    one = Spread(0.8, None, 1)
    gap = OracleGap(Prior([0.5, 0.5]), 50, dict.fromkeys(TARGET_PRIORS, one), Spread(0.0, 0.1, 5), one, one)
    (row,) = report.oracle_gap_rows({"A": {"uniform": [gap]}})
    shown = tables.oracle_gap_table([row])
    assert shown.rows[3] == ("A, oracle gap in points", "0.0")
    assert "means over 5 draws, one run of each method" in shown.caption
    assert "±" not in " ".join(adaptation_words.oracle_gap_verdict([row]))


def test_gap_verdict_is_plain_where_the_gap_is_small():
    rows = [gap_row("A", "uniform", 0.8, 0.88, 0.885), gap_row("A", "forward:5", 0.8, 0.9, 0.902)]
    text = " ".join(adaptation_words.oracle_gap_verdict(rows))
    assert "from 500 unlabeled samples, the oracle gap is below 1 point of accuracy for every method" in text
    assert "the largest is 0.50 ± 0.10 points (A at uniform)" in text
    assert "In no case is adapting to the estimate worse than not adapting." in text


def test_gap_verdict_names_where_the_gap_is_large_and_where_adapting_harms():
    rows = [
        gap_row("A", "uniform", 0.8, 0.88, 0.885),
        gap_row("A", "forward:5", 0.8, 0.85, 0.87, error=0.05, sampling_error=0.02),
        gap_row("B", "uniform", 0.8, 0.79, 0.795),
    ]
    text = " ".join(adaptation_words.oracle_gap_verdict(rows))
    assert "below 1 point of accuracy in 2 of 3 cases, but 2.00 ± 0.10 points for A at forward:5." in text
    assert "worse than not adapting in 1 of 3 cases: by 1.00 ± 0.10 points for B at uniform." in text
    assert (
        "error of the estimated shares is 2.47 points, that of the frequencies of the drawn labels 1.33"
        in text
    )
    assert "the largest is that of A at forward:5, 5.00 against 2.00" in text


def test_gap_verdict_of_many_cases_names_the_worst():
    rows = [gap_row("A", f"forward:{i}", 0.9, 0.8, 0.81 + 0.01 * i, sd=None) for i in range(1, 7)]
    text = " ".join(adaptation_words.oracle_gap_verdict(rows))
    assert "is 1 point of accuracy or more in all cases: 7.00 points for A at forward:6, 6.00 points" in text
    assert "4.00 points for A at forward:3 and less in 2 more." in text
    assert "worse than not adapting in 6 of 6 cases" in text and "and less in 2 more." in text
    assert "±" not in text


def test_small_gaps_have_a_true_minus_and_no_negative_zero():
    rows = [gap_row("A", "uniform", 0.8, 0.8004, 0.8), gap_row("A", "forward:5", 0.8, 0.82, 0.8)]
    cells = tables.oracle_gap_table(rows).rows[3]
    assert cells == ("A, oracle gap in points", "0.0 ± 0.1", "−2.0 ± 0.1")
