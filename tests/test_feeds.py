"""How images reach the device: in memory, from disk, or as features, prepared and augmented."""

import math

import numpy as np
import pytest
import torch

from priorshift.data import (
    Augmentation,
    Batch,
    FeatureSet,
    ImageSet,
    Preparation,
    StoredImages,
    UnreadableImageError,
    augmented,
    feed,
)

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


class Drawn:
    """A store of images that are drawn when asked for, each of another size and colour."""

    def name(self, row):
        return f"image {row}"

    def encoded(self, row):
        import io

        from PIL import Image

        if row == 13:
            return io.BytesIO(b"no image")
        generator = np.random.default_rng(row)
        pixels = generator.integers(0, 256, (40 + row, 50 + 2 * row, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return io.BytesIO(file.getvalue())


def stored(count=6):
    return StoredImages(Drawn(), torch.arange(count), torch.zeros(count).long(), ("a",))


def in_memory(count=6, white=255):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, white + 1, (count, 3, 8, 8), generator=generator).to(torch.uint8)
    return ImageSet(images, torch.zeros(count).long(), ("a",), white)


def everything(batches):
    return torch.cat(list(batches))


# In memory


def test_plain_images_in_memory_are_their_pixels_between_nought_and_one():
    data = in_memory(white=16)
    inputs = everything(feed(data, CPU, preparation=Preparation()).plain(4))
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs, data.images.float() / 16)


def test_each_channel_is_normalised_after_the_augmentation_so_that_what_comes_in_is_black():
    data, rows = in_memory(), [torch.tensor([3, 1]), torch.tensor([0])]
    augmentation = Augmentation(shift=2, flip=True)
    ours = list(
        feed(data, CPU, preparation=Preparation(mean=MEAN, std=STD), augmentation=augmentation).training(
            [Batch.whole(rows[0], 5), Batch.whole(rows[1], 6)]
        )
    )
    for batch, seed, inputs in zip(rows, (5, 6), ours, strict=True):
        pixels = augmented(data.images[batch].float() / 255, shift=2, flip=True, seed=seed)
        for channel in range(3):
            expected = (pixels[:, channel].double() - MEAN[channel]) / STD[channel]
            assert inputs[:, channel].double() == pytest.approx(expected, abs=1e-6)


def test_images_in_memory_can_be_scaled():
    data = in_memory()
    inputs = everything(feed(data, CPU, preparation=Preparation(size=16)).plain(4))
    assert inputs.shape == (6, 3, 16, 16)
    smooth = ImageSet(torch.full((1, 3, 8, 8), 51, dtype=torch.uint8), torch.tensor([0]), ("a",))
    assert everything(feed(smooth, CPU, preparation=Preparation(size=20)).plain(1)) == pytest.approx(0.2)


# Stored


@pytest.mark.parametrize("resize", [0, 24, 32])
def test_a_stored_image_is_scaled_and_its_centre_cut_out(resize):
    data = stored(2)
    preparation = Preparation(size=24, resize=resize, mean=MEAN, std=STD)
    inputs = everything(feed(data, CPU, preparation=preparation).plain(1))
    assert inputs.shape == (2, 3, 24, 24)
    for index in range(2):
        image = data.read(index)
        short = resize or 24
        scaled = image.resize((int(short * image.width / image.height), short), resample=2)
        left, top = round((scaled.width - 24) / 2), round((short - 24) / 2)
        square = np.asarray(scaled.crop((left, top, left + 24, top + 24))).astype(float) / 255
        expected = (square - np.array(MEAN)) / np.array(STD)
        assert inputs[index].movedim(0, -1).double().numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("crop", ["centre", "random", "random-resized"])
def test_a_stored_training_image_is_a_pure_function_of_its_seed_whoever_reads_it(crop):
    data, rows = stored(), [torch.tensor([2, 0, 4]), torch.tensor([1, 5])]
    augmentation = Augmentation(crop=crop, flip=True, jitter=0.4)
    preparation = Preparation(size=24, resize=30)

    def inputs(workers, seeds):
        images = feed(data, CPU, preparation=preparation, augmentation=augmentation, workers=workers)
        return list(images.training([Batch.whole(*each) for each in zip(rows, seeds, strict=True)]))

    state = torch.get_rng_state()
    alone = inputs(0, [7, 8])
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(alone, inputs(2, [7, 8]), strict=True):
        assert torch.equal(ours, theirs)
    assert [len(batch) for batch in alone] == [3, 2]
    other = inputs(0, [9, 8])
    assert not torch.equal(other[0], alone[0]) and torch.equal(other[1], alone[1])


def test_a_random_crop_lies_in_the_scaled_image_and_mirrors_half():
    data = stored(1)
    preparation = Preparation(size=30, resize=36)
    augmentation = Augmentation(crop="random", flip=True)
    images = feed(data, CPU, preparation=preparation, augmentation=augmentation)
    image = data.read(0)
    scaled = np.asarray(image.resize((45, 36), resample=2)).astype(np.float32) / 255
    seen = set()
    for (crop,) in images.training([Batch.whole(torch.tensor([0]), seed) for seed in range(120)]):
        square = crop.movedim(0, -1).numpy()
        places = [
            (top, left, mirrored)
            for top in range(7)
            for left in range(16)
            for mirrored in (False, True)
            if np.array_equal(scaled[top : top + 30, left : left + 30][:, :: -1 if mirrored else 1], square)
        ]
        assert len(places) == 1
        seen.update(places)
    assert {mirrored for *_, mirrored in seen} == {False, True}
    assert {top for top, *_ in seen} == set(range(7))
    assert len({left for _, left, _ in seen}) > 12


def test_jitter_changes_colours_by_at_most_its_share():
    grey = ImageSet(torch.full((1, 3, 30, 40), 100, dtype=torch.uint8), torch.tensor([0]), ("a",))

    class Grey(Drawn):
        def encoded(self, row):
            import io

            from PIL import Image

            file = io.BytesIO()
            Image.fromarray(grey.images[0].movedim(0, -1).numpy()).save(file, "PNG")
            return io.BytesIO(file.getvalue())

    data = StoredImages(Grey(), torch.arange(1), torch.zeros(1).long(), ("a",))
    images = feed(data, CPU, preparation=Preparation(size=24), augmentation=Augmentation(jitter=0.3))
    batches = [Batch.whole(torch.tensor([0]), seed) for seed in range(40)]
    values = [inputs.mean().item() * 255 for inputs in images.training(batches)]
    assert 69 <= min(values) < 85 and 115 < max(values) <= 131


def test_an_image_that_cannot_be_read_is_named_whoever_reads_it():
    data = StoredImages(Drawn(), torch.tensor([1, 13]), torch.zeros(2).long(), ("a",))
    for workers in (0, 2):
        images = feed(data, CPU, preparation=Preparation(size=24), workers=workers)
        with pytest.raises(UnreadableImageError, match="image 13"):
            everything(images.plain(2))


# Features


def test_features_are_what_they_are():
    features = torch.randn(5, 4)
    data = FeatureSet(features, torch.zeros(5).long(), ("a",), "fingerprint")
    images = feed(data, CPU, preparation=Preparation())
    assert torch.equal(everything(images.plain(2)), features)
    rows = [torch.tensor([4, 0]), torch.tensor([1])]
    assert torch.equal(
        everything(images.training([Batch.whole(each, 0) for each in rows])), features[[4, 0, 1]]
    )
    assert (len(data), data.channels, data.num_classes, data.counts.tolist()) == (5, 4, 1, [5])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": torch.zeros(5, 4, 1)}, r"`features` of shape \[N, features\]"),
        ({"features": torch.zeros(5, 4).long()}, "a floating dtype"),
        ({"labels": torch.zeros(4).long()}, r"one entry per row of features, 5, but got shape \(4,\)"),
        ({"labels": torch.ones(5).long()}, "`labels` between 0 and 0"),
    ],
)
def test_features_that_do_not_fit_together_are_refused(changes, words):
    parts = {"features": torch.zeros(5, 4), "labels": torch.zeros(5).long(), "class_names": ("a",)}
    with pytest.raises(ValueError, match=words):
        FeatureSet(**(parts | changes), fingerprint="")


# What does not fit


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        (in_memory(), {"augmentation": Augmentation(crop="random")}, "no `crop` .* in memory"),
        (in_memory(), {"augmentation": Augmentation(jitter=0.1)}, "no `crop` and no `jitter`"),
        (in_memory(), {"preparation": Preparation(size=8, resize=9)}, "no `resize` beyond `size`"),
        (in_memory(), {"preparation": Preparation(mean=(0.5,), std=(1.0,))}, "one entry per channel, 3"),
        (stored(), {}, "`size` to be positive for stored images, .* but got 0"),
        (
            stored(),
            {"preparation": Preparation(size=8), "augmentation": Augmentation(shift=1)},
            "no `shift` of stored images",
        ),
        (
            FeatureSet(torch.zeros(1, 2), torch.zeros(1).long(), ("a",), ""),
            {"augmentation": Augmentation(flip=True)},
            "no `preparation` and no `augmentation` of features",
        ),
    ],
)
def test_what_is_none_for_images_of_this_kind_is_refused(data, settings, words):
    with pytest.raises(ValueError, match=words):
        feed(data, CPU, **({"preparation": Preparation()} | settings))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Preparation(size=-1), "`size` to be non-negative, but got -1"),
        (lambda: Preparation(size=8, resize=7), "`resize` to be 0 or at least `size`, but got 7"),
        (lambda: Preparation(resize=7), "`resize` to be 0 or at least `size`, but got 7"),
        (lambda: Preparation(mean=(0.5,)), r"`std` to be as long as `mean`, but got \(\)"),
        (lambda: Preparation(mean=(0.5,), std=(0.0,)), r"`std` to be positive, but got \(0.0,\)"),
        (lambda: Augmentation(crop="middle"), "`crop` to be one of centre, random, random-resized"),
        (lambda: Augmentation(jitter=math.nan), r"`jitter` to be in \[0, 1\], but got nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
