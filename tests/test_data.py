"""Images: the digits splits, labelled images, augmentation of a whole batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priorshift.data import ImageSet, Splits, augmented, hold_out
from priorshift.data.sources import digits_lt
from priorshift.shift import image_hashes

COUNTS = [100, 64, 41, 27, 17, 11, 7, 4, 3, 2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return digits_lt()


def some_images(**changes):
    parts = {
        "images": torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2),
        "labels": torch.tensor([0, 0, 0, 1, 1, 2]),
        "class_names": ("a", "b", "c"),
        "white": 23,
    }
    return ImageSet(**(parts | changes))


# Handwritten digits, long-tailed


def test_the_splits_have_their_stated_sizes(digits):
    assert digits.test.counts.tolist() == [60] * 10
    assert digits.validation.counts.tolist() == [14] * 10
    assert digits.train.counts.tolist() == COUNTS
    assert (len(digits.test), len(digits.validation), len(digits.train)) == (600, 140, 276)


def test_the_training_counts_fall_exponentially_to_the_imbalance_ratio():
    exact = [100 * 50 ** (-rank / 9) for rank in range(10)]
    assert [int(count + 1e-9) for count in exact] == COUNTS


def test_every_split_is_pinned_by_content(digits):
    assert digits.train.fingerprint == "6f1086ccdf1102c2"
    assert digits.validation.fingerprint == "6083aeca6d02905b"
    assert digits.test.fingerprint == "6e757b001aca0419"


def test_no_image_is_in_two_splits(digits):
    train, validation, test = (
        set(image_hashes(split.images)) for split in (digits.train, digits.validation, digits.test)
    )
    assert not (train & validation or train & test or validation & test)


def test_the_images_are_those_of_scikit_learn_with_their_labels(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    label_of = {
        image.astype(np.uint8).tobytes(): label
        for image, label in zip(bunch.images, bunch.target, strict=True)
    }
    for split in (digits.train, digits.validation, digits.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert label_of[image[0].numpy().tobytes()] == label
        assert split.class_names == tuple("0123456789")
        assert split.images.shape[1:] == (1, 8, 8)


def test_the_splits_are_deterministic_and_another_seed_gives_others(digits):
    again, other = digits_lt(), digits_lt(split_seed=1)
    for name in ("train", "validation", "test"):
        assert torch.equal(again.named(name).images, digits.named(name).images)
        assert torch.equal(again.named(name).labels, digits.named(name).labels)
        assert other.named(name).fingerprint != digits.named(name).fingerprint
        assert torch.equal(other.named(name).counts, digits.named(name).counts)


def test_the_training_set_can_change_while_the_held_out_ones_stay(digits):
    steps = digits_lt(imbalance=10.0, max_count=80, profile="step")
    assert steps.train.counts.tolist() == [80] * 5 + [8] * 5
    assert steps.test.fingerprint == digits.test.fingerprint
    assert steps.validation.fingerprint == digits.validation.fingerprint


def test_smaller_training_sets_are_part_of_larger_ones(digits):
    smaller = digits_lt(max_count=50)
    assert set(image_hashes(smaller.train.images)) < set(image_hashes(digits.train.images))


def test_more_images_than_there_are_is_refused():
    assert digits_lt(imbalance=1.0, max_count=100).train.counts.tolist() == [100] * 10
    with pytest.raises(ValueError, match="class 8, which has 100"):
        digits_lt(imbalance=1.0, max_count=101)


def test_splits_go_by_name(digits):
    assert digits.named("train") is digits.train
    assert digits.named("validation") is digits.validation
    assert digits.named("test") is digits.test
    with pytest.raises(ValueError, match="`split` to be one of train, validation, test, but got 'valid'"):
        digits.named("valid")


# Labelled images


def test_a_subset_has_the_rows_asked_for():
    subset = some_images().subset(torch.tensor([5, 0]))
    assert subset.images.flatten(1).tolist() == [[20, 21, 22, 23], [0, 1, 2, 3]]
    assert subset.labels.tolist() == [2, 0]
    assert subset.counts.tolist() == [1, 0, 1]
    assert (len(subset), subset.num_classes, subset.white) == (2, 3, 23)


def test_the_fingerprint_knows_images_and_labels_but_not_their_order():
    images = some_images()
    assert images.subset(torch.tensor([3, 1, 5, 0, 2, 4])).fingerprint == images.fingerprint
    assert images.subset(torch.arange(5)).fingerprint != images.fingerprint
    assert some_images(labels=torch.tensor([0, 0, 0, 1, 1, 1])).fingerprint != images.fingerprint
    assert some_images(images=images.images + 1).fingerprint != images.fingerprint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": torch.zeros(6, 1, 2, 2)}, r"dtype uint8, but got \(6, 1, 2, 2\), torch.float32"),
        ({"images": torch.zeros(6, 2, 2, dtype=torch.uint8)}, r"but got \(6, 2, 2\)"),
        ({"labels": torch.zeros(5).long()}, r"`labels` with one entry per image, 6, but got shape \(5,\)"),
        ({"labels": torch.full((6,), 3)}, "`labels` between 0 and 2, but got 3"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        some_images(**changes)


def test_splits_are_not_copied():
    images = some_images()
    assert Splits(images, images, images).named("test") is images


# Held-out images


def long_tailed(counts=(20, 9, 3, 1)):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.randint(0, 256, (len(labels), 3, 4, 4), generator=torch.Generator().manual_seed(0))
    return ImageSet(images.to(torch.uint8), labels, tuple("abcd"))


@pytest.mark.parametrize(
    ("share", "expected"), [(0.2, [4, 1, 1, 0]), (0.5, [10, 4, 1, 0]), (0.05, [1, 1, 1, 0]), (0.0, [0] * 4)]
)
def test_a_share_of_each_class_is_held_out_but_never_its_only_image(share, expected):
    every = long_tailed()
    validation, rest = hold_out(every, share, seed=0)
    assert validation.counts.tolist() == expected
    assert (validation.counts + rest.counts).tolist() == every.counts.tolist()
    assert sorted(validation.hashes + rest.hashes) == sorted(every.hashes)


def test_what_is_held_out_is_pinned_by_content_and_seed():
    every = long_tailed()
    shuffled = every.subset(torch.randperm(len(every), generator=torch.Generator().manual_seed(1)))
    assert hold_out(shuffled, 0.3, 0)[0].fingerprint == hold_out(every, 0.3, 0)[0].fingerprint
    assert hold_out(every, 0.3, 1)[0].fingerprint != hold_out(every, 0.3, 0)[0].fingerprint


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"`held_out` to be in \[0, 1\), but got"):
        hold_out(long_tailed(), share, 0)


# Augmentation


def moved(image, down, right):
    """The image shifted by whole pixels, zeros coming in, pixel by pixel."""
    result = np.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[:, row, column] = image[:, row - down, column - right]
    return result


def candidates(image, shift, flip):
    """Every outcome that the settings allow → its name."""
    outcomes = {}
    for mirrored in (False, True) if flip else (False,):
        source = image[:, :, ::-1] if mirrored else image
        for down in range(-shift, shift + 1):
            for right in range(-shift, shift + 1):
                outcomes[moved(source, down, right).tobytes()] = (mirrored, down, right)
    return outcomes


@settings(max_examples=25)
@given(
    shift=st.integers(0, 2),
    flip=st.booleans(),
    channels=st.integers(1, 3),
    height=st.integers(3, 6),
    width=st.integers(3, 6),
    seed=st.integers(0, 2**62),
)
def test_every_image_is_moved_whole_and_by_no_more_than_allowed(shift, flip, channels, height, width, seed):
    images = torch.rand(5, channels, height, width, generator=torch.Generator().manual_seed(0))
    result = augmented(images, shift=shift, flip=flip, seed=seed)
    assert result.shape == images.shape and result.dtype == images.dtype
    for before, after in zip(images.numpy(), result.numpy(), strict=True):
        assert after.tobytes() in candidates(before, shift, flip)


def test_every_shift_and_both_sides_occur_about_equally_often():
    image = torch.arange(1.0, 26.0).reshape(1, 1, 5, 5)
    names = candidates(image[0].numpy(), 1, True)
    result = augmented(image.expand(3600, 1, 5, 5), shift=1, flip=True, seed=3)
    drawn = [names[after.tobytes()] for after in result.numpy()]
    assert len(names) == 18
    assert all(140 < drawn.count(outcome) < 260 for outcome in names.values())


def test_half_of_the_images_are_mirrored():
    images = torch.tensor([[[[0.0, 1.0]]]]).expand(2000, 1, 1, 2)
    mirrored = augmented(images, shift=0, flip=True, seed=1)[:, 0, 0, 0].sum()
    assert 900 < mirrored < 1100


def test_without_shift_and_flip_the_images_stay():
    images = torch.rand(4, 1, 3, 3)
    assert torch.equal(augmented(images, shift=0, flip=False, seed=1), images)


def test_what_is_shifted_inside_the_frame_is_kept():
    images = torch.zeros(50, 2, 8, 8)
    images[:, :, 2:6, 2:6] = torch.rand(50, 2, 4, 4)
    result = augmented(images, shift=2, flip=False, seed=0)
    assert torch.equal(result.flatten(2).sort(dim=2).values, images.flatten(2).sort(dim=2).values)


def test_augmentation_is_a_function_of_the_batch_and_the_seed_alone():
    images = torch.rand(20, 1, 4, 4)
    before, state = images.clone(), torch.get_rng_state()
    first = augmented(images, shift=1, flip=True, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert torch.equal(augmented(images, shift=1, flip=True, seed=1), first)
    assert not torch.equal(augmented(images, shift=1, flip=True, seed=2), first)
    assert torch.equal(images, before)


@pytest.mark.gpu
def test_a_gpu_augments_as_a_cpu_does():
    images = torch.rand(20, 3, 8, 8)
    on_gpu = augmented(images.cuda(), shift=2, flip=True, seed=1)
    assert torch.equal(on_gpu.cpu(), augmented(images, shift=2, flip=True, seed=1))
