"""The papers' figures: data against slow references, artists read back, runs that do not fit."""

import json
import math
import statistics
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from safetensors.numpy import save_file

from priorshift import Predictions, Prior, recipes
from priorshift.cli import main
from priorshift.report import papers
from priorshift.report.papers.sources import read_sources
from priorshift.report.style import PALETTE, method_colors
from priorshift.training.config import Part

COUNTS = np.array([40, 300, 100, 20, 150, 7, 60, 21, 3, 12])
ORDER = sorted(range(10), key=lambda index: -COUNTS[index])
CARRY_SOURCE = ("Softmax", "LDAM")
TAUS = (0.0, 0.4, 1.0, 2.5)


def make_predictions(method="Softmax", seed=0, *, per_class=6, **changes):
    labels = np.arange(10 * per_class) % 10
    noise = np.random.default_rng(seed).standard_normal((len(labels), 10))
    likelihood = noise + 1.8 * np.eye(10)[labels]
    source = Prior.from_counts(COUNTS)
    carries = method in CARRY_SOURCE
    parts = {
        "logits": likelihood + source.log_probs if carries else likelihood,
        "carried": source if carries else Prior.uniform(10),
        "labels": labels,
        "train_counts": COUNTS,
        "method": method,
        "fingerprint": "ab12",
        "facts": {"seed": seed},
    }
    return Predictions(**(parts | changes))


def make_weights(seed):
    return np.random.default_rng(seed).random((10, 4), dtype=np.float32) + np.float32(0.1)


def predictions_file(folder):
    return folder / "predictions-test.safetensors"


def make_run(folder, method="Softmax", seed=0, *, alpha=0.01, momentum=0.9, head="linear", **changes):
    """A run folder as a training leaves it, with invented weights and predictions."""
    config = recipes.digits_lade() if method == "LADE" else recipes.digits_softmax()
    (stage,) = config.stages
    optimizer = replace(stage.optimizer, momentum=momentum, nesterov=False)
    loss = (
        replace(stage.loss, options={**stage.loss.options, "alpha": alpha})
        if method == "LADE"
        else stage.loss
    )
    stages = (replace(stage, loss=loss, optimizer=optimizer),)
    config = replace(config, method=method, seed=seed, stages=stages, head=Part(name=head))
    folder.mkdir(parents=True)
    config.save(folder / "config.json")
    header = {"schema_version": 1, "stage": 0, "epochs": 1, "completed": True, "chosen": {}}
    weights = {"head.weight": make_weights(seed), "head.bias": np.zeros(10, dtype=np.float32)}
    save_file(weights, folder / "model.safetensors", metadata={"priorshift": json.dumps(header)})
    make_predictions(method, seed, **changes).save(predictions_file(folder))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three methods of two seeds, LADE at two more α, and Softmax without momentum."""
    root = tmp_path_factory.mktemp("runs")
    made = {
        f"{method}-{seed}": make_run(root / f"{method}-{seed}", method, seed + 10 * place)
        for place, method in enumerate(("Softmax", "LADE", "LDAM"))
        for seed in range(2)
    }
    for alpha in (0.0, 0.1):
        made[f"alpha-{alpha}"] = make_run(root / f"alpha-{alpha}", "LADE", 30, alpha=alpha)
    made["plain-sgd"] = make_run(root / "plain-sgd", seed=40, momentum=0.0)
    return made


def paths(folders, *names):
    return [folders[name] for name in names]


def lines_of(ax):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in ax.get_lines()}


def band_of(ax, place=0):
    """Lower and upper edge of a band that was filled between, at each place."""
    corners = ax.collections[place].get_paths()[0].vertices
    where = sorted(set(corners[:, 0]))
    return [(min(corners[corners[:, 0] == x, 1]), max(corners[corners[:, 0] == x, 1])) for x in where]


# Slow references, by the definitions


def softmax_row(row):
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def to_uniform(run):
    """Logits less the log of the prior they carry, and less log C."""
    carried = run.carried.probs.tolist()
    return [
        [value - math.log(prior) + math.log(0.1) for value, prior in zip(row, carried, strict=True)]
        for row in run.logits.tolist()
    ]


def mean_and_sd(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def class_errors(rows, labels):
    """Share of the samples of each class that another class wins."""
    wrong = {index: [] for index in range(10)}
    for row, label in zip(rows, labels.tolist(), strict=True):
        wrong[label].append(max(range(10), key=lambda index: row[index]) != label)
    return [sum(misses) / len(misses) for misses in wrong.values()]


def spread(values):
    return statistics.fmean(values), statistics.stdev(values)


def as_pairs(spreads):
    return [(spread.mean, spread.sd) for spread in spreads]


# What is computed


def test_class_logits_are_moments_over_positive_and_negative_samples():
    runs = [make_predictions("Softmax", 0), make_predictions("Softmax", 1, per_class=4)]
    panel = papers.class_logits(runs, "both")
    samples = [
        (row, label) for run in runs for row, label in zip(to_uniform(run), run.labels.tolist(), strict=True)
    ]
    for place, index in enumerate(ORDER):
        for mean, sd, positive in (
            (panel.positive_mean, panel.positive_sd, True),
            (panel.negative_mean, panel.negative_sd, False),
        ):
            expected = mean_and_sd([row[index] for row, label in samples if (label == index) is positive])
            assert (mean[place], sd[place]) == pytest.approx(expected, abs=1e-10)


def test_logits_that_carry_the_uniform_prior_are_taken_as_they_are():
    run = make_predictions("LADE")
    first = ORDER[0]
    panel = papers.class_logits([run], "LADE")
    assert panel.positive_mean[0] == run.logits[run.labels == first, first].mean()


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.floats(-50, 50))
def test_a_constant_moves_the_means_of_logits_and_no_spread(constant):
    run = make_predictions()
    panel = papers.class_logits([run], "")
    moved = papers.class_logits([replace(run, logits=run.logits + constant)], "")
    assert moved.negative_mean == pytest.approx(panel.negative_mean + constant, rel=1e-5, abs=1e-10)
    assert moved.positive_sd == pytest.approx(panel.positive_sd, rel=1e-5, abs=1e-10)


def test_a_class_without_samples_has_no_positive_logits():
    run = make_predictions()
    kept = run.labels != ORDER[3]
    panel = papers.class_logits([replace(run, logits=run.logits[kept], labels=run.labels[kept])], "")
    assert np.flatnonzero(np.isnan(panel.positive_mean)).tolist() == [3]
    assert not np.isnan(panel.negative_mean).any()


def test_weight_norms_go_by_frequency():
    weights = [make_weights(seed) for seed in range(3)]
    expected = [
        spread([math.sqrt(sum(value**2 for value in weight[index].tolist())) for weight in weights])
        for index in ORDER
    ]
    assert as_pairs(papers.weight_norms(weights, COUNTS)) == pytest.approx(np.array(expected), abs=1e-10)
    assert papers.weight_norms(weights[:1], COUNTS)[0].sd is None


def test_errors_by_tau_are_those_of_the_two_formulas():
    runs, weights = [make_predictions(seed=seed) for seed in range(2)], [make_weights(5), make_weights(6)]
    errors = papers.tau_errors(runs, weights, taus=TAUS)
    pi = [count / COUNTS.sum() for count in COUNTS.tolist()]
    for place, tau in enumerate(TAUS):
        adjusted, normalized = [], []
        for run, weight in zip(runs, weights, strict=True):
            norms = [math.sqrt(sum(value**2 for value in row)) for row in weight.astype(float).tolist()]
            rows = run.logits.tolist()
            for found, scores in (
                (adjusted, [[f - tau * math.log(p) for f, p in zip(row, pi, strict=True)] for row in rows]),
                (normalized, [[f / n**tau for f, n in zip(row, norms, strict=True)] for row in rows]),
            ):
                found.append(statistics.fmean(class_errors(scores, run.labels)))
        for spreads, expected in (
            (errors.logit_adjustment, adjusted),
            (errors.weight_normalization, normalized),
        ):
            assert as_pairs(spreads)[place] == pytest.approx(spread(expected), abs=1e-12)
    assert errors.taus == TAUS and errors.logit_adjustment[0] == errors.weight_normalization[0]


def test_errors_by_group_are_means_over_classes_with_boundaries_of_menon():
    runs = [make_predictions(method, seed) for method in ("Softmax", "LADE") for seed in (0, 1)]
    errors = papers.errors_by_group(runs)
    members = [
        [index for index in range(10) if inside(COUNTS[index])]
        for inside in (lambda n: n >= 100, lambda n: 20 < n < 100, lambda n: n <= 20)
    ]
    assert [len(group) for group in members] == [3, 3, 4]
    assert errors.groups == ("Many\n(3 classes)", "Medium\n(3 classes)", "Few\n(4 classes)")
    for place, method in enumerate(("Softmax", "LADE")):
        by_class = [class_errors(run.logits.tolist(), run.labels) for run in runs[2 * place : 2 * place + 2]]
        expected = [
            spread([statistics.fmean(each[index] for index in group) for each in by_class])
            for group in members
        ]
        assert as_pairs(errors.errors[method]) == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize(("num_groups", "sizes"), [(10, [1] * 10), (4, [3, 3, 2, 2]), (99, [1] * 10)])
def test_errors_by_frequency_are_means_over_neighbours_in_training_count(num_groups, sizes):
    run = make_predictions("Softmax", 3)
    errors = papers.errors_by_frequency([run], num_groups=num_groups)
    by_class = class_errors(run.logits.tolist(), run.labels)
    rest, expected = list(ORDER), []
    for size in sizes:
        group, rest = rest[:size], rest[size:]
        expected.append(statistics.fmean(by_class[index] for index in group))
    assert [spread.mean for spread in errors.errors["Softmax"]] == pytest.approx(expected, abs=1e-12)
    assert errors.axis.startswith("Class," if len(sizes) == 10 else "Group of classes,")


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 100), st.integers(1, 10))
def test_groups_weighted_by_their_classes_make_up_the_balanced_error(seed, num_groups):
    run = make_predictions("Softmax", seed)
    (spreads,) = papers.errors_by_frequency([run], num_groups=num_groups).errors.values()
    sizes = [len(group) for group in np.array_split(np.arange(10), num_groups)]
    total = sum(size * spread.mean for size, spread in zip(sizes, spreads, strict=True)) / 10
    assert total == pytest.approx(statistics.fmean(class_errors(run.logits.tolist(), run.labels)))


def test_an_empty_group_has_no_error_and_no_bar():
    run = make_predictions(train_counts=np.maximum(COUNTS, 30))
    errors = papers.errors_by_group([run])
    assert errors.errors["Softmax"][2] is None
    heights = [bar.get_height() for bar in papers.plot_errors(errors).patches]
    assert np.isnan(heights).tolist() == [False, False, True]


# What stands on the axes


def test_figures_draw_on_the_axes_they_are_given():
    run, weight = make_predictions(), make_weights(0)
    for draw in (
        lambda ax=None: papers.plot_class_logits(papers.class_logits([run], "Softmax"), ax),
        lambda ax=None: papers.plot_weight_norms({"Adam": papers.weight_norms([weight], COUNTS)}, ax),
        lambda ax=None: papers.plot_tau_errors(papers.tau_errors([run], [weight], taus=TAUS), ax),
        lambda ax=None: papers.plot_errors(papers.errors_by_group([run]), ax),
    ):
        ax = Figure().add_subplot()
        assert draw(ax) is ax and ax.get_ylabel() and ax.get_xlabel()
        assert draw().figure.get_figwidth() == 3.3


def test_lade_figure_2_shows_the_mean_probability_of_each_class_by_frequency(folders):
    figure = papers.paper_figure("lade-figure-2", paths(folders, "Softmax-0", "Softmax-1", "LADE-0"))
    panel = figure.axes[0]
    assert [ax.get_title() for ax in figure.axes] == ["Softmax", "LADE"]
    for label, rows_of in (
        ("Softmax", lambda run: run.logits.tolist()),
        ("Softmax, compensated", to_uniform),
    ):
        means = [
            [statistics.fmean(row[index] for row in map(softmax_row, rows_of(run))) for index in ORDER]
            for run in (make_predictions("Softmax", 0), make_predictions("Softmax", 1))
        ]
        assert lines_of(panel)[label] == pytest.approx(np.mean(means, axis=0), abs=1e-10)
    assert set(lines_of(panel)["target"]) == {0.1}


def test_lade_figure_3_has_a_panel_for_each_alpha_with_log_c(folders):
    chosen = paths(folders, "alpha-0.1", "LADE-0", "LADE-1", "alpha-0.0", "Softmax-0")
    figure = papers.paper_figure("lade-figure-3", chosen)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[-2:] == ["LADE, α = 0.01", "LADE, α = 0.1"]
    assert sorted(titles[:2]) == ["LADE, α = 0", "PC Softmax"]
    panel = figure.axes[titles.index("LADE, α = 0.01")]
    runs = [make_predictions("LADE", seed) for seed in (10, 11)]
    data = papers.class_logits(runs, "")
    lines = lines_of(panel)
    assert lines["positive samples"] == pytest.approx(data.positive_mean)
    assert lines["negative samples"] == pytest.approx(data.negative_mean)
    assert lines["log C"] == pytest.approx([math.log(10)] * 2)
    low, high = data.negative_mean - data.negative_sd, data.negative_mean + data.negative_sd
    assert np.array(band_of(panel, 1)) == pytest.approx(np.stack((low, high), axis=1))
    assert len({ax.get_ylim() for ax in figure.axes}) == 1


def test_lade_figures_4_and_6_show_accuracy_gap_and_counts_of_20_bins(folders):
    run = make_predictions("LADE", 10)
    bins = {}
    for row, label in zip(map(softmax_row, run.logits.tolist()), run.labels.tolist(), strict=True):
        confidence = max(row)
        bins.setdefault(math.ceil(20 * confidence) - 1, []).append(
            (confidence, row.index(confidence) == label)
        )
    for name in ("lade-figure-4", "lade-figure-6"):
        figure = papers.paper_figure(name, paths(folders, "Softmax-0", "LADE-0"))
        assert len(figure.axes) == 3  # LADE's are compensated as they are
        panel = figure.axes[2]
        accuracy, gaps = (container.patches for container in panel.containers)
        (above,) = panel.child_axes
        assert above.get_title() == "LADE"
        found = {
            round(20 * bar.get_x()): (
                bar.get_height(),
                bar.get_height() + gap.get_height(),
                count.get_height(),
            )
            for bar, gap, count in zip(accuracy, gaps, above.patches, strict=True)
        }
        assert found.keys() == bins.keys()
        for place, samples in bins.items():
            confidences, hits = zip(*samples, strict=True)
            expected = (statistics.fmean(hits), statistics.fmean(confidences), len(samples))
            assert found[place] == pytest.approx(expected)


def test_la_figure_1_has_a_line_of_norms_for_each_optimizer(folders):
    figure = papers.paper_figure("la-figure-1", paths(folders, "Softmax-0", "plain-sgd", "Softmax-1"))
    lines = lines_of(figure.axes[0])
    assert list(lines) == ["SGD, momentum 0.9", "SGD"]
    norms = np.stack([np.linalg.norm(make_weights(seed), axis=1)[ORDER] for seed in (0, 1)])
    assert lines["SGD, momentum 0.9"] == pytest.approx(norms.mean(axis=0), rel=1e-6)
    assert lines["SGD"] == pytest.approx(np.linalg.norm(make_weights(40), axis=1)[ORDER], rel=1e-6)
    middle, half = norms.mean(axis=0), norms.std(axis=0, ddof=1)
    expected = np.stack((middle - half, middle + half), axis=1)
    assert np.array(band_of(figure.axes[0])) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["la-figure-3", "la-figure-9"])
def test_la_figures_3_and_9_show_the_balanced_error_by_tau(name, folders):
    figure = papers.paper_figure(name, paths(folders, "Softmax-0", "Softmax-1"))
    errors = papers.tau_errors(
        [make_predictions(seed=seed) for seed in (0, 1)], [make_weights(0), make_weights(1)]
    )
    lines = lines_of(figure.axes[0])
    for label, spreads in (
        ("logit adjustment", errors.logit_adjustment),
        ("weight normalization", errors.weight_normalization),
    ):
        assert lines[label] == pytest.approx([100 * spread.mean for spread in spreads])
    assert figure.axes[0].get_lines()[0].get_xdata()[[0, 10, -1]].tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("name", "of"),
    [("la-figure-4", papers.errors_by_group), ("la-figure-8", papers.errors_by_frequency)],
)
def test_la_figures_4_and_8_have_a_bar_for_each_method_and_group(name, of, folders):
    names = ("Softmax-0", "Softmax-1", "LADE-0")
    (ax,) = papers.paper_figure(name, paths(folders, *names)).axes
    errors = of(
        [make_predictions("Softmax", 0), make_predictions("Softmax", 1), make_predictions("LADE", 10)]
    )
    bars = [container for container in ax.containers if isinstance(container, BarContainer)]
    assert [container.get_label() for container in bars] == ["Softmax", "LADE"]
    for container, spreads in zip(bars, errors.errors.values(), strict=True):
        assert [bar.get_height() for bar in container] == pytest.approx([100 * each.mean for each in spreads])
    centres = [np.mean([container[place].get_center()[0] for container in bars]) for place in range(3)]
    assert centres == pytest.approx([0, 1, 2])
    (whiskers,) = bars[0].errorbar.lines[2]
    heights = [segment[1, 1] - segment[0, 1] for segment in whiskers.get_segments()]
    assert heights == pytest.approx([200 * each.sd for each in errors.errors["Softmax"]])


def test_a_method_has_one_color_in_every_figure_whatever_it_stands_beside(folders):
    blue, green = PALETTE[0], PALETTE[2]
    few, many = ("LADE", "Softmax"), ("NCM", "cRT", "Softmax", "OLTR", "LADE")
    for methods in (few, many):
        colors = method_colors(methods)
        assert (colors["Softmax"], colors["LADE"]) == (blue, green)
    assert len(set(method_colors(many).values())) == 5
    chosen = paths(folders, "LADE-0", "Softmax-0")
    probs = papers.paper_figure("lade-figure-2", chosen).axes[0].get_lines()[1]
    logits = papers.paper_figure("lade-figure-3", chosen).axes
    (bars,) = papers.paper_figure("la-figure-4", chosen).axes
    trust = papers.paper_figure("lade-figure-4", chosen).axes[0].patches[0]
    drawn = {
        to_hex(probs.get_color()),
        to_hex(next(ax for ax in logits if "LADE" in ax.get_title()).get_lines()[0].get_color()),
        to_hex(bars.containers[0].patches[0].get_facecolor()),
        to_hex(trust.get_edgecolor()),
    }
    assert drawn == {green.lower()}


def test_more_methods_than_colors_are_all_drawn():
    methods = [f"method {index}" for index in range(20)]
    assert list(method_colors(methods)) == methods
    assert set(method_colors(methods).values()) == set(PALETTE)


# Files


@pytest.mark.parametrize("form", ["svg", "pdf", "png"])
def test_the_same_runs_give_the_same_bytes(form, folders, tmp_path):
    files = [tmp_path / f"{attempt}.{form}" for attempt in "ab"]
    for file in files:
        papers.save_figure(papers.paper_figure("la-figure-4", paths(folders, "LADE-0")), file)
    first, second = (file.read_bytes() for file in files)
    assert first == second and first[:4] in (b"<?xm", b"%PDF", b"\x89PNG")
    assert b"CreationDate" not in first and b"dc:date" not in first


def test_the_readers_settings_do_not_change_a_figure(folders, tmp_path):
    import matplotlib

    def drawn(name):
        papers.save_figure(papers.paper_figure("la-figure-3", paths(folders, "Softmax-0")), tmp_path / name)
        return (tmp_path / name).read_bytes()

    plain = drawn("plain.svg")
    with matplotlib.rc_context({"text.color": "red", "font.size": 30, "lines.linewidth": 9}):
        assert drawn("theirs.svg") == plain


def test_the_command_writes_the_figure_and_takes_predictions_files(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = predictions_file(folders["LADE-0"])
    assert main(["figure", "la-figure-8", str(file), str(folders["Softmax-0"]), "-o", "out/fig.pdf"]) == 0
    assert capsys.readouterr().out.strip() == "out/fig.pdf"
    assert (tmp_path / "out" / "fig.pdf").read_bytes().startswith(b"%PDF")
    assert main(["figure", "lade-figure-2", str(file)]) == 0
    assert "<svg" in (tmp_path / "lade-figure-2.svg").read_text()


def test_the_help_lists_every_figure(capsys):
    assert main(["figure", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in papers.PAPER_FIGURES)
    assert len(papers.PAPER_FIGURES) == 9


# Runs that do not fit


@pytest.mark.parametrize(
    ("name", "runs", "complaint"),
    [
        ("la-figure-2", ["Softmax-0"], r"no figure 'la-figure-2'; .*`priorshift reproduce`"),
        ("lade-figure-2", [], "at least one run folder"),
        ("lade-figure-2", ["Softmax-0", "Softmax-0"], "each run once"),
        ("lade-figure-2", ["LADE-0", "alpha-0.1"], "of LADE to differ by their seed alone"),
        ("lade-figure-3", ["LADE-0", "LADE-1"], r"LADE at several α.*all of these are LADE, α = 0.01"),
        ("la-figure-1", ["Softmax-0", "Softmax-1"], r"under two optimizers.*are of SGD, momentum 0.9"),
        ("la-figure-1", ["Softmax-0", "LADE-0"], "of one method, but got Softmax and LADE"),
        ("la-figure-3", ["LADE-0"], r"plain cross-entropy.*those of LADE carry"),
        ("la-figure-3", ["Softmax-0", "plain-sgd"], "of Softmax to differ by their seed alone"),
    ],
)
def test_runs_that_a_figure_cannot_be_drawn_from_are_refused(name, runs, complaint, folders):
    with pytest.raises(ValueError, match=complaint):
        papers.paper_figure(name, paths(folders, *runs))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"labels": None}, "`labels` and `train_counts`, but .*other.safetensors lacks"),
        ({"train_counts": None}, "`labels` and `train_counts`, but .*other.safetensors lacks"),
        ({"fingerprint": "cd34"}, "on one test set, but that of .*other.safetensors"),
        ({"train_counts": COUNTS + 1}, "on one class mix, but that of .*other.safetensors"),
    ],
)
def test_predictions_that_do_not_fit_the_others_are_named(changes, complaint, folders, tmp_path):
    make_predictions("LADE", **changes).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=complaint):
        papers.paper_figure("la-figure-4", [folders["Softmax-0"], tmp_path / "other.safetensors"])


def test_what_a_run_lacks_is_said(folders, tmp_path):
    file = predictions_file(folders["Softmax-0"])
    for name in ("la-figure-1", "la-figure-3"):
        with pytest.raises(ValueError, match=r"Expected a run folder, .*predictions-test.safetensors"):
            papers.paper_figure(name, [file])
    with pytest.raises(FileNotFoundError, match="no predictions file"):
        papers.paper_figure("la-figure-4", [tmp_path / "nowhere"])
    bare = make_run(tmp_path / "bare")
    predictions_file(bare).unlink()
    with pytest.raises(FileNotFoundError, match="has no test predictions; run `priorshift predict"):
        papers.paper_figure("la-figure-4", [bare])
    with pytest.raises(ValueError, match=r"a `linear` head, .*cosine has 'cosine'"):
        papers.paper_figure("la-figure-3", [make_run(tmp_path / "cosine", head="cosine")])
    untrained = make_run(tmp_path / "untrained")
    (untrained / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"model.safetensors is truncated or no weights file"):
        papers.paper_figure("la-figure-3", [untrained])
    (untrained / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="untrained has no weights yet: train it first"):
        papers.paper_figure("la-figure-3", [untrained])
    (untrained / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"untrained is no run folder: it has no config\.json"):
        papers.paper_figure("la-figure-3", [untrained])


def test_a_folder_that_training_wrote_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    from priorshift.models import Classifier
    from priorshift.models.backbones import Identity
    from priorshift.models.heads import LinearHead
    from priorshift.training import Run

    run, classifier = Run(tmp_path / "run"), Classifier(Identity(4), LinearHead(4, 10))
    run.folder.mkdir()
    run.begin(recipes.digits_softmax())
    run.save_weights(classifier, torch.device("cpu"), stage=0, epochs=1, completed=True, chosen={}, data="")
    make_predictions().save(run.predictions_file("test"))
    (source,) = read_sources([run.folder])
    assert source.config == recipes.digits_softmax() and source.optimizer == "SGD, momentum 0.9"
    assert np.array_equal(source.weights(), classifier.head.weight.detach().numpy())


def test_figures_of_run_folders_need_no_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path; "
        "from priorshift.report.papers import paper_figure; "
        "paper_figure('la-figure-1', [Path(path) for path in sys.argv[1:]])"
    )
    both = [str(make_run(tmp_path / "momentum")), str(make_run(tmp_path / "none", momentum=0.0))]
    result = subprocess.run([sys.executable, "-c", code, *both], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_arguments_that_do_not_fit_are_refused(tmp_path):
    run = make_predictions()
    with pytest.raises(
        ValueError, match=r"`weights` with one row per class, \(10, D\), but got shape \(4,\)"
    ):
        papers.weight_norms([np.ones(4)], COUNTS)
    with pytest.raises(ValueError, match=r"`weights` with one row per class, .* \(9, 4\)"):
        papers.tau_errors([run], [np.ones((9, 4))])
    with pytest.raises(ValueError, match="`num_groups` to be at least 1, but got 0"):
        papers.errors_by_frequency([run], num_groups=0)
    with pytest.raises(ValueError, match=r"to end in .svg, .pdf or .png, but got figure.jpg"):
        papers.save_figure(Figure(), tmp_path / "figure.jpg")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="Expected predictions with `labels`, but Softmax has none"):
        papers.class_logits([make_predictions(labels=None)], "")
    with pytest.raises(ValueError, match="Expected predictions with `train_counts`, but Softmax has none"):
        papers.errors_by_group([make_predictions(train_counts=None)])
