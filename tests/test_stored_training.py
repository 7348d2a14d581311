"""Training on images that stay on disk: read by workers, stopped, gone on with, some of them broken."""

import json
import logging
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from priorshift.cli import main
from priorshift.data import StoredImages, UnreadableImageError
from priorshift.training import (
    Augmentation,
    Checkpointing,
    Optimizer,
    Part,
    Preparation,
    Run,
    Stage,
    TrainConfig,
    predict,
    train,
)

ALWAYS = Checkpointing(minutes=0)


class StoppedError(RuntimeError):
    pass


@pytest.fixture
def photos(tmp_path):
    """Three classes of 16, 10 and 6 pictures of different sizes, of which a few are for tests."""
    generator = np.random.default_rng(0)
    for label, count in enumerate((16, 10, 6)):
        for number in range(count):
            size = (30 + number, 34, 3)
            pixels = generator.integers(80 * label, 80 * label + 60, size, dtype=np.uint8)
            file = tmp_path / "photos" / f"class{label}" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file, "JPEG")
    return tmp_path / "photos"


def photo_config(photos, **changes):
    parts = {
        "method": "Softmax",
        "data": Part(name="images", options={"root": str(photos), "test_share": 0.2, "held_out": 0.2}),
        "model": Part(name="small-cnn", options={"width": 4}),
        "stages": (
            Stage(
                loss=Part(name="lade", options={"alpha": 0.1, "lam": 0.1}),
                epochs=2,
                optimizer=Optimizer(lr=0.05),
            ),
        ),
        "batch_size": 5,
        "preparation": Preparation(size=16, resize=18, mean=(0.5,) * 3, std=(0.25,) * 3),
        "augmentation": Augmentation(crop="random-resized", flip=True, jitter=0.2),
        "workers": 0,
        "device": "cpu",
    }
    return TrainConfig(**(parts | changes))


def stop_at(step):
    def on_step(taken, total):
        if taken == step:
            raise StoppedError

    return on_step


def assert_same_weights(one, other):
    ours, theirs = load_file(one.weights_file), load_file(other.weights_file)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_in_an_epoch_goes_on_to_the_same_bits_whoever_reads(workers, photos, tmp_path):
    whole = train(photo_config(photos), tmp_path / "whole")
    config = photo_config(photos, workers=workers)
    for step in (3, 6):
        with pytest.raises(StoppedError):
            train(config, tmp_path / "run", checkpointing=ALWAYS, on_step=stop_at(step))
    run = train(config, tmp_path / "run")
    assert_same_weights(run, whole)
    assert predict(run.folder).logits.shape == (len(predict(run.folder).labels), 3)


def test_a_worker_that_dies_stops_the_run_and_the_next_one_goes_on(photos, tmp_path, monkeypatch, capsys):
    config = photo_config(photos, workers=2)
    whole = train(config, tmp_path / "whole")
    read, parent = StoredImages.read, os.getpid()

    def dying(self, index):
        if os.getpid() != parent and self.name(index).endswith("/7.jpg"):
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    monkeypatch.setattr(StoredImages, "read", dying)
    with pytest.raises(RuntimeError, match=r"worker .* killed|exited unexpectedly"):
        train(config, tmp_path / "run", checkpointing=ALWAYS)
    monkeypatch.setattr(StoredImages, "read", read)
    assert_same_weights(train(config, tmp_path / "run"), whole)


@pytest.mark.parametrize(
    "damage", [lambda file: file.write_bytes(file.read_bytes()[:300]), lambda file: file.write_bytes(b"")]
)
def test_an_image_that_cannot_be_read_is_named_before_the_training(damage, photos, tmp_path, capsys):
    damage(photos / "class1" / "4.jpg")
    config = photo_config(photos)
    with pytest.raises(UnreadableImageError, match=r"class1/4\.jpg"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.save(tmp_path / "config.json")
    capsys.readouterr()
    assert main(["train", str(tmp_path / "config.json"), "--output", str(tmp_path / "run")]) == 2
    complaint = capsys.readouterr().err.strip()
    assert "class1/4.jpg" in complaint and "\n" not in complaint


def test_images_that_cannot_be_read_are_left_out_where_that_is_asked_for(photos, tmp_path, caplog):
    broken = [photos / "class0" / "2.jpg", photos / "class1" / "4.jpg"]
    sizes = []
    for file in broken:
        file.write_bytes(b"no image")
    config = photo_config(photos, skip_unreadable=True)
    with caplog.at_level(logging.WARNING):
        run = train(config, tmp_path / "run", on_start=lambda splits: sizes.append(splits))
    assert all(f"{file.parent.name}/{file.name}" in caplog.text for file in broken)
    splits = sizes[0]
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 30
    assert predict(run.folder).train_counts.tolist() == splits.train.counts.tolist()


def test_a_method_that_chooses_says_that_it_needs_held_out_images(photos, tmp_path):
    first = photo_config(photos).stages[0]
    made = Stage(loss=first.loss, epochs=0, head=Part(name="tau-norm"), trains="head")
    options = {"root": str(photos), "held_out": 0.0}
    config = photo_config(photos, stages=(first, made), data=Part(name="images", options=options))
    with pytest.raises(ValueError, match=r"validation split is empty; .*held_out"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_backbone_has_a_learning_rate_of_its_own(photos, tmp_path):
    """At a rate of almost nothing it stays where it begins, while the head moves."""
    optimizer = Optimizer(lr=0.1, backbone_lr=1e-12, schedule="constant", weight_decay=0.0)
    stage = replace(photo_config(photos).stages[0], optimizer=optimizer, epochs=1)
    run = train(photo_config(photos, stages=(stage,)), tmp_path / "run")
    still = replace(stage, optimizer=replace(optimizer, lr=1e-12, backbone_lr=None))
    other = train(photo_config(photos, stages=(still,)), tmp_path / "other")
    ours, theirs = load_file(run.weights_file), load_file(Run(other.folder).weights_file)
    for name in ours:
        same = torch.allclose(ours[name].float(), theirs[name].float(), atol=1e-6)
        assert same == (not name.startswith("head")), name


def test_what_tensorboard_reads_is_what_the_metrics_hold(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "run"
    words = ["--stages.0.epochs", "2", "--device", "cpu", "--output", str(folder), "--tensorboard"]
    assert main(["train", "digits-softmax", *words]) == 0
    events = accumulator.EventAccumulator(str(folder)).Reload()
    lines = [json.loads(line) for line in Run(folder).metrics_file.read_text().splitlines()]
    for name in ("loss", "lr", "validation_balanced_accuracy"):
        assert [event.value for event in events.Scalars(name)] == pytest.approx(
            [line[name] for line in lines]
        )
