"""The Hugging Face layout: four files, a card with what was measured, and the same logits after loading."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from priorshift import recipes
from priorshift.evaluation import evaluate
from priorshift.hub import load_pretrained, push, save_pretrained
from priorshift.recipes.methods import with_method
from priorshift.training import Part, Preparation, TrainConfig, predict, train
from priorshift.training.build import load_data

FILES = ["README.md", "config.json", "model.safetensors", "training_config.json"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two stages, the second with a head of its own."""
    config = with_method(recipes.digits_softmax(), "crt")
    config = replace(
        config,
        stages=tuple(replace(stage, epochs=1) for stage in config.stages),
        model=Part(name="small-cnn", options={"width": 4}),
        preparation=Preparation(mean=(0.3,), std=(0.4,)),
        device="cpu",
    )
    folder = tmp_path_factory.mktemp("runs") / "digits-crt"
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    save_pretrained(run, folder, license="mit")
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_loaded_scorer_says_what_the_run_predicts(run, saved):
    scorer = load_pretrained(saved)
    images = load_data(recipes.digits_softmax().data).test.images.float() / 16
    predictions = predict(run)
    np.testing.assert_allclose(scorer(images), predictions.logits, rtol=1e-5, atol=1e-5)
    assert scorer.description.carried == predictions.carried
    assert scorer.description.facts["seed"] == 0
    assert not scorer.training


def test_the_layout_is_that_of_the_hub(run, saved):
    assert sorted(path.name for path in saved.iterdir()) == FILES
    config = json.loads((saved / "config.json").read_text())
    assert config["id2label"]["3"] == "3" and config["label2id"]["3"] == 3
    assert config["library_name"] == "priorshift" and config["architectures"] == ["small-cnn"]
    weights = load_file(saved / "model.safetensors")
    assert weights.keys() == load_file(run / "model.safetensors").keys()
    assert TrainConfig.load(saved / "training_config.json") == TrainConfig.load(run / "config.json")


def test_the_card_has_a_header_that_the_hub_reads_and_the_measured_table(run, saved):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    text = (saved / "README.md").read_text()
    header, body = re.fullmatch(r"---\n(.*?)---\n(.*)", text, flags=re.DOTALL).groups()
    header = yaml.safe_load(header)
    assert header["license"] == "mit" and header["library_name"] == "priorshift"
    assert header["pipeline_tag"] == "image-classification"
    predictions = predict(run)
    uniform = [1.0] * 10
    scores = [evaluate(predictions, uniform, compensate=on).scores["accuracy"] for on in (False, True)]
    (result,) = header["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [round(score, 4) for score in scores]
    table = [line for line in body.splitlines() if line.startswith("|")]
    column = [cell.strip() for cell in table[0].split("|")].index("uniform")
    cells = [line.split("|")[column].strip(" *") for line in table[2:4]]
    assert cells == [f"{100 * score:.1f}" for score in scores]
    assert predictions.method in body and "uniform, by theory" in body


def test_the_card_passes_the_check_of_the_hub(saved):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface-hub is not installed")
    card = huggingface_hub.ModelCard.load(saved / "README.md")
    (result, *_) = card.data.eval_results
    assert (result.metric_type, result.dataset_name) == ("accuracy", "digits-lt")


def test_the_python_of_the_card_runs(saved, monkeypatch):
    code = re.search(r"^```python\n(.*?)^```", (saved / "README.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    monkeypatch.chdir(saved.parent)
    code = code.replace("digits-crt", saved.name).replace("[...]", "[0.1] * 10")
    namespace = {"images": torch.rand(2, 1, 8, 8)}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["logits"].shape == (2, 10)


def test_saved_predictions_are_what_the_card_measures(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    predictions = predict(copy)
    right = 5.0 * np.eye(10)[predictions.labels]
    replace(predictions, logits=right).save(copy / "predictions-test.safetensors")
    save_pretrained(copy, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert '"value": 1.0' in card and "license" not in card


def test_a_run_that_is_not_trained_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        save_pretrained(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"it has no {name}")):
        load_pretrained(copy)


def test_files_that_cannot_be_read_or_contradict_each_other_are_refused(copy):
    config, weights = copy / "config.json", copy / "model.safetensors"
    good = config.read_text()
    for text in ("{", "[]", "{}"):
        config.write_text(text)
        with pytest.raises(ValueError, match="no model that can be read"):
            load_pretrained(copy)
    config.write_text(good)
    for entries, words in (
        ({"schema_version": 99}, "newer priorshift"),
        ({"stage": 7}, "no stage 7"),
        ({"carried": [1.0]}, "carried|probs"),
    ):
        change(config, **entries)
        with pytest.raises(ValueError, match=words):
            load_pretrained(copy)
        config.write_text(good)
    change(config, input_shape=[3, 8, 8])
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit"):
        load_pretrained(copy)
    config.write_text(good)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="no model that can be read"):
        load_pretrained(copy)
    save_file({"other": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit"):
        load_pretrained(copy)


def test_what_is_pushed_can_be_loaded_by_its_id(run, saved, tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface-hub is not installed")
    server, calls = tmp_path / "server", []

    class Api:
        def __init__(self, token):
            calls.append(("token", token))

        def create_repo(self, repo_id, *, private, exist_ok):
            calls.append(("create", repo_id, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, server / repo_id)
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(repo_id, *, revision, allow_patterns):
        calls.append(("download", revision, sorted(allow_patterns)))
        return str(server / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert push(run, "someone/digits", private=True, token="t") == "https://hub/someone/digits/commit/1"
    scorer = load_pretrained("someone/digits", revision="main")
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(scorer(images), load_pretrained(saved)(images))
    assert calls == [
        ("token", "t"),
        ("create", "someone/digits", True, True),
        ("download", "main", FILES),
    ]
    assert 'load_pretrained("someone/digits")' in (server / "someone/digits/README.md").read_text()


@pytest.mark.parametrize("call", ["HfApi.create_repo", "HfApi.upload_folder", "snapshot_download"])
def test_the_fakes_take_what_the_hub_takes(call):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface-hub is not installed")
    import inspect
    from operator import attrgetter

    names = {
        "HfApi.create_repo": {"repo_id", "private", "exist_ok"},
        "HfApi.upload_folder": {"repo_id", "folder_path", "commit_message"},
        "snapshot_download": {"repo_id", "revision", "allow_patterns"},
    }
    assert names[call] <= set(inspect.signature(attrgetter(call)(huggingface_hub)).parameters)
