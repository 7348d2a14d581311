"""Samplers: which class mix an epoch deals, in which order, and how ranks share it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from priorshift import Prior
from priorshift.data import SAMPLERS, sampled_order, sampled_prior

COUNTS = [12, 5, 2, 1]
LABELS = torch.tensor([0, 1, 0, 2, 0, 0, 1, 3, 0, 0, 0, 1, 0, 2, 0, 1, 0, 0, 1, 0])
"""20 images of these counts, mixed."""
SOURCE = [0.6, 0.25, 0.1, 0.05]
CASES = [(sampler, progress) for sampler in SAMPLERS for progress in (0.0, 0.5, 1.0)]

label_lists = st.integers(2, 5).flatmap(
    lambda classes: st.lists(st.integers(0, classes - 1), max_size=40).map(
        lambda labels: (torch.tensor([*range(classes), *labels]), classes)
    )
)


def mix_by_definition(sampler, progress, counts=COUNTS):
    """Kang et al., Eq. 1: p_j = n_j^q / Σ n_i^q; Eq. 2: the mean of q = 1 and q = 0; reversed is q = −1."""

    def powers(q):
        masses = [count**q for count in counts]
        return np.array([mass / sum(masses) for mass in masses])

    if sampler == "progressively-balanced":
        return (1 - progress) * powers(1.0) + progress * powers(0.0)
    return powers({"instance": 1.0, "class-balanced": 0.0, "square-root": 0.5, "reversed": -1.0}[sampler])


def order(sampler, seed=0, labels=LABELS, num_classes=4, **options):
    return sampled_order(labels, num_classes, sampler, seed=seed, **options)


# The class mix


def test_the_labels_of_these_tests_have_the_counts_stated():
    assert torch.bincount(LABELS).tolist() == COUNTS


@pytest.mark.parametrize(("sampler", "progress"), CASES)
def test_the_stated_mix_is_the_closed_form(sampler, progress):
    prior = sampled_prior(sampler, Prior.from_counts(COUNTS), progress)
    np.testing.assert_allclose(prior.probs, mix_by_definition(sampler, progress), rtol=1e-13)
    assert prior.counts.tolist() == COUNTS


def test_the_stated_mixes_are_those_worked_out_by_hand():
    source = Prior([0.64, 0.32, 0.04])
    by_hand = {
        ("instance", 0.3): [0.64, 0.32, 0.04],
        ("class-balanced", 0.3): [1 / 3, 1 / 3, 1 / 3],
        ("square-root", 0.3): [0.8 / (1 + 0.32**0.5), 0.32**0.5 / (1 + 0.32**0.5), 0.2 / (1 + 0.32**0.5)],
        ("reversed", 0.3): [1 / 19, 2 / 19, 16 / 19],
        ("progressively-balanced", 0.0): [0.64, 0.32, 0.04],
        ("progressively-balanced", 0.5): [0.32 + 1 / 6, 0.16 + 1 / 6, 0.02 + 1 / 6],
        ("progressively-balanced", 1.0): [1 / 3, 1 / 3, 1 / 3],
    }
    for (sampler, progress), mix in by_hand.items():
        np.testing.assert_allclose(sampled_prior(sampler, source, progress).probs, mix, rtol=1e-13)


def test_progress_is_at_its_end_by_default_and_moves_one_sampler_alone():
    source = Prior.from_counts(COUNTS)
    assert sampled_prior("progressively-balanced", source) == sampled_prior(
        "progressively-balanced", source, 1.0
    )
    for sampler in set(SAMPLERS) - {"progressively-balanced"}:
        assert sampled_prior(sampler, source, 0.0) == sampled_prior(sampler, source, 1.0)


@pytest.mark.parametrize(("sampler", "progress"), CASES)
def test_classes_are_dealt_as_often_as_the_mix_says_in_expectation(sampler, progress):
    """Over 800 seeds: each class, at every place of the epoch alike, within 4.5 standard errors."""
    seeds = 800
    dealt = torch.stack([LABELS[order(sampler, seed, progress=progress)] for seed in range(seeds)])
    mix = mix_by_definition(sampler, progress)
    for place in (dealt, dealt[:, :1], dealt[:, -1:]):
        shares = np.bincount(place.flatten(), minlength=4) / place.numel()
        # Drawing with replacement is the widest case; `instance` has no spread at all over whole epochs.
        error = np.sqrt(mix * (1 - mix) / place.numel())
        assert np.all(np.abs(shares - mix) < 4.5 * error)


def test_samplers_differ_by_more_than_that_tolerance():
    mixes = [mix_by_definition(*case) for case in CASES]
    distinct = {tuple(np.round(mix, 6)) for mix in mixes}
    assert len(distinct) == 5
    error = np.sqrt(0.25 / (800 * len(LABELS)))
    ordered = sorted(distinct)
    gaps = [np.abs(np.subtract(a, b)).max() for i, a in enumerate(ordered) for b in ordered[:i]]
    assert min(gaps) > 6 * error


# The order


@given(label_lists, st.sampled_from(SAMPLERS), st.floats(0, 1), st.integers(0, 2**63 - 1))
def test_an_epoch_has_as_many_valid_indices_as_there_are_images(labels_and_classes, sampler, progress, seed):
    labels, classes = labels_and_classes
    dealt = sampled_order(labels, classes, sampler, seed=seed, progress=progress)
    assert dealt.dtype == torch.int64 and dealt.shape == labels.shape
    assert all(0 <= index < len(labels) for index in dealt.tolist())


@given(label_lists, st.sampled_from(SAMPLERS), st.floats(0, 1), st.integers(0, 2**63 - 1))
def test_the_images_of_a_class_are_used_evenly(labels_and_classes, sampler, progress, seed):
    labels, classes = labels_and_classes
    used = torch.bincount(
        sampled_order(labels, classes, sampler, seed=seed, progress=progress), minlength=len(labels)
    )
    for label in range(classes):
        of_class = used[labels == label]
        assert of_class.max() - of_class.min() <= 1


@given(label_lists, st.integers(0, 2**63 - 1))
def test_instance_takes_every_image_once(labels_and_classes, seed):
    labels, classes = labels_and_classes
    dealt = sampled_order(labels, classes, "instance", seed=seed)
    assert sorted(dealt.tolist()) == list(range(len(labels)))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_image_of_a_class_is_equally_likely_to_come_first(sampler):
    firsts = torch.tensor([order(sampler, seed)[0] for seed in range(1500)])
    for label in range(3):
        images = LABELS.eq(label).nonzero().flatten()
        drawn = torch.bincount(firsts, minlength=20)[images].double()
        expected = drawn.sum() / len(images)
        assert torch.all((drawn - expected).abs() < 4.5 * expected.sqrt())


def test_a_scarce_class_goes_round_again_in_the_same_order():
    dealt = order("reversed", seed=5)
    for label in (2, 3):
        of_class = [index for index in dealt.tolist() if LABELS[index] == label]
        count = COUNTS[label]
        assert len(of_class) >= 2 * count
        assert of_class[count:] == of_class[: len(of_class) - count]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_order_is_a_pure_function_of_its_arguments(sampler):
    first = order(sampler, seed=1)
    torch.manual_seed(5)
    state, labels = torch.get_rng_state(), LABELS.clone()
    assert torch.equal(order(sampler, seed=1), first)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(LABELS, labels)
    assert len({tuple(order(sampler, seed).tolist()) for seed in range(50)}) == 50


# Ranks


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("num_samples", "world_size"), [(20, 3), (19, 3), (18, 3), (20, 1), (20, 7), (4, 6)])
def test_the_ranks_shares_put_together_are_the_order_of_one_process(sampler, num_samples, world_size):
    labels = torch.cat([torch.arange(4), LABELS])[:num_samples]
    whole = order(sampler, seed=3, labels=labels, progress=0.5)
    shares = [
        order(sampler, seed=3, labels=labels, progress=0.5, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert sum(map(len, shares)) == num_samples
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    by_place = [shares[place % world_size][place // world_size] for place in range(num_samples)]
    assert torch.equal(torch.stack(by_place), whole)


def test_three_ranks_share_every_image_without_overlap_or_drop():
    shares = [order("instance", rank=rank, world_size=3).tolist() for rank in range(3)]
    assert [len(share) for share in shares] == [7, 7, 6]
    assert sorted(index for share in shares for index in share) == list(range(20))


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "hope"}, "no sampler 'hope'; there are instance, class-balanced, .*reversed"),
        ({"sampler": "class-balanced", "progress": 1.5}, r"`progress` to be in \[0, 1\], but got 1.5"),
        ({"sampler": "class-balanced", "progress": -0.1}, r"`progress` to be in \[0, 1\], but got -0.1"),
        (
            {"sampler": "class-balanced", "progress": float("nan")},
            r"`progress` to be in \[0, 1\], but got nan",
        ),
        ({"sampler": "instance", "rank": 3, "world_size": 3}, "`rank` between 0 and 2, but got 3"),
        ({"sampler": "instance", "rank": -1}, "`rank` between 0 and 0, but got -1"),
        (
            {"sampler": "instance", "labels": torch.tensor([0, 1, 2, 4])},
            "`labels` between 0 and 3, but got 4",
        ),
        ({"sampler": "class-balanced", "num_classes": 6}, "zero for classes 4, 5"),
        ({"sampler": "instance", "num_classes": 5}, "zero for class 4"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(options, words):
    with pytest.raises(ValueError, match=words):
        order(**options)


def test_an_unknown_sampler_has_no_mix():
    with pytest.raises(ValueError, match="no sampler 'hope'"):
        sampled_prior("hope", Prior(SOURCE))
