"""Label shift in one class, over the whole simplex, and over time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from priorshift import Prior
from priorshift.shift import dirichlet_priors, draw_stream, stream_priors, target_prior, tweak_one_prior

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
SOURCE, TARGET = [0.7, 0.2, 0.1], [0.0, 0.4, 0.6]
KINDS = ["constant", "monotone", "square", "sinusoidal", "bernoulli"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def some_labels():
    return np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [50, 30, 20]))


def target_shares(priors):
    """The mixing weight of each prior between `[1, 0]` and `[0, 1]`."""
    return [float(prior.probs[1]) for prior in priors]


# Tweak one class


def slow_tweak(source, label, mass):
    rest = math.fsum(p for c, p in enumerate(source) if c != label)
    return [mass if c == label else (1 - mass) * p / rest for c, p in enumerate(source)]


@PROPERTY
@given(st.data())
def test_one_class_is_set_and_the_others_keep_their_proportions(data):
    source = data.draw(st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=9))
    label = data.draw(st.integers(0, len(source) - 1))
    mass = data.draw(st.floats(0.0, 1.0))
    tweaked = tweak_one_prior(source, label, mass)
    np.testing.assert_allclose(tweaked.probs, slow_tweak(source, label, mass), rtol=1e-12, atol=1e-15)


def test_from_a_uniform_source_the_others_share_equally():
    assert tweak_one_prior(Prior.uniform(5), 2, 0.6).probs.tolist() == pytest.approx(
        [0.1, 0.1, 0.6, 0.1, 0.1]
    )


def test_tweaking_a_class_to_its_own_mass_changes_nothing():
    np.testing.assert_allclose(tweak_one_prior(SOURCE, 0, 0.7).probs, SOURCE, rtol=1e-15)


def test_a_class_disappears_at_mass_zero_and_is_alone_at_mass_one():
    assert tweak_one_prior(SOURCE, 0, 0.0).probs.tolist() == pytest.approx([0.0, 2 / 3, 1 / 3])
    assert tweak_one_prior(SOURCE, 1, 1.0).probs.tolist() == [0.0, 1.0, 0.0]
    assert tweak_one_prior([1.0, 0.0], 0, 1.0).probs.tolist() == [1.0, 0.0]


def test_a_tweak_leaves_the_source_as_it_was():
    source = Prior(SOURCE)
    tweak_one_prior(source, 0, 0.1)
    assert source == Prior(SOURCE)


@pytest.mark.parametrize(
    ("source", "label", "mass", "message"),
    [
        (SOURCE, 3, 0.5, "`label` between 0 and 2, but got 3"),
        (SOURCE, -1, 0.5, "`label` between 0 and 2, but got -1"),
        (SOURCE, 0, 1.5, r"`mass` between 0 and 1, but got 1\.5"),
        (SOURCE, 0, float("nan"), "`mass` between 0 and 1, but got nan"),
        ([0.0, 1.0], 1, 0.75, r"`source` to give mass to another class than 1, to take the 0\.25"),
        ([0.5, -1.0], 1, 0.5, "`source` to be finite and non-negative"),
    ],
)
def test_a_tweak_is_refused_in_words(source, label, mass, message):
    with pytest.raises(ValueError, match=message):
        tweak_one_prior(source, label, mass)


def test_a_tweaked_mix_can_be_spelled_by_index_and_by_name():
    counts = [70, 20, 10]
    expected = tweak_one_prior(counts, 2, 0.5)
    assert target_prior("tweak:2:0.5", counts) == expected
    names = ["ape", "bee", "cat: big"]
    assert target_prior("tweak:2:0.5", counts, class_names=names) == expected.named(names)
    assert target_prior("tweak:cat: big:0.5", counts, class_names=names) == expected.named(names)
    assert target_prior("tweak:0:1", counts).probs.tolist() == [1.0, 0.0, 0.0]


def test_a_class_name_that_is_a_number_goes_before_the_index():
    assert target_prior("tweak:1:1", [1, 1], class_names=["1", "0"]).probs.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("spelling", "class_names", "message"),
    [
        ("tweak:3:0.5", None, "an index between 0 and 2, but got '3'"),
        ("tweak:-1:0.5", None, "an index between 0 and 2, but got '-1'"),
        ("tweak:dog:0.5", ["ape", "bee", "cat"], "between 0 and 2 or a class name, but got 'dog'"),
        ("tweak:0:1.5", None, r"`mass` between 0 and 1, but got 1\.5"),
        ("tweak:0", None, "'tweak:<class>:<mass>' or the path of an existing JSON file, but got 'tweak:0'"),
        ("tweak:0:-0.5", None, "`name` to be 'uniform', .* but got 'tweak:0:-0.5'"),
    ],
)
def test_a_misspelled_tweak_is_answered_with_what_is_allowed(spelling, class_names, message):
    with pytest.raises(ValueError, match=message):
        target_prior(spelling, [7, 2, 1], class_names=class_names)


# Uniform over the simplex


def test_a_concentration_of_one_is_uniform_over_the_simplex():
    probs = np.stack([prior.probs for prior in dirichlet_priors(4, 1.0, 2000, seed=0)])
    assert stats.kstest(probs[:, 0], stats.beta(1, 3).cdf).pvalue > 0.01
    assert stats.kstest(probs[:, 1] + probs[:, 2], stats.beta(2, 2).cdf).pvalue > 0.01


# Mixes over time


def slow_shares(kind, num_steps, period):
    """The mixing weight of every step from its definition, the Bernoulli stream's apart."""
    shares, side, left = [], 0, period
    for step in range(num_steps):
        if kind == "constant":
            shares.append(1.0)
        elif kind == "monotone":
            shares.append(step / (num_steps - 1))
        elif kind == "sinusoidal":
            shares.append(abs(math.sin(math.pi * step / period)))
        else:
            shares.append(side)
            left -= 1
            if left == 0:
                side, left = 1 - side, period
    return shares


@pytest.mark.parametrize("kind", KINDS[:4])
@pytest.mark.parametrize(("num_steps", "period"), [(2, 1), (30, 4), (30, 30), (101, 7)])
def test_every_step_mixes_both_ends_as_its_formula_says(kind, num_steps, period):
    priors = stream_priors(kind, SOURCE, TARGET, num_steps, period=period)
    expected = [
        [(1 - share) * s + share * t for s, t in zip(SOURCE, TARGET, strict=True)]
        for share in slow_shares(kind, num_steps, period)
    ]
    np.testing.assert_allclose(np.stack([prior.probs for prior in priors]), expected, atol=1e-14)


def test_the_default_period_is_the_root_of_the_number_of_steps():
    for kind in ("square", "sinusoidal"):
        assert stream_priors(kind, SOURCE, TARGET, 120) == stream_priors(kind, SOURCE, TARGET, 120, period=10)
    by_default = stream_priors("bernoulli", SOURCE, TARGET, 120, seed=3)
    assert by_default == stream_priors("bernoulli", SOURCE, TARGET, 120, period=10, seed=3)


def test_a_monotone_stream_begins_and_ends_at_its_mixes():
    priors = stream_priors("monotone", SOURCE, TARGET, 50)
    assert priors[0] == Prior(SOURCE)
    assert priors[-1] == Prior(TARGET)


@every_kind
def test_a_stream_may_have_one_step(kind):
    end = TARGET if kind == "constant" else SOURCE
    assert stream_priors(kind, SOURCE, TARGET, 1, seed=0) == [Prior(end)]


def test_a_bernoulli_stream_changes_sides_once_a_period_on_average():
    steps, period = 20_000, 8
    shares = np.array(target_shares(stream_priors("bernoulli", [1, 0], [0, 1], steps, period=period, seed=0)))
    assert shares[0] == 0
    assert set(shares) == {0.0, 1.0}
    switches = np.flatnonzero(np.diff(shares))
    assert abs(len(switches) - steps / period) < 4 * math.sqrt(steps / period)
    stays = np.diff(switches)
    assert abs((stays == 1).mean() - 1 / period) < 4 * math.sqrt(1 / period / len(stays))


def test_a_bernoulli_stream_follows_its_seed_alone():
    first = stream_priors("bernoulli", [1, 0], [0, 1], 200, seed=1)
    assert stream_priors("bernoulli", [1, 0], [0, 1], 200, seed=1) == first
    assert stream_priors("bernoulli", [1, 0], [0, 1], 200, seed=2) != first
    assert set(target_shares(stream_priors("bernoulli", [1, 0], [0, 1], 9, period=1, seed=1))[::2]) == {0.0}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kind": "ramp"}, ValueError, "`kind` to be one of .*bernoulli.* but got 'ramp'"),
        ({"num_steps": 0}, ValueError, "`num_steps` to be at least 1, but got 0"),
        ({"num_steps": 2.5}, TypeError, r"`num_steps` to be a whole number, but got 2\.5"),
        ({"period": 0}, ValueError, "`period` to be at least 1, but got 0"),
        ({"target": [0.5, 0.5]}, ValueError, "`target` with one entry per class, 3, but got 2"),
        ({"kind": "bernoulli"}, ValueError, "`seed` for the Bernoulli stream, .* but got None"),
        ({"kind": "bernoulli", "seed": -1}, ValueError, "`seed` to be non-negative, but got -1"),
    ],
)
def test_a_stream_is_refused_in_words(changes, error, message):
    arguments = {"kind": "square", "source": SOURCE, "target": TARGET, "num_steps": 9} | changes
    with pytest.raises(error, match=message):
        stream_priors(**arguments)


# Batches


@pytest.mark.parametrize("replacement", [True, False])
def test_the_batches_of_a_stream_have_the_mixes_of_its_steps(replacement):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [20_000, 20_000, 20_000]))
    priors = [Prior(SOURCE), Prior(TARGET), Prior.uniform(3)]
    rows = draw_stream(labels, priors, 10_000, seed=0, replacement=replacement)
    assert rows.shape == (3, 10_000)
    assert rows.dtype == np.int64
    for batch, prior in zip(rows, priors, strict=True):
        counts = np.bincount(labels[batch], minlength=3)
        probs = prior.probs
        assert np.all(np.abs(counts / 10_000 - probs) <= 4 * np.sqrt(probs * (1 - probs) / 10_000))


@pytest.mark.parametrize("replacement", [True, False])
def test_the_samples_of_a_class_are_drawn_alike_and_in_random_order(replacement):
    labels, draws = np.repeat([0, 1], [5, 5]), 600
    batches = [
        draw_stream(labels, [[0.5, 0.5]], 4, seed, replacement=replacement)[0] for seed in range(draws)
    ]
    taken = np.stack([np.bincount(batch, minlength=10) for batch in batches])
    assert np.all(np.abs(taken.mean(0) - 0.4) < 4 * taken.std(0) / math.sqrt(draws))
    order = np.array([labels[batch[0]] - labels[batch[-1]] for batch in batches])
    assert abs(order.mean()) < 4 * order.std() / math.sqrt(draws)


@pytest.mark.parametrize("replacement", [True, False])
def test_the_steps_of_one_prior_are_drawn_independently(replacement):
    labels = np.repeat([0, 1], 2000)
    rows = draw_stream(labels, [[0.5, 0.5]] * 100, 20, seed=0, replacement=replacement)
    heads = (labels[rows] == 0).sum(axis=1)
    assert heads.var(ddof=1) == pytest.approx(20 * 0.25, rel=0.5)
    assert abs(np.corrcoef(heads[:-1], heads[1:])[0, 1]) < 0.3


def test_without_replacement_no_sample_occurs_twice():
    labels = some_labels()
    rows = draw_stream(labels, [[0.5, 0.3, 0.2]] * 6, 10, seed=2, replacement=False).flatten().tolist()
    assert len(set(rows)) == 60


def test_with_replacement_a_sample_occurs_again():
    rows = draw_stream([0, 1], [[0.5, 0.5]] * 3, 50, seed=0)
    assert set(rows.flatten().tolist()) == {0, 1}


@pytest.mark.parametrize("replacement", [True, False])
def test_the_first_steps_are_the_same_however_many_follow(replacement):
    labels, priors = some_labels(), stream_priors("sinusoidal", SOURCE, TARGET, 6, period=6)
    whole = draw_stream(labels, priors, 5, seed=4, replacement=replacement)
    start = draw_stream(labels, priors[:2], 5, seed=4, replacement=replacement)
    np.testing.assert_array_equal(whole[:2], start)
    assert not np.array_equal(whole, draw_stream(labels, priors, 5, seed=5, replacement=replacement))


def test_a_draw_does_not_touch_the_global_generators():
    np.random.seed(0)
    first = draw_stream(some_labels(), [SOURCE] * 2, 5, seed=0)
    assert np.random.random() == pytest.approx(0.5488135039273248)
    assert np.array_equal(first, draw_stream(torch.from_numpy(some_labels()), [SOURCE] * 2, 5, seed=0))


def test_a_class_of_zero_mass_is_never_drawn_and_may_be_missing():
    rows = draw_stream([0, 0, 2], [[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]], 40, seed=0)
    assert set(rows[0].tolist()) == {0, 1, 2}
    assert set(rows[1].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"priors": []}, ValueError, "`priors` with the prior of at least one step, but got none"),
        ({"priors": [[1, 1], [1, 1, 1]]}, ValueError, "`priors` with one entry per class, 2, but got 3"),
        ({"labels": [0, 0]}, ValueError, "`labels` to hold every class .* there is no sample of class 1"),
        ({"labels": [0, 1, 2]}, ValueError, "`labels` between 0 and 1, but got 2"),
        ({"labels": [0.0, 1.0]}, TypeError, "`labels` to be class indices"),
        ({"batch_size": 0}, ValueError, "`batch_size` to be at least 1, but got 0"),
        ({"seed": -1}, ValueError, "`seed` to be non-negative, but got -1"),
        (
            {"replacement": False, "priors": [[0.0, 1.0]] * 3},
            ValueError,
            "enough samples to draw without replacement, but the stream takes 6 of class 1, which has 4",
        ),
    ],
)
def test_a_draw_is_refused_in_words(changes, error, message):
    arguments = {"labels": [0, 1] * 4, "priors": [[0.5, 0.5]], "batch_size": 2, "seed": 0} | changes
    with pytest.raises(error, match=message):
        draw_stream(**arguments)
