import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from priorshift import Predictions, Prior, _inputs, report
from priorshift.evaluation import Comparison, Row, Spread, compare
from priorshift.report import tables, words

MIXES = ("forward:50", "uniform", "backward:10")
COUNTS = (200 * 50 ** (-np.arange(10) / 9)).round().astype(int)
METHODS = ("Softmax", "Balanced Softmax", "LADE")
HOSTILE = (
    "</script><b>x",
    "a $b_$c",
    "_hidden",
    '"><img src=x onerror=y>',
    "a\nb",
    "日本",
    "&amp;",
    "|",
    "é",
    "x",
)


def make_run(method="Softmax", seed=0, *, num_samples=600, counts=COUNTS, sharpness=1.0, **changes):
    num_classes = len(counts)
    labels = np.arange(num_samples) % num_classes
    noise = np.random.default_rng(seed).standard_normal((num_samples, num_classes), dtype=np.float32)
    likelihood = sharpness * (noise + 2.5 * np.eye(num_classes, dtype=np.float32)[labels])
    source = Prior.from_counts(counts)
    parts = {
        "logits": likelihood + source.log_probs if method == "Softmax" else likelihood,
        "carried": source if method == "Softmax" else Prior.uniform(num_classes),
        "labels": labels,
        "train_counts": counts,
        "method": method,
        "fingerprint": "ab12",
        "facts": {"seed": seed, "versions": {"torch": "2.11"}},
    }
    return Predictions(**(parts | changes))


@pytest.fixture(scope="module")
def runs():
    return [
        make_run(method, 10 * place + seed, sharpness=1.5 + 0.3 * place)
        for place, method in enumerate(METHODS)
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def comparison(runs):
    return compare(runs, MIXES)


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "page.html"
    assert report.write_report(runs, path, title="Three ways", mixes=MIXES, facts={"data": "noise"}) == path
    return Page(path)


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "page.html"
    named = make_run("</script><b>x", class_names=HOSTILE, facts={"<i>": "</script><b>x", "n": float("nan")})
    report.write_report(
        [named], path, title="</title><b>x", mixes=["uniform"], facts={"<b>": "</script><b>x"}
    )
    return Page(path)


def count_scans(monkeypatch):
    """Shapes of the scores whose values are checked from now on."""
    shapes, scan = [], _inputs._scan

    def counted(scores, *arguments):
        shapes.append(scores.shape)
        scan(scores, *arguments)

    monkeypatch.setattr(_inputs, "_scan", counted)
    return shapes


class Page(HTMLParser):
    """What a page holds: its elements in order, and the cells of each table with the details they are in."""

    VOID = frozenset({"meta", "wbr"})

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements, self.open, self.tables, self.details = [], [], [], []
        self.text = ""
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "details":
            self.details.append([])
        if tag == "table":
            self.tables.append([])
            if "details" in self.open:
                self.details[-1].append(self.tables[-1])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    def tags(self, tag):
        return [attributes for other, attributes in self.elements if other == tag]

    def data(self):
        return json.loads(re.search(r'id="data">(.*?)</script>', self.source, re.DOTALL)[1])


def numbers_of(tables_):
    cells = [cell for table in tables_ for row in table[1:] for cell in row[1:]]
    return np.array([float(number) for cell in cells for number in re.findall(r"[-+]?\d+\.?\d*", cell)])


def assert_all_stand_in(values, numbers, tolerance):
    values = np.asarray(values, dtype=float).ravel()
    missing = np.abs(values[:, None] - numbers[None, :]).min(axis=1) > tolerance
    assert values.size > 0 and not missing.any(), values[missing]


def drawn_lines(ax):
    return [(line.get_xdata(), line.get_ydata()) for line in ax.get_lines() if len(line.get_xdata()) > 2]


def band_edges(ax):
    return [path.vertices[:, 1] for band in ax.collections for path in band.get_paths()]


def test_page_is_one_file_that_fetches_nothing(page):
    assert [tag for tag, _ in page.elements if tag in ("link", "img", "iframe", "object", "base")] == []
    assert [script.get("type") for script in page.tags("script")] == [
        "application/json",
        "application/json",
        "text/plain",
        None,
    ]
    assert page.attributes("src") == []
    assert all(link.startswith("#") for link in page.attributes("href"))
    assert set(re.findall(r"https?:[^\s\"']*", page.source)) == {"http://www.w3.org/2000/svg"}
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", page.source))
    assert "@import" not in page.source
    assert len(page.source.encode()) < 1_500_000


def test_ids_are_unique_and_every_reference_has_its_target(page):
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    style = " ".join(page.attributes("clip-path") + page.attributes("style"))
    references = set(page.attributes("href")) | {f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", style)}
    assert references and references <= {f"#{name}" for name in ids}


def test_page_is_made_for_every_reader(page):
    assert page.tags("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.tags("meta"))
    headings = [tag for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1" and set(headings[1:]) == {"h2", "h3"}
    for rule in ("prefers-color-scheme: dark", ":focus-visible", "@media print"):
        assert rule in page.source
    assert all(table[0] for table in page.tables)


def test_every_figure_says_its_finding_scales_and_takes_the_color_of_the_text(page):
    svgs = page.tags("svg")
    assert len(svgs) == 2 + 3 + 6
    for svg in svgs:
        assert svg["role"] == "img" and re.search(r"\d", svg["aria-label"])
        assert "viewbox" in svg and "width" not in svg and "height" not in svg
    assert len(page.tags("figure")) == len(page.tags("figcaption")) == len(page.details) == 4
    assert "currentColor" in page.source and "#010203" not in page.source and "#000000" not in page.source


def test_accuracy_table_of_the_page_is_that_of_the_comparison(page, comparison):
    table = report.comparison_table(comparison)
    assert page.tables[0][0] == list(table.headers)
    assert page.tables[0][1:] == [list(row) for row in table.rows]


def test_every_number_of_the_mix_figure_stands_in_its_table(page, comparison):
    ax = report.plot_mixes(comparison)
    numbers = numbers_of(page.details[0])
    assert len(drawn_lines(ax)) == 6 and len(ax.collections) == 6
    for _, heights in drawn_lines(ax):
        assert_all_stand_in(heights, numbers, 0.0051)
    deviations = [100 * row.spreads[mix]["accuracy"].sd for row in comparison.rows for mix in MIXES]
    assert_all_stand_in(deviations, numbers, 0.0051)
    edges = np.concatenate(band_edges(ax))
    first = comparison.rows[0].spreads[MIXES[0]]["accuracy"]
    assert np.abs(edges - 100 * (first.mean + first.sd)).min() < 1e-9


def test_every_number_of_the_class_figure_stands_in_its_table(page, runs):
    ax = report.plot_class_accuracy(report.class_accuracies(runs))
    numbers = numbers_of(page.details[1])
    assert len(drawn_lines(ax)) == 6
    for counts, heights in drawn_lines(ax):
        assert list(counts) == COUNTS.tolist()
        assert_all_stand_in(counts, numbers, 0)
        assert_all_stand_in(heights, numbers, 0.0051)


def test_every_number_of_the_probability_figure_stands_in_its_table(page, runs):
    probs = report.class_probs(runs)
    numbers = numbers_of(page.details[3])
    for method in METHODS:
        lines = drawn_lines(report.plot_class_probs(probs, method))
        assert len(lines) == 2
        for _, heights in lines:
            assert_all_stand_in(heights, numbers, 0.000051)


def test_every_number_of_the_reliability_diagrams_stands_in_its_table(page, runs):
    diagrams = report.pooled_reliability(runs)
    assert len(diagrams) == len(page.details[2]) == 6
    for diagram, table in zip(diagrams, page.details[2], strict=True):
        numbers = numbers_of([table])
        ax = report.plot_reliability(diagram)
        accuracy, gap = ax.containers
        assert_all_stand_in([bar.get_height() for bar in accuracy], numbers, 0.000051)
        assert_all_stand_in([bar.get_y() + bar.get_height() for bar in gap], numbers, 0.000051)
        (counts,) = ax.child_axes[0].containers
        assert_all_stand_in([bar.get_height() for bar in counts], numbers, 0.051)
        assert sum(bar.get_height() for bar in counts) == pytest.approx(3 * 600)


def test_json_of_the_page_holds_the_comparison(page, comparison):
    data = page.data()
    assert data["comparison"]["num_samples"] == 600
    for row, stored in zip(comparison.rows, data["comparison"]["rows"], strict=True):
        for mix in MIXES:
            assert stored["spreads"][mix]["ece"]["mean"] == row.spreads[mix]["ece"].mean
    empty = [value for value in data["reliability"][0]["bins"]["accuracy"] if value is None]
    assert len(data["reliability"][0]["bins"]["accuracy"]) == 20 and len(empty) < 20


def test_page_states_runs_facts_and_effective_sample_sizes(page, comparison):
    for text in (
        "Three ways",
        "noise",
        "ab12",
        "torch 2.11",
        "training mix, by theory",
        "uniform, by theory",
    ):
        assert text in page.text
    for mix in MIXES:
        assert [mix, f"{comparison.effective_sample_sizes[mix]:.1f}"] in page.tables[-2]
    assert [row[-1] for row in page.tables[-1]] == ["seed", *map(str, [0, 1, 2, 10, 11, 12, 20, 21, 22])]


def test_same_runs_give_the_same_page(tmp_path):
    run = make_run(num_samples=100)
    pages = [
        report.write_report([run], tmp_path / name, title="t", mixes=["uniform"]).read_bytes()
        for name in "ab"
    ]
    assert pages[0] == pages[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_page_checks_the_scores_of_a_run_once(runs, tmp_path, monkeypatch):
    scans = count_scans(monkeypatch)
    report.write_report(runs, tmp_path / "p.html", title="t", mixes=MIXES)
    assert scans == [(600, 10)] * len(runs)  # each run by the estimate of the mix of the test images


def test_hostile_names_stay_text(hostile_page):
    assert hostile_page.tags("b") == hostile_page.tags("img") == hostile_page.tags("i") == []
    assert len(hostile_page.tags("script")) == 4
    assert hostile_page.text.count("</script><b>x") > 5
    assert {row[0] for row in hostile_page.details[1][0][1:]} == set(HOSTILE)
    assert "a $b_$c" in " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", hostile_page.source))
    data = hostile_page.data()
    assert data["class_accuracies"]["names"] == list(HOSTILE)
    assert data["runs"][0]["n"] is None


def test_single_run_shows_no_spread(hostile_page):
    numbers = [cell for table in hostile_page.tables for row in table for cell in row]
    assert not any("±" in cell for cell in numbers)
    assert "one run of each method" in hostile_page.text
    assert "the spread over seeds is unknown" in hostile_page.text


def test_nameless_method_gets_a_name(tmp_path):
    path = report.write_report(
        [make_run("", num_samples=50)], tmp_path / "p.html", title="t", mixes=["uniform"]
    )
    assert "unnamed method" in Page(path).text


def test_wrong_runs_are_refused_and_nothing_is_written(tmp_path):
    run = make_run(num_samples=50)
    for wrong, words_ in (
        ([], "at least one set"),
        ([run, replace(run, fingerprint="other")], "one and the same test set"),
        ([replace(run, labels=None)], "`labels`"),
        ([replace(run, train_counts=None)], "`train_counts`"),
    ):
        with pytest.raises(ValueError, match=words_):
            report.write_report(wrong, tmp_path / "p.html", title="t")
    with pytest.raises(ValueError, match="at least one mix"):
        report.write_report([run], tmp_path / "p.html", title="t", mixes=[])
    assert list(tmp_path.iterdir()) == []


def test_comparison_table_holds_what_compare_found(comparison):
    table = report.comparison_table(comparison)
    assert table.headers == ("Method", *MIXES)
    for row, cells in zip(comparison.rows, table.rows, strict=False):
        assert cells == (row.label, *(row.spreads[mix]["accuracy"].percent() for mix in MIXES))
    assert table.rows[-1][0] == "Effective sample size" and table.rows[-1][2] == "600"
    assert "600 test images weighted to each mix; mean ± sd over 3 seeds" in table.caption
    for column, mix in enumerate(MIXES, start=1):
        means = [row.spreads[mix]["accuracy"].mean for row in comparison.rows]
        best = {index for index, mean in enumerate(means) if mean == max(means)}
        assert {index for index, bold in table.best if bold == column} == best


def test_lowest_error_is_best(comparison):
    table = report.comparison_table(comparison, "nll")
    means = [row.spreads["uniform"]["nll"].mean for row in comparison.rows]
    assert (means.index(min(means)), 2) in table.best and (means.index(max(means)), 2) not in table.best
    assert table.rows[0][2] == str(comparison.rows[0].spreads["uniform"]["nll"])


def test_empty_group_shows_as_undefined():
    plenty = compare([make_run(counts=np.array([300, 200, 150]), num_samples=30)], ["uniform"])
    assert [row[1] for row in report.comparison_table(plenty, "few").rows[:2]] == ["n/a", "n/a"]
    assert report.comparison_table(plenty, "few").best == frozenset()
    assert report.comparison_table(plenty, "many").rows[0][1] != "n/a"


def test_unknown_score_is_refused(comparison):
    with pytest.raises(ValueError, match=r"`score` to be one of accuracy.*'acuracy'"):
        report.comparison_table(comparison, "acuracy")


def test_markdown_keeps_cells_whole():
    text = report.markdown(tables.Table(("Method", "a"), (("x | <b>\ny", "1"),), "c"))
    assert text.splitlines()[2] == "| x \\| &lt;b> y | 1 |"


def test_console_fits_eleven_mixes_and_long_names_into_eighty_columns():
    from rich.console import Console

    spread = {"accuracy": Spread(0.8123, 0.0456, 3)}
    mixes = [f"{way}:{ratio}" for way in ("forward", "backward") for ratio in (50, 25, 10, 5, 2)]
    mixes.insert(5, "uniform")
    rows = tuple(Row("Balanced Softmax", flag, dict.fromkeys(mixes, spread)) for flag in (False, True))
    table = report.comparison_table(Comparison(rows, tuple(mixes), dict.fromkeys(mixes, 1000.0), 10_000))
    for width in (80, 100):
        console = Console(width=width, color_system=None)
        with console.capture() as captured:
            console.print(report.console(table))
        shown = captured.get()
        assert max(map(len, shown.splitlines())) <= width
        assert shown.count("81.2") == 22 and shown.count("±4.6") == 22
        assert "…" not in shown


def test_file_mixes_are_called_by_their_file_name():
    assert tables.mix_name("/home/someone/mix.json") == "mix.json"
    assert tables.mix_name("forward:2.5") == "forward:2.5"


def test_figures_draw_on_the_axes_they_are_given(runs, comparison):
    for draw in (
        lambda ax: report.plot_mixes(comparison, ax),
        lambda ax: report.plot_class_accuracy(report.class_accuracies(runs), ax),
        lambda ax: report.plot_class_probs(report.class_probs(runs), "LADE", ax),
        lambda ax: report.plot_reliability(report.pooled_reliability(runs)[0], ax),
    ):
        ax = Figure().add_subplot()
        assert draw(ax) is ax and ax.get_ylabel()


def test_a_method_has_one_color_dashed_as_trained_and_solid_compensated(runs, comparison):
    mixes = [line for line in report.plot_mixes(comparison).get_lines() if len(line.get_xdata()) > 2]
    classes = report.plot_class_accuracy(report.class_accuracies(runs)).get_lines()
    assert [line.get_color() for line in mixes] == [line.get_color() for line in classes]
    assert [line.get_linestyle() for line in mixes] == ["--", "-"] * 3
    assert len({line.get_color() for line in mixes}) == 3
    probs = report.class_probs(runs)
    for index, method in enumerate(METHODS):
        lines = report.plot_class_probs(probs, method).get_lines()[1:]
        assert {line.get_color() for line in lines} == {mixes[2 * index].get_color()}


def test_unknown_method_is_refused(runs):
    with pytest.raises(ValueError, match=r"`method` to be one of .*'ERM'"):
        report.plot_class_probs(report.class_probs(runs), "ERM")


def test_class_without_training_images_can_be_drawn():
    run = make_run("LADE", num_samples=30, carried=Prior.uniform(10))
    by_class = report.class_accuracies([replace(run, train_counts=np.arange(9, -1, -1))])
    ax = report.plot_class_accuracy(by_class)
    assert ax.get_xscale() == "symlog" and drawn_lines(ax)[0][0][-1] == 0


def test_class_accuracies_come_by_descending_training_count():
    counts = np.array([5, 50, 20])
    labels = np.array([0, 0, 1, 1, 2, 2])
    logits = 9.0 * np.eye(3)[[0, 1, 1, 1, 0, 0]]
    run = Predictions(
        logits=logits,
        carried=Prior.uniform(3),
        labels=labels,
        train_counts=counts,
        class_names=("a", "b", "c"),
    )
    by_class = report.class_accuracies([run, run])
    assert by_class.names == ("b", "c", "a") and by_class.train_counts == (50, 20, 5)
    for row in by_class.rows:
        assert row.spreads == (Spread(1.0, 0.0, 2), Spread(0.0, 0.0, 2), Spread(0.5, 0.0, 2))


def test_many_classes_are_shown_as_means_of_neighbours():
    counts = np.arange(100, 0, -1)
    run = make_run(counts=counts, num_samples=200)
    single = report.class_accuracies([run], max_points=100)
    grouped = report.class_accuracies([run])
    assert len(grouped.names) == 20 and grouped.names[0] == "0 … 4 (5)" and grouped.train_counts[0] == 98
    for fine, coarse in zip(single.rows, grouped.rows, strict=True):
        means = np.array([spread.mean for spread in fine.spreads]).reshape(20, 5).mean(axis=1)
        assert [spread.mean for spread in coarse.spreads] == pytest.approx(means.tolist())
    assert len(report.class_probs([run]).names) == 100


def test_class_probs_weigh_an_unbalanced_test_set_to_the_uniform_mix():
    run = Predictions(
        logits=np.log([[0.9, 0.1], [0.7, 0.3], [0.5, 0.5], [0.2, 0.8]]),
        carried=Prior([0.8, 0.2]),
        labels=np.array([0, 0, 0, 1]),
        train_counts=np.array([8, 2]),
    )
    plain, compensated = report.class_probs([run]).rows
    assert [spread.mean for spread in plain.spreads] == pytest.approx([(0.7 + 0.2) / 2, (0.3 + 0.8) / 2])
    odds = [(p / 0.8) / (p / 0.8 + (1 - p) / 0.2) for p in (0.9, 0.7, 0.5, 0.2)]
    assert compensated.spreads[0].mean == pytest.approx((sum(odds[:3]) / 3 + odds[3]) / 2)


def test_pooled_reliability_takes_all_runs_of_a_method_together():
    labels = np.array([0, 1])
    rows = ([[0.93, 0.07], [0.92, 0.08]], [[0.91, 0.09], [0.06, 0.94]])
    pair = [Predictions(logits=np.log(row), carried=Prior.uniform(2), labels=labels) for row in rows]
    diagram, _ = report.pooled_reliability(pair)
    assert diagram.counts[18] == pytest.approx(4) and sum(diagram.counts) == pytest.approx(4)
    assert diagram.accuracy == pytest.approx(0.75) and diagram.confidence == pytest.approx(0.925)
    assert diagram.error == pytest.approx(0.175)


def test_compensation_gain_is_taken_run_by_run(runs):
    gains = report.compensation_gains(runs, "backward:10")
    singles = [compare([run], ["backward:10"]).rows for run in runs[:3]]
    changes = [
        after.spreads["backward:10"]["accuracy"].mean - before.spreads["backward:10"]["accuracy"].mean
        for before, after in singles
    ]
    assert gains["Softmax"].mean == pytest.approx(np.mean(changes))
    assert gains["Softmax"].sd == pytest.approx(np.std(changes, ddof=1))
    assert list(gains) == list(METHODS)


def say(scores, gains=None, sd=0.01):
    rows = tuple(
        Row(method, flag, {"uniform": {"accuracy": Spread(mean, sd, 1 if sd is None else 3)}})
        for method, pair in scores.items()
        for flag, mean in zip((False, True), pair, strict=True)
    )
    gains = gains or {method: Spread(pair[1] - pair[0], sd, 3) for method, pair in scores.items()}
    return " ".join(
        words.verdict(Comparison(rows, ("uniform",), {"uniform": 100.0}, 100), {"uniform": gains})
    )


def test_verdict_names_the_best_of_the_data():
    assert "At uniform, compensated A is the most accurate (90.0 ± 1.0 %), ahead of B (70.0 ± 1.0 %)" in say(
        {"A": (0.6, 0.9), "B": (0.7, 0.65)}
    )
    assert "At uniform, B is the most accurate (95.0 ± 1.0 %), ahead of compensated A" in say(
        {"A": (0.6, 0.9), "B": (0.95, 0.65)}
    )


def test_verdict_calls_no_winner_within_the_spread():
    assert "but B is within the seed spread: no clear winner" in say({"A": (0.8, 0.81), "B": (0.8, 0.79)})
    assert "no clear winner" not in say({"A": (0.8, 0.81), "B": (0.8, 0.79)}, sd=0.001)
    assert "(80.0 ± 1.0 %) is level with B" in say({"A": (0.8, 0.8), "B": (0.8, 0.7)})


def test_verdict_says_what_compensation_bought_or_cost():
    gains = {"A": Spread(0.3, 0.01, 3), "B": Spread(-0.02, 0.05, 3), "C": Spread(0.0, 0.0, 3)}
    text = say({"A": (0.6, 0.9), "B": (0.7, 0.68), "C": (0.5, 0.5)}, gains)
    assert "by +30.0 ± 1.0 points for A; 0 points for C; −2.0 ± 5.0 points for B." in text
    assert "Within the seed spread is the change of B at uniform." in text


def test_verdict_of_many_methods_names_the_most_and_the_least_helped():
    text = say({name: (0.5, 0.5 + 0.05 * place) for place, name in enumerate("ABCDEF")})
    assert "+25.0 ± 1.0 points for F; 0.0" not in text
    assert "+25.0 ± 1.0 points for F; +0.0 ± 1.0 points for A (of 6 methods the most and the least" in text


def test_verdict_of_single_runs_claims_no_spread():
    text = say({"A": (0.6, 0.9)}, {"A": Spread(0.3, None, 1)}, sd=None)
    assert "compensated A is the most accurate (90.0 %)." in text
    assert "+30.0 points for A" in text and "the spread over seeds is unknown" in text
    assert "±" not in text and "seed spread" not in text


def test_carried_prior_is_described_in_words():
    run = make_run(num_samples=20)
    assert words.describe_carried(run) == "training mix, by theory"
    assert words.describe_carried(replace(run, carried=Prior.uniform(10), carried_by="convention")) == (
        "uniform, by convention"
    )
    other = replace(run, carried=Prior([9.0, 2, 2, 2, 2, 2, 2, 2, 2, 1]))
    assert words.describe_carried(other) == "largest to smallest 9 : 1, by theory"


def test_pages_need_no_torch(runs, tmp_path):
    runs[0].save(tmp_path / "run.safetensors")
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path; folder = Path(sys.argv[1]); "
        "from priorshift import Predictions; from priorshift.estimation import estimate_prior; "
        "from priorshift.report import write_adaptation_report, write_report; "
        "run = Predictions.load(folder / 'run.safetensors'); "
        "write_report([run], folder / 'a.html', title='t', mixes=['uniform']); "
        "write_adaptation_report(run, estimate_prior(run), folder / 'b.html', title='t')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "a.html").stat().st_size > 10_000 and (tmp_path / "b.html").stat().st_size > 10_000


def test_importing_the_library_loads_no_plotting():
    code = (
        "import sys, priorshift, priorshift.report; dir(priorshift.report); priorshift.Predictions; "
        "print([name for name in ('matplotlib', 'jinja2', 'rich') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
