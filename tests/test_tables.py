"""Published tables again: what they train, what becomes of the predictions, the command and its workers."""

import csv
import json
import math
import multiprocessing
import os
import re
import signal
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import spearmanr

from priorshift import Predictions, Prior, recipes
from priorshift.cli import main
from priorshift.commands import _runs
from priorshift.models.backbones import StridedCNN
from priorshift.published import TABLES
from priorshift.recipes.methods import with_method
from priorshift.reproduce import table_outcome, tables
from priorshift.reproduce.tables import SMALL, Entry, TableSettings, plan
from priorshift.training import (
    Augmentation,
    Checkpointing,
    Optimizer,
    Part,
    Run,
    Stage,
    TrainConfig,
    predict,
    train,
)

MIXES = ("forward:50", "uniform", "backward:10")
CHOOSING = {"tau-norm-best", "post-hoc-best", "causal-norm", "pc-causal-norm"}
VALIDATED = {"imagenet-lt", "places-lt"}
"""Data sets that come with validation images."""


def settings(*rows, columns=(), **others):
    return TableSettings(rows=rows, columns=columns, **others)


def config_of(table, row, column, **others):
    """The one training behind a cell."""
    (config,) = plan(table, settings(row, columns=(column,), **({"seeds": 1} | others))).configs.values()
    return config


# Which trainings a table takes


@pytest.mark.parametrize("budget", ["full", "small"])
@pytest.mark.parametrize("name", TABLES)
def test_every_cell_of_every_table_has_a_run_that_is_planned(name, budget):
    made = plan(name, TableSettings(seeds=2, budget=budget))
    runs = {made.run(row, column, seed) for row in made.rows for column in made.columns for seed in range(2)}
    assert set(made.configs) == runs
    assert made.columns == TABLES[name].columns
    ours = ["logit-adjusted", "lade-released"] if name.startswith("lade") else []
    wanted = [row.name for row in TABLES[name]]
    if name == "lade-table-8":
        ours = ["lade-released"]
    refused = [] if budget == "small" or not made.left_out else ["oltr", "bbn"]
    assert [row.name for row in made.rows] == [row for row in [*wanted, *ours] if row not in refused]
    for run, config in made.configs.items():
        assert run.startswith("small-") == (budget == "small")
        assert run.endswith(f"-seed{config.seed}")
        assert (config.model.name == "strided-cnn") == (budget == "small")


def test_no_run_folder_stands_for_two_trainings():
    seen = {}
    for budget in ("full", "small"):
        for name in TABLES:
            for run, config in plan(name, TableSettings(seeds=1, budget=budget)).configs.items():
                assert seen.setdefault(run, config) == config, run


@pytest.mark.parametrize("budget", ["full", "small"])
def test_tables_2_8_9_and_10_share_the_trainings_at_imbalance_50(budget):
    second, eighth, ninth, tenth = (
        plan(f"lade-table-{number}", TableSettings(columns=columns, seeds=2, budget=budget)).configs
        for number, columns in ((2, ("50",)), (8, ("cifar100-lt50",)), (9, ()), (10, ()))
    )
    assert {f"causal-norm-held-out-seed{seed}" for seed in range(2)} < {run.split("/")[1] for run in ninth}
    assert ninth == tenth
    assert ninth.items() < second.items()
    shared = eighth.keys() & second.keys()
    assert {run.split("/")[1] for run in shared} == {
        f"{method}-seed{seed}" for method in ("lade", "lade-released") for seed in range(2)
    }
    assert all(eighth[run] == second[run] for run in shared)


def test_a_cell_trains_as_its_recipe_does():
    for column, imbalance in (("100", 100), ("50", 50), ("10", 10)):
        for row, recipe in (("softmax", "softmax"), ("pc-softmax", "softmax"), ("lade", "lade")):
            expected = getattr(recipes, f"cifar100_lt{imbalance}_{recipe}")()
            assert config_of("lade-table-2", row, column) == expected
    assert config_of("lade-table-4", "softmax", "90-all") == recipes.imagenet_lt_90_softmax()
    assert config_of("lade-table-4", "lade", "180-few") == recipes.imagenet_lt_lade()
    assert config_of("lade-table-3", "lade", "all") == recipes.places_lt_lade()
    assert config_of("lade-table-5", "lade", "all") == recipes.inaturalist18_lade()
    for dataset in ("cifar10", "cifar100", "imagenet"):
        for row, recipe in (("softmax", "softmax"), ("logit-adjusted", "logit_adjusted")):
            expected = getattr(recipes, f"menon_{dataset}_lt_{recipe}")()
            assert config_of("la-table-2", row, f"{dataset}-lt") == expected


def test_seed_device_and_precision_are_those_of_the_settings():
    made = plan(
        "lade-table-2",
        settings("softmax", columns=("10",), seeds=3, device="cpu", precision="bfloat16", compile="default"),
    )
    plain = recipes.cifar100_lt10_softmax()
    assert made.configs == {
        f"lade-cifar100-lt-10-bfloat16-compile-default/softmax-seed{seed}": replace(
            plain, seed=seed, device="cpu", precision="bfloat16", compile="default"
        )
        for seed in range(3)
    }


@pytest.mark.parametrize("budget", ["full", "small"])
def test_another_precision_or_compilation_is_trained_in_another_folder(budget):
    options = ({}, {"precision": "bfloat16"}, {"compile": "default"}, {"compile": "max-autotune"})
    folders = []
    for option in options:
        made = plan("lade-table-2", settings("softmax", columns=("10",), budget=budget, **option))
        (folder,) = {run.split("/")[0] for run in made.configs}
        assert list(made.comparable()) == [folder]
        folders.append(folder)
    plain = "small-lade-cifar100-lt-10" if budget == "small" else "lade-cifar100-lt-10"
    assert folders == [plain + end for end in ("", "-bfloat16", "-compile-default", "-compile-max-autotune")]


def test_small_trainings_are_shared_by_columns_that_differ_in_network_and_epochs_alone():
    def runs(budget):
        return set(plan("la-table-3", settings("softmax", seeds=1, budget=budget)).configs)

    assert runs("small") == {"small-la-imagenet-lt/softmax-seed0", "small-la-inaturalist18/softmax-seed0"}
    assert runs("full") == {
        "la-imagenet-lt-resnet50-90/softmax-seed0",
        "la-imagenet-lt-resnet152-90/softmax-seed0",
        "la-inaturalist18-resnet50-90/softmax-seed0",
        "la-inaturalist18-resnet152-90/softmax-seed0",
        "la-inaturalist18-resnet152-200/softmax-seed0",
    }


@pytest.mark.parametrize("budget", ["full", "small"])
def test_lade_has_the_strengths_of_its_data_set_and_ablations_keep_their_zero(budget):
    def loss(row, column):
        return config_of("lade-table-8", row, column, budget=budget).stages[0].loss

    for column, alpha, lam in (
        ("cifar100-lt100", 0.1, 0.01),
        ("cifar100-lt50", 0.01, 0.01),
        ("places-lt", 0.005, 0.1),
        ("imagenet-lt", 0.05, 0.5),
    ):
        assert loss("lade", column).options == {"alpha": alpha, "lam": lam}
        assert loss("lade-lam0", column).options == {"alpha": alpha, "lam": 0.0}
        assert loss("lade-alpha0", column).options == {"alpha": 0.0, "lam": lam}
        assert loss("lade-released", column) == Part(
            name="lade", options={"alpha": alpha, "lam": lam, "variant": "released"}
        )


@pytest.mark.parametrize("budget", ["full", "small"])
@pytest.mark.parametrize("name", TABLES)
def test_rows_that_choose_hold_a_tenth_out_unless_there_are_validation_images(name, budget):
    made = plan(name, TableSettings(seeds=1, budget=budget))
    choosing, held_out = set(), set()
    for row in made.rows:
        for column in made.columns:
            run = made.run(row, column, 0)
            if row.name in CHOOSING or (row.name == "tau-norm" and name.startswith("lade")):
                choosing.add(run)
                if column.dataset not in VALIDATED:
                    held_out.add(run)
    for run, config in made.configs.items():
        assert config.data.options["held_out"] == (0.1 if run in held_out else 0.0)
        assert ("-held-out-" in run) == (run in held_out)
    assert set(made.by_splits().get(("validation", "test"), {})) == choosing
    compared = [run for runs in made.comparable().values() for run in runs]
    assert sorted(compared) == sorted(made.configs.keys() - held_out)


def test_nothing_is_held_out_of_imagenet_lt_and_places_lt():
    for table, row, column in (
        ("la-table-3", "post-hoc-best", "imagenet-lt-resnet50"),
        ("la-table-2", "tau-norm-best", "imagenet-lt"),
        ("lade-table-4", "causal-norm", "90-all"),
        ("lade-table-3", "tau-norm", "all"),
    ):
        assert config_of(table, row, column).data.options["held_out"] == 0.0
    for row in ("tau-norm", "causal-norm"):
        assert config_of("lade-table-5", row, "all").data.options["held_out"] == 0.1


def test_weight_normalisation_is_at_the_tau_that_its_row_states_or_else_at_the_best():
    def head(table, row, column):
        return config_of(table, row, column).stages[1].head

    at_one, at_best = Part(name="tau-norm", options={"tau": 1.0}), Part(name="tau-norm")
    for table, column in (("la-table-2", "cifar10-lt"), ("la-table-4", "cifar10-lt")):
        assert head(table, "tau-norm", column) == at_one
    assert head("la-table-2", "tau-norm-best", "cifar10-lt") == at_best
    for table, column in (("lade-table-3", "all"), ("lade-table-4", "90-all"), ("lade-table-5", "all")):
        assert head(table, "tau-norm", column) == at_best


def test_the_threshold_of_equalised_is_the_share_of_a_class():
    for column, classes in (("cifar10-lt", 10), ("cifar100-lt", 100), ("inaturalist18", 8142)):
        loss = config_of("la-table-2", "equalised", column).stages[0].loss
        assert loss.options == {"threshold": 1 / classes}


@pytest.mark.parametrize(("dataset", "classes", "largest"), [("cifar10", 10, 5000), ("cifar100", 100, 500)])
def test_the_step_profile_is_trained_for_as_many_steps(dataset, classes, largest):
    config = config_of("la-table-4", "softmax", f"{dataset}-lt")
    assert config.data.options == {"imbalance": 100.0, "profile": "step", "root": "", "held_out": 0.0}
    images = classes // 2 * (largest + largest // 100)
    steps = math.ceil(images / 128)
    (stage,) = config.stages
    assert config.batch_size == 128
    assert abs(stage.epochs * steps - 120_000) <= steps / 2
    assert [milestone * steps for milestone in stage.optimizer.milestones] == pytest.approx(
        [60_000, 90_000, 110_000]
    )
    assert stage.optimizer.warmup_epochs * steps == pytest.approx(2000)


def test_other_networks_and_epochs_are_those_of_the_column():
    plain = {
        "imagenet": recipes.menon_imagenet_lt_softmax(),
        "inaturalist18": recipes.menon_inaturalist18_softmax(),
    }
    for column, architecture, epochs in (
        ("imagenet-lt-resnet50", "resnet50", 90),
        ("imagenet-lt-resnet152", "resnet152", 90),
        ("inaturalist18-resnet50-90", "resnet50", 90),
        ("inaturalist18-resnet152-90", "resnet152", 90),
        ("inaturalist18-resnet152-200", "resnet152", 200),
    ):
        config = config_of("la-table-3", "softmax", column)
        assert config.model.options["architecture"] == architecture
        batch_size = plain[column.split("-")[0]].batch_size
        assert config.batch_size == (512 if architecture == "resnet152" else batch_size)
        assert config.stages[0].epochs == epochs
        assert config.stages[0].optimizer.warmup_epochs == 5


def exponential(largest, classes, imbalance):
    return sum(int(largest * imbalance ** (-rank / (classes - 1)) + 1e-9) for rank in range(classes))


@pytest.mark.parametrize(
    ("table", "column", "images"),
    [
        ("lade-table-2", "100", exponential(500, 100, 100)),
        ("lade-table-2", "50", exponential(500, 100, 50)),
        ("lade-table-2", "10", exponential(500, 100, 10)),
        ("la-table-2", "cifar10-lt", exponential(5000, 10, 100)),
        ("la-table-4", "cifar10-lt", 25_250),
        ("la-table-4", "cifar100-lt", 25_250),
        ("lade-table-3", "all", 62_500),
    ],
)
def test_a_small_training_sees_about_100_000_images(table, column, images):
    config = config_of(table, "softmax", column, budget="small")
    assert abs(config.stages[0].epochs * images - 100_000) <= images / 2
    assert config.stages[0].epochs >= 2
    assert config.data == config_of(table, "softmax", column).data


def test_a_small_training_of_large_images_cuts_them_to_32_pixels():
    config = config_of("lade-table-3", "softmax", "all", budget="small")
    assert (config.preparation.size, config.preparation.resize) == (32, 36)
    assert (config.augmentation.crop, config.augmentation.flip) == ("random", True)
    assert config.stages[0].epochs == 2
    assert config_of("la-table-2", "softmax", "inaturalist18", budget="small").stages[0].epochs == 2


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ({"rows": ("hope",)}, "`rows` of lade-table-2 to be of focal, .*, lade-released, but got 'hope'"),
        ({"columns": ("100", "20")}, "`columns` of lade-table-2 to be of 100, 50, 10, but got '20'"),
        ({"seeds": 0}, "`seeds` to be at least 1, but got 0"),
    ],
)
def test_what_a_table_does_not_have_is_refused_with_what_it_has(wanted, complaint):
    with pytest.raises(ValueError, match=complaint):
        plan("lade-table-2", TableSettings(**wanted))


def test_rows_and_columns_come_in_the_order_of_the_paper_and_ours_last():
    made = plan("lade-table-2", settings("logit-adjusted", "lade", "focal", columns=("10", "100")))
    assert [row.name for row in made.rows] == ["focal", "lade", "logit-adjusted"]
    assert [column.name for column in made.columns] == ["100", "10"]


def test_a_row_that_does_not_fit_is_left_out_with_the_reason_or_refused_if_asked_for():
    made = plan("lade-table-3", TableSettings(seeds=1))
    (sentence,) = made.left_out
    assert "'oltr'" in sentence and "'timm' does not" in sentence
    assert "oltr" not in [row.name for row in made.rows]
    with pytest.raises(ValueError, match="'oltr' puts attention before the last pooling"):
        plan("lade-table-3", settings("oltr"))
    assert plan("lade-table-3", TableSettings(seeds=1, budget="small")).left_out == ()


# What becomes of the predictions

COUNTS = np.array([400, 220, 130, 101, 60, 30, 20, 12, 6, 2])
PRIOR = COUNTS / COUNTS.sum()
UNIFORM = np.full(10, 0.1)


def load(run, split):
    """Made-up predictions: another set for each run and split, better than chance, on uneven test images."""
    seed = zlib.crc32(f"{run} {split}".encode())
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(10), rng.choice(10, 390, p=(PRIOR + 0.1) / 2)])
    plain = "/softmax" in run
    logits = rng.normal(size=(400, 10)) * 1.5 + 2 * np.eye(10)[labels] + plain * np.log(PRIOR)
    return Predictions(
        logits=logits,
        labels=labels,
        carried=Prior(PRIOR if plain else UNIFORM),
        train_counts=COUNTS,
        method=run.split("/")[1],
    )


def logits_of(run, split="test", target=None):
    """Logits, moved to another mix if there is one."""
    predictions = load(run, split)
    logits, carried = predictions.logits, predictions.carried.probs
    return logits if target is None else logits - np.log(carried) + np.log(target)


def mix_of(name):
    side, _, ratio = name.partition(":")
    ranks = {"forward": np.arange(10), "backward": np.arange(10)[::-1]}.get(side, np.zeros(10))
    masses = float(ratio or 1) ** (-ranks / 9)
    return masses / masses.sum()


def class_accuracies(run, target=None, split="test"):
    """The accuracy on each class, of logits moved to another mix if there is one."""
    labels = load(run, split).labels
    hits = logits_of(run, split, target).argmax(1) == labels
    return np.array([hits[labels == label].mean() for label in range(10)])


def cells(made, load=load):
    return {key: entry.values for key, entry in tables.entries_of(made, load).items()}


def test_accuracy_on_a_mix_is_the_mean_of_class_accuracies_under_it():
    rows = ("softmax", "pc-softmax", "balanced-softmax", "pc-balanced-softmax", "lade")
    made = plan("lade-table-9", settings(*rows, columns=MIXES, seeds=3))
    values = cells(made)
    assert len(values) == len(rows) * len(MIXES)
    for row in rows:
        method = row.removeprefix("pc-")
        for mix in MIXES:
            target = mix_of(mix)
            moved = target if row.startswith("pc-") or row == "lade" else None
            expected = [
                100 * (target @ class_accuracies(run, moved))
                for run in (f"lade-cifar100-lt-50/{method}-seed{seed}" for seed in range(3))
            ]
            assert values[row, mix] == pytest.approx(expected)
    assert values["softmax", "backward:10"] != values["pc-softmax", "backward:10"]


def test_groups_are_the_classes_by_their_training_counts():
    made = plan("lade-table-3", settings("softmax", "pc-softmax", seeds=1))
    values = cells(made)
    for row, target in (("softmax", None), ("pc-softmax", UNIFORM)):
        accuracies = class_accuracies("lade-places-lt-resnet152-30/softmax-seed0", target)
        for column, classes in (
            ("many", slice(0, 4)),
            ("medium", slice(4, 7)),
            ("few", slice(7, 10)),
            ("all", slice(0, 10)),
        ):
            assert values[row, column] == pytest.approx([100 * accuracies[classes].mean()]), column


def test_balanced_error_is_in_percent():
    made = plan("la-table-4", settings("softmax", "post-hoc", columns=("cifar10-lt",), seeds=2))
    values = cells(made)
    for row, target in (("softmax", None), ("post-hoc", UNIFORM)):
        expected = [
            100 - 100 * class_accuracies(f"la-cifar10-lt-100-step/softmax-seed{seed}", target).mean()
            for seed in range(2)
        ]
        assert values[row, "cifar10-lt"] == pytest.approx(expected)


def calibration(logits, labels):
    """ECE and classwise ECE with 20 bins, Brier score and NLL, on the uniform mix."""
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    weights = (1 / np.bincount(labels))[labels]
    weights /= weights.sum()
    hot = np.eye(10)[labels]
    predicted, confidence = probs.argmax(1), probs.max(1)
    ece = classwise = 0.0
    for low, high in ((m / 20, (m + 1) / 20) for m in range(20)):
        inside = (confidence > low) & (confidence <= high)
        ece += abs((weights * ((predicted == labels) - confidence))[inside].sum())
        for label in range(10):
            inside = (probs[:, label] > low) & (probs[:, label] <= high)
            classwise += abs((weights * (hot[:, label] - probs[:, label]))[inside].sum()) / 10
    return {
        "ece": ece,
        "classwise_ece": classwise,
        "brier": (weights * ((probs - hot) ** 2).sum(1)).sum(),
        "nll": -(weights * np.log(probs[np.arange(len(labels)), labels])).sum(),
    }


def test_calibration_scores_are_shares_not_percent():
    made = plan("lade-table-10", settings("softmax", "pc-softmax", seeds=1))
    values = cells(made)
    run = "lade-cifar100-lt-50/softmax-seed0"
    for row, target in (("softmax", None), ("pc-softmax", UNIFORM)):
        expected = calibration(logits_of(run, target=target), load(run, "test").labels)
        for score, value in expected.items():
            assert values[row, score] == pytest.approx([value]), score


@pytest.mark.parametrize(
    ("column", "best"),
    [
        ("imagenet-lt-resnet50", "la-imagenet-lt-resnet50-90/softmax"),
        ("inaturalist18-resnet50-90", "la-inaturalist18-resnet50-90/softmax-held-out"),
    ],
)
def test_the_best_tau_is_chosen_on_validation_images_and_used_on_test_images(column, best):
    asked = []

    def watched(run, split):
        asked.append((run, split))
        return load(run, split)

    made = plan("la-table-3", settings("post-hoc", "post-hoc-best", columns=(column,), seeds=2))
    values = cells(made, watched)
    chosen = []
    for seed in range(2):
        run = f"{best}-seed{seed}"
        errors = [
            1 - class_accuracies(run, PRIOR ** (1 - step / 10), "validation").mean() for step in range(31)
        ]
        chosen.append(int(np.argmin(np.round(errors, 9))) / 10)
        expected = 100 - 100 * class_accuracies(run, PRIOR ** (1 - chosen[-1])).mean()
        assert values["post-hoc-best", column][seed] == pytest.approx(expected)
    assert len({*chosen, 1.0}) > 1
    validated = {run for run, split in asked if split == "validation"}
    assert validated == {f"{best}-seed{seed}" for seed in range(2)}
    assert {run for run, _ in asked} == set(made.configs)
    assert set(made.by_splits()["validation", "test"]) == validated


def test_a_cell_is_mean_and_sd_over_seeds_and_the_difference_from_the_paper():
    made = plan("lade-table-2", settings("softmax", "logit-adjusted", columns=("100", "10"), seeds=3))
    entries = tables.entries_of(made, load)
    entry = entries["softmax", "10"]
    assert entry.published == 59.0
    assert entry.spread.mean == pytest.approx(np.mean(entry.values))
    assert entry.spread.sd == pytest.approx(np.std(entry.values, ddof=1))
    assert entry.difference == pytest.approx(np.mean(entry.values) - 59.0)
    ours_alone = entries["logit-adjusted", "100"]
    assert ours_alone.published is None and ours_alone.difference is None
    once = plan("lade-table-2", settings("softmax", columns=("100",), seeds=1))
    (single,) = tables.entries_of(once, load).values()
    assert single.spread.sd is None


# Verdicts


def entered(made, values):
    """Entries of made-up values: (row, column) → one per seed."""
    entries = {}
    for (row, column), given_values in values.items():
        rows = {row.name: row for row in made.rows}
        published = made.table.value(row, column) if row in {r.name for r in made.table} else None
        entries[row, column] = Entry(rows[row], made.table.column(column), published, tuple(given_values))
    return entries


def verdict(name, values, budget="full"):
    rows = dict.fromkeys(row for row, _ in values)
    columns = dict.fromkeys(column for _, column in values)
    seeds = len(next(iter(values.values())))
    made = plan(name, settings(*rows, columns=tuple(columns), seeds=seeds, budget=budget))
    return " ".join(table_outcome._verdict(made, entered(made, values)))


def test_the_verdict_counts_the_cells_within_a_point_and_names_the_furthest():
    text = verdict(
        "lade-table-2",
        {
            ("softmax", "100"): [40.0],  # 1.0 below
            ("pc-softmax", "100"): [46.4],  # 1.1 above
            ("lade", "100"): [42.4],  # 3.0 below
            ("softmax", "10"): [59.5],  # 0.5 above
            ("logit-adjusted", "100"): [0.0],  # not in the paper
        },
    )
    assert text.startswith(
        "Ours is within 1 point of the published number in 2 of 4 cells, on average -0.6 points from it; "
        "furthest in LADE, Imbalance ratio, 100: -3.0."
    )
    assert "Imbalance ratio, 100: the order of 3 methods" in text
    assert "Imbalance ratio, 10: the order" not in text
    assert "LADE against" not in text


def test_points_are_counted_of_percentages_alone():
    text = verdict("lade-table-10", {("softmax", "accuracy"): [45.5], ("softmax", "nll"): [2.5]})
    assert "in 1 of 1 cells" in text


def test_the_order_is_compared_by_spearman_with_ties():
    ours = {"focal": 40.0, "softmax": 40.0, "ldam": 44.0, "lade": 43.0, "bbn": 41.0}
    text = verdict("lade-table-2", {(row, "100"): [value] for row, value in ours.items()})
    expected = spearmanr(list(ours.values()), [TABLES["lade-table-2"].value(row, "100") for row in ours])
    assert f"of 5 methods agrees with the paper's by Spearman's ρ = {expected.statistic:.2f}." in text
    same = verdict("lade-table-2", {(row, "100"): [40.0] for row in ours})
    assert "Spearman" not in same


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_the_rank_correlation_is_scipys(pairs):
    first, second = zip(*pairs, strict=True)
    if min(len(set(first)), len(set(second))) > 1:
        assert table_outcome._rank_correlation(first, second) == pytest.approx(
            spearmanr(first, second).statistic, abs=1e-12
        )


@pytest.mark.parametrize(
    ("lade", "rival", "says"),
    [
        ([46.0, 47.0, 48.0], [45.0, 45.9, 47.1], "+1.0 ± 0.1 {}: LADE is better beyond the spread."),
        ([44.0, 45.1, 46.0], [45.0, 46.0, 47.1], "-1.0 ± 0.1 {}: LADE is worse beyond the spread."),
        ([46.0, 44.0, 45.6], [45.0, 45.0, 45.0], "+0.2 ± 0.6 {}: LADE is no different beyond the spread."),
        ([45.0, 46.0, 47.0], [45.0, 46.0, 47.0], "+0.0 ± 0.0 {}: LADE is no different beyond the spread."),
    ],
)
def test_lade_is_set_against_balanced_softmax_by_seed(lade, rival, says):
    text = verdict("lade-table-2", {("lade", "50"): lade, ("balanced-softmax", "50"): rival})
    expected = says.format("(standard error over 3 paired seeds)")
    assert f"Imbalance ratio, 50: LADE against Balanced Softmax {expected}" in text


def test_lower_is_better_where_the_score_is_no_accuracy():
    low, high = [2.0, 2.1], [2.5, 2.62]
    for lade, rival, change, says in ((low, high, "-0.51", "better"), (high, low, "+0.51", "worse")):
        text = verdict("lade-table-10", {("lade", "nll"): lade, ("balanced-softmax", "nll"): rival})
        assert text.endswith(
            f"NLL: LADE against Balanced Softmax {change} ± 0.01 (standard error over 2 paired seeds): "
            f"LADE is {says} beyond the spread."
        )


# The outcome


@pytest.fixture(scope="module", params=["full", "small"])
def made(request):
    rows = ("softmax", "pc-softmax", "balanced-softmax", "lade", "logit-adjusted")
    return plan("lade-table-2", settings(*rows, seeds=2, budget=request.param))


def test_the_budget_is_said_everywhere_and_only_if_it_is_small(made, tmp_path):
    outcome = table_outcome.outcome(made, load)
    outcome.save(tmp_path, command="priorshift reproduce lade-table-2")
    small = made.settings.budget == "small"
    said = [outcome.title, outcome.verdict, outcome.summary.caption, outcome.figure.get_suptitle()]
    assert ["small" in text for text in said] == [small] * 4
    assert [SMALL in text for text in said[:3]] == [small] * 3
    assert set(outcome.numbers["cells"]["budget"]) == {made.settings.budget}
    assert all(run.startswith("small-") == small for run in outcome.numbers["seeds"]["run"])
    assert ("small budget" in (tmp_path / "figure.svg").read_text(encoding="utf-8")) == small
    assert {path.name for path in tmp_path.iterdir()} == {
        *("cells.csv", "seeds.csv", "figure.svg", "figure.png", "verdict.md")
    }


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_csv_files_hold_every_cell_and_every_seed(made, tmp_path):
    table_outcome.outcome(made, load).save(tmp_path, command="")
    entries = tables.entries_of(made, load)
    listed = read(tmp_path / "cells.csv")
    assert list(listed[0]) == [
        *("table", "budget", "row", "method", "column", "measure", "published", "borrowed_from"),
        *("ours", "ours_sd", "difference", "seeds"),
    ]
    assert [(line["row"], line["column"]) for line in listed] == list(entries)
    for line in listed:
        entry = entries[line["row"], line["column"]]
        assert float(line["ours"]) == pytest.approx(np.mean(entry.values))
        assert float(line["ours_sd"]) == pytest.approx(np.std(entry.values, ddof=1))
        assert (line["table"], line["measure"], line["seeds"]) == ("lade-table-2", "accuracy", "2")
        if line["row"] == "logit-adjusted":
            assert (line["published"], line["difference"]) == ("", "")
        else:
            assert float(line["published"]) == made.table.value(line["row"], line["column"])
            assert float(line["difference"]) == pytest.approx(np.mean(entry.values) - entry.published)
    seeds = read(tmp_path / "seeds.csv")
    assert list(seeds[0]) == ["row", "column", "seed", "ours", "run"]
    assert len(seeds) == 2 * len(entries)
    for line in seeds:
        entry = entries[line["row"], line["column"]]
        assert float(line["ours"]) == pytest.approx(entry.values[int(line["seed"])])
        assert line["run"] == made.run(entry.row, entry.column, int(line["seed"]))


def test_a_borrowed_number_says_of_whom():
    made = plan("lade-table-2", settings("focal", "softmax", columns=("50",), seeds=1))
    columns = table_outcome.outcome(made, load).numbers["cells"]
    assert columns["borrowed_from"] == ["Tang et al., NeurIPS 2020", ""]


def test_the_summary_shows_published_ours_and_difference_with_as_many_decimals_as_the_paper():
    made = plan("lade-table-11", settings("softmax", "causal-norm", "logit-adjusted", seeds=1))
    summary = table_outcome.outcome(made, load).summary
    assert summary.headers == ("Method", "Accuracy", "ECE", "Classwise ECE", "Brier", "NLL")
    entries = tables.entries_of(made, load)
    causal, softmax, ours = summary.rows
    assert (causal[0], softmax[0]) == ("Causal Norm", "Softmax")
    columns = {"accuracy": 1, "ece": 3, "classwise_ece": 6, "brier": 3, "nll": 2}
    for cell, (column, digits) in zip(softmax[1:], columns.items(), strict=True):
        entry = entries["softmax", column]
        shown, mine, difference = re.fullmatch(r"(.+) / (.+) \((.+)\)", cell).groups()
        assert shown == f"{entry.published:.{digits}f}"
        assert mine == f"{entry.values[0]:.{digits}f}"
        assert difference == f"{entry.values[0] - entry.published:+.{digits}f}"
    assert re.fullmatch(r"– / \d+\.\d", ours[1])
    assert "one seed" in summary.caption
    several = replace(made, settings=replace(made.settings, seeds=2))
    summary = table_outcome.outcome(several, load).summary
    assert "mean ± sd over 2 seeds" in summary.caption
    assert re.fullmatch(r"– / \d+\.\d ± \d+\.\d", summary.rows[2][1])


def test_the_summary_says_of_rows_that_a_tenth_was_held_out():
    def firsts(table, **wanted):
        made = plan(table, settings("softmax", "tau-norm", "causal-norm", seeds=1, **wanted))
        return [row[0] for row in table_outcome.outcome(made, load).summary.rows]

    names = ["Softmax", "Decouple-τ-norm", "Causal Norm"]
    assert sorted(firsts("lade-table-3")) == sorted(names)
    held_out = [names[0], *(f"{name}, a tenth held out" for name in names[1:])]
    assert sorted(firsts("lade-table-5")) == sorted(held_out)


@pytest.mark.parametrize(("seeds", "label"), [(1, "ours, one seed"), (2, "ours, mean ± sd")])
def test_the_label_of_a_panel_says_a_spread_only_where_there_is_one(seeds, label):
    made = plan("lade-table-2", settings("softmax", "lade", columns=("50",), seeds=seeds))
    (ax,) = table_outcome.outcome(made, load).figure.axes
    assert [bar.get_label() for bar in ax.containers] == [label]


def test_a_few_columns_are_drawn_as_panels(made):
    entries = tables.entries_of(made, load)
    figure = table_outcome.outcome(made, load).figure
    assert [ax.get_title() for ax in figure.axes] == [column.heading for column in made.columns]
    for ax, column in zip(figure.axes, made.columns, strict=True):
        line = [entries[row.name, column.name] for row in made.rows]
        (ours,) = (bar.lines[0] for bar in ax.containers)
        assert ours.get_xdata() == pytest.approx([entry.spread.mean for entry in line])
        (diamonds,) = (drawn for drawn in ax.lines if drawn.get_label() == "published")
        printed = [entry.published for entry in line if entry.published is not None]
        assert diamonds.get_xdata() == pytest.approx(printed)
        assert list(diamonds.get_ydata()) == [0, 1, 2, 3]


def test_many_columns_are_drawn_as_lines():
    made = plan("lade-table-9", settings("softmax", "lade", "logit-adjusted", seeds=2))
    entries = tables.entries_of(made, load)
    (ax,) = table_outcome.outcome(made, load).figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == [column.heading for column in made.columns]
    solid = {line.get_label(): line.get_ydata() for line in ax.lines if line.get_linestyle() == "-"}
    dashed = [line.get_ydata() for line in ax.lines if line.get_linestyle() == "--"]
    for row, published in zip(made.rows, dashed, strict=True):
        line = [entries[row.name, column.name] for column in made.columns]
        assert solid[row.published] == pytest.approx([entry.spread.mean for entry in line])
        expected = [math.nan if entry.published is None else entry.published for entry in line]
        assert published == pytest.approx(expected, nan_ok=True)


# From the command line

ROWS = ("softmax", "pc-softmax", "balanced-softmax", "lade")


def tiny(epochs=1):
    return replace(
        recipes.digits_softmax(),
        model=Part(name="small-cnn", options={"width": 4}),
        stages=(replace(recipes.digits_softmax().stages[0], epochs=epochs),),
        device="cpu",
    )


def digits_instead(monkeypatch, epochs):
    """Train on digits, whose source takes no `held_out`: what a run holds out is read off its name."""
    comparable = tables.Plan.comparable

    def stated(made):
        shares = {name: 0.1 if "-held-out-" in name else 0.0 for name in made.configs}
        configs = {
            name: replace(config, data=Part(name="digits-lt", options={"held_out": shares[name]}))
            for name, config in made.configs.items()
        }
        return comparable(replace(made, configs=configs))

    monkeypatch.setattr(tables.Plan, "comparable", stated)
    monkeypatch.setattr(
        "priorshift.reproduce.tables.training",
        lambda row, column, paper, budget: with_method(tiny(epochs), row.method),
    )


@pytest.fixture
def on_digits(monkeypatch):
    digits_instead(monkeypatch, epochs=1)


def reproduce(folder, *options, table="lade-table-9", rows=ROWS, columns=("uniform", "forward:50")):
    paths = ["--runs", str(folder / "runs"), "-o", str(folder / "out")]
    chosen = ["--rows", *rows, "--columns", *columns]
    return main(["reproduce", table, *paths, "--budget", "small", *chosen, "--seeds", "2", *options])


def stamps(folder):
    files = (*folder.rglob("*.safetensors"), *folder.rglob("*.jsonl"))
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_table_is_trained_reported_and_said_and_then_only_said(on_digits, tmp_path, capsys):
    assert reproduce(tmp_path) == 0
    text = capsys.readouterr().out
    assert text.count("trained and predicted") == 6
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("cells.csv", "seeds.csv", "figure.svg", "figure.png", "verdict.md"),
        "report-small-lade-cifar100-lt-50.html",
    }
    page = (tmp_path / "out" / "verdict.md").read_text(encoding="utf-8")
    said = page.splitlines()[2]
    assert said in text and said.startswith(f"Made with a {SMALL}")
    assert (
        "Command: `priorshift reproduce lade-table-9 --rows softmax pc-softmax balanced-softmax lade "
        "--columns uniform forward:50 --seeds 2 --budget small " in page
    )
    report = (tmp_path / "out" / "report-small-lade-cifar100-lt-50.html").read_text(encoding="utf-8")
    assert SMALL.replace("'", "&#39;") in report
    runs = {path.parent.name for path in (tmp_path / "runs").rglob("predictions-test.safetensors")}
    assert runs == {f"{row}-seed{seed}" for row in ROWS if row != "pc-softmax" for seed in range(2)}
    assert not list((tmp_path / "runs").rglob("predictions-validation.safetensors"))
    run = tmp_path / "runs" / "small-lade-cifar100-lt-50" / "softmax-seed1"
    predictions = Predictions.load(run / "predictions-test.safetensors")
    (cell,) = (
        line
        for line in read(tmp_path / "out" / "seeds.csv")
        if (line["row"], line["column"], line["seed"]) == ("softmax", "uniform", "1")
    )
    hits = predictions.predicted == predictions.labels
    assert float(cell["ours"]) == pytest.approx(100 * float(hits.mean()))

    before, files = (
        stamps(tmp_path / "runs"),
        {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix != ".html"},
    )
    assert reproduce(tmp_path) == 0
    text = capsys.readouterr().out
    assert (text.count("trained and predicted"), text.count("complete already")) == (0, 6)
    assert stamps(tmp_path / "runs") == before
    assert files == {name: (tmp_path / "out" / name).read_bytes() for name in files}


@pytest.mark.slow
def test_another_table_takes_the_runs_that_are_there(on_digits, tmp_path, capsys):
    assert reproduce(tmp_path) == 0
    capsys.readouterr()
    assert reproduce(tmp_path, table="lade-table-10", columns=("ece", "nll")) == 0
    text = capsys.readouterr().out
    assert (text.count("trained and predicted"), text.count("complete already")) == (0, 6)


def test_a_row_that_chooses_gets_validation_predictions_and_no_place_in_the_report(on_digits, tmp_path):
    wanted = {"rows": ("post-hoc-best",), "columns": ("imagenet-lt-resnet50", "inaturalist18-resnet50-90")}
    assert reproduce(tmp_path, table="la-table-3", **wanted) == 0
    for seed in range(2):
        for run in (f"imagenet-lt/softmax-seed{seed}", f"inaturalist18/softmax-held-out-seed{seed}"):
            assert (tmp_path / "runs" / f"small-la-{run}" / "predictions-validation.safetensors").is_file()
    # On ImageNet-LT it has seen the images that all others have seen.
    assert [path.name for path in (tmp_path / "out").glob("report-*")] == ["report-small-la-imagenet-lt.html"]


@pytest.mark.parametrize(("budget", "end"), [("full", ""), ("small", "-small")])
def test_the_folder_of_an_outcome_is_named_by_target_and_small_budget(
    budget, end, on_digits, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    chosen = ["--rows", "softmax", "--columns", "uniform", "--seeds", "1", "--budget", budget]
    assert main(["reproduce", "lade-table-9", *chosen]) == 0
    folders = {path.name for path in (tmp_path / "runs" / "reproduce").iterdir()}
    assert folders == {"trainings", f"lade-table-9{end}"}
    assert (tmp_path / "runs" / "reproduce" / f"lade-table-9{end}" / "verdict.md").is_file()


def test_a_killed_training_loses_a_minute_at_most(on_digits, tmp_path, monkeypatch):
    seen = []

    def watched(config, folder, *, checkpointing, on_epoch):
        seen.append(checkpointing)
        return train(config, folder, checkpointing=checkpointing, on_epoch=on_epoch)

    monkeypatch.setattr(_runs, "train", watched)
    assert reproduce(tmp_path, rows=("softmax",), columns=("uniform",)) == 0
    assert seen == [Checkpointing(minutes=1.0)] * 2


def test_missing_data_are_one_sentence_with_the_column_before_any_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PRIORSHIFT_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(_runs, "train", None)
    assert reproduce(tmp_path, table="lade-table-2", columns=("50",)) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("priorshift: Column 50: Expected cifar100 in ")
    assert shown.err.endswith(
        " `reproduce` finds data through PRIORSHIFT_DATA; `--columns` chooses others.\n"
    )
    assert shown.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_device_is_one_sentence_before_data_are_looked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PRIORSHIFT_DATA", str(tmp_path / "nowhere"))
    assert reproduce(tmp_path, "--device", "abacus", table="lade-table-2", columns=("50",)) == 2
    said = "priorshift: Expected `device` to be auto or one of this machine, but got 'abacus'.\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--jobs", "0"], "Expected `jobs` to be at least 1, but got 0"),
        (["--seeds", "0"], "Expected `seeds` to be at least 1, but got 0"),
        (["--rows", "hope"], "but got 'hope'"),
        (["--budget", "tiny"], "'tiny'"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_starts(options, complaint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("priorshift.commands.reproduce._require_data", None)
    assert reproduce(tmp_path, *options) == 2
    shown = capsys.readouterr()
    assert complaint in shown.err and shown.err.count("\n") == 1
    assert not shown.out and not list(tmp_path.iterdir())


def test_rows_that_are_left_out_are_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PRIORSHIFT_DATA", str(tmp_path / "nowhere"))
    assert main(["reproduce", "lade-table-3"]) == 2
    assert capsys.readouterr().out.startswith("left out: The method 'oltr' puts attention before")


# Several processes

EPOCHS = 4
FOUR = {f"run{seed}": replace(tiny(EPOCHS), seed=seed) for seed in range(4)}


def work(folder, configs, jobs, pauses):
    """Complete runs, with a log; maybe stand still after the last epoch but one of the first of them."""

    def watched(config, run, *, checkpointing, on_epoch):
        def paused(record):
            on_epoch(record)
            if pauses and record["epoch"] == EPOCHS - 1:
                (folder / "paused").touch()
                time.sleep(600)

        return train(config, run, checkpointing=Checkpointing(epochs=1), on_epoch=paused)

    _runs.train = watched
    with (folder / f"log{os.getpid()}").open("w") as log:
        _runs.complete_runs(configs, folder / "runs", Console(file=log), jobs=jobs)


@pytest.fixture
def start(tmp_path):
    """Start another process that works in this folder; none outlives the test."""
    fork = multiprocessing.get_context("fork")
    started = []

    def one(configs=FOUR, jobs=1, pauses=False):
        started.append(fork.Process(target=work, args=(tmp_path, configs, jobs, pauses)))
        started[-1].start()
        return started[-1]

    yield one
    for process in started:
        process.kill()
        process.join()


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def trained_by(folder, process):
    """The runs that the log of a process says it trained."""
    log = (folder / f"log{process.pid}").read_text(encoding="utf-8")
    return re.findall(r"(run\d)  trained and predicted", log)


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """The predictions of a process that does everything alone."""
    folder = tmp_path_factory.mktemp("control")
    for name, config in FOUR.items():
        train(config, folder / name)
    return {name: predict(folder / name, device="cpu").logits for name in FOUR}


def assert_complete(folder, control):
    """Every run has each epoch once, and the predictions of the control."""
    for name, logits in control.items():
        run = Run(folder / "runs" / name)
        epochs = [json.loads(line)["epoch"] for line in run.metrics_file.read_text().splitlines()]
        assert epochs == list(range(1, EPOCHS + 1))
        assert np.array_equal(Predictions.load(run.predictions_file("test")).logits, logits)
        assert not list(run.folder.glob("checkpoint-*"))


def test_two_workers_at_the_same_runs_do_none_twice(tmp_path, start, control):
    workers = [start(), start()]
    for process in workers:
        process.join(60)
    assert [process.exitcode for process in workers] == [0, 0]
    assert sorted([name for process in workers for name in trained_by(tmp_path, process)]) == sorted(FOUR)
    assert_complete(tmp_path, control)


def test_the_run_of_a_worker_is_left_alone_and_resumed_once_it_is_killed(tmp_path, start, control):
    first = start(pauses=True)
    wait_for((tmp_path / "paused").exists)
    second = start()
    others = [Run(tmp_path / "runs" / name).predictions_file("test") for name in list(FOUR)[1:]]
    wait_for(lambda: all(file.exists() for file in others))
    held = Run(tmp_path / "runs" / "run0")
    assert second.is_alive() and not held.weights_file.exists()
    lines = held.metrics_file.read_bytes().splitlines()
    assert len(lines) == EPOCHS - 1
    os.kill(first.pid, signal.SIGKILL)
    second.join(60)
    assert second.exitcode == 0
    assert sorted(trained_by(tmp_path, second)) == sorted(FOUR)
    # A line states the seconds that its epoch took: these are still of the killed process.
    resumed_at = EPOCHS - 2
    assert held.metrics_file.read_bytes().splitlines()[:resumed_at] == lines[:resumed_at]
    assert_complete(tmp_path, control)


@pytest.mark.slow
def test_jobs_start_processes_that_do_part_of_the_work(on_digits, tmp_path, capsys, monkeypatch):
    """The first training of this process waits until the other process has completed a run."""
    others, by_me = [], []

    def patient(config, folder, *, checkpointing, on_epoch):
        others.extend(multiprocessing.active_children())
        wait_for(lambda: list((tmp_path / "runs").rglob("predictions-test.safetensors")))
        by_me.append(folder.name)
        return train(config, folder, checkpointing=checkpointing, on_epoch=on_epoch)

    monkeypatch.setattr(_runs, "train", patient)
    assert reproduce(tmp_path, "--jobs", "2") == 0
    (other,) = set(others)
    assert not other.daemon  # such a process may not start those that read stored images
    assert not multiprocessing.active_children()
    text = capsys.readouterr().out
    assert text.count("trained and predicted") == len(by_me) < 6
    assert len(list((tmp_path / "runs").rglob("predictions-test.safetensors"))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("it broke")])
def test_no_process_outlives_an_interrupt_or_an_error(error, tmp_path, capfd, monkeypatch):
    digits_instead(monkeypatch, epochs=100_000)
    others = []

    def broken(config, folder, *, checkpointing, on_epoch):
        others.extend(multiprocessing.active_children())
        wait_for(lambda: any(file.stat().st_size for file in (tmp_path / "runs").rglob("metrics.jsonl")))
        raise error

    monkeypatch.setattr(_runs, "train", broken)
    assert reproduce(tmp_path, "--jobs", "2") == (130 if error is KeyboardInterrupt else 2)
    assert len(others) == 1
    assert not multiprocessing.active_children() and not others[0].is_alive()
    said = "interrupted" if error is KeyboardInterrupt else "it broke"
    assert capfd.readouterr().err == f"priorshift: {said}\n"
    # Nothing that the other process has done is lost.
    assert len(list((tmp_path / "runs").rglob("checkpoint-*.safetensors"))) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_process_ends_with_the_one_that_started_it(tmp_path, start):
    """Even when that one is killed and can tell nobody."""
    endless = {name: replace(tiny(100_000), seed=seed) for seed, name in enumerate(("run0", "run1"))}
    first = start(endless, jobs=2, pauses=True)
    metrics = [Run(tmp_path / "runs" / name).metrics_file for name in endless]
    wait_for(lambda: all(file.exists() and file.stat().st_size for file in metrics))
    os.kill(first.pid, signal.SIGKILL)
    for name in endless:
        with FileLock(tmp_path / "runs" / name / _runs.LOCK, timeout=30):
            pass


# The network of small trainings


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"width": 0}, "`width` to be a positive even number, but got 0"),
        ({"width": 15}, "`width` to be a positive even number, but got 15"),
        ({"width": -2}, "`width` to be a positive even number, but got -2"),
        ({"branches": 0}, "`branches` to be positive, but got 0"),
    ],
)
def test_strided_cnn_refuses_what_it_cannot_build(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        StridedCNN(3, **options)


def test_strided_cnn_convolves_at_half_the_resolution_and_below():
    sizes = []
    backbone = StridedCNN(3, width=8, branches=2)
    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, given, out: sizes.append(tuple(out.shape[1:])))
    assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, backbone.num_features) == (2, 96)
    assert sizes == [(8, 16, 16), (8, 16, 16), (20, 8, 8), (48, 4, 4), (48, 4, 4)]


@pytest.mark.parametrize("method", ["bbn", "oltr"])
def test_bilateral_training_and_oltr_train_strided_cnn(method, tmp_path):
    plain = TrainConfig(
        method="Softmax",
        data=Part(name="digits-lt"),
        model=Part(name="strided-cnn", options={"width": 4}),
        stages=(Stage(loss=Part(name="cross-entropy"), epochs=2, optimizer=Optimizer(lr=0.05)),),
        batch_size=64,
        augmentation=Augmentation(shift=1),
        device="cpu",
    )
    config = with_method(plain, method)
    records = []
    run = train(config, tmp_path / "run", on_epoch=records.append)
    assert {record["stage"] for record in records} == set(range(len(config.stages)))
    assert all(math.isfinite(record["loss"]) for record in records)
    assert np.isfinite(predict(run.folder, device="cpu").logits).all()
    option = {"bbn": {"branches": 2}, "oltr": {"attention": True}}[method]
    assert config.model.options == {"width": 4, **option}
