"""Followers of a class mix against plain loops written from their formulas, and what they guarantee."""

import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinds import column_names, every_kind_of, exact
from priorshift import Predictions, Prior
from priorshift.adjustment import adjust, fit_scaling
from priorshift.estimation import bbse
from priorshift.shift import stream_priors
from priorshift.streams import FollowTheHistory, OnlineGradient

SOURCE = np.array([0.5, 0.3, 0.15, 0.05])


def scored(rng, mix, size, *, distance=2.0, source=SOURCE):
    """Exact logits of Gaussian classes that carry `source`, and the labels."""
    labels = rng.choice(len(mix), size, p=mix)
    points = rng.normal(size=(size, len(mix)))
    points[np.arange(size), labels] += distance
    return distance * points + np.log(source), labels


def in_parts(stream, sizes):
    """Rows in batches of one size, or of given ones."""
    if isinstance(sizes, int):
        return np.split(stream, range(sizes, len(stream), sizes))
    return np.split(stream, np.cumsum(sizes)[:-1])


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def after(follower, batches):
    for batch in batches:
        follower.update(batch)
    return follower


def reloaded(state):
    """A state that went through a file."""
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    return np.load(file)


# References


def inverse_confusion_average(confusion, logits, *, hard):
    """The mean over samples of K^-1 h(x), one at a time."""
    inverse = np.linalg.inv(confusion)
    total = np.zeros(len(confusion))
    for row in logits:
        h = np.exp(row - row.max())
        h /= h.sum()
        if hard:
            h = np.eye(len(row))[row.argmax()]
        total += inverse @ h
    return total / len(logits)


def gradient_steps(blocks, carried, half_lives, *, pull=1e-3, patience=1000):
    """The learners and weights of `OnlineGradient`, and the log-loss of each learner and of the whole."""
    num_learners, num_classes = len(half_lives) + 1, len(carried)
    learners = [np.array(carried, dtype=float) for _ in range(num_learners)]
    weights = np.full(num_learners, 1 / num_learners)
    losses, own, seen = np.zeros(num_learners), 0.0, 0
    for block in blocks:
        likelihoods = np.ones(num_learners)
        gradients = np.zeros((num_learners, num_classes))
        for row in block:
            ratios = np.exp(row) / carried
            for k, t in enumerate(learners):
                density = math.fsum(t * ratios)
                likelihoods[k] *= density
                losses[k] -= math.log(density)
                gradients[k] += ratios / density / len(block)
        own -= math.log(weights @ likelihoods)
        weights = weights * likelihoods / (weights @ likelihoods)
        seen += len(block)
        share = len(block) / (seen + patience)
        weights = (1 - share) * weights + share / num_learners
        for k, half_life in enumerate(half_lives):
            rate = 1 - 0.5 ** (len(block) / half_life)
            posterior = learners[k] * gradients[k]
            learners[k] = (1 - rate) * learners[k] + rate * ((1 - pull) * posterior + pull / num_classes)
    return learners, weights, losses, own


# Follow the history


@pytest.mark.parametrize("hard", [False, True])
def test_the_history_is_the_mean_of_one_estimate_per_sample(hard):
    rng = np.random.default_rng(0)
    logits, labels = scored(rng, np.full(4, 0.25), 400)
    stream, _ = scored(rng, [0.1, 0.2, 0.3, 0.4], 300)
    follower = FollowTheHistory(SOURCE, validation=(logits, labels), hard=hard)
    predictions = softmax(logits)
    if hard:
        predictions = np.eye(4)[predictions.argmax(axis=1)]
    confusion = np.stack([predictions[labels == y].mean(axis=0) for y in range(4)], axis=1)
    expected = inverse_confusion_average(confusion, stream, hard=hard)
    assert expected.min() > 0
    after(follower, in_parts(stream, [100, 150, 50]))
    np.testing.assert_allclose(follower.prior.probs, expected, atol=1e-10)
    given_confusion = FollowTheHistory(SOURCE, confusion=confusion, hard=hard)
    assert after(given_confusion, [stream]).prior.probs == pytest.approx(expected, abs=1e-10)


def test_the_history_equals_bbse_of_all_of_it_outside_the_simplex_too():
    rng = np.random.default_rng(1)
    logits, labels = scored(rng, np.full(4, 0.25), 200, distance=1.0)
    stream, _ = scored(rng, [1.0, 0.0, 0.0, 0.0], 60, distance=1.0)
    follower = after(FollowTheHistory(SOURCE, validation=(logits, labels)), in_parts(stream, 7))
    found = bbse(logits, labels, stream).prior
    assert (found.probs == 0).any() or found.probs.min() < 1e-6
    np.testing.assert_allclose(follower.prior.probs, found.probs, atol=1e-9)


def test_the_target_of_a_history_has_one_sample_spread_over_all_classes():
    follower = FollowTheHistory([0.5, 0.5], confusion=np.eye(2), hard=True)
    assert follower.target == follower.prior == Prior([0.5, 0.5])
    follower.update(np.array([[2.0, 0.0]] * 9))
    assert follower.prior.probs.tolist() == pytest.approx([1.0, 0.0], abs=1e-7)
    assert follower.target.probs.tolist() == pytest.approx([0.95, 0.05], abs=1e-7)


def test_predictions_may_be_the_validation():
    rng = np.random.default_rng(2)
    logits, labels = scored(rng, np.full(4, 0.25), 100)
    held_out = Predictions(logits=logits, labels=labels, carried=Prior(SOURCE))
    first = FollowTheHistory(SOURCE, validation=held_out)
    second = FollowTheHistory(SOURCE, validation=(logits, labels))
    stream, _ = scored(rng, SOURCE, 30)
    assert after(first, [stream]).prior == after(second, [stream]).prior


# Online gradients


def test_gradient_steps_are_those_of_the_formula():
    rng = np.random.default_rng(3)
    half_lives = (5.0, 60.0, 1000.0)
    stream, _ = scored(rng, [0.05, 0.15, 0.3, 0.5], 120)
    blocks = in_parts(stream, [1, 40, 1, 30, 48])
    learners, weights, _, _ = gradient_steps(blocks, SOURCE, half_lives)
    follower = after(OnlineGradient(SOURCE, half_lives=half_lives), blocks)
    np.testing.assert_allclose(list(follower.weights.values()), weights, atol=1e-12)
    np.testing.assert_allclose(follower.state_dict()["probs"], learners, atol=1e-12)
    np.testing.assert_allclose(follower.prior.probs, weights @ learners, atol=1e-12)
    assert follower.num_samples == 120


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    switch=st.integers(1, 60),
    scale=st.sampled_from([0.5, 1.0, 4.0]),
    distance=st.sampled_from([0.3, 2.0, 5.0]),
)
def test_one_by_one_the_loss_is_within_logarithms_of_the_best_half_life_and_of_not_adapting(
    seed, switch, scale, distance
):
    rng = np.random.default_rng(seed)
    half_lives = (4.0, 20.0, 200.0)
    first, _ = scored(rng, [0.0, 0.0, 0.1, 0.9], switch, distance=distance)
    second, _ = scored(rng, [0.9, 0.1, 0.0, 0.0], 60, distance=distance)
    stream = scale * np.concatenate([first, second])
    follower, loss = OnlineGradient(SOURCE, half_lives=half_lives), 0.0
    for row in stream:
        loss -= math.log(follower.prior.probs @ (np.exp(row) / SOURCE))
        follower.update(row[None])
    _, _, losses, own = gradient_steps([row[None] for row in stream], SOURCE, half_lives)
    assert loss == pytest.approx(own, rel=1e-9, abs=1e-9)
    bound = math.log(len(losses)) + math.log(1 + len(stream) / 1000)
    assert loss <= losses.min() + bound
    unadapted = -sum(math.log(math.fsum(np.exp(row))) for row in stream)
    assert loss <= unadapted + bound


def test_the_regret_of_one_learner_to_the_best_constant_mix_grows_as_the_root_of_time():
    rng = np.random.default_rng(4)
    mix = np.array([0.05, 0.15, 0.3, 0.5])
    steps = 1600
    eta = math.sqrt(math.log(4) / (4 * steps))
    half_life = -1 / math.log2(1 - eta)
    stream, _ = scored(rng, mix, steps)
    _, _, losses, _ = gradient_steps([row[None] for row in stream], SOURCE, (half_life,))
    best = -sum(math.log(mix @ (np.exp(row) / SOURCE)) for row in stream)
    assert losses[0] - best <= 2 * math.sqrt(4 * math.log(4) * steps)
    assert losses[0] - best < 0.1 * (losses[1] - best)


def test_batches_of_more_than_256_are_taken_in_parts():
    rng = np.random.default_rng(5)
    stream, _ = scored(rng, [0.1, 0.1, 0.4, 0.4], 600)
    whole = after(OnlineGradient(SOURCE), [stream])
    parts = after(OnlineGradient(SOURCE), in_parts(stream, [256, 256, 88]))
    assert whole.prior == parts.prior


def test_before_any_sample_nothing_is_adapted():
    logits = np.array([[1.0, 2.0, -1.0, 0.0]])
    for follower in (OnlineGradient(SOURCE), FollowTheHistory(SOURCE, confusion=np.eye(4))):
        assert follower.target.matches(Prior(SOURCE)) and follower.num_samples == 0
        np.testing.assert_allclose(follower.adapt(logits), logits, rtol=1e-5, atol=1e-8)


def test_a_class_that_was_away_for_long_comes_back():
    rng = np.random.default_rng(6)
    away, _ = scored(rng, [0.6, 0.4, 0.0, 0.0], 20_000)
    back, _ = scored(rng, [0.0, 0.0, 0.0, 1.0], 400)
    follower = after(OnlineGradient(SOURCE), in_parts(away, 200))
    assert follower.prior.probs[3] < 0.01
    after(follower, in_parts(back, 50))
    assert follower.prior.probs[3] > 0.9


@pytest.mark.parametrize("kind", ["constant", "monotone", "square", "sinusoidal"])
def test_following_beats_staying_and_comes_near_the_truth(kind):
    rng = np.random.default_rng(7)
    priors = stream_priors(kind, SOURCE, SOURCE[::-1].copy(), num_steps=200, period=100)
    follower, errors = OnlineGradient(SOURCE), []
    for prior in priors:
        gap = np.abs(np.stack([follower.prior.probs, SOURCE]) - prior.probs).sum(axis=1)
        errors.append(gap)
        follower.update(scored(rng, prior.probs, 50)[0])
    ours, staying = np.mean(errors, axis=0)
    assert ours < 0.35 * staying


def test_a_steady_stream_ends_with_the_slow_and_a_moving_one_with_the_quick():
    rng = np.random.default_rng(8)
    mix = SOURCE[::-1].copy()
    steady = after(OnlineGradient(SOURCE), (scored(rng, mix, 100)[0] for _ in range(300)))
    quick = sum(weight for half_life, weight in steady.weights.items() if half_life <= 256)
    assert quick < 0.2
    moving = OnlineGradient(SOURCE)
    for step in range(300):
        moving.update(scored(rng, (SOURCE, mix)[step // 10 % 2], 100)[0])
    slow = sum(weight for half_life, weight in moving.weights.items() if half_life >= 4096)
    assert slow < 0.2


# All followers


def followers():
    rng = np.random.default_rng(9)
    return (
        lambda **more: OnlineGradient(SOURCE, **more),
        lambda **more: FollowTheHistory(
            SOURCE, validation=scored(np.random.default_rng(9), np.full(4, 0.25), 80), **more
        ),
    ), scored(rng, [0.1, 0.1, 0.2, 0.6], 300)[0]


@pytest.mark.parametrize("which", [0, 1])
def test_a_reloaded_state_goes_on_bit_by_bit(which):
    makers, stream = followers()
    whole = after(makers[which](), in_parts(stream, 50))
    first = after(makers[which](), in_parts(stream[:150], 50))
    second = makers[which]()
    second.load_state_dict(reloaded(first.state_dict()))
    after(second, in_parts(stream[150:], 50))
    assert np.array_equal(second.prior.probs, whole.prior.probs)
    assert second.num_samples == whole.num_samples == 300
    untouched = first.prior
    after(second, [stream])
    assert first.prior == untouched


@pytest.mark.parametrize("which", [0, 1])
def test_tensors_do_as_arrays_and_come_back_in_kind(which):
    torch = pytest.importorskip("torch")
    makers, stream = followers()
    by_array, by_tensor = after(makers[which](), [stream]), after(makers[which](), [torch.from_numpy(stream)])
    assert by_tensor.prior == by_array.prior
    moved = by_tensor.adapt(torch.from_numpy(stream))
    assert isinstance(moved, torch.Tensor)
    expected = adjust(stream, carried=SOURCE, target=by_tensor.target)
    np.testing.assert_array_equal(moved.numpy(), expected)
    np.testing.assert_array_equal(by_array.adapt(stream), expected)
    singles = after(makers[which](), [stream.astype(np.float32)])
    np.testing.assert_allclose(singles.prior.probs, by_tensor.prior.probs, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
@every_kind_of("scores")
def test_every_kind_is_followed_and_adapted(kind, which):
    makers, stream = followers()
    logits = exact(stream[:30])
    given = kind(logits)
    follower = after(makers[which](), [given])
    expected = after(makers[which](), [logits])
    np.testing.assert_allclose(follower.prior.probs, expected.prior.probs, atol=1e-5)
    assert follower.prior.names == (tuple(column_names(4)) if kind.table else None)
    moved = follower.adapt(given)
    kind.require_same(moved, given)
    np.testing.assert_allclose(kind.numbers(moved), expected.adapt(logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", [0, 1])
def test_columns_are_matched_by_name_from_the_first_table_on(which):
    pandas = pytest.importorskip("pandas")
    makers, stream = followers()
    names = ["cat", "dog", "owl", "elk"]
    table = pandas.DataFrame(stream, columns=names)
    straight = after(makers[which](), [table[:100], table[100:]])
    turned = after(makers[which](), [table[:100], table[100:][names[::-1]]])
    assert straight.prior == turned.prior and straight.prior.names == tuple(names)
    moved = turned.adapt(table[names[::-1]])
    np.testing.assert_allclose(moved[names].to_numpy(), straight.adapt(stream), atol=1e-12)
    with pytest.raises(ValueError, match="unknown are 'emu'"):
        straight.update(table.rename(columns={"elk": "emu"}))


def test_a_carried_prior_with_names_orders_the_columns_of_tables():
    pandas = pytest.importorskip("pandas")
    _, stream = followers()
    names = ["cat", "dog", "owl", "elk"]
    by_name = OnlineGradient(dict(zip(names[::-1], SOURCE[::-1], strict=True)))
    after(by_name, [pandas.DataFrame(stream, columns=names)])
    expected = after(OnlineGradient(SOURCE), [stream]).prior
    np.testing.assert_allclose([by_name.prior[name] for name in names], expected.probs, atol=1e-12)


def test_probabilities_are_refused():
    with pytest.raises(ValueError, match="these are probabilities"):
        OnlineGradient([0.5, 0.5]).update(np.array([[0.3, 0.7], [0.9, 0.1]]))


@pytest.mark.parametrize("which", [0, 1])
def test_states_of_0_1_are_read(which, tmp_path):
    torch = pytest.importorskip("torch")
    makers, stream = followers()
    first = after(makers[which](), in_parts(stream, 50))
    state = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in first.state_dict().items()
    }
    torch.save(state, tmp_path / "follower.pt")
    second = makers[which]()
    second.load_state_dict(torch.load(tmp_path / "follower.pt", weights_only=True))
    assert second.prior == first.prior


@pytest.mark.parametrize("which", [0, 1])
def test_the_calibration_is_applied_first(which):
    rng = np.random.default_rng(10)
    makers, stream = followers()
    logits, labels = scored(rng, SOURCE, 2000)
    over = 3 * (logits - np.log(SOURCE)) + np.log(SOURCE)
    scaling = fit_scaling(over, labels, carried=SOURCE)
    harsh = 3 * (stream - np.log(SOURCE)) + np.log(SOURCE)
    calibrated = after(makers[which](scaling=scaling), in_parts(harsh, 50))
    expected = adjust(scaling(harsh), carried=scaling.carried, target=calibrated.target)
    np.testing.assert_allclose(calibrated.adapt(harsh), expected, rtol=1e-5, atol=1e-8)
    if which == 0:
        exact = after(makers[0](), in_parts(stream, 50)).prior.probs
        raw = after(makers[0](), in_parts(harsh, 50)).prior.probs
        assert np.abs(calibrated.prior.probs - exact).max() < 0.5 * np.abs(raw - exact).max()


def test_wrong_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="`carried` to be strictly positive, but it is zero for class 1"):
        OnlineGradient([1.0, 0.0])
    for half_lives in ((), (0.0,), (math.inf,), (math.nan,)):
        with pytest.raises(ValueError, match="`half_lives` to be positive and finite"):
            OnlineGradient(SOURCE, half_lives=half_lives)
    with pytest.raises(ValueError, match="either `validation` or `confusion`"):
        FollowTheHistory(SOURCE)
    with pytest.raises(ValueError, match="either `validation` or `confusion`"):
        FollowTheHistory([0.5, 0.5], validation=(np.zeros((2, 2)), [0, 1]), confusion=np.eye(2))
    with pytest.raises(ValueError, match=r"`confusion` of shape \(4, 4\), but got \(2, 2\)"):
        FollowTheHistory(SOURCE, confusion=np.eye(2))
    with pytest.raises(ValueError, match="columns that sum to 1"):
        FollowTheHistory([0.5, 0.5], confusion=np.array([[0.9, 0.1], [0.2, 0.8]]))
    with pytest.raises(ValueError, match="none of class 1"):
        FollowTheHistory([0.5, 0.5], validation=(np.zeros((2, 2)), [0, 0]))
    other = fit_scaling(np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) % 4, carried=[0.25] * 4)
    with pytest.raises(ValueError, match="fitted for logits that carry the prior"):
        OnlineGradient(SOURCE, scaling=other)


@pytest.mark.parametrize("which", [0, 1])
def test_wrong_logits_and_states_are_refused_and_change_nothing(which):
    makers, stream = followers()
    follower = after(makers[which](), [stream])
    before = follower.prior
    with pytest.raises(ValueError, match="`logits` with 4 classes, but got 3"):
        follower.update(np.zeros((2, 3)))
    with pytest.raises(TypeError, match="floating-point"):
        follower.update(np.zeros((2, 4), dtype=np.int64))
    with pytest.raises(ValueError, match="got nan for class 0 of sample 1"):
        follower.update(np.array([[0.0] * 4, [math.nan] * 4]))
    assert follower.prior == before and follower.num_samples == 300
    state = {name: np.zeros(3) for name in follower.state_dict()}
    with pytest.raises(ValueError, match="of the state with shape"):
        follower.load_state_dict(state)


# The documentation


def test_the_python_of_the_streams_page_runs_in_order(tmp_path, capsys):
    rng = np.random.default_rng(11)
    page = (Path(__file__).parents[1] / "docs" / "streams.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    held_out, labels = scored(rng, SOURCE, 1000)
    namespace = {
        "train_prior": Prior(SOURCE),
        "scaling": fit_scaling(held_out, labels, carried=SOURCE),
        "batches": [scored(rng, mix, 100)[0] for mix in [SOURCE] * 10 + [SOURCE[::-1].copy()] * 10],
        "folder": tmp_path,
    }
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/streams.md, block {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "another prior since" in printed and "Another prior since" in printed
    assert namespace["again"].prior == namespace["follower"].prior
    assert namespace["stream"].prior.probs[3] > 0.3
