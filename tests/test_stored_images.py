"""Images on disk: what is read is what was written, in every layout, and what is wrong is named."""

import csv
import io
import json
import os
import pickle
import shutil
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch

from priorshift.data import _readers as readers
from priorshift.data._readers import (
    find_splits,
    read_folder,
    read_hub,
    read_images,
    read_inaturalist,
    read_list,
    read_parquet,
)
from priorshift.data._stored import ImageFiles, StoredImages, UnreadableImageError
from priorshift.data.sources import _images as source
from priorshift.shift import fingerprint

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")

DATA = Path(os.environ.get("PRIORSHIFT_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def save(path, colour=(10, 20, 30), size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def noise_jpeg(path, size=(64, 48)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def class_folders(root, counts, ending="png"):
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            save(root / name / f"{name}{number}.{ending}", COLOURS[label])
    return root


def listed(tmp_path, text, files=("a.png", "b c.png", "d/e.png"), name="list.txt", **options):
    for file in files:
        save(tmp_path / file)
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_list(tmp_path / name, root=tmp_path, **options)


def names(images):
    return [images.name(index) for index in range(len(images))]


def by_name(images):
    return dict(zip(names(images), images.labels.tolist(), strict=True))


def png(colour, size=(6, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


def parquet(path, labels, label="label", feature=None, **columns):
    """Images in parquet, the pixel of row r being (r, label, 7)."""
    rows = [
        {"bytes": png((row, int(value or 0) if not isinstance(value, str) else 0, 7)), "path": f"{row}.png"}
        for row, value in enumerate(labels)
    ]
    table = datasets.Dataset.from_dict({"picture": rows, label: labels, **columns})
    table = table.cast_column("picture", datasets.Image())
    path.parent.mkdir(parents=True, exist_ok=True)
    (table.cast_column(label, feature) if feature else table).to_parquet(str(path))
    return path


# Images read one at a time


def test_what_is_read_is_what_was_written(tmp_path):
    images = read_folder(class_folders(tmp_path, {"cat": 2, "dog": 1}))
    assert [images.read(index).getpixel((5, 3)) for index in range(3)] == [
        COLOURS[0],
        COLOURS[0],
        COLOURS[1],
    ]
    assert images.read(0).size == (6, 4)
    assert (len(images), images.num_classes, images.channels) == (3, 2, 3)
    assert images.counts.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("L", 77, (77, 77, 77)),
        ("RGBA", (1, 2, 3, 0), (1, 2, 3)),
        ("1", 1, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_every_mode_is_read_as_rgb(tmp_path, mode, colour, seen):
    (tmp_path / "x").mkdir()
    Image.new(mode, (3, 3), colour).save(tmp_path / "x" / "i.png")
    image = read_folder(tmp_path).read(0)
    assert image.mode == "RGB" and image.getpixel((1, 1)) == seen


def test_a_subset_keeps_names_labels_and_classes(tmp_path):
    images = read_folder(class_folders(tmp_path, {"cat": 2, "dog": 2}))
    subset = images.subset(torch.tensor([3, 0]))
    assert names(subset) == ["dog/dog1.png", "cat/cat0.png"]
    assert subset.labels.tolist() == [1, 0] and subset.class_names == ("cat", "dog")
    assert subset.subset(torch.tensor([1])).read(0).getpixel((0, 0)) == COLOURS[0]


def test_a_hash_is_that_of_the_name(tmp_path):
    images = read_folder(class_folders(tmp_path, {"cat": 1, "dög": 1}))
    by_hand = [
        blake2b(name.encode(), digest_size=16).hexdigest() for name in ("cat/cat0.png", "dög/dög0.png")
    ]
    assert images.hashes == by_hand
    save(tmp_path / "cat" / "cat0.png", (9, 9, 9))
    assert read_folder(tmp_path).hashes == by_hand


def test_the_fingerprint_names_the_labelled_images_in_any_order(tmp_path):
    images = read_folder(class_folders(tmp_path, {"cat": 3, "dog": 2}))
    assert images.fingerprint == fingerprint(images.hashes, images.labels)
    assert images.subset(torch.tensor([4, 1, 0, 3, 2])).fingerprint == images.fingerprint
    assert images.subset(torch.tensor([4, 1, 0, 3])).fingerprint != images.fingerprint


def test_a_copy_for_a_worker_is_small_and_reads_the_same(tmp_path):
    paths = [f"folder/{number:06d}.jpg".encode() for number in range(20_000)]
    ends = np.cumsum([len(path) for path in paths])
    labels = torch.zeros(len(paths), dtype=torch.int64)
    images = StoredImages(
        ImageFiles(tmp_path, b"".join(paths), ends), torch.arange(len(paths)), labels, ("a", "b")
    )
    assert len(images.hashes) == len(paths) and len(images.fingerprint) == 16
    content = pickle.dumps(images)
    assert len(content) < 20_000 * (17 + 3 * 8) + 5_000
    copy = pickle.loads(content)
    assert names(copy) == [path.decode() for path in paths]
    save(tmp_path / "folder" / "012345.jpg", (8, 8, 8))
    assert copy.read(12345).tobytes() == images.read(12345).tobytes()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncate, "truncated"),
        (lambda path: path.write_bytes(b""), "cannot identify image file"),
        (lambda path: path.write_text("<html>not found</html>"), "cannot identify image file"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(tmp_path, spoil, reason):
    for number in range(3):
        save(tmp_path / "x" / f"{number}.jpg")
        noise_jpeg(tmp_path / "x" / f"{number}.jpg")
    images = read_folder(tmp_path)
    spoil(tmp_path / "x" / "1.jpg")
    for fail in (lambda: images.read(1), images.check, images.in_memory):
        with pytest.raises(UnreadableImageError, match=rf"but got x/1.jpg \(.*{reason}"):
            fail()
    assert images.read(0).size == (64, 48)


def test_pixels_that_rgb_cannot_hold_are_refused(tmp_path):
    (tmp_path / "x").mkdir()
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "x" / "deep.png")
    with pytest.raises(UnreadableImageError, match=r"x/deep.png \(its pixels are of mode I"):
        read_folder(tmp_path).read(0)


def test_a_check_looks_at_images_spread_over_the_set(tmp_path):
    images = read_folder(class_folders(tmp_path, {"a": 10}))
    truncate(tmp_path / "a" / "a1.png")
    images.check(limit=2)
    truncate(tmp_path / "a" / "a5.png")
    with pytest.raises(UnreadableImageError, match=r"a/a5\.png"):
        images.check(limit=2)
    with pytest.raises(UnreadableImageError, match=r"a/a1\.png"):
        images.check()
    images.subset(torch.tensor([], dtype=torch.int64)).check()


def test_in_memory_the_pixels_are_the_same(tmp_path):
    images = read_folder(class_folders(tmp_path, {"cat": 2, "dog": 1}))
    memory = images.in_memory()
    assert memory.images.shape == (3, 3, 4, 6) and memory.white == 255
    assert memory.images[2, :, 3, 5].tolist() == list(COLOURS[1])
    assert memory.labels.tolist() == [0, 0, 1] and memory.class_names == ("cat", "dog")
    assert len(images.subset(torch.tensor([], dtype=torch.int64)).in_memory()) == 0


def test_in_memory_all_images_are_of_one_size(tmp_path):
    class_folders(tmp_path, {"a": 1})
    save(tmp_path / "a" / "b.png", size=(5, 4))
    with pytest.raises(ValueError, match=r"6 × 4 as a/a0.png, but got 5 × 4 for a/b.png"):
        read_folder(tmp_path).in_memory()


def test_parts_that_do_not_fit_are_refused(tmp_path):
    store = read_folder(class_folders(tmp_path, {"a": 2})).store
    with pytest.raises(ValueError, match=r"one entry per image, \(2,\), but got shape \(1,\)"):
        StoredImages(store, torch.arange(2), torch.tensor([0]), ("a", "b"))
    with pytest.raises(ValueError, match="between 0 and 1, but got"):
        StoredImages(store, torch.arange(2), torch.tensor([0, 2]), ("a", "b"))


# A folder per class


def test_classes_are_sorted_folders_and_images_lie_anywhere_below(tmp_path):
    for file in ("b/1.PNG", "b/deep/er/0.png", "a/x.png", "a/.hidden.png", "a/.trash/y.png", ".git/z/i.png"):
        save(tmp_path / file)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    images = read_folder(tmp_path)
    assert images.class_names == ("a", "b")
    assert by_name(images) == {"a/x.png": 0, "b/1.PNG": 1, "b/deep/er/0.png": 1}


def test_a_wrong_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        read_folder(tmp_path / "nowhere")
    save(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"one subfolder per class in .*, but it has no subfolder"):
        read_folder(tmp_path)
    class_folders(tmp_path, {"a": 1})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"in every class folder of .*, but empty has none\."):
        read_folder(tmp_path)


# Lists


def test_a_list_has_its_label_after_the_last_blank(tmp_path):
    images = listed(tmp_path, "\ufeffa.png 1\r\n\r\nb c.png\t0\r\n  d/e.png  2 \r\n")
    assert by_name(images) == {"a.png": 1, "b c.png": 0, "d/e.png": 2}
    assert images.class_names == ("0", "1", "2")
    assert images.read(1).size == (6, 4)


def test_the_classes_of_a_list_can_be_given(tmp_path):
    text = "a.png 1\nb c.png 0\n"
    assert listed(tmp_path, text, num_classes=4).class_names == ("0", "1", "2", "3")
    assert listed(tmp_path, text, class_names=["cat", "dog"]).class_names == ("cat", "dog")
    with pytest.raises(ValueError, match=r"Expected 3 classes, but .*list.txt has 2: cat, dog"):
        listed(tmp_path, text, class_names=["cat", "dog"], num_classes=3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a.png 0\n\nb c.png\nd/e.png 1\n", r"line 3 of .*list.txt has 'c.png'"),
        ("a.png 0\nd/e.png\n", r"lines `path label`, but line 2 of .*list.txt is 'd/e.png'"),
        ("a.png 0\nd/e.png 1.5\n", r"class index as label, but line 2 of .*list.txt has '1.5'"),
        ("a.png 0\nd/e.png -1\n", r"between 0 and 0, but line 2 of .*list.txt has -1"),
        (
            "a.png 0\nd/e.png 99999999999999999999\n",
            r"class index as label, but line 2 .* '99999999999999999999'",
        ),
        ("\n\n", r"a list of images and labels, but .*list.txt has none"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        listed(tmp_path, text)


def test_a_label_out_of_range_is_named_by_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"between 0 and 1, but line 2 of .* has 2 \(1 out of range; is it"):
        listed(tmp_path, "a.png 0\nb c.png 2\nd/e.png 1\n", num_classes=2)


def test_missing_files_are_named_and_counted(tmp_path):
    lines = ["a.png 0", "d/e.png 1", *(f"d/gone{number}.png 1" for number in range(7)), "no/f.png 0"]
    with pytest.raises(
        FileNotFoundError, match=r"the 10 images of .* but only 2 of them are there"
    ) as complaint:
        listed(tmp_path, "\n".join(lines))
    assert str(complaint.value).endswith(
        "missing: d/gone0.png, d/gone1.png, d/gone2.png, d/gone3.png, d/gone4.png and 3 more."
    )


def test_a_wrong_root_is_named(tmp_path):
    listed(tmp_path, "a.png 0\nd/e.png 1\n")
    with pytest.raises(
        FileNotFoundError, match=r"the 2 images of .*list.txt below .*d, but none of them is there"
    ):
        read_list(tmp_path / "list.txt", root=tmp_path / "d")
    with pytest.raises(FileNotFoundError, match=r"below a folder, but there is no .*nowhere"):
        read_list(tmp_path / "list.txt", root=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"a list of images, but there is no file .*none.txt"):
        read_list(tmp_path / "none.txt", root=tmp_path)


def test_paths_of_a_list_may_be_absolute(tmp_path):
    image = save(tmp_path / "far" / "i.png", COLOURS[2])
    (tmp_path / "near").mkdir()
    images = listed(tmp_path / "near", f"{image} 0\n", files=())
    assert images.read(0).getpixel((0, 0)) == COLOURS[2]


@pytest.mark.parametrize(
    ("text", "classes", "labels"),
    [
        ("a.png,1\nb c.png,0\n", ("0", "1"), [1, 0]),
        ("path,label\na.png,dog\nb c.png,cat\n", ("cat", "dog"), [1, 0]),
        ("label,path\r\ndog,a.png\r\ncat,b c.png\r\n", ("cat", "dog"), [1, 0]),
        ("image,kind\na.png,0\n\nb c.png,2\n", ("0", "1", "2"), [0, 2]),
        ('label,split,path\n"dog, big",train,a.png\ncat,train,"b c.png"\n', ("cat", "dog, big"), [1, 0]),
    ],
)
def test_csv_columns_are_path_and_label(tmp_path, text, classes, labels):
    images = listed(tmp_path, text, name="list.csv")
    assert names(images) == ["a.png", "b c.png"]
    assert images.class_names == classes and images.labels.tolist() == labels


def test_a_csv_label_column_and_its_classes_can_be_named(tmp_path):
    text = "path,label,kind\na.png,7,dog\nb c.png,8,cat\n"
    images = listed(tmp_path, text, name="list.csv", label_column="kind")
    assert images.class_names == ("cat", "dog") and images.labels.tolist() == [1, 0]
    images = listed(tmp_path, text, name="list.csv", label_column="kind", class_names=["dog", "bird", "cat"])
    assert images.labels.tolist() == [0, 2] and images.num_classes == 3


@pytest.mark.parametrize(
    ("text", "options", "complaint"),
    [
        ("path,label\na.png,0\nb c.png\n", {}, r"columns path and label, but line 3 of .* is 'b c.png'"),
        ("a.png,0\nb c.png,cat\n", {}, r"class index as label, but line 2 of .*list.csv has 'cat'"),
        ("path,label\na.png,x\n", {"class_names": ["a", "b"]}, r"known class as label, but line 2 .* 'x'"),
        ("path,label\na.png,0\n", {"label_column": "kind"}, r"column 'kind' in .*header is path,label"),
        ("a.png,0\n", {"label_column": "kind"}, r"column 'kind' in .*header is missing"),
        ('path,label\na.png,0\n"b" c.png,1\n', {}, r"line 3 of .*list.csv is not CSV"),
    ],
)
def test_a_csv_line_that_cannot_be_read_is_named(tmp_path, text, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        listed(tmp_path, text, name="list.csv", **options)


def test_places_lt_is_read_by_its_own_list(tmp_path):
    file = DATA / "lists" / "places_lt" / "Places_LT_train.txt"
    if not file.is_file():
        pytest.skip(f"Places-LT's list is not there: {file}; set PRIORSHIFT_DATA")
    rows = [line.split() for line in file.read_text().splitlines()]
    seed = save(tmp_path / "seed.jpg")
    for folder in {os.path.dirname(path) for path, _ in rows}:
        (tmp_path / folder).mkdir(parents=True)
    for number, (path, _) in enumerate(rows):
        if number % 50_000 == 0:
            seed = Path(shutil.copy(seed, tmp_path / f"seed{number}.jpg"))
        os.link(seed, tmp_path / path)
    images = read_list(file, root=tmp_path)
    assert (len(images), images.num_classes) == (62_500, 365)
    assert (images.counts.max().item(), images.counts.min().item()) == (4980, 5)
    assert names(images)[::6000] == [path for path, _ in rows][::6000]
    assert images.labels.tolist() == [int(label) for _, label in rows]
    many, few = (images.counts > 100).sum().item(), (images.counts < 20).sum().item()
    assert (many, 365 - many - few, few) == (131, 163, 71)
    images.check(limit=50)
    (tmp_path / rows[-1][0]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"only 62,499 of them are there; missing: {rows[-1][0]}"):
        read_list(file, root=tmp_path)


# iNaturalist


def inaturalist(tmp_path, **changes):
    content = {
        "images": [
            {"id": 7, "file_name": "train_val2018/Aves/1/a.jpg"},
            {"id": 3, "file_name": "train_val2018/Fungi/0/b.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 0},
            {"id": 2, "image_id": 7, "category_id": 1},
        ],
        "categories": [{"id": 1, "name": "Corvus corax"}, {"id": 0, "name": "Amanita muscaria"}],
    } | changes
    for image in content["images"]:
        save(tmp_path / image["file_name"])
    (tmp_path / "train2018.json").write_text(json.dumps(content))
    return read_inaturalist(tmp_path / "train2018.json", root=tmp_path)


def test_inaturalist_is_read_by_its_json(tmp_path):
    images = inaturalist(tmp_path)
    assert by_name(images) == {"train_val2018/Aves/1/a.jpg": 1, "train_val2018/Fungi/0/b.jpg": 0}
    assert images.class_names == ("Amanita muscaria", "Corvus corax")
    assert images.read(0).size == (6, 4)


def test_what_is_wrong_with_inaturalists_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="iNaturalist's JSON, but there is no file"):
        read_inaturalist(tmp_path / "none.json", root=tmp_path)
    (tmp_path / "bad.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"with `images`, `annotations` and `categories`, but .*bad.json"):
        read_inaturalist(tmp_path / "bad.json", root=tmp_path)
    with pytest.raises(ValueError, match=r"known category for every image of .*, but .*a.jpg has None"):
        inaturalist(tmp_path, annotations=[{"image_id": 3, "category_id": 0}])
    with pytest.raises(ValueError, match=r"known category for every image of .*, but .*a.jpg has 1"):
        inaturalist(tmp_path, categories=[{"id": 0, "name": "Amanita muscaria"}])
    with pytest.raises(ValueError, match=r"Expected images in .*, but it has none"):
        inaturalist(tmp_path, images=[])
    inaturalist(tmp_path)
    (tmp_path / "train_val2018/Aves/1/a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"only 1 of them are there; missing: train_val2018/Aves"):
        read_inaturalist(tmp_path / "train2018.json", root=tmp_path)


# Parquet and Hugging Face data sets


def test_parquet_is_read_by_the_types_of_its_columns(tmp_path):
    feature = datasets.ClassLabel(names=["cat", "dog", "bird"])
    file = parquet(tmp_path / "x.parquet", [2, 0, 1, 2], "kind", feature, size=[1, 2, 3, 4])
    images = read_parquet(file)
    assert images.class_names == ("cat", "dog", "bird") and images.labels.tolist() == [2, 0, 1, 2]
    assert [images.read(index).getpixel((0, 0)) for index in range(4)] == [
        (0, 2, 7),
        (1, 0, 7),
        (2, 1, 7),
        (3, 2, 7),
    ]
    assert names(images)[:2] == ["x.parquet row 0", "x.parquet row 1"]
    subset = pickle.loads(pickle.dumps(images.subset(torch.tensor([3]))))
    assert subset.name(0) == "x.parquet row 3" and subset.read(0).getpixel((0, 0)) == (3, 2, 7)


def test_several_parquet_files_follow_each_other(tmp_path):
    files = [parquet(tmp_path / "x0.parquet", [0, 1]), parquet(tmp_path / "x1.parquet", [2])]
    images = read_parquet(files)
    assert images.labels.tolist() == [0, 1, 2] and images.class_names == ("0", "1", "2")
    assert images.read(2).getpixel((0, 0)) == (0, 2, 7)
    assert images.name(2) == "x0.parquet … x1.parquet row 2"


def test_labels_in_parquet_can_be_names(tmp_path):
    file = parquet(tmp_path / "x.parquet", ["dog", "cat", "dog"], "kind")
    images = read_parquet(file, label_column="kind")
    assert images.class_names == ("cat", "dog") and images.labels.tolist() == [1, 0, 1]


def test_bare_structs_of_bytes_are_images_too(tmp_path):
    rows = [{"bytes": png((1, 2, 3)), "path": None}]
    datasets.Dataset.from_dict({"img": rows, "label": [0]}).to_parquet(str(tmp_path / "x.parquet"))
    assert read_parquet(tmp_path / "x.parquet").read(0).getpixel((0, 0)) == (1, 2, 3)


def test_an_unreadable_row_of_parquet_is_named(tmp_path):
    rows = [
        {"bytes": png((1, 2, 3)), "path": None},
        {"bytes": b"no image", "path": "x"},
        {"bytes": None, "path": None},
    ]
    table = datasets.Dataset.from_dict({"img": rows, "label": [0, 0, 0]})
    table.cast_column("img", datasets.Image(decode=False)).to_parquet(str(tmp_path / "x.parquet"))
    images = read_parquet(tmp_path / "x.parquet")
    with pytest.raises(UnreadableImageError, match=r"x.parquet row 1 \(cannot identify"):
        images.check()
    with pytest.raises(UnreadableImageError, match=r"x.parquet row 2 \(there is neither"):
        images.read(2)


@pytest.mark.parametrize(
    ("labels", "columns", "options", "complaint"),
    [
        (
            [0, 1],
            {"coarse": [0, 0]},
            {},
            r"columns picture, label, coarse have 2, label, coarse: name one by `label_c",
        ),
        (
            [0, 1],
            {},
            {"label_column": "kind"},
            r"`label_column` to be a column of labels of x.parquet.*'kind'",
        ),
        ([0, 1], {}, {"image_column": "label"}, r"`image_column` to be a column of images.* got 'label'"),
        (["a", "b"], {}, {}, r"Expected one column of labels in x.parquet, but .* have none"),
        ([0, None], {}, {}, r"a label for every image, but x.parquet row 1 has none"),
        ([0, -1], {}, {}, r"between 0 and 0, but x.parquet row 1 has -1 in column 'label'"),
    ],
)
def test_unclear_columns_are_named(tmp_path, labels, columns, options, complaint):
    file = parquet(tmp_path / "x.parquet", labels, **columns)
    with pytest.raises(ValueError, match=complaint):
        read_parquet(file, **options)


def test_a_parquet_file_that_is_none_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"parquet files, but there is no file .*x.parquet"):
        read_parquet(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"parquet files, but .*x.parquet cannot be read"):
        read_parquet(tmp_path / "x.parquet")


def test_a_data_set_of_the_hub_is_read_by_split(tmp_path):
    parquet(tmp_path / "pets" / "data" / "train-00000-of-00001.parquet", [0, 1])
    parquet(tmp_path / "pets" / "data" / "test-00000-of-00001.parquet", [1])
    assert read_hub(str(tmp_path / "pets")).labels.tolist() == [0, 1]
    test = read_hub(str(tmp_path / "pets"), "test")
    assert test.labels.tolist() == [1] and test.name(0) == "pets test row 0"
    with pytest.raises(
        ValueError, match=r"a Hugging Face data set, but got .*pets: `datasets` says: Unknown"
    ):
        read_hub(str(tmp_path / "pets"), "spare")


def test_an_id_that_is_nothing_is_named():
    with pytest.raises(
        ValueError, match="but got nobody/nothing: there is no such path, and `datasets` says"
    ):
        read_images("nobody/nothing")
    with pytest.raises(
        ValueError, match="but got nobody/nothing: there is no such path, and `datasets` says"
    ):
        read_hub("nobody/nothing")


# Whatever is there


def test_what_is_there_decides_how_it_is_read(tmp_path):
    class_folders(tmp_path / "plain", {"cat": 1, "dog": 1})
    class_folders(tmp_path / "vehicles", {"bus": 1, "train": 1})
    class_folders(tmp_path / "split" / "train", {"cat": 2, "dog": 1})
    class_folders(tmp_path / "split" / "val", {"cat": 1, "dog": 1})
    parquet(tmp_path / "tables" / "train.parquet", [0, 1])
    parquet(tmp_path / "tables" / "test.parquet", [1, 0])
    (tmp_path / "plain" / "list.txt").write_text("dog/dog0.png 1\ncat/cat0.png 0\n")

    assert list(find_splits(tmp_path / "plain")) == ["all"]
    assert names(read_images(tmp_path / "plain")) == ["cat/cat0.png", "dog/dog0.png"]
    assert read_images(tmp_path / "vehicles").class_names == ("bus", "train")
    assert sorted(find_splits(tmp_path / "split")) == ["train", "validation"]
    assert read_images(tmp_path / "split").counts.tolist() == [2, 1]
    assert read_images(tmp_path / "split", "validation").counts.tolist() == [1, 1]
    assert sorted(find_splits(tmp_path / "tables")) == ["test", "train"]
    assert read_images(tmp_path / "tables", "test").labels.tolist() == [1, 0]
    assert read_images(tmp_path / "tables" / "train.parquet", "test").labels.tolist() == [0, 1]
    by_list = read_images(tmp_path / "plain" / "list.txt", class_names=["cat", "dog"])
    assert by_name(by_list) == {"dog/dog0.png": 1, "cat/cat0.png": 0}
    assert by_list.class_names == ("cat", "dog")


def test_what_cannot_be_read_is_named(tmp_path):
    class_folders(tmp_path / "split" / "train", {"cat": 1})
    class_folders(tmp_path / "split" / "test", {"cat": 1})
    with pytest.raises(ValueError, match="to have a split 'validation', but it has"):
        read_images(tmp_path / "split", "validation")
    with pytest.raises(FileNotFoundError, match="or the id of a Hugging Face data set, but there is no /no/"):
        read_images("/no/such/place")
    with pytest.raises(ValueError, match=r"Expected a .parquet, .csv or .txt file, but got .*cat0.png"):
        read_images(tmp_path / "split" / "train" / "cat" / "cat0.png")


# The user's own images as a source


def all_names(splits):
    return [set(names(split)) for split in (splits.train, splits.validation, splits.test)]


def test_without_a_test_split_shares_of_every_class_are_split_off(tmp_path):
    root = str(class_folders(tmp_path, {"cat": 30, "dog": 10, "eel": 2, "fox": 1}))
    splits = source.images(root=root)
    assert splits.test.counts.tolist() == [6, 2, 1, 0]
    assert splits.validation.counts.tolist() == [2, 1, 0, 0]
    assert splits.train.counts.tolist() == [22, 7, 1, 1]
    train, validation, test = all_names(splits)
    assert len(train | validation | test) == 43
    assert all_names(source.images(root=root)) == [train, validation, test]
    assert all_names(source.images(root=root, split_seed=1))[2] != test
    assert all_names(source.images(root=root, held_out=0))[2] == test
    assert len(source.images(root=root, held_out=0).validation) == 0


def test_test_and_validation_splits_that_are_there_are_used(tmp_path):
    class_folders(tmp_path / "train", {"cat": 20, "dog": 10})
    class_folders(tmp_path / "test", {"cat": 3, "dog": 4})
    splits = source.images(root=str(tmp_path))
    assert splits.test.counts.tolist() == [3, 4]
    assert splits.validation.counts.tolist() == [2, 1] and splits.train.counts.tolist() == [18, 9]
    class_folders(tmp_path / "valid", {"cat": 1, "dog": 2})
    splits = source.images(root=str(tmp_path))
    assert splits.validation.counts.tolist() == [1, 2] and splits.train.counts.tolist() == [20, 10]


def test_test_labels_are_matched_by_name(tmp_path):
    class_folders(tmp_path / "pets", {"cat": 3, "dog": 3, "eel": 3})
    class_folders(tmp_path / "more", {"dog": 2, "eel": 1})
    splits = source.images(root=str(tmp_path / "pets"), test=str(tmp_path / "more"), held_out=0)
    assert splits.test.class_names == ("cat", "dog", "eel")
    assert by_name(splits.test) == {"dog/dog0.png": 1, "dog/dog1.png": 1, "eel/eel0.png": 2}
    with pytest.raises(ValueError, match=r"of the training images, 2 of them, in .*pets, but got 'cat'\."):
        source.images(root=str(tmp_path / "more"), test=str(tmp_path / "pets"))


def test_lists_and_parquet_are_sources_too(tmp_path):
    class_folders(tmp_path / "images", {"cat": 4, "dog": 4})
    for name, numbers in (("train.csv", (0, 1, 2)), ("test.csv", (3,))):
        with (tmp_path / name).open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "animal"])
            rows.writerows((f"images/{pet}/{pet}{n}.png", pet) for pet in ("dog", "cat") for n in numbers)
    splits = source.images(
        root=str(tmp_path / "train.csv"),
        test=str(tmp_path / "test.csv"),
        label_column="animal",
        held_out=0.34,
    )
    assert splits.train.class_names == ("cat", "dog")
    assert [split.counts.tolist() for split in (splits.train, splits.validation, splits.test)] == [
        [2, 2],
        [1, 1],
        [1, 1],
    ]
    parquet(tmp_path / "tables" / "train.parquet", [0, 1] * 5, coarse=[0] * 10)
    parquet(tmp_path / "tables" / "test.parquet", [1, 1], coarse=[0] * 2)
    splits = source.images(root=str(tmp_path / "tables"), label_column="label")
    assert splits.train.counts.tolist() == [4, 4] and splits.test.counts.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"test_share": 0.0}, r"`test_share` to be in \(0, 1\), but got 0.0"),
        ({"test_share": 1.0}, r"`test_share` to be in \(0, 1\), but got 1.0"),
        ({"held_out": 1.0}, r"`held_out` to be in \[0, 1\), but got 1.0"),
        ({"held_out": -0.1}, r"`held_out` to be in \[0, 1\), but got -0.1"),
    ],
)
def test_a_share_out_of_range_is_named(tmp_path, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        source.images(root=str(class_folders(tmp_path, {"a": 2, "b": 2})), **options)


def test_a_source_needs_a_training_split(tmp_path):
    parquet(tmp_path / "test.parquet", [0, 1])
    with pytest.raises(ValueError, match="to have a split 'train', but it has test"):
        source.images(root=str(tmp_path))
    assert readers.WHOLE not in find_splits(tmp_path)


@pytest.mark.parametrize("header", ["filename,width,class", "id,picture,label", "path,width,kind"])
def test_a_csv_header_that_names_no_path_or_no_label_is_refused(tmp_path, header):
    with pytest.raises(ValueError, match=rf"a column 'label' .* but its header is {header}"):
        listed(tmp_path, f"{header}\na.png,32,cat\n", name="list.csv")


def test_csv_columns_go_by_their_names(tmp_path):
    images = listed(tmp_path, "id,filename,label\n7,a.png,cat\n8,b c.png,dog\n", name="list.csv")
    assert names(images) == ["a.png", "b c.png"] and images.class_names == ("cat", "dog")


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing")])
def test_split_folders_may_be_spelled_otherwise(tmp_path, train, test):
    class_folders(tmp_path / train, {"cat": 2, "dog": 1})
    class_folders(tmp_path / test, {"cat": 1, "dog": 1})
    assert len(read_images(tmp_path, "train")) == 3 and len(read_images(tmp_path, "test")) == 2


def test_split_folders_without_a_training_one_are_refused(tmp_path):
    class_folders(tmp_path / "test", {"cat": 1})
    class_folders(tmp_path / "val", {"cat": 1})
    with pytest.raises(ValueError, match=r"a folder train of class folders in .* but it has test, val"):
        read_images(tmp_path)
