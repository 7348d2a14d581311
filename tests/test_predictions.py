"""Predictions: what a file keeps, how it is written, and what is refused."""

import json
import os
import pickle
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas
import polars
import pyarrow
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from priorshift import Predictions, Prior, _files
from priorshift.predictions import SCHEMA_VERSION

SOURCE = [0.6, 0.3, 0.1]
NAMES = ("Hund", "кошка", "馬 🐴")


def some_logits(dtype=np.float32):
    return np.random.default_rng(0).normal(size=(8, 3)).astype(dtype)


def full_predictions(**changes):
    parts = {
        "logits": some_logits(),
        "carried": Prior(SOURCE),
        "labels": np.array([0, 1, 2, 0, 1, 2, 0, 0]),
        "train_counts": np.array([60, 30, 10]),
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


def rewrite(path, header=None, drop=(), sealed=True, **tensors):
    """The file once more, with fields of its JSON header and its tensors changed, and the digest of that."""
    with safe_open(path, framework="np") as file:
        metadata = json.loads(file.metadata()["priorshift"])
    kept = {name: tensor for name, tensor in load_file(path).items() if name not in drop} | tensors
    if not isinstance(header, str):
        metadata |= header or {}
        if sealed:
            metadata["digest"] = _files._digest(metadata, kept)
        header = json.dumps(metadata)
    save_file(kept, path, metadata={"priorshift": header})
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_saved_file_gives_the_same_predictions(tmp_path, dtype):
    before = full_predictions(logits=some_logits(dtype))
    before.save(tmp_path / "p.safetensors")
    after = Predictions.load(str(tmp_path / "p.safetensors"))
    for name in ("logits", "labels", "train_counts"):
        assert getattr(after, name).dtype == getattr(before, name).dtype
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_array_equal(after.carried.log_probs, before.carried.log_probs)
    for name in ("class_names", "method", "carried_by", "fingerprint", "facts"):
        assert getattr(after, name) == getattr(before, name)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.float16, np.float32),
        (">f4", np.float32),
        (">f8", np.float64),
        (np.longdouble, np.float64),
        (torch.float16, np.float32),
        (torch.bfloat16, np.float32),
        (torch.float32, np.float32),
        (torch.float64, np.float64),
    ],
)
def test_logits_are_kept_in_single_or_double_precision(given, kept):
    values = some_logits(np.float64)
    logits = torch.from_numpy(values).to(given) if isinstance(given, torch.dtype) else values.astype(given)
    found = full_predictions(logits=logits).logits
    assert found.dtype == kept and found.dtype.isnative
    wide = logits.to(torch.float64).numpy() if isinstance(given, torch.dtype) else logits.astype(np.float64)
    np.testing.assert_array_equal(found, wide.astype(kept))


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
    np.testing.assert_array_equal(tensors["logits"], some_logits())
    assert tensors["carried"].dtype == np.float64
    with safe_open(saved, framework="np") as file:
        header = json.loads(file.metadata()["priorshift"])
    assert header["schema_version"] == SCHEMA_VERSION
    assert header["kind"] == "predictions"
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
    np.testing.assert_array_equal(after.logits, buffer.detach().t())
    np.testing.assert_array_equal(after.labels, whole[:8])
    np.testing.assert_array_equal(after.train_counts, whole[8:] + 1)


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
    before = full_predictions(logits=some_logits(np.float64))
    after = before.adjusted(target)
    np.testing.assert_allclose(np.exp(after.log_probs), bayes(before.logits, SOURCE, target), atol=1e-14)
    assert after.carried == Prior(target, names=NAMES)
    assert before.carried == Prior(SOURCE, names=NAMES)
    for name in ("labels", "train_counts", "class_names", "method", "fingerprint", "facts"):
        assert getattr(after, name) is getattr(before, name)


def test_adjusting_twice_is_adjusting_once():
    before = full_predictions(logits=some_logits(np.float64))
    once, twice = before.adjusted([0.1, 0.2, 0.7]), before.adjusted([0.5, 0.3, 0.2]).adjusted([0.1, 0.2, 0.7])
    np.testing.assert_allclose(once.log_probs, twice.log_probs, rtol=1e-12, atol=1e-12)


def test_a_target_without_mass_on_a_class_survives_the_file(tmp_path):
    full_predictions().adjusted([0.5, 0.0, 0.5]).save(tmp_path / "p.safetensors")
    after = Predictions.load(tmp_path / "p.safetensors")
    assert after.carried.probs.tolist() == [0.5, 0.0, 0.5]
    assert (np.exp(after.log_probs)[:, 1] == 0).all()


def test_probabilities_and_decisions_are_those_of_the_logits():
    predictions = Predictions(logits=np.array([[1.0, 3.0], [2.0, -2.0]]), carried=[0.5, 0.5])
    assert predictions.predicted.tolist() == [1, 0]
    assert (predictions.num_samples, predictions.num_classes) == (2, 2)
    expected = [[1 / (1 + np.exp(2)), 1 / (1 + np.exp(-2))], [1 / (1 + np.exp(-4)), 1 / (1 + np.exp(4))]]
    np.testing.assert_allclose(np.exp(predictions.log_probs), expected, rtol=1e-15)
    assert predictions.log_probs.dtype == np.float64


def test_narrow_labels_become_int64():
    predictions = full_predictions(labels=np.zeros(8, np.uint8))
    assert predictions.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"logits": np.zeros((8, 3), int)}, TypeError, "`logits` to be floating-point, but got dtype int64"),
        ({"logits": torch.zeros(8, 3).long()}, TypeError, "`logits` .* but got dtype int64"),
        ({"logits": "scores.csv"}, TypeError, "`logits` to be real numbers, but got 'scores.csv'"),
        ({"logits": np.zeros(8)}, ValueError, r"`logits` of shape \[N, C\].* got shape \(8,\)"),
        ({"logits": np.zeros((8, 1))}, ValueError, r"`logits` .* got shape \(8, 1\)"),
        (
            {"logits": np.array([[0.0, 0, 0]] * 5 + [[0, np.nan, 0]] + [[0.0, 0, 0]] * 2)},
            ValueError,
            r"`logits` to be without NaN, but got nan for class 1 of sample 5 \(1 of 8 rows\)",
        ),
        ({"logits": np.full((8, 3), 1 / 3)}, ValueError, "these are probabilities.*Predictions.from_probs"),
        ({"carried": Prior([0.5, 0.5])}, ValueError, "`carried` with one entry per class, 3, but got 2"),
        ({"carried": [0.5, -0.5, 1.0]}, ValueError, "`carried` to be finite and non-negative"),
        ({"carried": {"a": 1, "b": 2, "c": 3}}, ValueError, "`carried` to name the same classes, .* 'Hund'"),
        ({"labels": np.zeros(7, int)}, ValueError, r"`labels` with one entry per sample, \(8,\).* \(7,\)"),
        ({"labels": np.full(8, 3)}, ValueError, "`labels` between 0 and 2, but got 3"),
        ({"labels": np.full(8, -1)}, ValueError, "`labels` between 0 and 2, but got -1"),
        ({"labels": np.zeros(8)}, TypeError, "`labels` to be class indices, but got dtype float64"),
        ({"labels": np.array([1, 2, 3, 1, 2, 3, 1, 1])}, ValueError, "labels begin at 1, subtract 1"),
        (
            {"labels": np.eye(3, dtype=int)[[0] * 8]},
            ValueError,
            r"one-hot rows pass `labels.argmax\(axis=1\)`",
        ),
        ({"labels": ["Hund", "cat"] * 4}, ValueError, "`labels` of classes 'Hund', .*, but got 'cat'"),
        ({"labels": ["a", "b"] * 4, "class_names": None}, TypeError, "names such as 'a': pass `class_names`"),
        ({"train_counts": np.array([1, 2])}, ValueError, r"`train_counts` .* 3, but got shape \(2,\)"),
        ({"train_counts": np.array([6, -3, 1])}, ValueError, "`train_counts` .* whole .* but got -3"),
        ({"train_counts": np.array([6, 2.5, 1])}, ValueError, "`train_counts` .* whole .* but got 2.5"),
        ({"train_counts": np.array([6, np.nan, 1])}, ValueError, "`train_counts` .* but got nan"),
        ({"train_counts": np.array([6, np.inf, 1])}, ValueError, "`train_counts` .* but got inf"),
        ({"train_counts": {"Hund": 1, "cat": 2, "cow": 3}}, ValueError, "`train_counts` to name the same"),
        ({"class_names": ("a", "b")}, ValueError, "`class_names` with one name per class, 3, but got 2"),
        ({"class_names": ("a", "b", "a")}, ValueError, "`class_names` to name each class once, but got 'a'"),
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
    for path in (tmp_path / "folder", tmp_path / "file" / "p", tmp_path / ("x" * 256)):
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
    save_file({"logits": some_logits(), "carried": np.ones(3)}, path)
    assert_refused(path, "safetensors file, but no predictions file")
    save_file({"logits": some_logits(), "carried": np.ones(3)}, path, metadata={"format": "np"})
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
        ({"logits": np.zeros((7, 3))}, "logits (8, 3), but got (7, 3)"),
        ({"logits": np.zeros((8, 3), int)}, "floating-point"),
        ({"logits": np.full((8, 3), np.nan)}, "NaN"),
        ({"labels": np.full(8, 3)}, "`labels` between 0 and 2, but got 3"),
        ({"labels": np.full(8, -1)}, "`labels` between 0 and 2, but got -1"),
        ({"labels": np.zeros(8)}, "`labels` to be class indices"),
        ({"labels": np.zeros(9, int)}, "`labels` with one entry per sample"),
        ({"carried": np.ones(4)}, "`carried` with one entry per class, 3, but got 4"),
        ({"carried": np.array([1.0, -1.0, 1.0])}, "non-negative"),
        ({"carried": np.zeros(3)}, "sums to 0"),
        ({"train_counts": np.ones(2, int)}, "`train_counts` with one entry per class"),
        ({"train_counts": np.array([6, -3, 1])}, "`train_counts` to be non-negative whole numbers"),
        ({"surplus": np.ones(2)}, "surplus"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, tensors, word):
    assert_refused(rewrite(saved, **tensors), "contradicts itself", word)


@pytest.mark.parametrize("name", ["logits", "carried", "labels", "train_counts"])
def test_a_tensor_that_the_header_promises_must_be_there(saved, name):
    assert_refused(rewrite(saved, drop=[name]), "expected tensors", name)


@pytest.mark.parametrize("field", ["tensors", "num_samples", "class_names", "method", "carried_by", "facts"])
def test_a_missing_header_field_is_named(saved, field):
    with safe_open(saved, framework="np") as file:
        header = json.loads(file.metadata()["priorshift"])
    del header[field]
    header["digest"] = _files._digest(header, load_file(saved))
    assert_refused(rewrite(saved, header=json.dumps(header)), field)


def test_a_newer_schema_is_refused_in_words(saved):
    newer = rewrite(saved, header={"schema_version": SCHEMA_VERSION + 1})
    assert_refused(newer, "newer priorshift", f"schema {SCHEMA_VERSION + 1}", "Upgrade")


@settings(max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_one_broken_byte_gives_the_same_predictions_or_one_error_that_names_the_file(
    tmp_path_factory, place, byte
):
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    full_predictions().save(path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] = byte
    path.write_bytes(content)
    try:
        found = Predictions.load(path)
    except ValueError as error:
        assert path.name in str(error)
    else:
        expected = full_predictions()
        for name in ("logits", "labels", "train_counts"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        for name in ("carried", "class_names", "method", "carried_by", "fingerprint", "facts"):
            assert getattr(found, name) == getattr(expected, name)


def test_a_changed_header_or_array_is_refused_by_the_digest(saved):
    content = saved.read_bytes()
    for changes in ({"header": {"method": "LADE"}}, {"labels": np.zeros(8, int)}):
        saved.write_bytes(content)
        assert_refused(rewrite(saved, sealed=False, **changes), "not what was written")


@pytest.mark.parametrize("kind", ["weights", "checkpoint", "features", "stream"])
def test_a_file_of_another_kind_is_named(tmp_path, kind):
    path = tmp_path / "other.safetensors"
    _files.write_envelope(path, kind, 1, {}, {"logits": some_logits()})
    assert_refused(path, f"is a {kind} file of priorshift, not a predictions file")


OF_01 = {
    "weights": ("priorshift", {"stage": 0, "epochs": 3, "completed": True}),
    "checkpoint": ("priorshift", {"position": {"steps": 3}, "digest": "0"}),
    "features": ("priorshift-features", {"class_names": ["a"]}),
    "stream": ("priorshift-stream", {"capacity": 3}),
}


@pytest.mark.parametrize("kind", OF_01)
def test_a_file_of_another_kind_by_version_01_is_named(tmp_path, kind):
    key, header = OF_01[kind]
    path = tmp_path / "other.safetensors"
    save_file({"x": np.ones(2)}, path, metadata={key: json.dumps({"schema_version": 1, **header})})
    assert_refused(path, f"is a {kind} file of priorshift, not a predictions file")


@pytest.mark.parametrize("name", ["scores.csv", "scores.tsv", "scores.parquet", "scores.xlsx"])
def test_a_table_is_named_as_such(tmp_path, name):
    (tmp_path / name).write_text("cat,dog\n0.5,0.5\n" * 100)
    assert_refused(tmp_path / name, "To read a table use `Predictions.from_frame`")


def write_as_01(path, logits, **changes):
    """The bytes that version 0.1 wrote."""
    tensors = {
        "logits": logits,
        "carried": torch.tensor(SOURCE, dtype=torch.float64),
        "labels": torch.arange(8) % 3,
    }
    header = {
        "schema_version": 1,
        "num_samples": 8,
        "num_classes": 3,
        "tensors": sorted(tensors),
        "class_names": NAMES,
        "method": "Softmax",
        "carried_by": "theory",
        "fingerprint": "0123456789abcdef",
        "facts": {"seed": 3},
        **changes,
    }
    safetensors.torch.save_file(tensors, path, metadata={"priorshift": json.dumps(header)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_files_of_version_01_are_read(tmp_path, dtype):
    path = tmp_path / "old.safetensors"
    logits = torch.from_numpy(some_logits(np.float64)).to(dtype)
    write_as_01(path, logits)
    found = Predictions.load(path)
    np.testing.assert_array_equal(found.logits, logits.double().numpy())
    np.testing.assert_array_equal(found.labels, np.arange(8) % 3)
    np.testing.assert_allclose(found.carried.probs, SOURCE, rtol=1e-15)
    assert (found.class_names, found.method, found.facts) == (NAMES, "Softmax", {"seed": 3})
    with _files.open_envelope(path, "predictions", SCHEMA_VERSION) as (_, file):
        rows = file.get_slice("logits")
        assert rows.get_shape() == [8, 3]
        np.testing.assert_array_equal(rows[2:5], logits[2:5].double().numpy())


def test_a_file_of_version_01_that_contradicts_itself_is_refused(tmp_path):
    path = tmp_path / "old.safetensors"
    write_as_01(path, torch.zeros(8, 3), num_samples=9)
    assert_refused(path, "contradicts itself", "logits (9, 3), but got (8, 3)")


def test_a_run_of_version_01_is_read():
    path = Path(os.environ.get("PRIORSHIFT_DATA", "../shared/data")).parent
    path = path / "runs" / "cifar100-lt100-lade-seed0" / "predictions-test.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    found = Predictions.load(path)
    assert (found.num_samples, found.num_classes) == (10_000, 100)
    assert (found.predicted == found.labels).mean() == pytest.approx(0.4615, abs=5e-5)


def test_log_probabilities_survive_a_file(tmp_path):
    carried = Prior.from_log_probs([0, 0, -800])
    Predictions(logits=some_logits(), carried=carried).save(tmp_path / "p.safetensors")
    after = Predictions.load(tmp_path / "p.safetensors")
    np.testing.assert_array_equal(after.carried.log_probs, carried.log_probs)
    assert np.isfinite(after.adjusted([1, 1, 1]).logits).all()


# Written by many at once


def test_threads_that_save_to_one_path_do_not_disturb_each_other(tmp_path):
    path, done = tmp_path / "p.safetensors", []

    def save(seed):
        for _ in range(20):
            full_predictions(method=f"thread {seed}").save(path)
            assert Predictions.load(path).num_samples == 8
            done.append(seed)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(save, range(6)))
    assert len(done) == 120
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]


def test_another_process_of_the_same_number_does_not_take_the_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(_files.os, "getpid", lambda: 7)
    path = tmp_path / "p.safetensors"
    with _files.written_whole(path) as one, _files.written_whole(path) as other:
        assert one != other and one.parent == other.parent == tmp_path
        one.write_bytes(b"1")
        other.write_bytes(b"2")
    assert path.read_bytes() == b"1"


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_of_a_file_is_that_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        full_predictions().save(tmp_path / "p.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "p.safetensors").stat().st_mode) == 0o666 & ~umask


# Probabilities and tables

PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.5, 0.25]])


def test_probabilities_become_logits_with_the_same_posterior():
    predictions = Predictions.from_probs(PROBS, carried=SOURCE, labels=[0, 2, 1])
    np.testing.assert_allclose(np.exp(predictions.log_probs), PROBS, rtol=1e-14)
    np.testing.assert_allclose(
        np.exp(predictions.adjusted([0.2, 0.3, 0.5]).log_probs),
        bayes(np.log(PROBS), SOURCE, [0.2, 0.3, 0.5]),
        rtol=1e-14,
    )
    assert predictions.labels.tolist() == [0, 2, 1]


def test_a_vector_is_the_probability_of_the_second_class():
    predictions = Predictions.from_probs([0.9, 0.2], carried=[0.4, 0.6])
    np.testing.assert_allclose(np.exp(predictions.log_probs), [[0.1, 0.9], [0.8, 0.2]], rtol=1e-14)


def test_a_probability_of_zero_does_not_rule_a_class_out():
    predictions = Predictions.from_probs([[1.0, 0.0], [0.4, 0.6]], carried=[0.5, 0.5])
    assert np.exp(predictions.logits[0]).tolist() == pytest.approx([1, 0.2], rel=1e-14)


@pytest.mark.parametrize(
    ("probs", "words"),
    [
        (np.log(PROBS), "These are log-probabilities: pass them as logits"),
        (100 * PROBS, "These are percentages: divide by 100"),
        (PROBS * 3 - 1, "Apply a softmax if these are logits"),
        (PROBS[:, :2], "row 0 sums to 0.9"),
        (np.array([[0.5, np.nan], [0.5, 0.5]]), "row 0 sums to nan"),
        (np.array([0.5, 1.5]), "row 1 sums to 1 with -0.5"),
    ],
)
def test_rows_that_are_no_probabilities_are_refused_with_the_remedy(probs, words):
    with pytest.raises(ValueError, match=f"Expected `probs` between 0 and 1 .*{words}"):
        Predictions.from_probs(probs, carried=np.ones(max(2, probs.shape[-1])))


TABLE = {
    "id": [11, 12, 13],
    "owl": [0.1, 0.6, 0.25],
    "cat": [0.7, 0.1, 0.25],
    "dog": [0.2, 0.3, 0.5],
    "truth": ["cat", "owl", "dog"],
}
TABLES = {"pandas": pandas.DataFrame, "polars": polars.DataFrame, "pyarrow": pyarrow.table}


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_a_table_is_matched_to_the_classes_by_name(make):
    predictions = Predictions.from_frame(make(TABLE), carried={"cat": 6, "dog": 3, "owl": 1}, label="truth")
    assert predictions.class_names == ("cat", "dog", "owl")
    np.testing.assert_allclose(np.exp(predictions.log_probs), PROBS, rtol=1e-14)
    assert predictions.labels.tolist() == [0, 2, 1]
    assert predictions.carried.to_dict() == {"cat": 0.6, "dog": 0.3, "owl": 0.1}


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_without_names_all_columns_of_numbers_are_scores(make):
    table = make({name: TABLE[name] for name in ("owl", "cat", "dog", "truth")})
    predictions = Predictions.from_frame(table, carried=[1, 6, 3], label="truth")
    assert predictions.class_names == ("owl", "cat", "dog")
    assert predictions.carried.to_dict() == {"owl": 0.1, "cat": 0.6, "dog": 0.3}
    assert predictions.labels.tolist() == [1, 0, 2]


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_logits_and_probabilities_as_tables_are_named_by_their_columns(make):
    table = make({name: TABLE[name] for name in ("owl", "cat", "dog")})
    logits = make({name: np.log(TABLE[name]) for name in ("owl", "cat", "dog")})
    carried = {"dog": 3, "cat": 6, "owl": 1}
    for predictions in (
        Predictions(logits=logits, carried=carried, labels=["owl", "cat", "cat"]),
        Predictions.from_probs(table, carried=carried, labels=["owl", "cat", "cat"]),
        Predictions.from_frame(logits, carried=Prior(carried).named(("owl", "cat", "dog")), scores="logits"),
    ):
        assert predictions.class_names == ("owl", "cat", "dog")
        assert predictions.carried.probs.tolist() == [0.1, 0.6, 0.3]
        np.testing.assert_allclose(np.exp(predictions.log_probs), PROBS[:, [2, 0, 1]], rtol=1e-14)
    named = Predictions.from_probs(table, carried=[6, 3, 1], class_names=("cat", "dog", "owl"))
    np.testing.assert_allclose(np.exp(named.log_probs), PROBS, rtol=1e-14)
    named = Predictions(logits=logits, carried=[6, 3, 1], class_names=("cat", "dog", "owl"))
    np.testing.assert_allclose(np.exp(named.log_probs), PROBS, rtol=1e-14)


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_integer_classes_are_matched_by_name_too(make):
    table = make({"3": [0.2, 0.9], "1": [0.5, 0.05], "2": [0.3, 0.05], "y": [1, 3]})
    predictions = Predictions.from_frame(table, carried={1: 0.6, 2: 0.3, 3: 0.1}, label="y")
    assert predictions.class_names == ("1", "2", "3") and predictions.labels.tolist() == [0, 2]
    np.testing.assert_allclose(np.exp(predictions.log_probs), [[0.5, 0.3, 0.2], [0.05, 0.05, 0.9]])


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (
            {},
            {"carried": {"cat": 1, "dog": 1, "elk": 1}},
            "no.*column.*|none for 'elk'; its columns are 'id'",
        ),
        (
            {},
            {"carried": {"cat": 6, "dog": 3, "owl": 1}, "label": "y"},
            "`label` to be a column of .* got 'y'",
        ),
        ({"owl": ["a", "b", "c"]}, {"carried": {"cat": 6, "dog": 3, "owl": 1}}, "'owl' are not"),
        ({}, {"carried": {"cat": 1, "dog": 1}}, "row 0 sums to 0.9"),
        ({}, {"carried": {"cat": 6, "dog": 3, "owl": 1}, "scores": "logits"}, "these are probabilities"),
        ({}, {"carried": {"cat": 6, "dog": 3, "owl": 1}, "scores": "odds"}, "`scores` to be one of"),
    ],
)
@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_tables_that_do_not_fit_are_refused(make, change, options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Predictions.from_frame(make({**TABLE, **change}), **options)


def test_what_is_no_table_is_refused():
    with pytest.raises(TypeError, match="`table` to be a pandas, polars or pyarrow table, but got ndarray"):
        Predictions.from_frame(PROBS, carried=SOURCE)
    with pytest.raises(TypeError, match=r"LazyFrame: use `\.collect\(\)`"):
        Predictions.from_frame(polars.DataFrame(TABLE).lazy(), carried=SOURCE)


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
