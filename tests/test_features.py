"""Frozen backbones: features are taken once, and heads train on them as they would on the images."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from priorshift import Predictions, Prior, recipes
from priorshift.cli import main
from priorshift.commands import compare as compare_verb
from priorshift.commands._recipes import config_of, take_options
from priorshift.data import FeatureSet, Preparation, Splits, load_features, save_features
from priorshift.data.sources import digits_lt, features
from priorshift.models import heads
from priorshift.recipes.methods import METHODS
from priorshift.training import Optimizer, Part, Run, Stage, TrainConfig, extract_features, predict, train
from priorshift.training.build import build_model, head_names, loss_names

SPLITS = ("train", "validation", "test")
FROZEN = TrainConfig(
    method="Balanced Softmax",
    data=Part(name="digits-lt"),
    model=Part(name="timm", options={"architecture": "test_resnet.r160_in1k"}),
    stages=(
        Stage(
            loss=Part(name="balanced-softmax"),
            epochs=16,
            optimizer=Optimizer(lr=0.2, warmup_epochs=1),
            trains="head",
        ),
    ),
    batch_size=64,
    preparation=Preparation(size=32, mean=(0.3,), std=(0.1,)),
    workers=0,
    seed=3,
    device="cpu",
)
"""A frozen network with random weights, and a linear head."""


@pytest.fixture(scope="module")
def digits():
    return digits_lt()


@pytest.fixture(scope="module")
def pixels_file(digits, tmp_path_factory):
    """The pixels of the digits as features, 64 of each."""
    file = tmp_path_factory.mktemp("features") / "pixels.safetensors"
    save_features(extract_features(nn.Flatten(), digits, device="cpu"), file, {"model": "pixels"})
    return file


@pytest.fixture
def no_page(monkeypatch):
    """Leave out the drawing of the page, which other tests see to."""
    monkeypatch.setattr(compare_verb, "write_report", lambda runs, path, **options: path)


def on_features(file, **changes):
    """Two epochs of a linear head."""
    parts = {
        "method": "Softmax",
        "data": Part(name="features", options={"file": str(file)}),
        "model": Part(name="identity"),
        "stages": (Stage(loss=Part(name="cross-entropy"), epochs=2, optimizer=Optimizer(lr=0.05)),),
        "device": "cpu",
    }
    return TrainConfig(**(parts | changes))


def same(ours, theirs):
    return all(
        torch.equal(ours.named(split).features, theirs.named(split).features)
        and torch.equal(ours.named(split).labels, theirs.named(split).labels)
        and ours.named(split).class_names == theirs.named(split).class_names
        and ours.named(split).fingerprint == theirs.named(split).fingerprint
        for split in SPLITS
    )


def assert_one_line(capsys, *words):
    streams = capsys.readouterr()
    assert streams.err.count("\n") == 1 and streams.err.startswith("priorshift: ")
    for word in words:
        assert word in streams.err


# Extraction


def test_features_are_what_the_model_says_of_the_prepared_images(digits):
    backbone = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.Dropout(), nn.Flatten())
    backbone[1].running_mean.fill_(0.25)
    seen = []
    found = extract_features(
        backbone,
        digits,
        preparation=Preparation(mean=(0.3,), std=(0.4,)),
        device="cpu",
        batch_size=100,
        on_batch=lambda split, images: seen.append((split, images)),
    )
    assert not backbone.training
    assert seen == [
        *[("train", 100), ("train", 100), ("train", 76), ("validation", 100), ("validation", 40)],
        *[("test", 100)] * 6,
    ]
    for split in SPLITS:
        images, data = digits.named(split), found.named(split)
        assert isinstance(data, FeatureSet) and data.features.dtype == torch.float32
        with torch.no_grad():
            expected = backbone((images.images / 16 - 0.3) / 0.4)
        torch.testing.assert_close(data.features, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(data.labels, images.labels)
        assert (data.class_names, data.fingerprint) == (images.class_names, images.fingerprint)
        assert not data.features.requires_grad


def test_an_empty_split_has_no_features_of_the_same_width(digits):
    nothing = digits.train.subset(torch.empty(0, dtype=torch.int64))
    found = extract_features(nn.Flatten(), replace(digits, validation=nothing), device="cpu")
    assert found.validation.features.shape == (0, 64)


class Says(nn.Module):
    """Says the same, whatever it sees."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, images):
        return self.make(images)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        (nn.Conv2d(3, 4, 3), r"does not take images of shape \(1, 8, 8\)"),
        (nn.Conv2d(1, 4, 3), r"shape \(2, D\) for 2 images, but got \(2, 4, 6, 6\)"),
        (Says(lambda images: {"last_hidden_state": images.flatten(1)}), "give a tensor, but got dict"),
        (Says(lambda images: images.flatten(1)[:1]), r"but got \(1, 64\)"),
        (
            Says(lambda images: images.flatten(1) / (len(images) < 200)),
            "finite features, but got others for image 0 of the train split",
        ),
        (
            Says(lambda images: images.flatten(1).log() if len(images) == 88 else images.flatten(1)),
            "finite features, but got others for image 512 of the test split",
        ),
    ],
)
def test_what_is_no_backbone_for_these_images_is_refused(backbone, words, digits):
    with pytest.raises(ValueError, match=words):
        extract_features(backbone, digits, device="cpu")


# The file


def test_a_features_file_gives_back_what_was_saved(digits, tmp_path):
    file = tmp_path / "new" / "f.safetensors"
    found = extract_features(nn.Flatten(), digits, device="cpu")
    save_features(found, file, {"model": {"name": "pixels"}, "seed": 3})
    assert same(load_features(file), found)
    assert same(features(file=str(file)), found)
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["priorshift"])
    assert (header["kind"], header["schema_version"]) == ("features", 2)
    assert header["facts"] == {"model": {"name": "pixels"}, "seed": 3}
    assert header["class_names"] == [str(digit) for digit in range(10)]
    assert header["fingerprints"] == {split: digits.named(split).fingerprint for split in SPLITS}


def test_features_are_float32_in_the_file_whatever_they_were(tmp_path):
    data = FeatureSet(torch.rand(4, 3, dtype=torch.float64), torch.arange(4) % 2, ("a", "b"), "ab")
    save_features(Splits(data, data, data), tmp_path / "f.safetensors", {})
    loaded = load_features(tmp_path / "f.safetensors").train
    assert loaded.features.dtype == torch.float32 and loaded.labels.dtype == torch.int64
    assert torch.equal(loaded.features, data.features.float())


def test_images_are_no_features(digits, tmp_path):
    with pytest.raises(TypeError, match="Expected `splits` of features, but got train: ImageSet"):
        save_features(digits, tmp_path / "f.safetensors", {})
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_the_old_one(pixels_file, tmp_path):
    file = tmp_path / "f.safetensors"
    file.write_bytes(pixels_file.read_bytes())
    with pytest.raises(TypeError, match="JSON"):
        save_features(load_features(file), file, {"model": nn.Flatten()})
    assert file.read_bytes() == pixels_file.read_bytes()
    assert list(tmp_path.iterdir()) == [file]


def rewritten(source, target, change_header=lambda header: None, **tensors):
    with safe_open(source, framework="pt") as file:
        header = json.loads(file.metadata()["priorshift"])
    del header["digest"]
    change_header(header)
    kept = {name: tensor for name, tensor in (load_file(source) | tensors).items() if tensor is not None}
    save_file(kept, target, metadata={"priorshift": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"change_header": lambda header: header.update(schema_version=3)},
            r"newer priorshift \(features schema 3, this one reads up to 2\). Upgrade",
        ),
        ({"change_header": lambda header: header.pop("schema_version")}, "unreadable header"),
        ({"change_header": lambda header: header.update(schema_version="x")}, "unreadable header"),
        ({"change_header": lambda header: header["fingerprints"].pop("test")}, "contradicts itself: 'test'"),
        ({"change_header": lambda header: header.update(class_names=["0"])}, "contradicts itself.*`labels`"),
        ({"test.features": None}, "contradicts itself: 'test.features'"),
        ({"test.features": torch.rand(600, 63)}, r"as many features in each split.*\[64, 64, 63\]"),
        ({"train.labels": torch.zeros(3, dtype=torch.int64)}, "contradicts itself"),
    ],
)
def test_a_features_file_that_is_wrong_is_refused_in_words(change, words, pixels_file, tmp_path):
    rewritten(pixels_file, tmp_path / "f.safetensors", **change)
    with pytest.raises(ValueError, match=f"f.safetensors.*{words}"):
        load_features(tmp_path / "f.safetensors")


def test_a_number_that_changed_since_is_noticed(pixels_file, tmp_path):
    with safe_open(pixels_file, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(pixels_file)
    tensors["test.features"][5, 7] += 1
    save_file(tensors, tmp_path / "f.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"f\.safetensors contradicts itself.*not what was written"):
        load_features(tmp_path / "f.safetensors")


def test_a_file_of_version_01_is_read(pixels_file, tmp_path):
    with safe_open(pixels_file, framework="pt") as file:
        header = json.loads(file.metadata()["priorshift"])
    old = {name: header[name] for name in ("class_names", "fingerprints", "facts")} | {"schema_version": 1}
    file = tmp_path / "f.safetensors"
    save_file(load_file(pixels_file), file, metadata={"priorshift-features": json.dumps(old)})
    assert same(load_features(file), load_features(pixels_file))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused_in_words(share, pixels_file, tmp_path):
    content = pixels_file.read_bytes()
    (tmp_path / "f.safetensors").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"f\.safetensors is truncated or no features file"):
        load_features(tmp_path / "f.safetensors")


def test_other_files_are_no_features_files(tmp_path, pixels_file):
    with pytest.raises(FileNotFoundError, match=r"no features file .*nowhere.*`priorshift features RECIPE`"):
        load_features(tmp_path / "nowhere")
    predictions = tmp_path / "p.safetensors"
    Predictions(logits=torch.rand(3, 2), carried=Prior([0.5, 0.5])).save(predictions)
    with pytest.raises(ValueError, match="is a predictions file of priorshift, not a features file"):
        load_features(predictions)
    with pytest.raises(ValueError, match="is a features file of priorshift, not a predictions file"):
        Predictions.load(pixels_file)


# Training on features


def test_a_head_on_saved_features_is_the_head_of_the_frozen_network(tmp_path, capsys):
    FROZEN.save(tmp_path / "config.json")
    file = tmp_path / "f.safetensors"
    assert main(["features", str(tmp_path / "config.json"), "--output", str(file)]) == 0
    train(FROZEN, tmp_path / "images")
    cached = replace(
        FROZEN,
        data=Part(name="features", options={"file": str(file)}),
        model=Part(name="identity"),
        preparation=Preparation(),
    )
    train(cached, tmp_path / "cached")
    for split in SPLITS:
        ours, theirs = (predict(tmp_path / name, split, device="cpu") for name in ("cached", "images"))
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)
        assert np.array_equal(ours.predicted, theirs.predicted)
        assert np.array_equal(ours.labels, theirs.labels)
        assert (ours.fingerprint, ours.class_names) == (theirs.fingerprint, theirs.class_names)
        assert ours.carried == theirs.carried
        accuracy = [(each.predicted == each.labels).mean() for each in (ours, theirs)]
        assert accuracy[0] == accuracy[1]
        assert len(np.unique(theirs.predicted)) >= 4 and accuracy[0] > 0.2


def trained(config, folder):
    run = train(config, folder)
    assert run.finished(config)
    return predict(folder, device="cpu")


NEEDED_OPTIONS = {"lade": {"alpha": 0.01, "lam": 0.01}, "equalised": {"threshold": 0.05}}


@pytest.mark.parametrize("loss", loss_names())
def test_every_loss_trains_on_features(loss, pixels_file, tmp_path):
    part = Part(name=loss, options=NEEDED_OPTIONS.get(loss, {}))
    stages = (Stage(loss=part, epochs=2, optimizer=Optimizer(lr=0.05)),)
    predictions = trained(on_features(pixels_file, stages=stages), tmp_path / "run")
    assert predictions.logits.shape == (600, 10) and predictions.logits.std() > 0


@pytest.mark.parametrize("head", sorted(set(head_names()) - {"bilateral"}))
def test_every_head_without_branches_trains_on_features(head, pixels_file, tmp_path):
    first = Stage(loss=Part(name="cross-entropy"), epochs=2, optimizer=Optimizer(lr=0.05))
    kind = getattr(heads, head_names()[head])
    config = on_features(pixels_file, head=Part(name=head))
    if getattr(kind, "needs_start", False):
        made = not any(each.requires_grad for each in kind(64, 10).parameters())
        second = replace(first, epochs=0 if made else 2, head=Part(name=head))
        config = on_features(pixels_file, stages=(first, second))
    predictions = trained(config, tmp_path / "run")
    assert predictions.logits.shape == (600, 10) and predictions.logits.std() > 0


def test_pixels_alone_tell_digits_apart(pixels_file, tmp_path):
    stages = (Stage(loss=Part(name="balanced-softmax"), epochs=60, optimizer=Optimizer(lr=0.5)),)
    predictions = trained(on_features(pixels_file, stages=stages), tmp_path / "run")
    assert (predictions.predicted == predictions.labels).mean() > 0.75


# The verb


def test_the_verb_saves_features_of_the_initial_backbone_and_says_what_next(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--model.options", "width", "4", "--data.options", "max_count", "50", "--device", "cpu"]
    assert main(["features", "digits-softmax", *words, "--seed", "5"]) == 0
    text = capsys.readouterr().out
    config = recipes.digits_softmax()
    config = replace(
        config, model=Part(name="small-cnn", options={"width": 4}), data=Part(name="digits-lt"), seed=5
    )
    splits = digits_lt(max_count=50)
    model = build_model(config, splits.train)
    found = load_features("features.safetensors")
    assert same(found, extract_features(model.backbone, splits, device="cpu"))
    assert "features.safetensors: 8 features of each image" in text
    assert splits.train.fingerprint in text and "as it is built with seed 5" in text
    assert "next: priorshift train features-softmax --data.options file features.safetensors" in text

    with safe_open("features.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["priorshift"])["facts"]
    assert facts["data"] == {"name": "digits-lt", "options": {"max_count": 50}}
    assert facts["model"] == {"name": "small-cnn", "options": {"width": 4}}
    assert facts["preparation"]["size"] == 0 and facts["environment"]["torch"] == torch.__version__

    before = (tmp_path / "features.safetensors").read_bytes()
    argv = ["features", "digits-softmax", "--device", "cpu"]
    assert main(argv) == 2
    assert_one_line(capsys, "features.safetensors already", "--overwrite")
    assert (tmp_path / "features.safetensors").read_bytes() == before
    assert main([*argv, "--overwrite"]) == 0
    assert load_features("features.safetensors").train.channels == 64


def test_the_verb_takes_the_trained_backbone_of_a_run(tmp_path, capsys, digits):
    config = recipes.digits_softmax()
    stage = replace(config.stages[0], epochs=2)
    config = replace(
        config, stages=(stage,), model=Part(name="small-cnn", options={"width": 4}), device="cpu"
    )
    run = train(config, tmp_path / "run")
    file = tmp_path / "f.safetensors"
    assert main(["features", str(run.folder), "--output", str(file)]) == 0
    assert "after 2 epochs of Softmax" in capsys.readouterr().out
    weights = load_file(run.weights_file)
    logits = load_features(file).test.features @ weights["head.weight"].T + weights["head.bias"]
    np.testing.assert_allclose(logits, predict(run.folder, device="cpu").logits, atol=1e-5, rtol=1e-5)

    argv = ["features", str(run.folder), "--output", str(tmp_path / "g.safetensors")]
    assert main([*argv, "--model.options", "width", "8"]) == 2
    assert_one_line(capsys, "model.safetensors does not fit the model 'small-cnn'")
    run.weights_file.unlink()
    assert main(argv) == 2
    assert_one_line(capsys, "has no weights yet")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["Expected a recipe", "`priorshift features RECIPE", "run folder"]),
        (["imagenet"], ["no recipe 'imagenet'"]),
        (["nowhere/config.json"], ["no config file nowhere/config.json"]),
        (["."], ["no run folder"]),
        (["digits-softmax", "--data.options", "max_count"], ["pairs of KEY and VALUE", "max_count"]),
        (["digits-softmax", "--preparation.mean", "1", "1", "--preparation.std", "1", "1"], ["`mean`"]),
    ],
)
def test_mistakes_of_the_verb_are_one_sentence(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["features", *argv]) == 2
    assert_one_line(capsys, *words)


def test_the_help_of_the_verb_lists_recipes_and_options(capsys):
    assert main(["features", "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: priorshift features RECIPE" in text and "digits-softmax" in text and "run folder" in text
    assert main(["features", "digits-softmax", "--help"]) == 0
    assert "--output" in capsys.readouterr().out


def test_a_recipe_trains_on_a_features_file_with_any_method(pixels_file, tmp_path, capsys):
    argv = ["train", "features-softmax", "--data.options", "file", str(pixels_file), "--method", "lade"]
    folder = tmp_path / "run"
    assert main([*argv, "--stages.0.epochs", "2", "--device", "cpu", "--output", str(folder)]) == 0
    config = Run(folder).config()
    assert (config.method, config.data.options["file"]) == ("LADE", str(pixels_file))
    assert main(["predict", str(folder)]) == 0
    capsys.readouterr()
    assert main(["train", "features-softmax", "--data.options", "file", "nowhere", "--device", "cpu"]) == 2
    assert_one_line(capsys, "no features file nowhere")


# Comparing on features


def test_every_method_that_fits_is_compared_on_features(pixels_file, tmp_path, capsys, monkeypatch, no_page):
    some = ("softmax", "lade", "crt", "tau-norm", "oltr", "bbn", "causal-norm")
    monkeypatch.setattr(compare_verb, "METHODS", {name: METHODS[name] for name in some})
    argv = ["compare", "features", "--data.options", "file", str(pixels_file), "--seeds", "1"]
    assert main([*argv, "--stages.0.epochs", "3", "--device", "cpu", "--output", str(tmp_path / "c")]) == 0
    text = capsys.readouterr().out
    assert re.search("left out: .*'oltr'", text) and re.search("left out: .*'bbn'", text)
    assert text.count("left out") == 2
    folders = {path.name for path in (tmp_path / "c").iterdir() if path.is_dir()}
    assert folders == {f"{name}-seed0" for name in some if name not in ("oltr", "bbn")}
    table = (tmp_path / "c" / "table.md").read_text(encoding="utf-8")
    for name in ("Softmax", "LADE", "cRT", "τ-norm", "Causal Norm", "Post-hoc LA, τ chosen"):
        assert f"| {name} |" in table


def test_every_method_but_two_fits_features():
    config, _ = config_of("features-softmax")
    changed, refused = compare_verb._with_methods(config, None)
    assert set(METHODS) - set(changed) == {"oltr", "bbn"} and len(refused) == 2


def test_a_config_is_a_base_to_compare_on_as_well(pixels_file, tmp_path, capsys, monkeypatch, no_page):
    monkeypatch.chdir(tmp_path)
    on_features(pixels_file).save(tmp_path / "mine" / "config.json")
    assert main(["compare", "mine/config.json", "--methods", "softmax", "cosine", "--seeds", "1"]) == 0
    assert {path.name for path in (tmp_path / "runs" / "compare-mine").glob("*-seed*")} == {
        "softmax-seed0",
        "cosine-seed0",
    }
    config = Run(tmp_path / "runs" / "compare-mine" / "cosine-seed0").config()
    assert config == replace(on_features(pixels_file), head=Part(name="cosine"), method="Cosine")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["features", "--methods", "softmax", "oltr"], ["'oltr'", "'identity'"]),
        (["features", "--methods", "bbn"], ["'bbn'", "'identity'"]),
        (["features", "--methods", "hope"], ["no method 'hope'"]),
        (["features", "--methods"], ["`methods`"]),
        (["features", "--seeds", "0"], ["`seeds` to be at least 1"]),
        (["features", "--seed", "1"], ["`--methods` and `--seeds`", "`--seed`"]),
        (["features", "--method=lade"], ["`--methods` and `--seeds`", "`--method=lade`"]),
        (["pictures"], ["no recipes for 'pictures'", "digits", "features"]),
        (["digits-lade"], ["one stage of cross-entropy"]),
        (["features", "--data.options", "file"], ["pairs of KEY and VALUE"]),
        (["features", "--data.options", "file", "nowhere"], ["no features file nowhere"]),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    argv, words, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *argv]) == 2
    assert_one_line(capsys, *words)
    assert not (tmp_path / "runs").exists()


def test_without_validation_images_nothing_is_compared(digits, tmp_path, capsys):
    nothing = digits.train.subset(torch.empty(0, dtype=torch.int64))
    found = extract_features(nn.Flatten(), replace(digits, validation=nothing), device="cpu")
    save_features(found, tmp_path / "f.safetensors", {})
    argv = ["compare", "features", "--data.options", "file", str(tmp_path / "f.safetensors")]
    assert main([*argv, "--output", str(tmp_path / "c")]) == 2
    assert_one_line(capsys, "validation", "`held_out`")
    assert not (tmp_path / "c").exists()


# Options of parts on the command line


def options_of(config, path):
    part = config
    for name in path.split("."):
        part = part[int(name)] if name.isdigit() else getattr(part, name)
    return dict(part.options)


TWO_STAGES = replace(
    recipes.digits_lade(),
    stages=(
        recipes.digits_lade().stages[0],
        Stage(loss=Part(name="focal"), epochs=1, head=Part(name="cosine", options={"scale": 8.0})),
    ),
)


@pytest.mark.parametrize(
    ("path", "words", "merged"),
    [
        ("data", "imbalance 20", {"imbalance": 20}),
        ("data", "imbalance 1e1 max_count 5", {"imbalance": 10.0, "max_count": 5}),
        ("model", "width 8 attention true", {"width": 8, "attention": True}),
        ("head", "scale -0.5 name a_1 flag False", {"scale": -0.5, "name": "a_1", "flag": False}),
        ("stages.0.loss", "lam 0.5", {"alpha": 0.01, "lam": 0.5}),
        ("stages.0.loss", "alpha 0 variant released", {"alpha": 0, "lam": 0.01, "variant": "released"}),
        ("stages.1.loss", "gamma 1", {"gamma": 1}),
        ("stages.1.head", "scale 16", {"scale": 16}),
        ("data", "root inf split 1_000 class nan", {"root": "inf", "split": "1_000", "class": "nan"}),
        ("data", "root a=b", {"root": "a=b"}),
    ],
)
def test_options_are_merged_into_those_of_the_part(path, words, merged):
    before = ["--seed", "1", f"--{path}.options", *words.split(), "--epochs", "2"]
    config, rest = take_options(TWO_STAGES, before)
    assert rest == ["--seed", "1", "--epochs", "2"]
    found = options_of(config, path)
    assert found == merged
    assert {key: type(value) for key, value in found.items()} == {
        key: type(value) for key, value in merged.items()
    }
    for other in {"data", "model", "head", "stages.0.loss", "stages.1.loss", "stages.1.head"} - {path}:
        assert options_of(config, other) == options_of(TWO_STAGES, other)
    key, *rest_of_words = words.split()
    glued, _ = take_options(TWO_STAGES, [f"--{path}.options={key}", *rest_of_words])
    assert glued == config


def test_an_option_that_is_text_stays_text():
    config = replace(TWO_STAGES, data=Part(name="images", options={"root": "images", "held_out": 0.0}))
    config, _ = take_options(config, ["--data.options", "root", "2018", "held_out", "0.1"])
    assert config.data.options == {"root": "2018", "held_out": 0.1}


def test_another_part_begins_without_the_options_of_the_one_before():
    for words in (
        ["--stages.0.loss.name", "ldam", "--stages.0.loss.options", "scale", "2"],
        ["--stages.0.loss.options", "scale", "2", "--stages.0.loss.name=ldam"],
    ):
        config, _ = take_options(TWO_STAGES, words)
        assert config.stages[0].loss == Part(name="ldam", options={"scale": 2})
    config, rest = take_options(TWO_STAGES, ["--stages.0.loss.name", "lade", "--head.name", "cosine"])
    assert config == replace(TWO_STAGES, head=Part(name="cosine"))
    assert rest == ["--stages.0.loss.name", "lade", "--head.name", "cosine"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--data.options root", "pairs of KEY and VALUE after `--data.options`, but got root"),
        ("--data.options", "but got nothing"),
        ("--model.options a 1 b --seed 1", "but got a 1 b"),
        ("--stages.7.loss.options a 1", "no stage 7: there are 2, counted from 0"),
        ("--stages.0.head.options scale 1", "no `stages.0.head` to change"),
    ],
)
def test_options_that_do_not_come_in_pairs_or_have_no_part_are_refused(words, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        take_options(TWO_STAGES, words.split())


def test_options_of_parts_reach_the_run_that_is_trained(tmp_path, capsys):
    folder = tmp_path / "run"
    argv = ["train", "digits-softmax", "--method", "lade", "--stages.0.loss.options", "alpha", "0.5"]
    argv += ["--data.options", "max_count", "60", "--model.options", "width", "4"]
    assert main([*argv, "--stages.0.epochs", "1", "--device", "cpu", "--output", str(folder)]) == 0
    capsys.readouterr()
    config = Run(folder).config()
    assert config.stages[0].loss == Part(name="lade", options={"alpha": 0.5, "lam": 0.01})
    assert (config.data.options, config.model.options) == ({"max_count": 60}, {"width": 4})
    other = str(tmp_path / "other")
    assert main(["train", "digits-softmax", "--data.options", "root", "x", "--output", other]) == 2
    assert_one_line(capsys, "no option 'root'")


def test_the_python_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "features.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/features.md", "exec"), {})
    assert capsys.readouterr().out.startswith("torch.Size([276, 96]) [100, 64,")
    assert load_features("features.safetensors").test.channels == 96
