"""One pass over files of logits: every row once, any split the same state, mistakes in words."""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from safetensors.numpy import load_file, save_file
from scipy.special import softmax

from priorshift import Predictions, Prior
from priorshift.adjustment import fit_scaling
from priorshift.cli import main
from priorshift.estimation import estimate_prior
from priorshift.streams import (
    StreamingPrior,
    _files_of_scores,
    describe_file,
    estimate_files,
    estimate_on_cluster,
    read_batches,
)

PAGE = (Path(__file__).parents[1] / "docs" / "out_of_core.md").read_text(encoding="utf-8")
CARRIED = Prior([0.6, 0.3, 0.1])
NAMES = ("cat", "dog", "horse")


def scored(size, seed, mix=(0.1, 0.3, 0.6), **facts):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size, p=np.array(mix) / sum(mix))
    logits = rng.normal(size=(size, 3)) + 2 * np.eye(3)[labels] + CARRIED.log_probs
    logits = logits.astype(np.float32)
    return Predictions(logits=logits, labels=labels, carried=CARRIED, class_names=NAMES, **facts)


def header_of_0_1():
    """What 0.1 wrote beside the arrays of predictions: no kind and no digest."""
    facts = {
        "schema_version": 1,
        "num_samples": 47,
        "num_classes": 3,
        "tensors": ["carried", "logits"],
        "class_names": NAMES,
        "method": "",
        "carried_by": "theory",
        "fingerprint": "",
        "facts": {},
    }
    return {"priorshift": json.dumps(facts)}


def write_lists(logits, path, kind=None, **options):
    kind = kind or pyarrow.list_(pyarrow.float32())
    lists = pyarrow.array(logits.tolist(), type=kind)
    parquet.write_table(pyarrow.table({"id": list(range(len(logits))), "logits": lists}), path, **options)


def write_columns(logits, path, names=("logits_0", "logits_1", "logits_2"), **options):
    columns = {name: logits[:, label] for label, name in enumerate(names)}
    # Neither the order of the columns nor what stands between them matters.
    table = {"time": np.zeros(len(logits)), **dict(reversed(columns.items()))}
    parquet.write_table(pyarrow.table(table), path, **options)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 20 rows of three classes, batches of 7."""
    monkeypatch.setattr(_files_of_scores, "_BLOCK", 60)
    monkeypatch.setattr(_files_of_scores, "_BATCH", 21)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files of predictions, 110 and 45 rows, a Parquet file of 50 in groups of 13, all their logits."""
    folder = tmp_path_factory.mktemp("traffic")
    parts = [scored(size, seed) for seed, size in enumerate((110, 45, 50))]
    parts[0].save(folder / "a.safetensors")
    parts[1].save(folder / "b.safetensors")
    write_lists(parts[2].logits, folder / "c.parquet", row_group_size=13)
    scored(400, 9, mix=(0.6, 0.3, 0.1)).save(folder / "validation.safetensors")
    save_file({"logits": np.concatenate([part.logits for part in parts])}, folder / "all")
    return folder


@pytest.fixture
def files(folder):
    return sorted([*folder.glob("[ab].safetensors"), folder / "c.parquet"])


def contents(state, folder):
    """Everything in a state, as its file has it."""
    state.save(folder / "contents.state")
    tensors = load_file(folder / "contents.state")
    (folder / "contents.state").unlink()
    return tensors


def assert_same(state, other, folder):
    ours, theirs = contents(state, folder), contents(other, folder)
    assert state.streams == other.streams and state.num_samples == other.num_samples
    for name in ("rows", "marks", "source"):
        assert np.array_equal(ours[name], theirs[name]), name
    np.testing.assert_allclose(ours["posterior"], theirs["posterior"], rtol=1e-12, atol=0)
    np.testing.assert_allclose(state.prior.probs, other.prior.probs, rtol=0, atol=1e-9)


# Reading


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
def test_batches_of_predictions_are_the_logits_in_order(dtype, tmp_path, small_blocks):
    logits = scored(47, 0).logits.astype(dtype)
    Predictions(logits=logits, carried=CARRIED).save(tmp_path / "p.safetensors")
    batches = list(read_batches(tmp_path / "p.safetensors"))
    assert [len(batch) for batch in batches] == [7, 7, 6, 7, 7, 6, 7]
    assert np.array_equal(np.concatenate(batches), logits) and batches[0].dtype == dtype
    assert [len(batch) for batch in read_batches(tmp_path / "p.safetensors", rows=15)] == [15, 5, 15, 5, 7]


def bfloat16_file(path, halves, header):
    """A file of predictions whose logits are bfloat16, as torch writes them, given as their 16 bits."""
    carried = CARRIED.probs.tobytes()
    entries = {
        "__metadata__": header,
        "carried": {"dtype": "F64", "shape": [3], "data_offsets": [0, len(carried)]},
        "logits": {
            "dtype": "BF16",
            "shape": list(halves.shape),
            "data_offsets": [len(carried), len(carried) + halves.nbytes],
        },
    }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + carried + halves.tobytes())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_predictions_of_half_precision_that_0_1_wrote_are_read(dtype, files, tmp_path, small_blocks):
    logits = scored(47, 0).logits
    if dtype == "float16":
        logits = logits.astype(np.float16)
        save_file({"logits": logits, "carried": CARRIED.probs}, tmp_path / "p", metadata=header_of_0_1())
    else:
        halves = (logits.view(np.uint32) >> 16).astype(np.uint16)
        logits = (halves.astype(np.uint32) << 16).view(np.float32)
        bfloat16_file(tmp_path / "p", halves, header_of_0_1())
    batches = list(read_batches(tmp_path / "p"))
    assert [len(batch) for batch in batches] == [7, 7, 6, 7, 7, 6, 7]
    assert np.array_equal(np.concatenate(batches), logits)
    found = describe_file(tmp_path / "p")
    assert found.carried == CARRIED.named(NAMES) and found.class_names == NAMES
    expected = estimate_prior(logits.astype(np.float32), carried=CARRIED, intervals="none")
    np.testing.assert_allclose(estimate_files(tmp_path / "p").prior.probs, expected.prior.probs, atol=1e-7)


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.list_(pyarrow.float32()),
        pyarrow.list_(pyarrow.float32(), 3),
        pyarrow.large_list(pyarrow.float64()),
    ],
    ids=str,
)
def test_batches_of_a_list_column_are_the_logits_in_order(kind, tmp_path, small_blocks):
    logits = scored(47, 0).logits
    write_lists(logits, tmp_path / "p.parquet", kind, row_group_size=11)
    batches = list(read_batches(tmp_path / "p.parquet", rows=4))
    assert max(map(len, batches)) == 4
    assert np.array_equal(np.concatenate(batches).astype(np.float32), logits)
    # Row groups are not cut: the first block is of two.
    assert [block.first for block in describe_file(tmp_path / "p.parquet").blocks] == [0, 22, 44]


def test_batches_of_a_column_for_each_class_are_in_the_order_of_the_classes(tmp_path):
    logits = scored(47, 0).logits
    write_columns(logits, tmp_path / "p.parquet")
    assert np.array_equal(np.concatenate(list(read_batches(tmp_path / "p.parquet", rows=10))), logits)
    write_columns(logits, tmp_path / "p.parquet", names=NAMES)
    found = np.concatenate(list(read_batches(tmp_path / "p.parquet", columns=["dog", "cat"])))
    assert np.array_equal(found, logits[:, [1, 0]])


def test_a_file_says_what_it_is_without_its_logits(files):
    found = describe_file(files[0])
    assert (found.num_samples, found.num_classes, found.class_names) == (110, 3, NAMES)
    assert found.carried == CARRIED.named(NAMES) and found.fingerprint == ""
    assert describe_file(files[2]).carried is None
    assert [describe_file(file).num_samples for file in files] == [110, 45, 50]


def test_blocks_hold_every_row_once(files, small_blocks):
    for file in files:
        found = describe_file(file)
        assert len(found.blocks) > 1
        assert [block.first for block in found.blocks[1:]] == [block.last for block in found.blocks[:-1]]
        assert (found.blocks[0].first, found.blocks[-1].last) == (0, found.num_samples)
        for block in found.blocks:
            assert sum(map(len, block.batches())) == block.last - block.first


# Estimating


def test_one_pass_is_the_estimate_from_all_logits_at_once(files, folder, small_blocks):
    state = estimate_files(files)
    expected = estimate_prior(load_file(folder / "all")["logits"], carried=CARRIED, intervals="none")
    assert state.num_samples == expected.num_samples == 205
    np.testing.assert_allclose(state.prior.probs, expected.prior.probs, rtol=0, atol=1e-7)


def test_a_calibration_comes_first(files, folder, small_blocks):
    held_out = Predictions.load(folder / "validation.safetensors")
    scaling = fit_scaling(held_out.logits, held_out.labels, carried=CARRIED)
    state = estimate_files(files, scaling=scaling)
    expected = estimate_prior(
        load_file(folder / "all")["logits"], carried=CARRIED, calibration=scaling, intervals="none"
    )
    np.testing.assert_allclose(state.prior.probs, expected.prior.probs, rtol=0, atol=1e-7)
    assert np.abs(state.prior.probs - estimate_files(files).prior.probs).max() > 1e-3


def test_neither_the_order_nor_the_folder_of_the_files_matters(files, tmp_path, small_blocks):
    whole = estimate_files(files, capacity=60)
    assert_same(estimate_files(reversed(files), capacity=60), whole, tmp_path)
    for file in files:
        shutil.copy(file, tmp_path)
    assert_same(estimate_files([tmp_path / file.name for file in files], capacity=60), whole, tmp_path)


@pytest.mark.parametrize("capacity", [None, 60, 5])
def test_the_states_of_shards_merge_to_the_state_of_one_pass(capacity, files, tmp_path, small_blocks):
    whole = estimate_files(files, capacity=capacity)
    for count in (2, 3, 11):
        shards = [estimate_files(files, capacity=capacity, shard=(i + 1, count)) for i in range(count)]
        assert sum(shard.num_samples for shard in shards) == whole.num_samples
        assert_same(shards[-1].merge(*shards[:-1]), whole, tmp_path)
    singles = [estimate_files(file, carried=CARRIED, capacity=capacity) for file in files]
    assert_same(singles[2].merge(singles[0]).merge(singles[1]), whole, tmp_path)


@functools.cache
def state_of(path, shard):
    return estimate_files(path, carried=CARRIED, capacity=40, shard=shard)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.data())
def test_any_tree_of_merges_gives_the_same_state(folder, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files_of_scores, "_BLOCK", 60)
        names = ("a.safetensors", "b.safetensors", "c.parquet")
        whole = state_of(folder / names[0], (1, 1)).merge(*(state_of(folder / n, (1, 1)) for n in names[1:]))
        states = [
            state_of(folder / name, (index + 1, count))
            for name in names
            for count in [data.draw(st.integers(1, 2))]
            for index in range(count)
        ]
        states = data.draw(st.permutations(states))
        while len(states) > 1:
            size = data.draw(st.integers(2, len(states)))
            states = [*states[size:], states[0].merge(*states[1:size])]
    np.testing.assert_allclose(states[0].prior.probs, whole.prior.probs, rtol=0, atol=1e-9)
    assert states[0].streams == whole.streams


def test_more_samples_than_the_capacity_still_count(tmp_path, small_blocks):
    scored(3000, 3).save(tmp_path / "p.safetensors")
    state = estimate_files(tmp_path / "p.safetensors", capacity=200)
    assert state.num_samples == 3000 and len(contents(state, tmp_path)["rows"]) == 200
    logits = scored(3000, 3).logits
    posterior = contents(state, tmp_path)["posterior"] / 3000
    np.testing.assert_allclose(
        posterior, softmax(logits.astype(np.float64), axis=1).mean(axis=0), rtol=0, atol=1e-9
    )


def test_a_bounded_state_is_closer_to_all_samples_than_as_many_samples_alone(tmp_path):
    errors = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.choice(3, 3000, p=[0.1, 0.3, 0.6])
        exact = 3 * (rng.normal(size=(3000, 3)) + 3 * np.eye(3)[labels]) + CARRIED.log_probs
        path = tmp_path / f"{seed}.safetensors"
        Predictions(logits=exact, carried=CARRIED).save(path)
        everything = estimate_files(path).prior.probs
        bounded = estimate_files(path, capacity=200).prior.probs
        few = estimate_prior(exact[:200], carried=CARRIED, intervals="none").prior.probs
        errors.append([np.abs(bounded - everything).max(), np.abs(few - everything).max()])
    ours, of_few = np.mean(errors, axis=0)
    assert ours < of_few / 2


@pytest.mark.slow
def test_several_processes_give_the_same_state(files, tmp_path, small_blocks):
    found = estimate_files(files, capacity=60, jobs=2)
    assert_same(found, estimate_files(files, capacity=60), tmp_path)


@pytest.mark.slow
def test_a_mistake_in_one_of_several_processes_is_told_as_in_one(files, tmp_path):
    logits = np.zeros((40, 3), dtype=np.float32)
    logits[30] = np.nan
    save_file({"logits": logits, "carried": CARRIED.probs}, tmp_path / "x", metadata=header_of_0_1())
    with pytest.raises(ValueError, match=r"x, rows from 0 on: .* of sample 30 "):
        estimate_files([*files, tmp_path / "x"], jobs=2)


@pytest.mark.slow
def test_a_process_that_dies_is_told_in_words(tmp_path):
    scored(50, 0).save(tmp_path / "p.safetensors")
    script = (
        "import sys\n"
        "from priorshift.streams import _files_of_scores, estimate_files\n"
        "_files_of_scores._BLOCK = 60\n"
        "estimate_files(sys.argv[1], jobs=2)\n"
    )
    (tmp_path / "script.py").write_text(script)  # it has no `if __name__ == "__main__":`
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "p.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "OSError: One of 2 processes ended early" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_worker_processes_do_not_import_torch_and_share_the_threads(files):
    # The last of a worker's work: what it has loaded, and how many threads it may use.
    code = (
        "import sys\n"
        "from priorshift import _blocks\n"
        "from priorshift.streams import _passes\n"
        "def report(task, blocks):\n"
        "    print('torch' in sys.modules, _blocks.num_threads(), flush=True)\n"
        "    return original(task, blocks)\n"
        "original = _passes._Task.__call__\n"
        "_passes._Task.__call__ = report\n"
        "if __name__ == '__main__':\n"
        "    print(_passes.estimate_files(sys.argv[1:], jobs=2).num_samples)\n"
    )
    script = files[0].parent / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script), *map(str, files)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    assert done.stdout.splitlines() == ["False 1"] * 2 + ["205"], done.stderr


def test_a_named_carried_prior_is_matched_by_name(files, tmp_path):
    whole = estimate_files(files)
    by_name = estimate_files(files, carried={"horse": 0.1, "cat": 0.6, "dog": 0.3})
    np.testing.assert_allclose(by_name.prior.probs, whole.prior.probs, rtol=0, atol=1e-12)
    assert by_name.prior.names == whole.prior.names == NAMES
    with pytest.raises(ValueError, match="`carried` to name the same classes"):
        estimate_files(files, carried={"horse": 0.1, "cat": 0.6, "emu": 0.3})
    write_columns(scored(47, 0).logits, tmp_path / "p.parquet", names=NAMES)
    columns = ["dog", "horse", "cat"]
    found = estimate_files(tmp_path / "p.parquet", carried=CARRIED.named(NAMES), columns=columns)
    straight = estimate_files(tmp_path / "p.parquet", carried=CARRIED, columns=NAMES)
    assert found.prior.names == tuple(columns)
    np.testing.assert_allclose(found.prior.named(NAMES).probs, straight.prior.probs, rtol=0, atol=1e-7)


# Mistakes


def test_files_of_two_scorers_are_refused_by_name(files, tmp_path):
    other = tmp_path / "other.safetensors"
    logits = np.zeros((4, 3), dtype=np.float32)
    Predictions(logits=logits, carried=Prior.uniform(3)).save(other)
    with pytest.raises(ValueError, match="of one scorer, whose logits carry"):
        estimate_files([*files, other])
    with pytest.raises(ValueError, match=r"of one scorer, whose logits carry .*a.safetensors"):
        estimate_files(files, carried=[0.3, 0.3, 0.4])
    Predictions(logits=np.zeros((4, 2), dtype=np.float32), carried=Prior.uniform(2)).save(other)
    with pytest.raises(ValueError, match=r"has 3 classes and .*other.safetensors has 2"):
        estimate_files([*files, other])
    Predictions(logits=logits, carried=CARRIED, class_names=("x", "y", "z")).save(other)
    with pytest.raises(ValueError, match="has other class names"):
        estimate_files([*files, other])


def test_a_file_counts_once(files, tmp_path, small_blocks):
    with pytest.raises(ValueError, match=r"each file once, but .*a.safetensors and .*a.safetensors are"):
        estimate_files([files[0], *files])
    state = estimate_files(files[0])
    with pytest.raises(ValueError, match="would count twice"):
        state.merge(estimate_files(files[:2], shard=(1, 2)))
    # The same name in another folder is another file, if its content is another.
    scored(45, 7).save(tmp_path / "b.safetensors")
    assert estimate_files([*files, tmp_path / "b.safetensors"]).num_samples == 250


@pytest.mark.parametrize("name", ["a.safetensors", "c.parquet"])
@pytest.mark.parametrize("size", [4, 300, -30])
def test_a_truncated_file_names_itself(name, size, folder, tmp_path):
    (tmp_path / name).write_bytes((folder / name).read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{name} is truncated"):
        estimate_files([tmp_path / name], carried=CARRIED)


def test_a_damaged_page_of_parquet_names_its_file(tmp_path):
    write_lists(scored(4000, 0).logits, tmp_path / "p.parquet", compression="zstd", use_dictionary=False)
    content = bytearray((tmp_path / "p.parquet").read_bytes())
    content[5000:20000] = bytes(15000)
    (tmp_path / "p.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"p.parquet is truncated or no Parquet file"):
        estimate_files(tmp_path / "p.parquet", carried=CARRIED)


def test_what_is_no_file_of_logits_is_refused_in_words(files, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere"):
        estimate_files([*files, tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="at least one file, but got none"):
        estimate_files([])
    with pytest.raises(ValueError, match="is a safetensors file, but no predictions file"):
        estimate_files([folder / "all"])
    (tmp_path / "w").write_text("[0.5, 0.5]")
    with pytest.raises(ValueError, match="w is truncated or no predictions file"):
        estimate_files(tmp_path / "w")
    save_file({"weight": np.zeros((2, 2), dtype=np.float32)}, tmp_path / "w")
    with pytest.raises(ValueError, match="no predictions file of priorshift"):
        estimate_files(tmp_path / "w")
    save_file({"weight": np.zeros((2, 2), dtype=np.float32)}, tmp_path / "w", metadata=header_of_0_1())
    with pytest.raises(ValueError, match="no predictions file of priorshift"):
        estimate_files(tmp_path / "w")
    none = {"logits": np.zeros((0, 3), dtype=np.float32), "carried": CARRIED.probs}
    save_file(none, tmp_path / "w", metadata=header_of_0_1())
    with pytest.raises(ValueError, match="w has no rows"):
        estimate_files(tmp_path / "w")
    with pytest.raises(ValueError, match=r"Expected `carried`.*c.parquet does not hold it"):
        estimate_files(files[2])
    with pytest.raises(ValueError, match=r"`rows` to be at least 1, but got 0"):
        next(read_batches(files[0], rows=0))


@pytest.mark.parametrize(
    ("table", "columns", "words"),
    [
        ({"scores": [[0.0, 1.0]]}, "logits", "'logits', but it has scores; name them with `columns`"),
        ({"x": [0.0], "y": [0.0]}, ["x", "z"], "'x, z', but it has x, y"),
        ({"x": [0.0], "y": [0.0]}, ["x"], "'x', but it has x, y"),
        ({"logits": [0.5]}, "logits", "lists of floating-point numbers in column 'logits', but got double"),
        ({"logits": [[1, 2]]}, "logits", "in column 'logits', but got list<"),
        ({"logits_0": [1.0], "logits_1": [1]}, "logits", "in column 'logits_1', but got int64"),
        ({"logits": [[0.5], [0.5]]}, "logits", "at least 2 classes, but got 1"),
        ({"logits": [[0.5, 0.5], [0.5]]}, "logits", "with 2 logits in every row"),
        ({"logits": [[0.5, 0.5], None]}, "logits", "with 2 logits in every row"),
        ({"logits": [[0.5, 0.5], [0.5, None]]}, "logits", "rows from 0 on: .* of sample 1 "),
        ({"logits_0": [1.0, None], "logits_1": [1.0, 2.0]}, "logits", "rows from 0 on: .* of sample 1 "),
    ],
)
def test_columns_that_are_no_logits_are_refused_in_words(table, columns, words, tmp_path):
    parquet.write_table(pyarrow.table(table), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=words) as caught:
        estimate_files(tmp_path / "p.parquet", carried=[0.5, 0.5], columns=columns)
    assert "p.parquet" in str(caught.value)


def test_nan_is_refused_by_file_and_row(files, tmp_path, small_blocks):
    logits = np.zeros((60, 3), dtype=np.float32)
    logits[30, 1] = np.nan
    save_file({"logits": logits, "carried": CARRIED.probs}, tmp_path / "x", metadata=header_of_0_1())
    with pytest.raises(ValueError, match=r"x, rows from 27 on: .* of sample 3 "):
        estimate_files([*files, tmp_path / "x"])


def test_shards_jobs_and_capacities_out_of_range_are_refused(files):
    for shard in ((0, 2), (3, 2), (1, 0)):
        with pytest.raises(ValueError, match=r"`shard` to be \(i, n\) with 1 ≤ i ≤ n, but got"):
            estimate_files(files, shard=shard)
    with pytest.raises(ValueError, match="files have blocks, 3, but got part 4 of 4"):
        estimate_files(files, shard=(4, 4))
    with pytest.raises(ValueError, match="`jobs` to be at least 1, but got 0"):
        estimate_files(files, jobs=0)
    with pytest.raises(ValueError, match="`capacity` to be positive, but got 0"):
        estimate_files(files, capacity=0)


# On a cluster


class InlineClient:
    """The part of a Dask client that is used, in this process: tasks run when they are submitted."""

    def __init__(self, address=None):
        self.widest = 0

    def map(self, task, items, *, pure):
        return [self.submit(task, item, pure=pure) for item in items]

    def submit(self, task, *arguments, pure, priority=0):
        assert not pure
        values = [part.result() if hasattr(part, "result") else part for part in arguments]
        self.widest = max(self.widest, len(values))
        found = task(*values)
        return types.SimpleNamespace(result=lambda: found)


@pytest.mark.parametrize("capacity", [None, 30])
def test_a_tree_of_tasks_gives_the_state_of_one_pass(capacity, files, tmp_path, small_blocks):
    client = InlineClient()
    state = estimate_on_cluster(files, client, capacity=capacity)
    assert_same(state, estimate_files(files, capacity=capacity), tmp_path)
    assert client.widest == 4
    assert_same(estimate_on_cluster(files[0], client), estimate_files(files[0]), tmp_path)


@pytest.mark.slow
def test_a_killed_worker_of_a_cluster_changes_nothing(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")
    monkeypatch.setattr(_files_of_scores, "_BLOCK", 3 * 20_000)
    files = [tmp_path / f"{day}.safetensors" for day in range(3)]
    for day, file in enumerate(files):
        scored(500_000, day).save(file)
    whole = estimate_files(files, capacity=10_000)
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        distributed.LocalCluster(**options, local_directory=str(tmp_path)) as cluster,
        distributed.Client(cluster) as client,
    ):
        before = client.run(os.getpid)
        found = []
        work = threading.Thread(
            target=lambda: found.append(estimate_on_cluster(files, client, capacity=10_000))
        )
        work.start()
        address, process = next(iter(before.items()))
        while len(client.has_what().get(address, ())) < 3:  # it holds states that will be lost
            assert work.is_alive()
            time.sleep(0.01)
        os.kill(process, signal.SIGKILL)
        assert work.is_alive()
        work.join(timeout=300)
        client.wait_for_workers(2, timeout=120)
        assert process not in client.run(os.getpid).values()
    assert_same(found[0], whole, tmp_path)


# Memory

PEAK = """
import resource, sys
from priorshift.streams import estimate_files
state = estimate_files(sys.argv[1:], carried=[1.0] * 50, capacity=20_000)
state.prior
print(state.num_samples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["safetensors", "parquet"])
def test_memory_does_not_grow_with_the_files(ending, tmp_path):
    logits = np.random.default_rng(0).normal(size=(200_000, 50)).astype(np.float32)
    Predictions(logits=logits, carried=Prior.uniform(50)).save(tmp_path / "0.safetensors")
    columns = {f"logits_{label}": logits[:, label] for label in range(50)}
    parquet.write_table(pyarrow.table(columns), tmp_path / "0.parquet")
    files = [tmp_path / f"{number}.{ending}" for number in range(10)]
    for file in files[1:]:
        os.link(files[0], file)  # under another name it is another file

    def peak(paths):
        # By a shell, or the peak of the child would count from what this process holds.
        command = ["/bin/sh", "-c", '"$@" || exit 1', "sh", sys.executable, "-c", PEAK, *map(str, paths)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        samples, mebibytes = done.stdout.split()
        assert int(samples) == 200_000 * len(paths)
        return int(mebibytes)

    assert peak(files) - peak(files[:2]) < 60  # of 305 MiB more


# The command


def assert_one_line(capsys, *words):
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("priorshift: ")
    for word in words:
        assert word in error


@pytest.fixture
def traffic(folder, tmp_path, monkeypatch):
    """The files in a folder of their own, where the command runs."""
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_prints_the_mix_and_writes_the_state(traffic, capsys, small_blocks):
    assert main(["estimate", "?.safetensors", "c.parquet", "--validation", "validation.safetensors"]) == 0
    streams = capsys.readouterr()
    state = StreamingPrior.load("mix.state")
    assert state.num_samples == 205 and streams.err == ""
    shares = 100 * state.prior.probs
    for label, name in enumerate(NAMES):
        row = next(line for line in streams.out.splitlines() if name in line)
        assert re.findall(r"\d+\.\d\d", row) == [f"{100 * CARRIED.probs[label]:.2f}", f"{shares[label]:.2f}"]
    held_out = Predictions.load("validation.safetensors")
    scaling = fit_scaling(held_out.logits, held_out.labels, carried=CARRIED)
    expected = estimate_files(["a.safetensors", "b.safetensors", "c.parquet"], scaling=scaling)
    np.testing.assert_allclose(state.prior.probs, expected.prior.probs, rtol=0, atol=1e-9)
    assert "not calibrated" not in streams.out and "state: mix.state" in streams.out


def test_without_validation_the_command_says_so(traffic, capsys):
    assert main(["estimate", "a.safetensors", "--output", "a.state"]) == 0
    assert "warning: The logits were not calibrated" in capsys.readouterr().out
    assert main(["estimate", "b.safetensors", "--validation", "validation.safetensors"]) == 0
    assert main(["estimate", "b.safetensors", "--validation", "validation.safetensors"]) == 0
    assert StreamingPrior.load("a.state").num_samples == 110
    assert StreamingPrior.load("mix.state").num_samples == 45


def test_states_of_shards_merge_on_the_command_line(traffic, capsys, small_blocks):
    files = ["[ab].safetensors", "c.parquet", "--validation", "validation.safetensors", "--capacity", "60"]
    assert main(["estimate", *files]) == 0
    for index in (1, 2, 3):
        assert main(["estimate", *files, "--shard", f"{index}/3"]) == 0
    capsys.readouterr()
    assert main(["estimate", "mix-?-of-3.state", "--output", "merged.state"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"205\s+samples", text) and "60.00" in text
    assert_same(StreamingPrior.load("merged.state"), StreamingPrior.load("mix.state"), traffic)


def test_the_carried_prior_of_parquet_comes_from_the_command_line(traffic, capsys):
    for spelling, expected in (
        ("uniform", Prior.uniform(3)),
        ("mix.json", Prior([0.2, 0.3, 0.5])),
    ):
        (traffic / "mix.json").write_text("[2, 3, 5]")
        assert main(["estimate", "c.parquet", "--carried", spelling]) == 0
        assert StreamingPrior.load("mix.state").carried.matches(expected)
    logits = scored(30, 1).logits
    write_columns(logits, "d.parquet", names=NAMES)
    assert main(["estimate", "d.parquet", "--carried", "uniform", "--columns", *NAMES]) == 0
    assert StreamingPrior.load("mix.state").num_samples == 30
    write_columns(logits, "d.parquet", names=("z_0", "z_1", "z_2"))
    argv = ["--validation", "validation.safetensors", "--calibration", "none", "--columns", "z"]
    assert main(["estimate", "d.parquet", *argv]) == 0
    assert StreamingPrior.load("mix.state").carried.matches(CARRIED)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["at least one predictions file or state"]),
        (["nowhere.safetensors"], ["no file nowhere.safetensors"]),
        (["d*.safetensors"], ["No file matches d*.safetensors"]),
        (["half.safetensors"], ["half.safetensors is truncated"]),
        (["a.safetensors", "uniform.safetensors"], ["of one scorer", "uniform.safetensors"]),
        (["a.safetensors", "a.safetensors"], ["each file once", "a.safetensors"]),
        (["a.safetensors", "--shard", "3/2"], ["`--shard` to be i/n", "'3/2'"]),
        (["a.safetensors", "--shard", "0/2"], ["`--shard` to be i/n", "'0/2'"]),
        (["a.safetensors", "--shard", "half"], ["`--shard` to be i/n", "'half'"]),
        (["a.safetensors", "--shard", "2/2"], ["have blocks, 1, but got part 2 of 2"]),
        (["a.safetensors", "--jobs", "0"], ["`jobs` to be at least 1, but got 0"]),
        (["a.safetensors", "--calibration", "ts"], ["`--validation` with labels to fit 'ts' to"]),
        (["a.safetensors", "--validation", "nowhere"], ["no predictions file nowhere"]),
        (["a.safetensors", "--validation", "uniform.safetensors"], ["same scorer", "uniform.safetensors"]),
        (["a.safetensors", "--validation", "seen.safetensors"], ["the classes of the files", "seen"]),
        (["seen.safetensors", "--validation", "seen.safetensors"], ["other samples", "seen.safetensors"]),
        (["two.safetensors", "--validation", "uniform.safetensors"], ["with 2 classes", "has 3"]),
        (["a.safetensors", "--output", "./a.safetensors"], ["`--output` to be another file"]),
        (["c.parquet"], ["`--carried`", "c.parquet does not say it"]),
        (["c.parquet", "--carried", "unifrom"], ["`--carried` to be `uniform` or a JSON file", "'unifrom'"]),
        (["c.parquet", "--carried", "uniform", "--columns", "z"], ["'z'", "but it has id, logits"]),
        (["a.state", "b.safetensors"], ["a.state is a state and b.safetensors is none"]),
        (["a.state", "--jobs", "2"], ["no `--jobs` with states"]),
        (["a.state", "again.state"], ["different streams", "would count twice"]),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_sentence_and_writes_nothing(argv, words, traffic, capsys):
    scored(9, 0, fingerprint="ab12").save("seen.safetensors")
    seen = Predictions.load("seen.safetensors")
    other = {"logits": seen.logits, "labels": seen.labels, "class_names": ("x", "y", "z")}
    if argv[:1] == ["a.safetensors"]:
        Predictions(**other, carried=CARRIED).save("seen.safetensors")
    Predictions(logits=seen.logits, labels=seen.labels, carried=Prior.uniform(3)).save("uniform.safetensors")
    Predictions(logits=np.zeros((4, 2), dtype=np.float32), carried=Prior.uniform(2)).save("two.safetensors")
    Path("half.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:400])
    for name in ("a.state", "again.state"):
        estimate_files("a.safetensors").save(name)
    before = sorted(traffic.iterdir())
    assert main(["estimate", *argv]) == 2
    assert_one_line(capsys, *words)
    assert sorted(traffic.iterdir()) == before


def test_parquet_without_pyarrow_is_one_sentence_with_the_command_that_installs_it(
    traffic, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError):
        list(read_batches("c.parquet"))
    assert main(["estimate", "c.parquet"]) == 2
    assert_one_line(capsys, "needs pyarrow", 'pip install ".[train]"')
    assert main(["estimate", "a.safetensors"]) == 0


# The page


def test_the_page_does_what_it_says(folder, tmp_path, monkeypatch, capsys, small_blocks):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "distributed", types.SimpleNamespace(Client=InlineClient))
    Path("traffic").mkdir()
    shutil.copy(folder / "validation.safetensors", tmp_path)
    shutil.copy(folder / "a.safetensors", tmp_path / "traffic" / "monday.safetensors")
    shutil.copy(folder / "b.safetensors", tmp_path / "traffic" / "tuesday.safetensors")
    logits = scored(30, 1).logits
    write_columns(logits, "traffic/wednesday.parquet", names=NAMES)
    namespace = {"logits": logits}
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["sh", "python", "sh", "sh", "python"]
    for number, (language, block) in enumerate(blocks):
        if language == "python":
            exec(compile(block, f"docs/out_of_core.md, block {number}", "exec"), namespace)
        else:
            for line in block.splitlines():
                program, *argv = shlex.split(line)
                assert program == "priorshift" and main(argv) == 0, capsys.readouterr().err
    assert StreamingPrior.load("traffic.state").num_samples == 155
    assert StreamingPrior.load("wednesday.state").num_samples == 30
    assert not np.array_equal(namespace["logits"], logits) and namespace["logits"].shape == (30, 3)
    one_pass = estimate_files(sorted(Path("traffic").glob("*.safetensors")))
    assert_same(StreamingPrior.load("traffic.state"), one_pass, tmp_path)
    assert StreamingPrior.load("mix.state").estimate().scaling is not None


def test_every_page_it_points_to_exists():
    for path in re.findall(r"\]\((?!https?:)([^)#]+)", PAGE):
        assert (Path(__file__).parents[1] / "docs" / path).is_file(), path
