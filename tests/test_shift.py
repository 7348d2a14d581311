"""Making label shift: counts, target priors, content-pinned subsets, shifted evaluation sets."""

import json
from fractions import Fraction
from hashlib import blake2b

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priorshift import Prior
from priorshift.shift import (
    STANDARD_MIXES,
    backward_counts,
    backward_prior,
    dirichlet_priors,
    draw_mix,
    draw_stream,
    draw_subset,
    fingerprint,
    forward_counts,
    forward_prior,
    image_hashes,
    largest_counts,
    long_tail_counts,
    mix_weights,
    split_off,
    stream_priors,
    target_prior,
)

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)


def exact_decay(num_classes, largest, ratio):
    """floor(largest * ratio^(-j/(C-1))): the largest n with n^(C-1) * ratio^j <= largest^(C-1)."""
    ratio, power, counts = Fraction(ratio), num_classes - 1, []
    for j in range(num_classes):
        n = 0
        while (n + 1) ** power * ratio**j <= largest**power:
            n += 1
        counts.append(n)
    return counts


def some_images(seed=0, size=60, classes=3, distinct=None):
    """Random labelled images, of which `distinct` differ; the first `classes` labels cover every class."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (distinct or size, 4, 4, 3), dtype=np.uint8)
    rows = np.arange(size) % (distinct or size)
    return images[rows], rows % classes


def content(images, labels, rows):
    return sorted((int(labels[row]), images[row].tobytes()) for row in np.asarray(rows))


# Long-tailed counts


@pytest.mark.parametrize(
    ("imbalance", "cifar100_total", "cifar10_total"),
    [(100, 10_847, 12_406), (50, 12_608, 13_996), (10, 19_573, 20_431)],
)
def test_exponential_profile_gives_the_sizes_of_long_tailed_cifar(imbalance, cifar100_total, cifar10_total):
    counts = long_tail_counts(100, 500, imbalance)
    assert counts.dtype == np.int64
    assert counts.sum() == cifar100_total
    assert (counts[0], counts[-1]) == (500, 500 // imbalance)
    assert long_tail_counts(10, 5000, imbalance).sum() == cifar10_total


@pytest.mark.parametrize(("imbalance", "sizes"), [(100, (35, 35, 30)), (50, (41, 41, 18)), (10, (69, 31, 0))])
def test_exponential_profile_gives_lades_many_medium_and_few_groups(imbalance, sizes):
    counts = long_tail_counts(100, 500, imbalance)
    many, few = int((counts > 100).sum()), int((counts < 20).sum())
    assert (many, 100 - many - few, few) == sizes


@PROPERTY
@given(st.integers(2, 9), st.integers(1, 80), st.integers(1, 80))
def test_counts_equal_exact_integer_arithmetic(num_classes, largest, ratio):
    exact = exact_decay(num_classes, largest, ratio)
    assert forward_counts(num_classes, largest, ratio).tolist() == exact
    if ratio <= largest:
        assert long_tail_counts(num_classes, largest, ratio).tolist() == exact


@pytest.mark.parametrize(("base", "power"), [(2, 10), (3, 6), (5, 5), (7, 4), (10, 3), (10, 6)])
def test_a_size_that_is_a_whole_number_is_not_floored_below_it(base, power):
    largest = base**power
    assert long_tail_counts(power + 1, largest, largest).tolist() == [
        base ** (power - j) for j in range(power + 1)
    ]


def test_step_profile_keeps_the_first_half_and_cuts_the_rest():
    assert long_tail_counts(4, 500, 100, profile="step").tolist() == [500, 500, 5, 5]
    assert long_tail_counts(5, 500, 30, profile="step").tolist() == [500, 500, 16, 16, 16]
    assert long_tail_counts(10, 5000, 100, profile="step").sum() == 5 * 5000 + 5 * 50


@pytest.mark.parametrize("profile", ["exp", "step"])
def test_imbalance_one_is_balanced(profile):
    assert long_tail_counts(7, 30, 1, profile=profile).tolist() == [30] * 7


@pytest.mark.parametrize("profile", ["exp", "step"])
def test_a_class_without_images_is_refused(profile):
    assert long_tail_counts(10, 50, 50, profile=profile)[-1] == 1
    with pytest.raises(
        ValueError, match=r"`imbalance` to be at most `max_count`, 50, but got 51: class 9 would"
    ):
        long_tail_counts(10, 50, 51, profile=profile)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 500, 10), "`num_classes` to be at least 2, but got 1"),
        ((10, 500, 0.01), "`imbalance` to be at least 1 and finite, but got 0.01"),
        ((10, 500, float("nan")), "`imbalance`.*but got nan"),
        ((10, 500, 10, "linear"), "`profile` to be one of exp, step, but got 'linear'"),
        ((1, 500, 10, "step"), "`num_classes` to be at least 2, but got 1"),
    ],
)
def test_long_tail_counts_refuses_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        long_tail_counts(*arguments)


# Forward and backward


def test_forward_50_has_the_size_of_the_shared_imagenet_split():
    counts = forward_counts(1000, 50, 50)
    assert counts.sum() == 12_058
    assert (counts.max(), counts.min()) == (50, 1)


@PROPERTY
@given(st.integers(2, 30), st.integers(1, 100), st.floats(1, 100))
def test_backward_counts_mirror_forward_counts(num_classes, largest, mu):
    forward = forward_counts(num_classes, largest, mu).tolist()
    assert forward == sorted(forward, reverse=True)
    assert backward_counts(num_classes, largest, mu).tolist() == forward[::-1]


def test_a_ratio_beyond_the_count_leaves_classes_empty():
    assert forward_counts(3, 5, 100).tolist() == [5, 0, 0]


@pytest.mark.parametrize("make", [forward_counts, backward_counts])
def test_shifted_counts_refuse_in_words(make):
    with pytest.raises(ValueError, match=r"`mu` to be at least 1 and finite, but got 0\.5"):
        make(10, 50, 0.5)
    with pytest.raises(ValueError, match="`max_count` to be at least 1, but got 0"):
        make(10, 0, 2)


@PROPERTY
@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.floats(1, 200))
def test_shifted_priors_decay_with_the_training_rank(train_counts, mu):
    size = len(train_counts)
    order = sorted(range(size), key=lambda y: (-train_counts[y], y))
    masses = np.empty(size)
    for rank, y in enumerate(order):
        masses[y] = mu ** (-rank / (size - 1))
    np.testing.assert_allclose(forward_prior(train_counts, mu).probs, masses / masses.sum(), rtol=1e-12)
    mirrored = 1 / masses
    np.testing.assert_allclose(backward_prior(train_counts, mu).probs, mirrored / mirrored.sum(), rtol=1e-12)


@pytest.mark.parametrize("make", [forward_prior, backward_prior])
def test_shifted_priors_with_ratio_one_are_uniform(make):
    assert make([5, 9, 1, 9], 1) == Prior.uniform(4)


@pytest.mark.parametrize("mu", [1, 2, 5, 10, 25, 50])
def test_the_largest_draw_from_a_balanced_set_has_the_shifted_counts(mu):
    train_counts = np.random.default_rng(1).integers(1, 500, 100)
    labels = np.repeat(np.arange(100), 50)
    by_rank = np.argsort(-train_counts, kind="stable")
    forward = largest_counts(labels, forward_prior(train_counts, mu))[by_rank]
    backward = largest_counts(labels, backward_prior(train_counts, mu))[by_rank]
    assert np.array_equal(forward, forward_counts(100, 50, mu))
    assert np.array_equal(backward, backward_counts(100, 50, mu))


@pytest.mark.parametrize("make", [forward_prior, backward_prior])
@pytest.mark.parametrize(
    ("counts", "mu", "message"),
    [
        ([3, 2], 0.9, "`mu` to be at least 1 and finite, but got 0.9"),
        ([3, 2], float("inf"), "`mu`.*but got inf"),
        ([3, -2], 2, "`order_counts` to be whole and non-negative, but got -2.0 for class 1"),
        ([3, 2.5], 2, "`order_counts` to be whole and non-negative, but got 2.5 for class 1"),
        ([3], 2, r"`order_counts` with one entry per class, at least two, but got shape \(1,\)"),
        ([[3, 2]], 2, r"`order_counts` with one entry per class, .* got shape \(1, 2\)"),
    ],
)
def test_shifted_priors_refuse_in_words(make, counts, mu, message):
    with pytest.raises(ValueError, match=message):
        make(counts, mu)


# Spelled mixes


def test_spelled_mixes_are_the_priors_they_name():
    counts = [90, 1, 9]
    assert target_prior("uniform", counts) == Prior.uniform(3)
    assert target_prior("source", counts) == Prior.from_counts(counts)
    assert target_prior("forward:25", counts) == forward_prior(counts, 25)
    assert target_prior("backward:2.5", counts) == backward_prior(counts, 2.5)


def test_standard_mixes_go_from_the_training_mix_to_its_mirror_image():
    ratios = [50, 25, 10, 5, 2]
    assert (
        *(f"forward:{mu}" for mu in ratios),
        "uniform",
        *(f"backward:{mu}" for mu in reversed(ratios)),
    ) == STANDARD_MIXES
    head = [float(target_prior(name, [5, 3, 1]).probs[0]) for name in STANDARD_MIXES]
    assert head == sorted(head, reverse=True)


def test_a_mix_is_read_from_a_list_in_a_file(tmp_path):
    path = tmp_path / "mix.json"
    path.write_text("[2, 0, 6]")
    assert target_prior(path, [1, 1, 1]).probs.tolist() == [0.25, 0.0, 0.75]
    assert target_prior(str(path), [1, 1, 1], class_names=["a", "b", "c"]).probs.tolist() == [0.25, 0.0, 0.75]


def test_a_mix_is_read_from_class_names_in_a_file(tmp_path):
    path = tmp_path / "mix.json"
    path.write_text('{"zèbre": 3, "ape": 1, "bee": 0}', encoding="utf-8")
    prior = target_prior(path, [1, 1, 1], class_names=["ape", "bee", "zèbre"])
    assert prior.probs.tolist() == [0.25, 0.0, 0.75]


@pytest.mark.parametrize(
    "name", ["Uniform", "forward", "forward:", "forward:x", "forward:-2", "sideways:2", "no.json"]
)
def test_a_bad_spelling_is_answered_with_what_is_allowed(name):
    allowed = "'uniform', 'source', 'forward:<mu>', 'backward:<mu>' .* existing JSON file, but got "
    with pytest.raises(ValueError, match=allowed + repr(name)):
        target_prior(name, [3, 2, 1])


def test_a_spelled_ratio_below_one_is_refused():
    with pytest.raises(ValueError, match=r"`mu` to be at least 1 and finite, but got 0\.5"):
        target_prior("forward:0.5", [3, 2, 1])


@pytest.mark.parametrize(
    ("value", "class_names", "error", "message"),
    [
        ([1, 2], None, ValueError, "one entry per class, 3, but got 2"),
        ([1, 2, -1], None, ValueError, "mix.json` to be finite and non-negative, but got -1.0 for class 2"),
        ([0, 0, 0], None, ValueError, "mix.json` to have a positive finite sum"),
        (["a", "b", "c"], None, TypeError, "mix.json` to be real numbers"),
        (0.5, None, ValueError, "a list of 3 numbers or an object of class names and numbers, but got 0.5"),
        ({"a": 1}, None, ValueError, "`class_names` to read the object .* but got None"),
        (
            {"a": 1, "b": 1},
            "abc",
            ValueError,
            "missing are 'c' and unknown are none; the classes are 'a', 'b', 'c'",
        ),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, "abc", ValueError, "missing are none and unknown are 'd'"),
        ({"a": 1}, "ab", ValueError, "`class_names` with one name per class, 3, but got 2"),
        ({"a": 1}, "aab", ValueError, "`class_names` to .*'a'"),
    ],
)
def test_a_file_that_does_not_fit_the_classes_is_refused(tmp_path, value, class_names, error, message):
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(value))
    names = None if class_names is None else list(class_names)
    with pytest.raises(error, match=message):
        target_prior(path, [3, 2, 1], class_names=names)


def test_a_long_list_of_class_names_is_shortened(tmp_path):
    path = tmp_path / "mix.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"missing are '0', .*'9' and 20 more and unknown are none"):
        target_prior(path, [1] * 30, class_names=[str(c) for c in range(30)])


@pytest.mark.parametrize("raw", [b"[1, 2", b"\xff\xfe"])
def test_a_file_that_is_no_json_is_refused(tmp_path, raw):
    path = tmp_path / "mix.json"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"mix\.json` to hold JSON, but it does not"):
        target_prior(path, [3, 2, 1])


# Dirichlet priors


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_dirichlet_priors_have_the_mean_and_variance_of_the_distribution(alpha):
    size, draws = 4, 2000
    probs = np.stack([prior.probs for prior in dirichlet_priors(size, alpha, draws, seed=0)])
    variance = (size - 1) / (size**2 * (size * alpha + 1))
    assert np.all(np.abs(probs.mean(0) - 1 / size) < 4 * np.sqrt(variance / draws))
    squares = (probs - 1 / size) ** 2
    assert np.all(np.abs(squares.mean(0) - variance) < 4 * squares.std(0) / np.sqrt(draws))
    covariance = np.cov(probs[:, 0], probs[:, 1])[0, 1]
    assert covariance == pytest.approx(-variance / (size - 1), rel=0.2)


@pytest.mark.parametrize("alpha", [1e-300, 1e-12, 1e-3])
def test_a_tiny_concentration_gives_one_class_and_no_nan(alpha):
    priors = dirichlet_priors(10, alpha, 300, seed=1)
    probs = np.stack([prior.probs for prior in priors])
    assert np.isfinite(probs).all()
    assert probs.max(axis=1).mean() > 0.98
    winners = np.bincount(probs.argmax(axis=1), minlength=10)
    assert int(winners.min()) > 10  # 30 expected of each, standard deviation 5.2


@pytest.mark.parametrize("alpha", [1e8, 1e300])
def test_a_huge_concentration_is_nearly_uniform(alpha):
    np.testing.assert_allclose(dirichlet_priors(5, alpha, 1, seed=0)[0].probs, np.full(5, 0.2), rtol=1e-3)


def test_dirichlet_priors_follow_the_seed_alone():
    np.random.seed(0)
    first = dirichlet_priors(5, 0.5, 3, seed=7)
    assert np.random.random() == pytest.approx(0.5488135039273248)
    np.random.seed(1)
    assert dirichlet_priors(5, 0.5, 6, seed=7)[:3] == first
    assert dirichlet_priors(5, 0.5, 3, seed=8) != first
    assert len(set(first)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 1.0, 1, 0), "`num_classes` to be at least 2"),
        ((3, 0.0, 1, 0), r"`alpha` between 1e-300 and 1e\+300, but got 0.0"),
        ((3, float("nan"), 1, 0), "`alpha`.*but got nan"),
        ((3, 1.0, -1, 0), "`num_draws` to be non-negative, but got -1"),
        ((3, 1.0, 1, -4), "`seed` to be non-negative, but got -4"),
    ],
)
def test_dirichlet_priors_refuse_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        dirichlet_priors(*arguments)


# Image hashes


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_hashes_depend_on_the_content_and_not_on_the_container(dtype):
    images = some_images(size=5)[0].astype(dtype)
    hashes = image_hashes(images)
    assert hashes == image_hashes(torch.from_numpy(images))
    assert hashes == image_hashes(np.asfortranarray(images))
    assert hashes == image_hashes(images.astype(images.dtype.newbyteorder(">")))
    assert hashes == image_hashes(np.repeat(images, 2, axis=0)[::2])
    assert hashes == image_hashes(
        torch.from_numpy(images).permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    )
    assert hashes[2] == image_hashes(images[2:3])[0]
    assert len(set(hashes)) == 5


def test_hashes_tell_shapes_dtypes_and_single_values_apart():
    image = np.zeros((1, 2, 8), dtype=np.uint8)
    brighter = image.copy()
    brighter[0, 1, 7] = 1
    variants = [image, brighter, image.reshape(1, 4, 4), image.reshape(1, 16), image.view(np.int8)]
    variants += [image.view(np.float32), image.view(np.float64), image.reshape(1, 16, 1)]
    assert len({image_hashes(variant)[0] for variant in variants}) == len(variants)


def test_a_hash_is_blake2b_over_shape_dtype_and_values():
    images = some_images(size=2)[0]
    expected = blake2b(b"4,4,3 uint8 " + images[1].tobytes(), digest_size=16).hexdigest()
    assert image_hashes(images)[1] == expected


def test_images_that_require_grad_or_are_read_only_are_hashed():
    images = np.ones((2, 3, 3), dtype=np.float32)
    images.setflags(write=False)
    assert image_hashes(images) == image_hashes(torch.ones(2, 3, 3, requires_grad=True))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([[1, 2]], TypeError, "`images` to be an array or tensor, but got list"),
        (
            torch.zeros(2, 2, dtype=torch.bfloat16),
            TypeError,
            "NumPy can hold, but got dtype torch.bfloat16",
        ),
        (np.array([["a"]]), TypeError, "`images` to be .*real numbers, but got .*dtype.*<U1"),
        (np.zeros(3), ValueError, r"`images` with one image per row, \[N, …\], but got shape \(3,\)"),
    ],
)
def test_image_hashes_refuses_in_words(images, error, message):
    with pytest.raises(error, match=message):
        image_hashes(images)


# Subsets


def slow_subset(images, labels, counts, seed):
    """The rule from its definition: per class, the rows of least BLAKE2b(seed, hash of the image)."""
    hashes = image_hashes(images)
    chosen = []
    for c, count in enumerate(counts):
        ranked = []
        for row in np.flatnonzero(np.asarray(labels) == c):
            ranked.append((blake2b(f"{seed} {hashes[row]}".encode(), digest_size=16).digest(), int(row)))
        chosen += [row for _, row in sorted(ranked)[:count]]
    return sorted(chosen)


def test_a_subset_is_the_first_of_each_class_in_hash_order():
    images, labels = some_images()
    counts = [20, 7, 1]
    rows = draw_subset(image_hashes(images), labels, counts, seed=3)
    assert rows.dtype == np.int64
    assert rows.tolist() == slow_subset(images, labels, counts, seed=3)
    assert np.bincount(labels[rows], minlength=3).tolist() == counts


@PROPERTY
@given(st.permutations(range(24)), st.integers(0, 2**70), st.sampled_from([24, 9]))
def test_a_subset_holds_the_same_images_whatever_the_row_order(order, seed, distinct):
    images, labels = some_images(size=24, distinct=distinct)
    rows = draw_subset(image_hashes(images), labels, [5, 2, 1], seed)
    shuffled, shuffled_labels = images[order], labels[order]
    shuffled_rows = draw_subset(image_hashes(shuffled), shuffled_labels, [5, 2, 1], seed)
    assert content(images, labels, rows) == content(shuffled, shuffled_labels, shuffled_rows)


@PROPERTY
@given(st.permutations(range(24)), st.integers(0, 99), st.sampled_from([24, 9]))
def test_a_split_holds_the_same_images_whatever_the_row_order(order, seed, distinct):
    images, labels = some_images(size=24, distinct=distinct)
    shuffled, shuffled_labels = images[order], labels[order]
    parts = split_off(image_hashes(images), labels, 3, seed)
    shuffled_parts = split_off(image_hashes(shuffled), shuffled_labels, 3, seed)
    for part, shuffled_part in zip(parts, shuffled_parts, strict=True):
        assert content(images, labels, part) == content(shuffled, shuffled_labels, shuffled_part)


def test_a_pinned_subset_stays_the_same_over_releases():
    images = np.arange(40 * 12, dtype=np.uint16).reshape(40, 2, 2, 3).astype(np.uint8)
    labels = np.arange(40) % 4
    hashes = image_hashes(images)
    rows = draw_subset(hashes, labels, [4, 3, 2, 1], seed=0)
    assert rows.tolist() == [8, 13, 18, 21, 24, 27, 29, 32, 36, 38]
    assert fingerprint([hashes[row] for row in rows], labels[rows]) == "560c7e956540ec34"


def test_another_seed_draws_other_images():
    images, labels = some_images()
    hashes = image_hashes(images)
    draws = {tuple(draw_subset(hashes, labels, [10, 5, 2], seed).tolist()) for seed in range(20)}
    assert len(draws) == 20


def test_every_image_is_drawn_equally_often_over_seeds():
    images, labels = some_images(size=30)
    hashes = image_hashes(images)
    seeds, drawn = 400, np.zeros(30)
    for seed in range(seeds):
        drawn[draw_subset(hashes, labels, [2, 5, 8], seed)] += 1
    share = np.array([0.2, 0.5, 0.8])[labels]
    assert np.all(np.abs(drawn / seeds - share) < 4 * np.sqrt(share * (1 - share) / seeds))


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=3, max_size=3), st.integers(0, 9))
def test_smaller_counts_give_a_part_of_what_larger_counts_give(pairs, seed):
    images, labels = some_images()
    hashes = image_hashes(images)
    smaller = draw_subset(hashes, labels, [min(pair) for pair in pairs], seed)
    larger = draw_subset(hashes, labels, [max(pair) for pair in pairs], seed)
    assert set(smaller.tolist()) <= set(larger.tolist())


def test_a_subset_may_leave_classes_out_and_take_all_of_others():
    images, labels = some_images()
    rows = draw_subset(image_hashes(images), labels, [0, 20, 0], seed=0)
    assert rows.tolist() == np.flatnonzero(labels == 1).tolist()


@pytest.mark.parametrize("make", [list, np.asarray, torch.tensor])
def test_labels_and_counts_come_from_lists_arrays_and_tensors(make):
    images, labels = some_images()
    hashes = image_hashes(images)
    rows = draw_subset(hashes, make(labels.tolist()), make([3, 2, 1]), seed=0)
    assert np.array_equal(rows, draw_subset(hashes, labels, [3, 2, 1], seed=np.int64(0)))


def test_read_only_arrays_are_read_without_a_warning():
    images, labels = some_images()
    labels.setflags(write=False)
    rows = draw_subset(image_hashes(images), labels, [3, 2, 1], seed=0)
    assert mix_weights(labels, [1, 1, 1]).shape == (60,)
    assert len(rows) == 6


def test_a_split_parts_the_rows_in_two():
    images, labels = some_images()
    held_out, rest = split_off(image_hashes(images), labels, 4, seed=0)
    assert sorted(held_out.tolist() + rest.tolist()) == list(range(60))
    assert np.bincount(labels[held_out]).tolist() == [4, 4, 4]
    assert (held_out.tolist(), rest.tolist()) == (sorted(held_out.tolist()), sorted(rest.tolist()))
    held_out, rest = split_off(image_hashes(images), labels, [20, 0, 3], seed=0)
    assert np.bincount(labels[held_out], minlength=3).tolist() == [20, 0, 3]
    assert np.bincount(labels[rest], minlength=3).tolist() == [0, 20, 17]


def test_the_held_out_images_are_the_same_for_every_long_tailed_subset():
    images, labels = some_images()
    hashes = image_hashes(images)
    held_out_sets = []
    for counts in ([20, 20, 20], [20, 10, 5], [6, 3, 2]):
        rows = draw_subset(hashes, labels, counts, seed=5)
        held_out, _ = split_off([hashes[row] for row in rows], labels[rows], 2, seed=5)
        held_out_sets.append(rows[held_out].tolist())
    assert held_out_sets[0] == held_out_sets[1] == held_out_sets[2]


@pytest.mark.parametrize(
    ("labels", "counts", "error", "message"),
    [
        ([0, 0, 1, 2], [1, 2, 3], ValueError, r"2 for class 1, which has 1 \(too few in classes 1, 2\)"),
        ([0, 0, 1, 1], [1, 1, 1], ValueError, "got 1 for class 2, which has 0"),
        ([0, 0, 1, 2], [1, 1], ValueError, "`labels` between 0 and 1, but got 2"),
        ([0, 0, 1, -1], [1, 1], ValueError, "`labels` between 0 and 1, but got -1"),
        ([0, 0, 1], [1, 1], ValueError, r"`labels` with one entry per sample, \(4,\), but got shape \(3,\)"),
        (
            [[0, 0, 1, 1]],
            [1, 1],
            ValueError,
            r"`labels` with one entry per sample, \(4,\), but got shape \(1, 4\)",
        ),
        ([0.0, 0, 1, 1], [1, 1], TypeError, "`labels` to be class indices, but got dtype float64"),
        (["a", "b", "a", "b"], [1, 1], TypeError, "`labels` to be class indices, but got names such as 'a'"),
        ([0, 0, 1, 1], [1, 1.5], ValueError, r"`counts` to be whole and .*, but got 1\.5 for class 1"),
        ([0, 0, 1, 1], [1, -1], ValueError, r"`counts` to be whole and non-negative, but got -1\.0"),
        (
            [0, 0, 1, 1],
            [2],
            ValueError,
            r"`counts` with one entry per class, at least two, but got shape \(1,\)",
        ),
    ],
)
def test_a_subset_that_cannot_be_drawn_is_refused_in_words(labels, counts, error, message):
    with pytest.raises(error, match=message):
        draw_subset(["a", "b", "c", "d"], labels, counts, seed=0)


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [(0.5, TypeError, r"a whole number, but got 0\.5"), (-1, ValueError, "non-negative, but got -1")],
)
def test_a_seed_that_is_no_whole_number_is_refused(seed, error, message):
    with pytest.raises(error, match="`seed` to be " + message):
        draw_subset(["a", "b"], [0, 1], [1, 1], seed)
    with pytest.raises(error, match="`seed` to be " + message):
        draw_mix([0, 1], [1, 1], seed)
    with pytest.raises(error, match="`seed` to be " + message):
        dirichlet_priors(2, 1.0, 1, seed)


def test_a_split_that_a_class_cannot_supply_is_refused():
    with pytest.raises(ValueError, match=r"`per_class` to ask .* got 2 for class 1, which has 1"):
        split_off(["a", "b", "c"], [0, 0, 1], 2, seed=0)
    with pytest.raises(ValueError, match="`labels` between 0 and 1, but got 2"):
        split_off(["a", "b", "c"], [0, 1, 2], [1, 1], seed=0)
    with pytest.raises(ValueError, match="got 1 for class 1, which has 0"):
        split_off(["a", "b", "c"], [0, 0, 2], 1, seed=0)


# Fingerprints


@PROPERTY
@given(st.permutations(range(12)))
def test_a_fingerprint_does_not_depend_on_the_order(order):
    images, labels = some_images(size=12, distinct=9)
    expected = fingerprint(image_hashes(images), labels)
    assert fingerprint(image_hashes(images[order]), labels[order]) == expected
    assert len(expected) == 16 and int(expected, 16) >= 0


def test_a_fingerprint_tells_labels_images_and_copies_apart():
    hashes = ["aa", "bb", "cc"]
    variants = [
        (hashes, [0, 0, 1]),
        (hashes, [0, 1, 0]),
        (hashes, [0, 0, 2]),
        (["aa", "bb", "dd"], [0, 0, 1]),
        (["aa", "bb"], [0, 0]),
        (["aa", "aa", "bb"], [0, 0, 0]),
        (["aa", "bb", "bb"], [0, 0, 0]),
    ]
    assert len({fingerprint(*variant) for variant in variants}) == len(variants)
    with pytest.raises(ValueError, match=r"`labels` with one entry per sample, \(3,\), but got shape \(2,\)"):
        fingerprint(hashes, [0, 1])


# Evaluation on a shifted mix

labels_and_target = st.integers(2, 6).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(1, 30), min_size=size, max_size=size),
        st.lists(st.floats(0, 1), min_size=size, max_size=size).filter(lambda masses: sum(masses) > 1e-3),
        st.randoms(use_true_random=False),
    )
)


@PROPERTY
@given(labels_and_target)
def test_weights_give_exactly_the_target_mix(case):
    counts, masses, random = case
    labels = [c for c, count in enumerate(counts) for _ in range(count)]
    random.shuffle(labels)
    weights = mix_weights(labels, masses)
    assert weights.dtype == np.float64
    assert float(weights.sum()) == pytest.approx(len(labels), rel=1e-12)
    for c, mass in enumerate(masses):
        share = sum(weight for weight, label in zip(weights.tolist(), labels, strict=True) if label == c)
        assert share / len(labels) == pytest.approx(mass / sum(masses), rel=1e-12, abs=1e-300)


def test_weights_for_the_mix_of_the_set_itself_are_one():
    labels = [0] * 6 + [1] * 3 + [2]
    np.testing.assert_allclose(mix_weights(labels, Prior.from_labels(labels, 3)), np.ones(10), rtol=1e-12)


def test_a_class_without_samples_may_have_no_target_mass():
    assert mix_weights([0, 0, 2], [0.5, 0.0, 0.5]).tolist() == [0.75, 0.75, 1.5]
    assert mix_weights([0, 0, 2], [1.0, 0.0, 0.0]).tolist() == [1.5, 1.5, 0.0]
    assert largest_counts([0, 0, 2], [0.5, 0.0, 0.5]).tolist() == [1, 0, 1]
    for function in (mix_weights, largest_counts):
        with pytest.raises(
            ValueError, match=r"every class that `target` gives mass to, .* no sample of classes 1, 3"
        ):
            function([0, 0, 2], [0.2, 0.3, 0.4, 0.1])
        with pytest.raises(ValueError, match="`labels` between 0 and 1, but got 2"):
            function([0, 0, 2], [0.5, 0.5])
        with pytest.raises(ValueError, match="no sample of classes 0, 1"):
            function([], [0.5, 0.5])


@PROPERTY
@given(labels_and_target)
def test_largest_counts_are_the_most_that_the_set_can_supply(case):
    available, masses, _ = case
    labels = np.repeat(np.arange(len(available)), available)
    counts = largest_counts(labels, masses).tolist()
    exact = [Fraction(mass) for mass in masses]
    size = min(count / mass for count, mass in zip(available, exact, strict=True) if mass > 0)
    for count, mass, most in zip(counts, exact, available, strict=True):
        assert count <= most
        assert abs(size * mass - count - Fraction(1, 2)) <= Fraction(1, 2) + Fraction(1, 10**9)
    assert any(count == most for count, mass, most in zip(counts, masses, available, strict=True) if mass > 0)


def test_largest_counts_for_the_mix_of_the_set_itself_are_the_whole_set():
    available = long_tail_counts(100, 500, 100)
    labels = np.repeat(np.arange(100), available)
    assert np.array_equal(largest_counts(labels, Prior.from_counts(available)), available)


def test_a_drawn_mix_realises_its_counts_without_repeats():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], 50))
    counts = largest_counts(labels, [0.7, 0.2, 0.1])
    rows = draw_mix(labels, counts, seed=0)
    assert counts.tolist() == [50, 14, 7]
    assert rows.dtype == np.int64
    assert np.bincount(labels[rows]).tolist() == counts.tolist()
    assert len(set(rows.tolist())) == len(rows)
    assert rows.tolist() == sorted(rows.tolist())


def test_drawn_mixes_follow_the_seed_alone_and_are_nested():
    labels = np.arange(300) % 3
    np.random.seed(0)
    first = draw_mix(labels, [40, 20, 5], seed=1)
    np.random.seed(1)
    assert np.array_equal(draw_mix(labels, [40, 20, 5], seed=1), first)
    assert not np.array_equal(draw_mix(labels, [40, 20, 5], seed=2), first)
    assert set(first.tolist()) <= set(draw_mix(labels, [40, 60, 70], seed=1).tolist())


def test_weighing_gives_the_mean_over_many_drawn_mixes():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    correct = rng.random(60) < np.array([0.9, 0.5, 0.2])[labels]
    counts = [20, 8, 4]
    weighed = float(mix_weights(labels, counts) @ correct) / 60
    drawn = np.array([correct[draw_mix(labels, counts, seed)].mean() for seed in range(400)])
    assert abs(drawn.mean() - weighed) < 4 * drawn.std() / np.sqrt(len(drawn))
    assert drawn.std() > 0


def test_a_mix_that_a_class_cannot_supply_is_refused():
    with pytest.raises(ValueError, match=r"`counts` to ask .* got 3 for class 1, which has 1"):
        draw_mix([0, 0, 1], [1, 3], seed=0)


# Names


def test_labels_and_counts_are_matched_by_name():
    images, labels = some_images()
    hashes, words = image_hashes(images), np.array(["ape", "bee", "cow"])[labels]
    expected = draw_subset(hashes, labels, [3, 2, 1], seed=0)
    assert np.array_equal(draw_subset(hashes, words, {"ape": 3, "bee": 2, "cow": 1}, seed=0), expected)
    assert np.array_equal(draw_subset(hashes, words, {"cow": 1, "ape": 3, "bee": 2}, seed=0), expected)
    assert np.array_equal(split_off(hashes, words, {"bee": 2, "ape": 3, "cow": 1}, seed=0)[0], expected)
    named = Prior({"cow": 0.1, "ape": 0.7, "bee": 0.2})
    assert np.array_equal(mix_weights(words, named), mix_weights(labels, [0.7, 0.2, 0.1]))
    assert largest_counts(words, named).tolist() == [2, 20, 5]  # in the order of the target's names
    assert np.array_equal(draw_mix(words, {"ape": 3, "cow": 1, "bee": 2}, 0), draw_mix(labels, [3, 2, 1], 0))
    with pytest.raises(ValueError, match="'cow'"):
        draw_subset(hashes, words, {"ape": 3, "bee": 2}, seed=0)


def test_a_stream_matches_its_mixes_and_labels_by_name():
    labels = np.arange(60) % 3
    words = np.array(["ape", "bee", "cow"])[labels]
    first, last = {"ape": 0.7, "bee": 0.2, "cow": 0.1}, {"cow": 0.5, "bee": 0.4, "ape": 0.1}
    named = stream_priors("monotone", first, last, num_steps=4)
    plain = stream_priors("monotone", [0.7, 0.2, 0.1], [0.1, 0.4, 0.5], num_steps=4)
    assert [prior.names for prior in named] == [("ape", "bee", "cow")] * 4
    assert [prior.probs.tolist() for prior in named] == [prior.probs.tolist() for prior in plain]
    assert np.array_equal(draw_stream(words, named, 5, seed=1), draw_stream(labels, plain, 5, seed=1))


def test_target_priors_keep_the_names_of_the_classes(tmp_path):
    counts, names = {"ape": 90, "bee": 1, "cow": 9}, ("ape", "bee", "cow")
    path = tmp_path / "mix.json"
    path.write_text('{"cow": 3, "ape": 1, "bee": 0}')
    for name in ("uniform", "source", "forward:25", "backward:2", "tweak:bee:0.5", path):
        by_name, by_order = target_prior(name, counts), target_prior(name, [90, 1, 9], class_names=names)
        assert by_name == by_order
        assert by_name.names == names
    turned = target_prior("forward:25", {"cow": 9, "ape": 90, "bee": 1}, class_names=names)
    assert turned == target_prior("forward:25", counts)
    with pytest.raises(ValueError, match="missing are 'bee' and unknown are 'dog'"):
        target_prior("source", {"ape": 1, "dog": 2, "cow": 3}, class_names=names)
