"""Predictions: what a file keeps, how it is written, and what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from priorshift import Predictions, Prior, _files
from priorshift.predictions import SCHEMA_VERSION

SOURCE = [0.6, 0.3, 0.1]
NAMES = ("Hund", "кошка", "馬 🐴")


def some_logits(dtype=torch.float32):
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).to(dtype)


def full_predictions(**changes):
    parts = {
        "logits": some_logits(),
        "carried": Prior(SOURCE),
        "labels": torch.tensor([0, 1, 2, 0, 1, 2, 0, 0]),
        "train_counts": torch.tensor([60, 30, 10]),
        "class_names": NAMES,
        "method": "Softmax “plain”",
        "carried_by": "convention",
        "fingerprint": "0123456789abcdef",
        "facts": {"seed": 3, "versions": {"torch": "2.11"}, "gpus": ["H100", "H100"], "note": None},
    }
    return Predictions(**(parts | changes))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "full.safetensors"
    full_predictions().save(path)
    return path


def rewrite(path, header=None, drop=(), **tensors):
    """The file once more, with fields of its JSON header and its tensors changed."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["priorshift"])
    kept = {name: tensor for name, tensor in load_file(path).items() if name not in drop}
    text = header if isinstance(header, str) else json.dumps(metadata | (header or {}))
    save_file(kept | tensors, path, metadata={"priorshift": text})
    return path


def assert_refused(path, *words):
    with pytest.raises(ValueError) as caught:
        Predictions.load(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


# What a file keeps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_saved_file_gives_the_same_predictions(tmp_path, dtype):
    before = full_predictions(logits=some_logits(dtype))
    before.save(tmp_path / "p.safetensors")
    after = Predictions.load(str(tmp_path / "p.safetensors"))
    for name in ("logits", "labels", "train_counts"):
        assert getattr(after, name).dtype == getattr(before, name).dtype
        assert torch.equal(getattr(after, name), getattr(before, name))
    assert torch.equal(after.carried.probs, before.carried.probs)
    for name in ("class_names", "method", "carried_by", "fingerprint", "facts"):
        assert getattr(after, name) == getattr(before, name)


def test_what_was_not_given_is_not_there_after_loading(tmp_path):
    Predictions(logits=some_logits(), carried=Prior(SOURCE)).save(tmp_path / "p.safetensors")
    after = Predictions.load(tmp_path / "p.safetensors")
    assert after.labels is None and after.train_counts is None and after.class_names is None
    assert (after.method, after.carried_by, after.fingerprint, after.facts) == ("", "theory", "", {})


@pytest.mark.parametrize("absent", ["labels", "train_counts", "class_names"])
def test_each_optional_part_can_be_left_out(tmp_path, absent):
    full_predictions(**{absent: None}).save(tmp_path / "p.safetensors")
    after = Predictions.load(tmp_path / "p.safetensors")
    present = {"labels", "train_counts", "class_names"} - {absent}
    assert getattr(after, absent) is None
    assert all(getattr(after, name) is not None for name in present)


def test_a_file_is_plain_safetensors_with_a_json_header(saved):
    tensors = load_file(saved)
    assert sorted(tensors) == ["carried", "labels", "logits", "train_counts"]
    assert torch.equal(tensors["logits"], some_logits())
    assert tensors["carried"].dtype == torch.float64
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["priorshift"])
    assert header["schema_version"] == SCHEMA_VERSION
    assert header["class_names"] == list(NAMES)
    assert (header["num_samples"], header["num_classes"]) == (8, 3)


def test_the_same_predictions_give_the_same_bytes(saved, tmp_path):
    Predictions.load(saved).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_views_and_tensors_with_gradients_can_be_saved(tmp_path):
    buffer = torch.randn(3, 8, requires_grad=True)
    whole = torch.arange(11) % 3
    before = Predictions(
        logits=buffer.t(), carried=Prior(SOURCE), labels=whole[:8], train_counts=whole[8:] + 1
    )
    before.save(tmp_path / "p.safetensors")
    after = Predictions.load(tmp_path / "p.safetensors")
    assert torch.equal(after.logits, buffer.detach().t())
    assert torch.equal(after.labels, whole[:8]) and torch.equal(after.train_counts, whole[8:] + 1)


def test_missing_folders_are_made(tmp_path):
    full_predictions().save(tmp_path / "a" / "b" / "p.safetensors")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["p.safetensors"]


# What predictions are


def bayes(logits, carried, target):
    """Posterior under the target from that under the carried prior, class by class."""
    rows = []
    for row in np.asarray(logits, dtype=np.float64):
        posterior = np.exp(row - row.max())
        likelihood = [posterior[y] / carried[y] for y in range(len(row))]
        joint = np.array([likelihood[y] * target[y] for y in range(len(row))])
        rows.append(joint / joint.sum())
    return np.array(rows)


@pytest.mark.parametrize("target", [[0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.0, 0.5]])
def test_adjusted_predictions_are_the_posterior_under_the_target_and_carry_it(target):
    before = full_predictions(logits=some_logits(torch.float64))
    after = before.adjusted(target)
    np.testing.assert_allclose(after.log_probs.exp(), bayes(before.logits, SOURCE, target), atol=1e-14)
    assert after.carried == Prior(target)
    assert before.carried == Prior(SOURCE)
    for name in ("labels", "train_counts", "class_names", "method", "fingerprint", "facts"):
        assert getattr(after, name) is getattr(before, name)


def test_adjusting_twice_is_adjusting_once():
    before = full_predictions(logits=some_logits(torch.float64))
    once, twice = before.adjusted([0.1, 0.2, 0.7]), before.adjusted([0.5, 0.3, 0.2]).adjusted([0.1, 0.2, 0.7])
    np.testing.assert_allclose(once.log_probs, twice.log_probs, rtol=1e-12, atol=1e-12)


def test_a_target_without_mass_on_a_class_survives_the_file(tmp_path):
    full_predictions().adjusted([0.5, 0.0, 0.5]).save(tmp_path / "p.safetensors")
    after = Predictions.load(tmp_path / "p.safetensors")
    assert after.carried.probs.tolist() == [0.5, 0.0, 0.5]
    assert torch.all(after.log_probs.exp()[:, 1] == 0)


def test_probabilities_and_decisions_are_those_of_the_logits():
    predictions = Predictions(logits=torch.tensor([[1.0, 3.0], [2.0, -2.0]]), carried=[0.5, 0.5])
    assert predictions.predicted.tolist() == [1, 0]
    assert (predictions.num_samples, predictions.num_classes) == (2, 2)
    expected = [[1 / (1 + np.exp(2)), 1 / (1 + np.exp(-2))], [1 / (1 + np.exp(-4)), 1 / (1 + np.exp(4))]]
    np.testing.assert_allclose(predictions.log_probs.exp(), expected, rtol=1e-15)
    assert predictions.log_probs.dtype == torch.float64


def test_narrow_labels_become_int64():
    predictions = full_predictions(labels=torch.zeros(8, dtype=torch.uint8))
    assert predictions.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"logits": np.zeros((8, 3))}, TypeError, "`logits` to be a floating-point tensor, but got ndarray"),
        ({"logits": torch.zeros(8, 3).long()}, TypeError, "`logits` .* but got torch.int64"),
        ({"logits": torch.zeros(8)}, ValueError, r"`logits` of shape \[N, C\] .* got \(8,\)"),
        ({"logits": torch.zeros(8, 1)}, ValueError, r"`logits` .* got \(8, 1\)"),
        (
            {"logits": torch.tensor([[0.0, 0, 0]] * 5 + [[0, float("nan"), 0]] + [[0.0, 0, 0]] * 2)},
            ValueError,
            "without NaN, but got some in 1 of 8 rows, first in row 5",
        ),
        ({"carried": Prior([0.5, 0.5])}, ValueError, "`carried` with one entry per class, 3, but got 2"),
        ({"carried": [0.5, -0.5, 1.0]}, ValueError, "`carried` to be finite and non-negative"),
        ({"labels": torch.zeros(7).long()}, ValueError, r"`labels` with one entry .* 8, .* \(7,\)"),
        ({"labels": torch.full((8,), 3)}, ValueError, "`labels` between 0 and 2, but got 3"),
        ({"labels": torch.full((8,), -1)}, ValueError, "`labels` between 0 and 2, but got -1"),
        ({"labels": torch.zeros(8)}, TypeError, "`labels` to be class indices, but got dtype torch.float32"),
        ({"train_counts": torch.tensor([1, 2])}, ValueError, r"`train_counts` .* 3, but got shape \(2,\)"),
        ({"train_counts": torch.tensor([6, -3, 1])}, ValueError, "`train_counts` .* whole .* but got -3"),
        ({"train_counts": torch.tensor([6, 2.5, 1])}, ValueError, "`train_counts` .* whole .* but got 2.5"),
        ({"train_counts": torch.tensor([6, float("nan"), 1])}, ValueError, "`train_counts` .* but got nan"),
        ({"train_counts": torch.tensor([6, float("inf"), 1])}, ValueError, "`train_counts` .* but got inf"),
        ({"train_counts": [6, 3, 1]}, TypeError, "`train_counts` to be a tensor, but got list"),
        ({"train_counts": np.array([6, 3, 1])}, TypeError, "`train_counts` to be a tensor, but got ndarray"),
        ({"labels": [0] * 8}, TypeError, "`labels` to be a tensor, but got list"),
        ({"labels": np.zeros(8, dtype=int)}, TypeError, "`labels` to be a tensor, but got ndarray"),
        ({"class_names": ("a", "b")}, ValueError, "`class_names` with one name per class, 3, but got 2"),
        ({"carried_by": "hope"}, ValueError, "`carried_by` .* but got 'hope'"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(changes, error, words):
    with pytest.raises(error, match=words):
        full_predictions(**changes)


# Written whole or not at all


def test_a_failed_save_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        full_predictions(method="another").save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_an_interrupt_while_writing_leaves_the_old_file_and_nothing_else(saved):
    before = saved.read_bytes()
    with pytest.raises(KeyboardInterrupt), _files.written_whole(saved) as temporary:
        temporary.write_bytes(before[:20])
        raise KeyboardInterrupt
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(_files.os, "fsync", lambda descriptor: events.append("flushed"))
    replace = _files.Path.replace
    monkeypatch.setattr(_files.Path, "replace", lambda a, b: (events.append("renamed"), replace(a, b))[1])
    full_predictions().save(tmp_path / "p.safetensors")
    assert events == ["flushed", "renamed"]


def test_what_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder", tmp_path / "file" / "p", tmp_path / ("x" * 255)):
        with pytest.raises(OSError):
            full_predictions().save(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_that_takes_no_files_is_an_os_error(tmp_path, monkeypatch):
    monkeypatch.setattr(_files.Path, "mkdir", lambda self, **options: None)
    with pytest.raises(OSError, match="missing"):
        full_predictions().save(tmp_path / "missing" / "p.safetensors")


# What is refused


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        Predictions.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError):
        Predictions.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.3, 0.7, 0.95, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    assert_refused(saved, "truncated")


def test_a_file_with_something_appended_is_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"more")
    assert_refused(saved)


@pytest.mark.parametrize(
    "content",
    [b"no predictions", bytes(100), b"\xff" * 100, b"\2" + bytes(7) + b"[]", b"\2" + bytes(7) + b"{}"],
)
def test_garbage_is_refused(tmp_path, content):
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(content)
    assert_refused(path, "no predictions file")


def test_another_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"logits": some_logits(), "carried": torch.ones(3)}, path)
    assert_refused(path, "safetensors file, but no predictions file")
    save_file({"logits": some_logits(), "carried": torch.ones(3)}, path, metadata={"format": "pt"})
    assert_refused(path, "safetensors file, but no predictions file")


@pytest.mark.parametrize("header", ["", "{", "[]", "3", "null", '"text"', "{}", '{"schema_version": "2"}'])
def test_an_unreadable_header_is_refused(saved, header):
    assert_refused(rewrite(saved, header=header), "unreadable header")


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({"num_samples": 9}, "logits (9, 3), but got (8, 3)"),
        ({"num_classes": 4}, "logits (8, 4), but got (8, 3)"),
        ({"tensors": ["carried", "logits"]}, "expected tensors"),
        ({"class_names": ["a", "b"]}, "class_names"),
        ({"class_names": 5}, "int"),
        ({"carried_by": "hope"}, "carried_by"),
    ],
)
def test_a_header_that_its_tensors_contradict_is_refused(saved, header, word):
    assert_refused(rewrite(saved, header=header), "contradicts itself", word)


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"logits": torch.zeros(7, 3)}, "logits (8, 3), but got (7, 3)"),
        ({"logits": torch.zeros(8, 3).long()}, "floating-point"),
        ({"logits": torch.full((8, 3), float("nan"))}, "NaN"),
        ({"labels": torch.full((8,), 3)}, "`labels` between 0 and 2, but got 3"),
        ({"labels": torch.full((8,), -1)}, "`labels` between 0 and 2, but got -1"),
        ({"labels": torch.zeros(8)}, "`labels` to be class indices"),
        ({"labels": torch.zeros(9).long()}, "`labels` with one entry per row"),
        ({"carried": torch.ones(4)}, "`carried` with one entry per class, 3, but got 4"),
        ({"carried": torch.tensor([1.0, -1.0, 1.0])}, "non-negative"),
        ({"carried": torch.zeros(3)}, "sums to 0"),
        ({"train_counts": torch.ones(2).long()}, "`train_counts` with one entry per class"),
        ({"train_counts": torch.tensor([6, -3, 1])}, "`train_counts` to be non-negative whole numbers"),
        ({"surplus": torch.ones(2)}, "surplus"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, tensors, word):
    assert_refused(rewrite(saved, **tensors), "contradicts itself", word)


@pytest.mark.parametrize("name", ["logits", "carried", "labels", "train_counts"])
def test_a_tensor_that_the_header_promises_must_be_there(saved, name):
    assert_refused(rewrite(saved, drop=[name]), "expected tensors", name)


@pytest.mark.parametrize("field", ["tensors", "num_samples", "class_names", "method", "carried_by", "facts"])
def test_a_missing_header_field_is_named(saved, field):
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["priorshift"])
    del header[field]
    assert_refused(rewrite(saved, header=json.dumps(header)), field)


def test_a_newer_schema_is_refused_in_words(saved):
    newer = rewrite(saved, header={"schema_version": SCHEMA_VERSION + 1})
    assert_refused(newer, "newer priorshift", f"schema {SCHEMA_VERSION + 1}", "Upgrade")


@settings(max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_one_broken_byte_gives_predictions_or_one_error_that_names_the_file(tmp_path_factory, place, byte):
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    full_predictions().save(path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] = byte
    path.write_bytes(content)
    try:
        assert Predictions.load(path).logits.shape == (8, 3)
    except ValueError as error:
        assert path.name in str(error)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (__import__("os").mkdir, (str(self.path),))


@pytest.mark.parametrize("write", [lambda value, path: path.write_bytes(pickle.dumps(value)), torch.save])
def test_a_pickle_is_refused_and_not_executed(tmp_path, write):
    path = tmp_path / "bomb.safetensors"
    write(Bomb(tmp_path / "exploded"), path)
    assert_refused(path)
    assert not (tmp_path / "exploded").exists()


def test_loading_unpickles_nothing(saved, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    assert Predictions.load(saved).num_samples == 8
