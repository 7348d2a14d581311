"""The command line: verbs end to end, and one sentence for a user's mistake."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import priorshift
from priorshift import Predictions, Prior, recipes
from priorshift.cli import VERBS, main
from priorshift.commands import _runs, quickstart
from priorshift.commands import train as train_verb
from priorshift.training import Part, Run

QUICKSTART_RUNS = ("digits-softmax", "digits-balanced-softmax", "digits-lade")


def assert_one_line(capsys, *words, code=2):
    streams = capsys.readouterr()
    assert streams.err.count("\n") == 1 and streams.err.endswith("\n")
    assert streams.err.startswith("priorshift: ")
    for word in words:
        assert word in streams.err
    return code


@pytest.fixture
def predictions_file(tmp_path):
    labels = np.arange(30) % 3
    logits = (np.random.default_rng(0).normal(size=(30, 3)) + 2 * np.eye(3)[labels]).astype(np.float32)
    predictions = Predictions(
        logits=logits,
        labels=labels,
        carried=Prior([0.6, 0.3, 0.1]),
        train_counts=[60, 30, 10],
        class_names=("cat", "dog", "horse"),
        method="Softmax",
        fingerprint="ab12",
    )
    predictions.save(tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


def rewrite(path, **arrays):
    """Replace arrays of a file, and leave its digest out, as a program of somebody else would."""
    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["priorshift"])
    del header["digest"]
    save_file(load_file(path) | arrays, path, metadata={"priorshift": json.dumps(header)})


def shrink(config):
    """Two epochs of a very small network."""
    stages = tuple(replace(stage, epochs=2) for stage in config.stages)
    return replace(config, stages=stages, model=Part(name="small-cnn", options={"width": 4}))


@pytest.fixture
def short_recipes(monkeypatch):
    for name in recipes.__all__:
        config = shrink(getattr(recipes, name)())
        monkeypatch.setattr(recipes, name, functools.partial(lambda config: config, config))


# What to type


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_verb(flag, capsys):
    assert main([flag]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} +\w", text, re.MULTILINE) for verb in VERBS)


def test_nothing_typed_shows_the_help_but_is_a_mistake(capsys):
    assert main([]) == 2
    assert "usage: priorshift VERB" in capsys.readouterr().out


def test_the_version_is_the_package_s(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"priorshift {priorshift.__version__}\n"


def loaded_by(*argv):
    """The modules that a verb loads, in a process of its own."""
    code = (
        "import sys; from priorshift.cli import main; assert main(sys.argv[1:]) == 0; "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_loads_no_arrays_and_no_event_loop():
    heavy = {"numpy", "scipy", "matplotlib", "rich", "typeguard", "asyncio", "safetensors", "jaxtyping"}
    for verb in ("adapt", "evaluate"):
        assert not loaded_by(verb, "--help") & heavy


def test_adapt_draws_nothing_unless_it_is_asked_for_a_page(predictions_file):
    output = str(predictions_file.with_name("adapted.safetensors"))
    heavy = {"torch", "scipy.optimize", "scipy.stats", "matplotlib", "jinja2", "pandas", "sklearn"}
    assert not loaded_by("adapt", str(predictions_file), "-o", output) & heavy


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("quickstart", "--seeds"),
        ("predict", "--split"),
        ("evaluate", "--target"),
        ("report", "--title"),
        ("train digits-softmax", "--batch-size"),
    ],
)
def test_every_verb_lists_its_options(verb, option, capsys):
    assert main([*verb.split(), "--help"]) == 0
    assert option in capsys.readouterr().out


def test_the_help_of_train_lists_every_recipe(capsys):
    for flag in ("--help", "-h"):
        assert main(["train", flag]) == 0
        streams = capsys.readouterr()
        assert "usage: priorshift train RECIPE" in streams.out and streams.err == ""
        assert all(name.replace("_", "-") in streams.out for name in recipes.__all__)


# A user's mistake is one sentence and exit code 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fly"], ["no verb 'fly'", *VERBS]),
        (["train"], ["Expected a recipe", "digits-softmax"]),
        (["train", "--seed", "1"], ["Expected a recipe"]),
        (["train", "imagenet"], ["no recipe 'imagenet'", "digits-lade"]),
        (["train", "nowhere/config.json"], ["no config file nowhere/config.json"]),
        (["train", "digits-softmax", "--device", "cuda:99", "--output", "OUT"], ["`device`", "'cuda:99'"]),
        (["train", "digits-softmax", "--stages.0.loss.name", "hope", "--output", "OUT"], ["no loss 'hope'"]),
        (["predict", "nowhere"], ["nowhere is no run folder"]),
        (["evaluate", "nowhere.safetensors"], ["no predictions file nowhere.safetensors"]),
        (["report", "nowhere.safetensors"], ["no predictions file nowhere.safetensors"]),
        (["report"], ["at least one run folder"]),
        (["quickstart", "--seeds", "0"], ["`seeds` to be at least 1, but got 0"]),
        (["predict", "run", "--splitt", "test"], ["Unrecognized options: --splitt, test; see"]),
        (["predict", "run", "surplus"], ["Unrecognized options: surplus"]),
        (["predict"], ["Missing", "PATH", "Run folder"]),
        (["evaluate", "--draws", "5"], ["Missing", "PATH"]),
        (["predict", "run", "--split", "dev"], ["--split", "'dev'", "validation"]),
        (["quickstart", "--seeds", "many"], ["--seeds", "'many'"]),
        (["quickstart", "--seeds"], ["--seeds"]),
        (["report", "run", "--titel", "Digits"], ["--titel"]),
        (["evaluate", "p.safetensors", "--draws", "1.5"], ["--draws", "'1.5'"]),
        (["train", "digits-softmax", "--bogus", "3"], ["--bogus"]),
        (["train", "digits-softmax", "--method=hope"], ["no method 'hope'"]),
        (["train", "digits-softmax", "--method"], ["--method"]),
        (["train", "digits-softmax", "--method", "crt", "--method", "ncm"], ["one `--method`, but got 2"]),
        (["train", "digits-softmax", "--method", "hope"], ["no method 'hope'", "crt", "causal-norm"]),
        (["train", "digits-softmax", "--seed", "x"], ["--seed", "'x'"]),
        (["train", "digits-softmax", "--seed", "-1"], ["`seed` to be non-negative, but got -1"]),
        (
            ["train", "digits-softmax", "--stages.0.epochs", "0"],
            ["stages.0", "`epochs` to be positive", "got 0"],
        ),
        (["train", "digits-softmax", "--stages.0.epochs", "few"], ["--stages.0.epochs", "'few'"]),
        (["train", "digits-softmax", "--stages.1.epochs", "3"], ["--stages.1.epochs"]),
        (["train", "digits-softmax", "--stages.0.optimizer.lr", "-1"], ["optimizer", "`lr` to be positive"]),
        (
            ["train", "digits-softmax", "--stages.0.sampler", "hope"],
            ["--stages.0.sampler", "'hope'", "reversed"],
        ),
        (["train", "digits-softmax", "--head.name", "hope", "--output", "OUT"], ["no head 'hope'", "linear"]),
        (["reproduce", "la-figure-2", "--bogus", "3"], ["--bogus"]),
    ],
    ids=lambda value: " ".join(value[:4]),
)
def test_a_mistake_is_one_sentence(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(tmp_path / "out") if part == "OUT" else part for part in argv]) == 2
    assert_one_line(capsys, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_sentence_is_the_same_whatever_the_terminal_can_show(encoding):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from priorshift.cli import entry_point; entry_point()",
            "predict",
            "run",
            "--splitt",
            "test",
        ],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    sentence = "priorshift: Unrecognized options: --splitt, test; see `priorshift predict --help`.\n"
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", sentence)


@pytest.mark.parametrize("verb", ["evaluate", "report"])
def test_a_truncated_predictions_file_is_one_sentence(verb, capsys, predictions_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predictions_file.write_bytes(predictions_file.read_bytes()[:300])
    assert main([verb, str(predictions_file)]) == 2
    assert_one_line(capsys, str(predictions_file), "truncated")


@pytest.mark.parametrize("verb", ["evaluate", "report"])
def test_labels_out_of_range_are_one_sentence(verb, capsys, predictions_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewrite(predictions_file, labels=np.full(30, 7))
    assert main([verb, str(predictions_file)]) == 2
    assert_one_line(capsys, str(predictions_file), "`labels` between 0 and 2, but got 7")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[0.5, 0.5]", ["with one entry per class, 3, but got 2"]),
        ("[0.5, 0.5, -1]", ["non-negative"]),
        ('{"cat": 1, "dog": 1}', ["missing are 'horse'"]),
        ('{"cat": 1, "dog": 1, "horse": 1, "cow": 1}', ["unknown are 'cow'"]),
        ('["a", "b", "c"]', ["real numbers"]),
        ("[0.5, 0.5", ["to hold JSON"]),
        ("3", ["a list of 3 numbers"]),
    ],
)
def test_a_mix_in_a_file_that_does_not_fit_is_one_sentence(content, words, capsys, predictions_file):
    mix = predictions_file.with_name("mix.json")
    mix.write_text(content)
    assert main(["evaluate", str(predictions_file), "--target", str(mix)]) == 2
    assert_one_line(capsys, "mix.json", *words)


@pytest.mark.parametrize("target", ["sideways:50", "forward", "forward:x", "forward:0.5", "nowhere.json"])
def test_an_unknown_mix_is_one_sentence(target, capsys, predictions_file):
    assert main(["evaluate", str(predictions_file), "--target", target]) == 2
    assert_one_line(capsys)


def test_predictions_without_labels_cannot_be_evaluated(capsys, predictions_file):
    replace(Predictions.load(predictions_file), labels=None).save(predictions_file)
    assert main(["evaluate", str(predictions_file)]) == 2
    assert_one_line(capsys, "`labels`")


@pytest.mark.parametrize("target", ["source", "forward:5", "backward:5"])
def test_a_mix_defined_by_training_counts_needs_them(target, capsys, predictions_file):
    replace(Predictions.load(predictions_file), train_counts=None).save(predictions_file)
    assert main(["evaluate", str(predictions_file), "--target", target]) == 2
    assert_one_line(capsys, target, "training counts", str(predictions_file))


def test_a_sentence_stays_on_one_line_whatever_it_quotes(capsys):
    assert main(["evaluate", "no\nwhere"]) == 2
    assert_one_line(capsys, "no where")


def test_debug_shows_where_it_happened():
    with pytest.raises(FileNotFoundError):
        main(["evaluate", "nowhere.safetensors", "--debug"])
    with pytest.raises(FileNotFoundError):
        main(["--debug", "evaluate", "nowhere.safetensors"])


def test_a_missing_extra_is_one_sentence_with_the_command_that_installs_it(capsys, monkeypatch):
    for module, extra in (
        ("rich", "cli"),
        ("torch", "torch"),
        ("torch.nn", "torch"),
        ("timm", "train"),
        ("pyarrow.parquet", "train"),
        ("onnx", "export"),
    ):

        def refuse(name, *arguments, module=module):
            raise ModuleNotFoundError(f"No module named '{module}'", name=module)

        monkeypatch.setattr(priorshift.cli.importlib, "import_module", refuse)
        assert main(["evaluate", "p.safetensors"]) == 2
        assert_one_line(capsys, f"needs {module.partition('.')[0]}", f'pip install ".[{extra}]"')


def test_a_fault_of_ours_is_not_called_a_user_s(monkeypatch):
    def broken(name, *arguments):
        raise ModuleNotFoundError("No module named 'priorshift.hope'", name="priorshift.hope")

    monkeypatch.setattr(priorshift.cli.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        main(["evaluate", "p.safetensors"])


def test_an_interrupt_is_one_line_and_exit_code_130(capsys, tmp_path, monkeypatch, short_recipes):
    monkeypatch.setattr(train_verb, "train", interrupt)
    assert main(["train", "digits-softmax", "--output", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "priorshift: interrupted"


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


# Evaluate


def test_scores_stand_side_by_side(capsys, predictions_file):
    assert main(["evaluate", str(predictions_file), "--target", "backward:50"]) == 0
    streams = capsys.readouterr()
    text = streams.out
    for word in ("Softmax on backward:50", "as they are", "compensated", "nll", "effective sample size"):
        assert word in text
    assert "\x1b" not in text and streams.err == ""
    row = next(line for line in text.splitlines() if "accuracy" in line)
    shown = [float(number) for number in re.findall(r"\d\.\d{4}", row)]
    assert shown == pytest.approx(accuracies_on_backward_50(predictions_file), abs=5e-5)


def accuracies_on_backward_50(file):
    """As they are and compensated, by definition."""
    arrays = load_file(file)
    target = np.array([1 / 50, 1 / 50**0.5, 1.0])
    compensated = arrays["logits"].astype(np.float64) - np.log([0.6, 0.3, 0.1]) + np.log(target)
    accuracies = []
    for logits in (arrays["logits"], compensated):
        right = logits.argmax(axis=1) == arrays["labels"]
        by_class = [right[arrays["labels"] == label].mean() for label in range(3)]
        accuracies.append((target * by_class).sum() / target.sum())
    return accuracies


def test_an_empty_group_is_shown_as_not_available(capsys, predictions_file):
    assert main(["evaluate", str(predictions_file)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "many" in line)
    assert row.count("n/a") == 2


def test_draws_are_shown_with_their_intervals(capsys, predictions_file):
    argv = ["evaluate", str(predictions_file), "--target", "forward:5", "--draws", "5", "--seed", "1"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert re.search(r"0\.\d{4} \(0\.\d{4} to [01]\.\d{4}\)", text)
    assert "5 draws of" in text


def test_a_mix_can_come_from_a_file_by_name_or_by_order(capsys, predictions_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    replace(Predictions.load(predictions_file), train_counts=None).save(predictions_file)
    tables = []
    for name, mix in (
        ("source-2024.json", [2, 3, 5]),
        ("forward-look.json", {"horse": 0.5, "cat": 0.2, "dog": 0.3}),
    ):
        (tmp_path / name).write_text(json.dumps(mix))
        assert main(["evaluate", "p.safetensors", "--target", name]) == 0
        tables.append(capsys.readouterr().out.splitlines()[1:])
    assert tables[0] == tables[1]


# Train, predict, evaluate, report


def test_from_a_recipe_to_a_report(tmp_path, capsys, monkeypatch, short_recipes):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    train = ["train", "digits-softmax", "--stages.0.epochs", "2", "--output", str(folder), "--seed", "4"]
    assert main([*train, "--device", "cpu"]) == 0
    streams = capsys.readouterr()
    assert "\x1b" not in streams.out + streams.err
    assert f"next: priorshift predict {folder}" in streams.out
    config = Run(folder).config()
    assert (config.stages[0].epochs, config.seed, config.device) == (2, 4, "cpu")
    assert len(Run(folder).metrics_file.read_text().splitlines()) == 2

    assert main(["predict", str(folder)]) == 0
    file = folder / "predictions-test.safetensors"
    assert str(file) in capsys.readouterr().out
    assert Predictions.load(file).facts["seed"] == 4
    assert main(["predict", str(folder), "--split", "validation", "--output", "v.safetensors"]) == 0
    assert Predictions.load("v.safetensors").num_samples == 140

    for options in ([], ["--draws", "5"]):
        capsys.readouterr()
        assert main(["evaluate", str(file), "--target", "forward:50", *options]) == 0
        assert "accuracy" in capsys.readouterr().out

    assert main(["report", str(folder), "--title", "Digits"]) == 0
    assert "report.html" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Digits" in page and "</html>" in page


def test_a_complete_run_is_not_trained_again_and_another_one_not_overwritten(tmp_path, capsys, short_recipes):
    folder = tmp_path / "run"
    argv = ["train", "digits-softmax", "--device", "cpu", "--output", str(folder)]
    assert main(argv) == 0
    weights = Run(folder).weights_file
    before = weights.read_bytes(), weights.stat().st_mtime_ns
    capsys.readouterr()

    assert main(argv) == 0
    assert "already holds this run, complete" in capsys.readouterr().out
    assert main([*argv, "--seed", "1"]) == 2
    assert_one_line(capsys, str(folder), "another run", "--overwrite")
    assert (weights.read_bytes(), weights.stat().st_mtime_ns) == before

    assert main([*argv, "--seed", "1", "--overwrite"]) == 0
    assert weights.read_bytes() != before[0]
    Run(folder).config_file.write_text("{")
    assert main(argv) == 2
    assert main([*argv, "--overwrite"]) == 0
    assert weights.read_bytes() == before[0]


def test_a_saved_config_starts_the_same_run_again(tmp_path, capsys, short_recipes):
    first, again = tmp_path / "first", tmp_path / "again"
    assert main(["train", "digits-lade", "--device", "cpu", "--seed", "2", "--output", str(first)]) == 0
    assert main(["train", str(first / "config.json"), "--output", str(again)]) == 0
    assert Run(again).config() == Run(first).config()
    assert Run(again).weights_file.read_bytes() == Run(first).weights_file.read_bytes()


def test_every_field_of_a_recipe_is_an_option(tmp_path, capsys, short_recipes):
    folder = tmp_path / "run"
    changes = {
        "--stages.0.optimizer.lr": "0.2",
        "--stages.0.optimizer.schedule": "constant",
        "--stages.0.epochs": "1",
        "--stages.0.sampler": "class-balanced",
        "--head.name": "cosine",
        "--batch-size": "50",
        "--augmentation.shift": "2",
    }
    options = [word for change in changes.items() for word in change]
    assert main(["train", "digits-softmax", *options, "--device", "cpu", "--output", str(folder)]) == 0
    config, recipe = Run(folder).config(), recipes.digits_softmax()
    stage = config.stages[0]
    assert (stage.optimizer.lr, stage.optimizer.schedule) == (0.2, "constant")
    assert stage.optimizer == replace(recipe.stages[0].optimizer, lr=0.2, schedule="constant")
    assert (stage.epochs, stage.sampler) == (1, "class-balanced")
    assert (config.head.name, config.batch_size, config.augmentation.shift) == ("cosine", 50, 2)
    assert (config.data, config.model, config.seed) == (recipe.data, recipe.model, recipe.seed)
    assert main(["predict", str(folder)]) == 0
    assert Predictions.load(Run(folder).predictions_file("test")).carried.matches(Prior.uniform(10))


def test_a_method_is_more_than_its_name_however_it_is_typed(tmp_path, capsys, short_recipes):
    for number, words in enumerate((["--method", "crt"], ["--method=crt"])):
        folder = tmp_path / str(number)
        argv = ["train", "digits-softmax", *words, "--device", "cpu", "--output", str(folder)]
        assert main(argv) == 0
        config = Run(folder).config()
        assert (config.method, config.stages[1].trains) == ("cRT", "head")
        assert Run(folder).finished(config)


def test_runs_go_where_their_recipe_and_seed_say(tmp_path, capsys, monkeypatch, short_recipes):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits-softmax", "--device", "cpu", "--seed", "3"]) == 0
    assert Run(tmp_path / "runs" / "digits-softmax-seed3").weights_file.is_file()


# Quickstart


@pytest.fixture
def no_page(monkeypatch):
    """Leave out the drawing of the page and its accuracy gaps, which other tests see to."""

    def write_page(runs, path, **options):
        path.write_text("page")
        return path

    monkeypatch.setattr(quickstart, "write_report", write_page)
    monkeypatch.setattr(quickstart, "oracle_gaps_by_method", lambda runs: {})


def start(folder, seeds=1):
    return main(["quickstart", "--seeds", str(seeds), "--output", str(folder)])


def predictions_of(folder, seeds=1):
    return {
        (name, seed): (folder / f"{name}-seed{seed}" / "predictions-test.safetensors").read_bytes()
        for name in QUICKSTART_RUNS
        for seed in range(seeds)
    }


def test_quickstart_leaves_runs_and_a_report_and_is_complete_the_second_time(tmp_path, capsys, short_recipes):
    assert start(tmp_path / "q") == 0
    first = capsys.readouterr()
    assert first.out.count("trained and predicted") == 3
    for word in ("Softmax", "Balanced", "LADE", "compensated", "uniform", "Effective", "report.html"):
        assert word in first.out
    assert "\x1b" not in first.out + first.err
    names = {path.name for path in (tmp_path / "q").iterdir()}
    assert names == {"report.html", *(f"{name}-seed0" for name in QUICKSTART_RUNS)}
    for name in QUICKSTART_RUNS:
        files = {path.name for path in (tmp_path / "q" / f"{name}-seed0").iterdir()}
        predicted = {f"predictions-{split}.safetensors" for split in ("validation", "test")}
        assert files == {".lock", "config.json", "metrics.jsonl", "model.safetensors", *predicted}
    predictions, page = predictions_of(tmp_path / "q"), (tmp_path / "q" / "report.html").read_bytes()

    assert start(tmp_path / "q") == 0
    second = capsys.readouterr()
    assert second.out.count("complete already") == 3 and "trained" not in second.out
    assert predictions_of(tmp_path / "q") == predictions
    assert (tmp_path / "q" / "report.html").read_bytes() == page


def test_killed_half_way_and_started_again_quickstart_ends_complete_and_the_same(
    tmp_path, capsys, monkeypatch, short_recipes, no_page
):
    assert start(tmp_path / "whole", seeds=2) == 0
    capsys.readouterr()

    started = []
    train = _runs.train

    def stops_in_the_third_run(config, folder, *, on_epoch, **options):
        started.append(folder)

        def on_epoch_or_interrupt(record):
            if len(started) == 3:
                raise KeyboardInterrupt
            on_epoch(record)

        return train(config, folder, on_epoch=on_epoch_or_interrupt, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_runs, "train", stops_in_the_third_run)
        assert start(tmp_path / "killed", seeds=2) == 130
    assert len(started) == 3
    assert not (tmp_path / "killed" / "report.html").exists()
    capsys.readouterr()

    assert start(tmp_path / "killed", seeds=2) == 0
    text = capsys.readouterr().out
    assert (text.count("complete already"), text.count("trained and predicted")) == (2, 4)
    assert predictions_of(tmp_path / "killed", seeds=2) == predictions_of(tmp_path / "whole", seeds=2)
    for folder in (tmp_path / "killed").glob("*-seed*"):
        run = Run(folder)
        assert run.finished(run.config())
        assert len(run.metrics_file.read_text().splitlines()) == 2


def test_damaged_files_are_made_anew_and_only_those(tmp_path, capsys, short_recipes, no_page):
    assert start(tmp_path / "q", seeds=2) == 0
    whole = predictions_of(tmp_path / "q", seeds=2)
    capsys.readouterr()

    def truncate(file):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    runs = [Run(tmp_path / "q" / f"{name}-seed{seed}") for name in QUICKSTART_RUNS for seed in range(2)]
    truncate(runs[0].weights_file)
    runs[1].config_file.unlink()
    truncate(runs[2].predictions_file("test"))
    runs[3].predictions_file("test").unlink()
    truncate(runs[4].config_file)
    (runs[5].folder / ".model.safetensors.123.tmp").write_bytes(b"left by a killed process")
    assert start(tmp_path / "q", seeds=2) == 0
    outcomes = [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines() if "/6] " in line]
    assert [outcome.split(" in ")[0] for outcome in outcomes] == [
        "trained and predicted",
        "trained and predicted",
        "predicted",
        "predicted",
        "trained and predicted",
        "complete already",
    ]
    assert predictions_of(tmp_path / "q", seeds=2) == whole


def test_more_seeds_add_runs_and_keep_those_there_are(tmp_path, capsys, short_recipes, no_page):
    assert start(tmp_path / "q", seeds=1) == 0
    capsys.readouterr()
    assert start(tmp_path / "q", seeds=2) == 0
    text = capsys.readouterr().out
    assert (text.count("complete already"), text.count("trained and predicted")) == (3, 3)


def test_quickstart_gives_the_threads_back_it_found(tmp_path, monkeypatch, short_recipes):
    before = torch.get_num_threads()
    monkeypatch.setattr(_runs, "train", interrupt)
    try:
        torch.set_num_threads(before + 1)
        assert start(tmp_path / "q") == 130
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


KILLED = """
import sys
from dataclasses import replace
from functools import partial
from priorshift import recipes
from priorshift.cli import main
for name in recipes.__all__:
    config = getattr(recipes, name)()
    stages = tuple(replace(stage, epochs=20) for stage in config.stages)
    setattr(recipes, name, partial(replace, config, stages=stages))
main(["quickstart", "--seeds", "1", "--output", sys.argv[1]])
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_folder_that_the_next_one_completes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, "-c", KILLED, str(whole)], check=True, capture_output=True)
    second = Run(killed / "digits-balanced-softmax-seed0")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (second.metrics_file.exists() and second.metrics_file.stat().st_size > 1000):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not second.weights_file.exists()
    again = subprocess.run([sys.executable, "-c", KILLED, str(killed)], check=True, capture_output=True)
    assert again.stdout.count(b"complete already") == 1
    assert again.stdout.count(b"trained and predicted") == 2
    assert predictions_of(killed) == predictions_of(whole)
    assert (killed / "report.html").read_bytes() == (whole / "report.html").read_bytes()


def test_a_log_is_plain_lines(tmp_path, capsys, monkeypatch, short_recipes, no_page):
    monkeypatch.setattr("priorshift.commands._progress.LOG_EVERY_SECONDS", 0.0)
    assert start(tmp_path / "q") == 0
    lines = capsys.readouterr().out.splitlines()
    epochs = [line for line in lines if "epoch" in line]
    assert len(epochs) == 6
    pattern = r"\[1/3\] digits-softmax-seed0  epoch   1/2  loss +\d+\.\d{4}  validation +\d+\.\d %"
    assert re.fullmatch(pattern, epochs[0])
    assert not any(character in line for line in epochs for character in "\x1b\r")
