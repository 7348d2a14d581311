"""ImageNet-LT, Places-LT and iNaturalist 2018: the true lists, and tiny images in the true layouts."""

import io
import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from PIL import Image

from priorshift.data import UnreadableImageError
from priorshift.data.sources import _lists, imagenet_lt, inaturalist18, places_lt
from priorshift.metrics import group_accuracy

LISTS = Path(os.environ.get("PRIORSHIFT_DATA") or Path(__file__).parents[2] / "shared/data") / "lists"
needs_lists = pytest.mark.skipif(not LISTS.is_dir(), reason=f"the field's lists are not in {LISTS}")
pytestmark = needs_lists
LINKS_PER_FILE = 50_000  # ext4 has 65,000 at most
MEMORY = Path("/dev/shm")  # where there is one, many small files cost it little


def temporary_folder():
    return TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None)


def rows_of(file):
    """What a list says, by the book: paths and labels."""
    rows = [line.rsplit(" ", 1) for line in file.read_text().splitlines()]
    return [path for path, _ in rows], np.array([int(label) for _, label in rows])


def write_list(file, paths, labels):
    file.write_text("".join(f"{path} {label}\n" for path, label in zip(paths, labels, strict=True)))


def make_images(root, paths):
    """One tiny JPEG, hard-linked to every path."""
    jpeg = io.BytesIO()
    Image.new("RGB", (12, 10), (200, 30, 60)).save(jpeg, "JPEG")
    for folder in {os.path.dirname(path) for path in paths}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    prefix, original = f"{root}/", ""
    for number, path in enumerate(paths):
        if number % LINKS_PER_FILE == 0:
            original = prefix + path
            Path(original).write_bytes(jpeg.getvalue())
        else:
            os.link(original, prefix + path)


@pytest.fixture(scope="module")
def places():
    """The true lists of Places-LT and an image for every line: folder of images, folder of lists."""
    lists = LISTS / "places_lt"
    with temporary_folder() as root:
        for split in ("train", "val", "test"):
            make_images(Path(root), rows_of(lists / f"Places_LT_{split}.txt")[0])
        yield Path(root), lists


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """ImageNet-LT's lists, that for training made from its counts, and their images, `val/` being flat."""
    lists = tmp_path_factory.mktemp("imagenet_lists")
    for name in ("val", "test", "forward50"):
        shutil.copy(LISTS / f"imagenet_lt/ImageNet_LT_{name}.txt", lists)
    counts = json.loads((LISTS / "imagenet_lt/ImageNet_LT_train_counts.json").read_text())
    validation, labels = rows_of(lists / "ImageNet_LT_val.txt")
    synset_of = {label: path.split("/")[1] for path, label in zip(validation, labels.tolist(), strict=True)}
    train = [
        (f"train/{synset_of[label]}/{synset_of[label]}_lt{number}.JPEG", label)
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    write_list(lists / "ImageNet_LT_train.txt", *zip(*train, strict=True))
    paths = [path for path, _ in train] + validation + rows_of(lists / "ImageNet_LT_test.txt")[0]
    with temporary_folder() as root:
        make_images(Path(root), paths)
        yield Path(root), lists


@pytest.fixture(scope="module")
def class_folders(imagenet):
    """ImageNet with a folder per class in `val/`, which has the images of the forward-50 list."""
    with temporary_folder() as root:
        (Path(root) / "train").symlink_to(imagenet[0] / "train")
        make_images(Path(root), rows_of(imagenet[1] / "ImageNet_LT_forward50.txt")[0])
        yield Path(root)


def inaturalist(folder, per_class):
    """The true test list, a training list of so many images of each class, and the images of both."""
    shutil.copy(LISTS / "inaturalist18/iNaturalist18_val.txt", folder)
    tested, labels = rows_of(folder / "iNaturalist18_val.txt")
    place_of = dict(zip(labels.tolist(), map(os.path.dirname, tested), strict=True))
    train = [
        (f"{place_of[label]}/train{number}.jpg", label)
        for label, count in enumerate(per_class)
        for number in range(count)
    ]
    write_list(folder / "iNaturalist18_train.txt", *zip(*train, strict=True))
    make_images(folder, tested)
    make_images(folder, [path for path, _ in train])
    return train


def as_json(list_file, json_file):
    """A list in the form of iNaturalist's JSON, its parts in other orders and its ids not the row numbers."""
    paths, labels = rows_of(list_file)
    ids = [7 * row + 3 for row in range(len(paths))]
    content = {
        "images": [{"id": i, "file_name": path, "width": 12} for i, path in zip(ids, paths, strict=True)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": label}
            for i, label in reversed(list(zip(ids, labels.tolist(), strict=True)))
        ],
        "categories": [{"id": label, "name": f"Species {label}"} for label in reversed(range(8142))],
    }
    json_file.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def small_inaturalist():
    """iNaturalist 2018 of one training image of each class, and a second one of the first hundred."""
    with temporary_folder() as root:
        inaturalist(Path(root), [2] * 100 + [1] * 8042)
        yield Path(root)


@pytest.fixture
def few_images(monkeypatch):
    for name in ("iNaturalist18_train.txt", "train2018.json"):
        monkeypatch.setitem(_lists._INATURALIST18.sizes, name, 8242)


def copy_lists(lists, folder):
    folder.mkdir()
    for file in lists.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def replace_list(folder, name, text):
    (folder / name).unlink()
    (folder / name).write_text(text)


# Places-LT


def test_places_lt_has_its_published_sizes_and_groups(places):
    splits = places_lt(root=str(places[0]), lists=str(places[1]))
    counts = np.bincount(rows_of(places[1] / "Places_LT_train.txt")[1])
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (62_500, 7_300, 36_500)
    assert splits.train.counts.tolist() == counts.tolist()
    assert (counts.max(), counts.min(), len(counts)) == (4_980, 5, 365)
    assert splits.validation.counts.tolist() == [20] * 365
    assert splits.test.counts.tolist() == [100] * 365
    classes = torch.arange(365)
    groups = group_accuracy(classes, classes, splits.train.counts)
    assert (groups.num_many, groups.num_medium, groups.num_few) == (131, 163, 71)


def test_places_lt_reads_the_images_that_the_lists_name_with_their_labels(places):
    splits = places_lt(root=str(places[0]), lists=str(places[1]))
    for split, name in ((splits.train, "train"), (splits.validation, "val"), (splits.test, "test")):
        paths, labels = rows_of(places[1] / f"Places_LT_{name}.txt")
        assert split.labels.tolist() == labels.tolist()
        assert [split.name(index) for index in (0, 4_321, len(split) - 1)] == [
            paths[0],
            paths[4_321],
            paths[-1],
        ]
        assert split.read(77).size == (12, 10)
        split.check(limit=64)


def test_places_are_called_by_their_folders_in_every_split(places):
    splits = places_lt(root=str(places[0]), lists=str(places[1]))
    named = {
        label: path.removeprefix("data_256/")[2:].rpartition("/")[0]
        for path, label in zip(*rows_of(places[1] / "Places_LT_train.txt"), strict=True)
    }
    names = tuple(named[label] for label in range(365))
    assert splits.train.class_names == splits.validation.class_names == splits.test.class_names == names
    assert {"airfield", "apartment_building/outdoor"} < set(names)


def test_images_held_out_of_the_training_set_take_the_place_of_the_validation_list(places, tmp_path):
    whole = places_lt(root=str(places[0]), lists=str(places[1])).train
    lists = copy_lists(places[1], tmp_path / "lists")
    (lists / "Places_LT_val.txt").unlink()
    splits = places_lt(root=str(places[0]), lists=str(lists), held_out=0.1)
    assert splits.validation.counts.tolist() == [max(n // 10, 1) for n in whole.counts.tolist()]
    assert set(splits.validation.hashes).isdisjoint(splits.train.hashes)
    assert set(splits.validation.hashes) | set(splits.train.hashes) == set(whole.hashes)
    again = places_lt(root=str(places[0]), lists=str(lists), held_out=0.1)
    other = places_lt(root=str(places[0]), lists=str(lists), held_out=0.1, split_seed=1)
    assert again.validation.fingerprint == splits.validation.fingerprint != other.validation.fingerprint


# What is wrong is said in one sentence, before a run begins


def test_a_wrong_root_or_missing_images_are_named(places, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"62,500 images of .*Places_LT_train.txt below .*none of them"
    ):
        places_lt(root=str(tmp_path), lists=str(places[1]))
    lost = places[0] / "val_256/Places365_val_00027944.jpg"
    content = lost.read_bytes()
    lost.unlink()
    try:
        with pytest.raises(
            FileNotFoundError, match=r"Places_LT_test.*36,499.*val_256/Places365_val_00027944\.jpg"
        ):
            places_lt(root=str(places[0]), lists=str(places[1]))
    finally:
        lost.write_bytes(content)


def test_an_unreadable_image_is_named_by_the_check(places):
    broken = places[0] / "data_256/a/airfield/00004851.jpg"
    content = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(content[: len(content) // 2])
    try:
        train = places_lt(root=str(places[0]), lists=str(places[1])).train
        with pytest.raises(UnreadableImageError, match=r"but got data_256/a/airfield/00004851\.jpg \("):
            train.check(limit=16)
    finally:
        broken.write_bytes(content)


def test_a_list_of_another_data_set_is_refused(tmp_path):
    (tmp_path / "Places_LT_train.txt").symlink_to(LISTS / "imagenet_lt/ImageNet_LT_val.txt")
    with pytest.raises(
        ValueError,
        match=r"Places-LT's Places_LT_train.txt of 62,500 .* has 20,000, as a list of ImageNet-LT has\.",
    ):
        places_lt(root=str(tmp_path))
    (tmp_path / "iNaturalist18_train.txt").write_text("train_val2018/Plantae/7291/a.jpg 7291\n")
    with pytest.raises(ValueError, match=r"iNaturalist18_train.txt of 437,513 images, but .* has 1\."):
        inaturalist18(root=str(tmp_path))


def test_a_test_list_of_another_data_set_is_refused(places, imagenet):
    with pytest.raises(
        ValueError, match=r"Expected a list of Places-LT, but .*test.txt is one of ImageNet-LT\."
    ):
        places_lt(
            root=str(places[0]), lists=str(places[1]), test_list=str(imagenet[1] / "ImageNet_LT_test.txt")
        )


def test_a_label_out_of_range_or_a_class_without_images_is_named(places, tmp_path):
    lists = copy_lists(places[1], tmp_path / "lists")
    lines = (places[1] / "Places_LT_train.txt").read_text().splitlines()
    path = lines[9].rsplit(" ", 1)[0]
    replace_list(lists, "Places_LT_train.txt", "\n".join([*lines[:9], f"{path} 365", *lines[10:]]))
    with pytest.raises(ValueError, match=r"between 0 and 364, but line 10 of .*Places_LT_train.txt has 365"):
        places_lt(root=str(places[0]), lists=str(lists))
    emptied = [line.removesuffix(" 3") + " 4" if line.endswith(" 3") else line for line in lines]
    replace_list(lists, "Places_LT_train.txt", "\n".join(emptied))
    with pytest.raises(ValueError, match=r"each of Places-LT's 365 classes, but class 3 has none\."):
        places_lt(root=str(places[0]), lists=str(lists))


def test_missing_folders_and_lists_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PRIORSHIFT_DATA", str(tmp_path))
    for source, name in (
        (imagenet_lt, "imagenet_lt"),
        (places_lt, "places_lt"),
        (inaturalist18, "inaturalist18"),
    ):
        with pytest.raises(FileNotFoundError, match=f"Expected {name} in .*PRIORSHIFT_DATA"):
            source()
    (tmp_path / "places_lt").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"a list of Places-LT, .* no file .*Places_LT_train.txt: .*`lists`"
    ):
        places_lt()
    with pytest.raises(FileNotFoundError, match=r"Expected `lists` to be the folder of Places-LT's lists"):
        places_lt(lists=str(tmp_path / "nowhere"))


# ImageNet-LT


def test_imagenet_lt_has_its_published_sizes(imagenet):
    splits = imagenet_lt(root=str(imagenet[0]), lists=str(imagenet[1]))
    counts = json.loads((LISTS / "imagenet_lt/ImageNet_LT_train_counts.json").read_text())
    assert len(splits.train) == 115_846
    assert splits.train.counts.tolist() == counts
    assert splits.validation.counts.tolist() == [20] * 1000
    assert splits.test.counts.tolist() == [50] * 1000
    assert splits.train.class_names[:2] == ("n01440764", "n01443537")
    assert splits.test.class_names == splits.validation.class_names == splits.train.class_names
    paths, labels = rows_of(imagenet[1] / "ImageNet_LT_test.txt")
    assert splits.test.labels.tolist() == labels.tolist()
    assert [splits.test.name(index) for index in (0, 49_999)] == [paths[0], paths[-1]]
    assert splits.test.read(40_000).size == splits.validation.read(3).size == (12, 10)


def test_the_forward_50_list_is_a_shifted_test_set_on_a_flat_folder_and_on_class_folders(
    imagenet, class_folders
):
    paths, labels = rows_of(imagenet[1] / "ImageNet_LT_forward50.txt")
    options = {"lists": str(imagenet[1]), "test_list": "ImageNet_LT_forward50.txt", "held_out": 0.1}
    flat = imagenet_lt(root=str(imagenet[0]), **options).test
    nested = imagenet_lt(root=str(class_folders), **options).test
    assert (len(flat), int(flat.counts.max()), int(flat.counts.min())) == (12_058, 50, 1)
    assert flat.labels.tolist() == nested.labels.tolist() == labels.tolist()
    names = [f"val/{path.split('/')[2]}" for path in paths]
    assert [flat.name(row) for row in range(12_058)] == [nested.name(row) for row in range(12_058)] == names
    assert flat.fingerprint == nested.fingerprint
    assert flat.read(12_057).size == nested.read(0).size == (12, 10)


def test_a_list_of_a_flat_folder_is_read_from_class_folders_and_missing_images_are_named(
    imagenet, class_folders, tmp_path
):
    paths, labels = rows_of(imagenet[1] / "ImageNet_LT_forward50.txt")
    options = {"root": str(class_folders), "lists": str(imagenet[1]), "held_out": 0.1}
    write_list(tmp_path / "flat.txt", [f"val/{path.split('/')[2]}" for path in paths], labels)
    test = imagenet_lt(test_list=str(tmp_path / "flat.txt"), **options).test
    assert [test.name(row) for row in (0, 5_000)] == [f"val/{paths[row].split('/')[2]}" for row in (0, 5_000)]
    assert test.read(5_000).size == (12, 10)
    with pytest.raises(
        FileNotFoundError, match=r"50,000 images of .* but 37,942 are missing: val/ILSVRC2012_val"
    ):
        imagenet_lt(**options)


def test_a_test_list_is_checked_as_any_list(imagenet, tmp_path):
    options = {"root": str(imagenet[0]), "lists": str(imagenet[1]), "test_list": str(tmp_path / "mine.txt")}
    with pytest.raises(FileNotFoundError, match=r"a list of ImageNet-LT, but there is no file .*mine.txt"):
        imagenet_lt(**options)
    (tmp_path / "mine.txt").write_text("val/ILSVRC2012_val_00029930.JPEG 1000\n")
    with pytest.raises(ValueError, match=r"between 0 and 999, but line 1 of .*mine.txt has 1000"):
        imagenet_lt(**options)
    (tmp_path / "mine.txt").write_text("val/ILSVRC2012_val_00029930.JPEG\n")
    with pytest.raises(ValueError, match=r"lines `path label`, but line 1 of .*mine.txt"):
        imagenet_lt(**options)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ValueError, match=r"but .*mine.txt has none"):
        imagenet_lt(**options)
    (tmp_path / "mine.txt").write_text("train/n01440764/n01440764_lt0.JPEG 0\n")
    test = imagenet_lt(**options).test
    assert (test.name(0), test.labels.tolist()) == ("train/n01440764/n01440764_lt0.JPEG", [0])


# iNaturalist 2018


def test_inaturalist_18_is_read_from_lists_or_json_alike(small_inaturalist, few_images, tmp_path):
    root = small_inaturalist
    listed = inaturalist18(root=str(root))
    as_json(root / "iNaturalist18_train.txt", tmp_path / "train2018.json")
    as_json(root / "iNaturalist18_val.txt", tmp_path / "val2018.json")
    official = inaturalist18(root=str(root), lists=str(tmp_path))
    for splits in (listed, official):
        assert splits.train.counts.tolist() == [2] * 100 + [1] * 8042
        assert splits.test.counts.tolist() == [3] * 8142
        assert len(splits.validation) == 0
    assert official.train.fingerprint == listed.train.fingerprint
    assert official.test.fingerprint == listed.test.fingerprint
    assert official.test.class_names == official.train.class_names
    assert official.train.class_names[7291] == "Species 7291"
    assert listed.train.class_names[7291] == "7291"
    paths, labels = rows_of(root / "iNaturalist18_val.txt")
    assert listed.test.labels.tolist() == labels.tolist()
    assert listed.test.name(24_425) == paths[-1]
    assert official.test.read(1).size == (12, 10)


def test_inaturalist_18_holds_validation_images_out_of_its_training_set(small_inaturalist, few_images):
    splits = inaturalist18(root=str(small_inaturalist), held_out=0.5)
    assert splits.validation.counts.tolist() == [1] * 100 + [0] * 8042
    assert splits.train.counts.tolist() == [1] * 8142


def test_json_of_another_year_is_refused(small_inaturalist, few_images, tmp_path):
    shutil.copy(small_inaturalist / "iNaturalist18_val.txt", tmp_path)
    as_json(small_inaturalist / "iNaturalist18_val.txt", tmp_path / "train2018.json")
    with pytest.raises(ValueError, match=r"train2018.json of 8,242 images, but .* has 24,426"):
        inaturalist18(root=str(small_inaturalist), lists=str(tmp_path))
    content = json.loads((tmp_path / "train2018.json").read_text())
    content["images"] = content["images"][:8242]
    content["categories"].append({"id": 8142, "name": "a newer one"})
    (tmp_path / "train2018.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"8,142 categories of iNaturalist 2018, but .* has 8,143"):
        inaturalist18(root=str(small_inaturalist), lists=str(tmp_path))


@pytest.mark.slow
def test_inaturalist_18_of_full_size_is_read():
    counts = np.full(8142, 53) + (np.arange(8142) < 437_513 - 53 * 8142)
    with temporary_folder() as root:
        train = inaturalist(Path(root), counts.tolist())
        splits = inaturalist18(root=root, held_out=0.1)
    assert len(train) == 437_513
    assert torch.equal(splits.train.counts + splits.validation.counts, torch.from_numpy(counts))
