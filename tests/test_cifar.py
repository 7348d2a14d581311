"""CIFAR-LT: pinned by content whatever the file form, LDAM-DRW's own draw, and files that are none of it."""

import io
import os
import pickle
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from priorshift.data import ImageSet, UnreadableImageError
from priorshift.data._cifar_pickles import read_cifar_pickle
from priorshift.data._folders import data_folder
from priorshift.data.sources import _cifar, cifar10_lt, cifar100_lt
from priorshift.metrics import group_accuracy

DATA = Path(os.environ.get("PRIORSHIFT_DATA") or Path(__file__).parents[2] / "shared/data")
CIFAR100 = DATA / "cifar100"
needs_cifar100 = pytest.mark.skipif(
    not (CIFAR100 / "train.parquet").is_file(), reason=f"the real CIFAR-100 is not in {CIFAR100}"
)
DEFAULT_FINGERPRINT = "72d8d49f050d4e72"
HELD_OUT_FINGERPRINT = "fd092b4552a24ee7"
FIRST_LABELS = [19, 29, 0, 11, 1, 86, 90, 28, 23, 31]
FIRST_LABELS_10 = [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]


def cifar100(**options):
    return cifar100_lt(root=str(CIFAR100), **options)


def everything(root=CIFAR100):
    return _cifar._read_whole(_cifar._CIFAR100, str(root))


def write_pickle(file, images, labels, label_key):
    """One of CIFAR's files, as Python 3 writes what Python 2 wrote."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        b"data": np.ascontiguousarray(images.numpy().reshape(len(images), 3072)),
        label_key: labels.tolist(),
        b"filenames": [b"some.png"] * len(labels),
    }
    file.write_bytes(pickle.dumps(content, protocol=2))


def write_parquet(file, encoded, labels, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": png, "path": f"{row}.png"} for row, png in enumerate(encoded)]
    names = {"image": "image", "label": "label"} | columns
    pq.write_table(pa.table({names["image"]: rows, names["label"]: labels.tolist()}), file)


def write_folders(folder, encoded, labels, class_names):
    for name in class_names:
        (folder / name).mkdir(parents=True)
    for row, (png, label) in enumerate(zip(encoded, labels.tolist(), strict=True)):
        (folder / class_names[label] / f"{row:05d}.png").write_bytes(png)


def as_pngs(images):
    encoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.movedim(0, -1).numpy()).save(file, "PNG", compress_level=1)
        encoded.append(file.getvalue())
    return encoded


def original_order(labels, first_labels, seed=0):
    """Rows in a random order that begins as the original one does."""
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = []
    for label in first_labels:
        chosen.append(next(row for row in rows if labels[row] == label and row not in chosen))
    begun = set(chosen)
    return torch.tensor(chosen + [row for row in rows if row not in begun])


@pytest.fixture(scope="module")
def torchvision_layout(tmp_path_factory):
    """The real CIFAR-100 as torchvision has it, its rows in another order than those of the parquet files."""
    root = tmp_path_factory.mktemp("torchvision")
    train, test = everything()
    rows = original_order(train.labels, FIRST_LABELS)
    folder = root / "cifar-100-python"
    write_pickle(folder / "train", train.images[rows], train.labels[rows], b"fine_labels")
    write_pickle(folder / "test", test.images, test.labels, b"fine_labels")
    yield root
    shutil.rmtree(root)


@pytest.fixture
def small_cifar10(monkeypatch):
    """CIFAR-10 of 30 random training images a class and 6 test images, in the original order of its first."""
    monkeypatch.setattr(_cifar, "_CIFAR10", replace(_cifar._CIFAR10, train_count=30))
    _cifar._read_whole.cache_clear()
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (360, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(10).repeat_interleave(30)
    rows = original_order(labels, FIRST_LABELS_10)
    names = _cifar._CIFAR10.class_names
    yield (
        ImageSet(images[:300], labels[rows], names),
        ImageSet(images[300:], torch.arange(10).repeat(6), names),
    )
    _cifar._read_whole.cache_clear()


def write_cifar10_pickles(folder, train, test):
    for batch in range(5):
        part = slice(60 * batch, 60 * batch + 60)
        write_pickle(folder / f"data_batch_{batch + 1}", train.images[part], train.labels[part], b"labels")
    write_pickle(folder / "test_batch", test.images, test.labels, b"labels")


# The real CIFAR-100


@needs_cifar100
@pytest.mark.parametrize(
    ("imbalance", "size", "groups"),
    [(100, 10_847, (35, 35, 30)), (50, 12_608, (41, 41, 18)), (10, 19_573, (69, 31, 0))],
)
def test_the_training_set_has_the_published_size_and_groups(imbalance, size, groups):
    train = cifar100(imbalance=imbalance).train
    classes = torch.arange(100)
    by_group = group_accuracy(classes, classes, train.counts)
    assert len(train) == size
    assert (by_group.num_many, by_group.num_medium, by_group.num_few) == groups
    exact = [500 * imbalance ** (-label / 99) for label in range(100)]
    assert train.counts.tolist() == [int(count + 1e-9) for count in exact]


@needs_cifar100
def test_the_test_set_is_the_balanced_one_and_the_step_profile_has_two_sizes():
    splits = cifar100(profile="step", max_count=400, imbalance=20)
    assert splits.test.counts.tolist() == [100] * 100
    assert splits.test.images.shape == (10_000, 3, 32, 32)
    assert splits.train.counts.tolist() == [400] * 50 + [20] * 50
    assert len(splits.validation) == 0


@needs_cifar100
def test_the_images_keep_their_labels():
    import pyarrow.parquet as pq

    table = pq.read_table(CIFAR100 / "train.parquet").slice(24_990, 20).to_pylist()
    of_class_49_and_50 = {
        np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))).tobytes(): row["fine_label"] for row in table
    }
    train = everything()[0]
    assert set(of_class_49_and_50.values()) == {49, 50}
    for row in range(24_990, 25_010):
        pixels = train.images[row].movedim(0, -1).numpy().tobytes()
        assert of_class_49_and_50[pixels] == train.labels[row]
    assert train.class_names[49:51] == ("mountain", "mouse")


@needs_cifar100
def test_the_default_subset_is_pinned_and_another_seed_gives_another():
    assert cifar100().train.fingerprint == DEFAULT_FINGERPRINT
    assert cifar100(split_seed=1).train.fingerprint != DEFAULT_FINGERPRINT
    assert torch.equal(cifar100(split_seed=1).train.counts, cifar100().train.counts)


@needs_cifar100
def test_shuffled_rows_in_torchvision_files_give_the_same_training_set_in_the_same_order(torchvision_layout):
    other = cifar100_lt(root=str(torchvision_layout)).train
    assert not torch.equal(everything(torchvision_layout)[0].labels, everything()[0].labels)
    assert other.fingerprint == DEFAULT_FINGERPRINT
    assert torch.equal(other.images, cifar100().train.images)
    assert torch.equal(other.labels, cifar100().train.labels)


@needs_cifar100
def test_subsets_of_one_seed_are_nested():
    small, middle, large = (
        set(zip(train.hashes, train.labels.tolist(), strict=True))
        for train in (cifar100(imbalance=ratio).train for ratio in (100, 50, 10))
    )
    assert small < middle < large


@needs_cifar100
def test_the_held_out_images_are_pinned_disjoint_and_of_the_stated_counts():
    whole, splits = cifar100(), cifar100(held_out=0.1)
    validation, train = set(splits.validation.hashes), set(splits.train.hashes)
    assert splits.validation.counts.tolist() == [max(n // 10, 1) for n in whole.train.counts.tolist()]
    assert torch.equal(splits.validation.counts + splits.train.counts, whole.train.counts)
    assert validation | train == set(whole.train.hashes) and not validation & train
    assert splits.validation.fingerprint == HELD_OUT_FINGERPRINT
    assert torch.equal(splits.test.images, whole.test.images)


def ldam_drw(labels, num_classes, largest, imb_factor, imb_type):
    """Rows that LDAM-DRW's `imbalance_cifar.py` keeps, restated."""
    counts = []
    for label in range(num_classes):
        if imb_type == "exp":
            counts.append(int(largest * imb_factor ** (label / (num_classes - 1.0))))
        else:
            counts.append(int(largest) if label < num_classes // 2 else int(largest * imb_factor))
    state = np.random.get_state()
    np.random.seed(0)
    rows = []
    for label, count in enumerate(counts):
        idx = np.where(np.array(labels, dtype=np.int64) == label)[0]
        np.random.shuffle(idx)
        rows += idx[:count].tolist()
    np.random.set_state(state)
    return rows


@needs_cifar100
@pytest.mark.parametrize(("profile", "imbalance"), [("exp", 100), ("exp", 10), ("step", 100)])
def test_ldam_seed0_draws_what_ldam_drw_draws(torchvision_layout, profile, imbalance):
    options = {"subset": "ldam-seed0", "profile": profile, "imbalance": imbalance}
    train = cifar100_lt(root=str(torchvision_layout), **options).train
    every = everything(torchvision_layout)[0]
    rows = ldam_drw(every.labels.tolist(), 100, 500.0, 1 / imbalance, profile)
    assert torch.equal(train.images, every.images[rows])
    assert (
        train.fingerprint
        == cifar100_lt(root=str(torchvision_layout), **options, split_seed=5).train.fingerprint
    )
    assert (
        train.fingerprint
        != cifar100_lt(root=str(torchvision_layout), **options | {"subset": "content"}).train.fingerprint
    )


@needs_cifar100
def test_ldam_seed0_refuses_rows_that_are_not_in_the_original_order():
    with pytest.raises(
        ValueError, match=r"original order .* by row number, .* but got \(0, 0, 0, .*'content'"
    ):
        cifar100(subset="ldam-seed0")


@needs_cifar100
def test_a_place_is_read_once_a_process():
    assert everything()[0] is everything()[0]
    assert cifar100().test is cifar100(imbalance=10).test


@needs_cifar100
def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="`max_count` between 1 and 500, or 0 for all, but got 501"):
        cifar100(max_count=501)
    with pytest.raises(ValueError, match="`subset` to be 'content' or 'ldam-seed0', but got 'ldam'"):
        cifar100(subset="ldam")
    with pytest.raises(ValueError, match="`profile`"):
        cifar100(profile="linear")
    with pytest.raises(ValueError, match="`imbalance`"):
        cifar100(imbalance=0.01)
    with pytest.raises(ValueError, match="`held_out`"):
        cifar100(held_out=1.0)


@needs_cifar100
def test_cifar_100_in_place_of_cifar_10_is_refused(torchvision_layout):
    with pytest.raises(ValueError, match=r"Expected CIFAR-10 in .* but it holds CIFAR-100\."):
        cifar10_lt(root=str(torchvision_layout))
    with pytest.raises(ValueError, match=r"Expected CIFAR-10 in .* but it holds CIFAR-100\."):
        cifar10_lt(root=str(torchvision_layout / "cifar-100-python"))
    with pytest.raises(ValueError, match=r"Expected a column called label or labels .* img, fine_label"):
        cifar10_lt(root=str(CIFAR100))


@pytest.mark.slow
@needs_cifar100
def test_folders_of_all_images_give_the_same_training_set(tmp_path):
    import pyarrow.parquet as pq

    for split in ("train", "test"):
        table = pq.read_table(CIFAR100 / f"{split}.parquet")
        encoded = [row["bytes"] for row in table.column("img").to_pylist()]
        labels = torch.from_numpy(table.column("fine_label").to_numpy().copy())
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1)).tolist()
        write_folders(
            tmp_path / split, [encoded[row] for row in order], labels[order], _cifar._CIFAR100.class_names
        )
    assert cifar100_lt(root=str(tmp_path)).train.fingerprint == DEFAULT_FINGERPRINT
    shutil.rmtree(tmp_path)


# Every file form, on small images in CIFAR-10's layouts


def test_pickles_parquet_and_folders_with_rows_shuffled_give_one_training_set(small_cifar10, tmp_path):
    train, test = small_cifar10
    names = train.class_names
    rows = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    shuffled, test_pngs = as_pngs(train.images[rows]), as_pngs(test.images)
    write_cifar10_pickles(tmp_path / "pickles/cifar-10-batches-py", train, test)
    write_parquet(tmp_path / "parquet/train.parquet", shuffled, train.labels[rows], image="img")
    write_parquet(tmp_path / "parquet/test.parquet", test_pngs, test.labels, image="img")
    snapshot = tmp_path / "snapshot/plain_text"
    write_parquet(snapshot / "train-00000-of-00002.parquet", shuffled[:70], train.labels[rows[:70]])
    write_parquet(snapshot / "train-00001-of-00002.parquet", shuffled[70:], train.labels[rows[70:]])
    write_parquet(snapshot / "test-00000-of-00001.parquet", test_pngs, test.labels)
    write_folders(tmp_path / "named/train", shuffled, train.labels[rows], names)
    write_folders(tmp_path / "named/test", test_pngs, test.labels, names)
    numbers = list(map(str, range(10)))
    write_folders(tmp_path / "numbered/train", shuffled, train.labels[rows], numbers)
    write_folders(tmp_path / "numbered/test", test_pngs, test.labels, numbers)

    forms = ("pickles", "pickles/cifar-10-batches-py", "parquet", "snapshot", "named", "numbered")
    splits = [cifar10_lt(root=str(tmp_path / form), imbalance=10, held_out=0.2) for form in forms]
    first = splits[0]
    exact = [30 * 10 ** (-label / 9) for label in range(10)]
    assert (first.train.counts + first.validation.counts).tolist() == [int(n + 1e-9) for n in exact]
    assert torch.equal(_cifar._read_whole(_cifar._CIFAR10, str(tmp_path / "pickles"))[0].images, train.images)
    for form in splits[1:]:
        assert torch.equal(form.train.images, first.train.images)
        assert torch.equal(form.train.labels, first.train.labels)
        assert form.validation.fingerprint == first.validation.fingerprint
        assert form.test.fingerprint == test.fingerprint
        assert form.test.class_names == names


def test_ldam_seed0_draws_from_the_five_batches_in_their_order(small_cifar10, tmp_path):
    train, test = small_cifar10
    write_cifar10_pickles(tmp_path / "cifar-10-batches-py", train, test)
    drawn = cifar10_lt(root=str(tmp_path), imbalance=10, subset="ldam-seed0").train
    assert torch.equal(drawn.images, train.images[ldam_drw(train.labels.tolist(), 10, 30.0, 0.1, "exp")])


def test_an_image_of_another_size_or_none_is_named(small_cifar10, tmp_path):
    train, test = small_cifar10
    pngs = as_pngs(train.images)
    write_parquet(tmp_path / "test.parquet", as_pngs(test.images), test.labels)
    larger = as_pngs(torch.zeros(1, 3, 28, 48, dtype=torch.uint8))
    write_parquet(tmp_path / "train.parquet", pngs[:7] + larger + pngs[8:], train.labels)
    with pytest.raises(ValueError, match=r"images of 32 × 32 .* but got 48 × 28 for .*train.parquet row 7\."):
        cifar10_lt(root=str(tmp_path), imbalance=10)
    write_parquet(tmp_path / "train.parquet", [*pngs[:8], pngs[8][:60], *pngs[9:]], train.labels)
    with pytest.raises(UnreadableImageError, match=r"train.parquet row 8 \("):
        cifar10_lt(root=str(tmp_path), imbalance=10)
    write_parquet(tmp_path / "train.parquet", [*pngs[:9], None, *pngs[10:]], train.labels)
    with pytest.raises(UnreadableImageError, match=r"train.parquet row 9 \("):
        cifar10_lt(root=str(tmp_path), imbalance=10)


def test_a_data_set_of_other_classes_or_counts_is_refused(small_cifar10, tmp_path):
    train, test = small_cifar10
    pngs = as_pngs(train.images)
    write_parquet(tmp_path / "test.parquet", as_pngs(test.images), test.labels)
    write_parquet(tmp_path / "train.parquet", pngs, train.labels)
    with pytest.raises(ValueError, match=r"CIFAR-100 of 100 classes, but .* has 10, as CIFAR-10 has\."):
        cifar100_lt(root=str(tmp_path))
    write_parquet(tmp_path / "train.parquet", pngs, train.labels + 1)
    with pytest.raises(ValueError, match=r"CIFAR-10 of 10 classes, but .* has 11\."):
        cifar10_lt(root=str(tmp_path), imbalance=10)
    write_parquet(tmp_path / "train.parquet", pngs[:-1], train.labels[:-1])
    with pytest.raises(ValueError, match=r"30 training images of each of 10 classes, but .* has 29 of '\w+'"):
        cifar10_lt(root=str(tmp_path), imbalance=10)


def test_a_parquet_file_with_other_columns_or_of_other_content_is_refused(small_cifar10, tmp_path):
    train, test = small_cifar10
    write_parquet(tmp_path / "test.parquet", as_pngs(test.images), test.labels)
    write_parquet(tmp_path / "train.parquet", as_pngs(train.images), train.labels, image="pixels")
    with pytest.raises(ValueError, match=r"a column called img or image in .* its columns are pixels, label"):
        cifar10_lt(root=str(tmp_path), imbalance=10)
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"CIFAR-10's images as .* but .*train.parquet cannot be read so"):
        cifar10_lt(root=str(tmp_path), imbalance=10)


def test_folders_that_are_not_cifars_classes_are_refused(tmp_path):
    black = as_pngs(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    for split in ("train", "test"):
        write_folders(tmp_path / split, black, torch.tensor([0]), ["car"])
    with pytest.raises(
        ValueError, match=r"classes of CIFAR-10 by name or number, 'airplane' .* but got 'car'"
    ):
        cifar10_lt(root=str(tmp_path))


def test_a_place_without_cifar_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"Expected CIFAR-100 in .* as cifar-100-python/, .* none of them"):
        cifar100_lt(root=str(tmp_path))
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match=r"Expected CIFAR-100 in .* but it holds CIFAR-10"):
        cifar100_lt(root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"but there is no such folder: pass the folder .* as `root`"):
        cifar100_lt(root=str(tmp_path / "nowhere"))
    monkeypatch.setenv("PRIORSHIFT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"Expected cifar100 in .*/cifar100, but .* PRIORSHIFT_DATA"):
        cifar100_lt()


def test_a_known_data_set_lies_in_the_folder_of_the_variable_or_in_data(tmp_path, monkeypatch):
    (tmp_path / "data/cifar10").mkdir(parents=True)
    (tmp_path / "elsewhere/cifar10").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRIORSHIFT_DATA", raising=False)
    assert data_folder("cifar10") == (tmp_path / "data/cifar10").resolve()
    monkeypatch.setenv("PRIORSHIFT_DATA", str(tmp_path / "elsewhere"))
    assert data_folder("cifar10") == (tmp_path / "elsewhere/cifar10").resolve()
    assert data_folder("cifar10", "data") == (tmp_path / "data").resolve()


def test_the_hub_is_asked_for_an_id_that_is_no_path(small_cifar10, tmp_path, monkeypatch):
    train, test = small_cifar10
    write_folders(tmp_path / "train", as_pngs(train.images), train.labels, train.class_names)
    write_folders(tmp_path / "test", as_pngs(test.images), test.labels, train.class_names)
    asked = []

    def read_images(name, split, label_column):
        asked.append((name, split, label_column))
        return _cifar.read_folder(tmp_path / split)

    monkeypatch.setattr(_cifar, "read_images", read_images)
    splits = cifar10_lt(root="someone/cifar10", imbalance=10)
    assert asked == [("someone/cifar10", "train", "label"), ("someone/cifar10", "test", "label")]
    assert splits.train.fingerprint == cifar10_lt(root=str(tmp_path), imbalance=10).train.fingerprint


# Pickles


def test_a_file_that_python_2_wrote_is_read(tmp_path):
    pixels = np.arange(2 * 3072, dtype=np.uint64).astype(np.uint8)
    (tmp_path / "train").write_bytes(
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02M\x00\x0c\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", pixels.size)
        + pixels.tobytes()
        + b"tbU\x0bfine_labels](K\x07K\x03eu."
    )
    images, labels = read_cifar_pickle(tmp_path / "train", "fine_labels")
    assert labels.tolist() == [7, 3]
    assert np.array_equal(images.numpy().ravel(), pixels)
    assert images.shape == (2, 3, 32, 32)


class RunsACommand:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "name"), [(os.system, r"posix\.system|nt\.system"), (eval, r"(__builtin__|builtins)\.eval")]
)
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, protocol, function, name):
    written = tmp_path / "written"
    argument = f"touch {written}" if function is os.system else f"open({str(written)!r}, 'w').close()"
    attack = {b"data": RunsACommand(function, argument), b"fine_labels": [0]}
    (tmp_path / "train").write_bytes(pickle.dumps(attack, protocol=protocol))
    with pytest.raises(ValueError, match=rf"train was not read: it asks for `({name})`, which is no part"):
        read_cifar_pickle(tmp_path / "train", "fine_labels")
    assert not written.exists()
    pickle.loads((tmp_path / "train").read_bytes())
    assert written.exists(), "the attack would have worked on an ordinary reader"


@pytest.mark.parametrize(
    "content",
    [
        {b"data": np.zeros((2, 3072), dtype=np.uint8)},
        {b"data": np.zeros((2, 3072), dtype=np.float32), b"labels": [0, 1]},
        {b"data": np.zeros((2, 784), dtype=np.uint8), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0]},
        {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [0, "cat"]},
        {b"data": [1, 2], b"labels": [0, 1]},
        [1, 2],
    ],
)
def test_a_pickle_of_anything_else_is_refused(tmp_path, content):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(
        ValueError, match=r"CIFAR's images as `data`, .* and their `labels` in .*data_batch_1"
    ):
        read_cifar_pickle(tmp_path / "data_batch_1", "labels")


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1] * 99, protocol=2)[:-20]])
def test_a_broken_or_missing_pickle_is_named(tmp_path, content):
    (tmp_path / "train").write_bytes(content)
    with pytest.raises(ValueError, match=r"Expected one of CIFAR's files, but .*train was not read: "):
        read_cifar_pickle(tmp_path / "train", "fine_labels")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*test"):
        read_cifar_pickle(tmp_path / "test", "fine_labels")
