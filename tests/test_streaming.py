"""The streaming estimate: exact while it fits, close when it does not, and the same however it was merged."""

import json
import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from priorshift import Predictions, Prior, adjust
from priorshift.adjustment import fit_scaling
from priorshift.estimation import Likelihood, estimate_prior
from priorshift.streams import StreamingPrior
from priorshift.streams._summary import exponentials, reweighted

SOURCE = Prior([0.5, 0.3, 0.2])


def population(size, target, seed=0, *, sharpness=2.0):
    """Exact logits of Gaussian classes under `SOURCE`, of samples drawn from `target`."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(target), size, p=target)
    seen = rng.normal(size=(size, len(target)))
    seen[np.arange(size), labels] += sharpness
    return sharpness * seen + SOURCE.log_probs, labels


def in_parts(rows, sizes):
    """Rows in batches of one size, or of given ones."""
    if isinstance(sizes, int):
        return np.split(rows, range(sizes, len(rows), sizes))
    return np.split(rows, np.cumsum(sizes)[:-1])


def likeliest(log_ratios, weights=None):
    return Likelihood(log_ratios, weights).maximize().prior.probs


def fed(logits, batch=100, **settings):
    stream = StreamingPrior(SOURCE, **settings)
    for part in in_parts(logits, batch):
        stream.update(part)
    return stream


LOGITS, _ = population(3000, [0.1, 0.3, 0.6])


# Exact while it fits


@pytest.mark.parametrize("method", ["empirical-bayes", "mlls", "mapls"])
def test_without_forgetting_it_is_the_estimate_of_all_samples_at_once(method):
    whole = estimate_prior(LOGITS, carried=SOURCE, method=method, intervals="none")
    found = fed(LOGITS, method=method).estimate()
    assert np.allclose(found.prior.probs, whole.prior.probs, atol=1e-5)
    assert found.num_samples == 3000 and found.method == method
    assert found.identifiability.effective_sample_size == pytest.approx(
        whole.identifiability.effective_sample_size, rel=1e-3
    )
    assert found.log_likelihood == pytest.approx(whole.log_likelihood, abs=1e-6)
    assert found.warnings == whole.warnings


def test_batches_may_come_in_any_size_and_kind():
    by_ones = fed(LOGITS[:50], batch=1)
    whole = StreamingPrior(SOURCE)
    whole.update(LOGITS[:50].tolist())
    assert np.array_equal(by_ones.prior.probs, whole.prior.probs)


def test_calibration_comes_first():
    held_out, labels = population(500, [0.4, 0.4, 0.2], seed=1)
    overconfident = 3 * held_out
    scaling = fit_scaling(overconfident, labels, carried=SOURCE)
    stream = StreamingPrior(SOURCE, scaling=scaling)
    stream.update(3 * LOGITS)
    whole = estimate_prior(3 * LOGITS, carried=SOURCE, calibration=scaling, intervals="none")
    assert np.allclose(stream.prior.probs, whole.prior.probs, atol=1e-5)
    assert np.allclose(stream.adapt(3 * LOGITS), whole.adapt(3 * LOGITS), atol=1e-3)
    assert stream.carried == scaling.carried


def test_a_window_is_the_estimate_of_the_last_samples_alone():
    stream = fed(LOGITS, window=700, method="mlls")
    last = likeliest((LOGITS[-700:] - SOURCE.log_probs).astype(np.float32))
    assert np.allclose(stream.prior.probs, last, atol=1e-6)
    assert stream.estimate().num_samples == 700
    longer = fed(LOGITS, window=10_000, method="mlls")
    assert np.array_equal(longer.prior.probs, fed(LOGITS, method="mlls").prior.probs)


def test_a_half_life_weighs_samples_by_their_age():
    half_life = 200
    stream = fed(LOGITS, half_life=half_life, method="mlls")
    weights = 0.5 ** (np.arange(2999, -1, -1) / half_life)
    reference = likeliest((LOGITS - SOURCE.log_probs).astype(np.float32), weights)
    assert np.allclose(stream.prior.probs, reference, atol=2e-4)
    worth = weights.sum() ** 2 / np.square(weights).sum()
    assert stream.estimate().num_samples == round(worth)
    endless = fed(LOGITS, half_life=1e9, method="mlls").prior.probs
    assert np.allclose(endless, fed(LOGITS, method="mlls").prior.probs, atol=1e-5)


def test_a_common_clock_replaces_the_position():
    by_position = StreamingPrior(SOURCE, half_life=500)
    by_clock = StreamingPrior(SOURCE, half_life=1)
    for step, row in enumerate(in_parts(LOGITS[:300], 1)):
        by_position.update(row)
        by_clock.update(row, time=1000.0 + (step + 1) / 500)
    assert np.allclose(by_position.prior.probs, by_clock.prior.probs, atol=1e-9)


def test_what_came_long_ago_counts_for_nothing():
    stream = StreamingPrior(SOURCE, half_life=50, method="mlls")
    stream.update(LOGITS, time=0.0)
    recent, _ = population(400, [0.8, 0.1, 0.1], seed=3)
    stream.update(recent, time=10_000.0)
    alone = fed(recent, batch=400, method="mlls")
    assert np.allclose(stream.prior.probs, alone.prior.probs, atol=1e-6)


# Bounded


def test_memory_does_not_grow_with_the_stream():
    stream = fed(LOGITS, capacity=64)
    held = len(stream._summary.rows)
    for part in in_parts(LOGITS, 100):
        stream.update(part)
        assert len(stream._summary.rows) <= 2 * 64 + 100
    assert stream.num_samples == 6000 and held <= 228
    window = StreamingPrior(SOURCE, window=50)
    for _ in range(3):
        for part in in_parts(LOGITS, 100):
            window.update(part)
            assert len(window._summary.rows) <= 1250


def test_a_bounded_sample_is_unbiased_and_the_mean_posterior_of_all_makes_it_close():
    whole = likeliest(LOGITS - SOURCE.log_probs)
    estimates, plain = [], []
    for name in range(40):
        stream = fed(LOGITS, capacity=300, method="mlls", stream=str(name))
        estimates.append(stream.prior.probs)
        plain.append(likeliest(stream._summary.rows))
    error = np.stack(estimates) - whole
    assert (np.abs(error.mean(axis=0)) < 3.5 * error.std(axis=0, ddof=1) / math.sqrt(40) + 1e-4).all()
    assert np.square(error).mean() < 0.25 * np.square(np.stack(plain) - whole).mean()


def test_a_bounded_sample_with_forgetting_is_unbiased_too():
    half_life = 400
    weights = 0.5 ** (np.arange(2999, -1, -1) / half_life)
    whole = likeliest(LOGITS - SOURCE.log_probs, weights)
    estimates = [
        fed(LOGITS, capacity=150, half_life=half_life, method="mlls", stream=str(name)).prior.probs
        for name in range(40)
    ]
    error = np.stack(estimates) - whole
    assert (np.abs(error.mean(axis=0)) < 3.5 * error.std(axis=0, ddof=1) / math.sqrt(40) + 1e-3).all()


def test_reweighting_meets_the_mean_and_moves_no_further_than_it_must():
    rng = np.random.default_rng(0)
    posterior = rng.dirichlet(np.full(4, 0.7), 200)
    weights = rng.random(200)
    mean = posterior[:120].mean(axis=0)
    found = reweighted(weights, posterior.copy(), mean)
    assert found.sum() == pytest.approx(1) and (found > 0).all()
    assert np.allclose(found @ posterior, mean, atol=1e-11)
    # The minimiser of the divergence is an exponential tilt: log w' − log w is linear in the posterior.
    tilt = np.log(found / weights)
    fit = np.linalg.lstsq(posterior, tilt)[0]
    assert np.allclose(posterior @ fit, tilt, atol=1e-8)


def test_where_no_weights_meet_the_mean_the_given_ones_stay():
    posterior = np.array([[0.9, 0.1], [0.8, 0.2]])
    found = reweighted(np.ones(2), posterior, np.array([0.1, 0.9]))
    assert np.allclose(found, [0.5, 0.5])


def test_the_numbers_that_decide_who_is_kept_are_exponential_and_apart():
    draws = exponentials("a", np.arange(20_000, dtype=np.uint64))
    assert draws.mean() == pytest.approx(1, abs=0.03) and (draws > 1).mean() == pytest.approx(
        math.exp(-1), abs=0.015
    )
    other = exponentials("b", np.arange(20_000, dtype=np.uint64))
    assert abs(np.corrcoef(draws, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.03
    assert len(np.unique(draws)) == 20_000


# Merged

SETTINGS = [{}, {"capacity": 200}, {"half_life": 300}, {"half_life": 300, "capacity": 150}, {"window": 250}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_merging_is_associative_and_does_not_depend_on_the_order(settings):
    lengths = (900, 500, 1000, 50)
    parts = in_parts(LOGITS[: sum(lengths)], lengths)
    states = [fed(part, stream=f"machine-{n}", **settings) for n, part in enumerate(parts)]
    a, b, c, d = states
    reference = a.merge(b, c, d)
    ways = [state.merge(*rest) for state, *rest in permutations(states)]
    ways += [a.merge(b).merge(c.merge(d)), a.merge(b.merge(c.merge(d))), d.merge(a.merge(c)).merge(b)]
    for merged in ways:
        assert np.abs(merged.prior.probs - reference.prior.probs).max() < 1e-9
        assert np.array_equal(merged._summary.marks, reference._summary.marks)
        assert merged.num_samples == sum(lengths) and merged.streams == reference.streams
    assert a.num_samples == 900 and a.streams == ("machine-0",)


@pytest.mark.parametrize("capacity", [None, 200])
def test_merging_shards_is_the_one_pass_estimate(capacity):
    """One pass over three files is three streams in turn; so are two machines with two files and one."""
    files = dict(zip("abc", in_parts(LOGITS, 1000), strict=True))
    states = {name: fed(rows, capacity=capacity, stream=name) for name, rows in files.items()}
    one_pass = states["a"].merge(states["b"]).merge(states["c"])
    machines = states["c"].merge(states["a"].merge(states["b"]))
    assert np.abs(one_pass.prior.probs - machines.prior.probs).max() < 1e-9
    whole = estimate_prior(LOGITS, carried=SOURCE, intervals="none").prior.probs
    assert np.abs(one_pass.prior.probs - whole).max() < (1e-5 if capacity is None else 0.03)


def test_an_empty_stream_merges_without_a_trace():
    alone = fed(LOGITS, stream="a", capacity=100)
    merged = StreamingPrior(SOURCE, stream="b", capacity=100).merge(alone)
    assert np.array_equal(merged.prior.probs, alone.prior.probs)


def test_what_cannot_be_merged_is_refused():
    one = fed(LOGITS[:10], stream="a")
    with pytest.raises(ValueError, match="different streams, but two are of 'a'"):
        one.merge(fed(LOGITS[:10], stream="a"))
    with pytest.raises(ValueError, match="alike in `half_life`, but got None and 5"):
        one.merge(fed(LOGITS[:10], stream="b", half_life=5))
    with pytest.raises(ValueError, match="alike in `carried`"):
        one.merge(StreamingPrior([0.2, 0.2, 0.6], stream="b"))
    both = one.merge(fed(LOGITS[:10], stream="b"))
    with pytest.raises(ValueError, match=r"merged from \('a', 'b'\)"):
        both.update(LOGITS[:10])
    with pytest.raises(ValueError, match="two are of 'a'"):
        both.merge(one)


# Kept over a restart


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_saved_state_goes_on_as_if_nothing_had_happened(settings, tmp_path):
    held_out, labels = population(300, [0.4, 0.4, 0.2], seed=1)
    settings = {**settings, "stream": "ü", "scaling": fit_scaling(held_out, labels, carried=SOURCE)}
    stream = fed(LOGITS[:1500], **settings)
    stream.save(tmp_path / "state")
    loaded = StreamingPrior.load(tmp_path / "state")
    for part in in_parts(LOGITS[1500:], 100):
        for state in (stream, loaded):
            state.update(part)
        assert np.array_equal(stream.prior.probs, loaded.prior.probs)
    assert np.array_equal(stream.adapt(LOGITS[:5]), loaded.adapt(LOGITS[:5]))
    assert repr(loaded) == repr(stream)
    stream.save(tmp_path / "one")
    loaded.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    other = fed(LOGITS[:100], **{**settings, "stream": "v"})
    assert loaded.merge(other).num_samples == 3100


def test_a_file_that_is_no_state_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        StreamingPrior.load(tmp_path / "gone")
    fed(LOGITS[:20]).save(tmp_path / "state")
    data = (tmp_path / "state").read_bytes()
    (tmp_path / "short").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="short is truncated or no stream file"):
        StreamingPrior.load(tmp_path / "short")
    (tmp_path / "odd").write_bytes(data.replace(b"empirical-bayes", b"empirical-bayer"))
    with pytest.raises(ValueError, match="odd contradicts itself"):
        StreamingPrior.load(tmp_path / "odd")
    Predictions(logits=LOGITS[:4], carried=SOURCE).save(tmp_path / "p")
    with pytest.raises(ValueError, match="p is a predictions file of priorshift, not a stream file"):
        StreamingPrior.load(tmp_path / "p")


def written_by_0_1(path, **changes):
    """A state of four samples as 0.1 wrote it: no kind, no digest, probabilities, None for absent parts."""
    header = {
        "schema_version": 1,
        "streams": {"a": 4},
        "own": "a",
        "half_life": None,
        "window": None,
        "capacity": 100,
        "run_length": 1000.0,
        "method": "mlls",
        "numbers": [number.hex() for number in (4.0, 4.0, 4.0, math.inf)],
        "changes": [],
        "watched": 2,
        "renewal": 256,
        "scaling": {"method": "ts", "ridge": None, "num_samples": 9.0, "nll_before": 1.0, "nll_after": 0.9},
        "detector": {
            "num_samples": 2,
            "alarms": 0,
            "alarmed_at": None,
            "changed_at": None,
            "prior_since": None,
        },
        "tolerance": 0.01,
    }
    scaling = fit_scaling(*population(200, [0.4, 0.4, 0.2], seed=1), method="ts", carried=SOURCE)
    places = np.arange(1.0, 5.0)
    keys = np.log(exponentials("a", np.arange(4, dtype=np.uint64)))
    rows = scaling(LOGITS[:4]) - scaling.carried.log_probs
    rows = (rows - rows.max(axis=1, keepdims=True)).astype(np.float32)
    order = keys.argsort()
    posterior = np.exp(scaling(LOGITS[:4]))
    arrays = {
        "rows": rows[order],
        "marks": np.stack([keys, places, places], axis=1)[order],
        "source": SOURCE.probs,
        "posterior": (posterior / posterior.sum(axis=1, keepdims=True)).sum(axis=0),
        "scaling.scale": scaling.scale,
        "scaling.carried": scaling.carried.probs,
        "scaling.moved_from": SOURCE.probs,
        "detector.reference": np.array([0.2, 0.3, 0.5]),
        "detector.probs": np.tile([0.2, 0.3, 0.5], (5, 1)),
        "detector.log_evidence": np.log([1.0, 2.0, 1.5, 1.0, 1.0]),
        "detector.recent": np.ones((2, 3)),
    }
    text = json.dumps({**header, **changes})
    save_file(arrays, path, metadata={"priorshift-stream": text})
    return scaling


def test_a_state_of_0_1_goes_on(tmp_path):
    scaling = written_by_0_1(tmp_path / "old.state")
    stream = StreamingPrior.load(tmp_path / "old.state")
    assert stream.num_samples == 4 and stream.streams == ("a",) and stream.run_length == 1000
    fresh = StreamingPrior(SOURCE, scaling=scaling, capacity=100, method="mlls", stream="a")
    fresh.update(LOGITS[:4])
    assert np.allclose(stream.prior.probs, fresh.prior.probs, atol=1e-9)
    for state in (stream, fresh):
        state.update(LOGITS[4:200])
    assert np.allclose(stream.prior.probs, fresh.prior.probs, atol=1e-9)
    assert np.allclose(stream.adapt(LOGITS), fresh.adapt(LOGITS), atol=1e-9)
    stream.save(tmp_path / "new.state")
    assert np.allclose(
        StreamingPrior.load(tmp_path / "new.state").prior.probs, stream.prior.probs, atol=1e-12
    )
    written_by_0_1(tmp_path / "odd", method="mlss")
    with pytest.raises(ValueError, match="odd contradicts itself: Expected `method`"):
        StreamingPrior.load(tmp_path / "odd")
    written_by_0_1(tmp_path / "later", schema_version=9)
    with pytest.raises(ValueError, match="later was written by a newer priorshift"):
        StreamingPrior.load(tmp_path / "later")


def test_a_carried_prior_too_small_for_a_probability_is_saved(tmp_path):
    carried = Prior.from_log_probs([0.0, 0.0, -800.0])
    stream = StreamingPrior(carried)
    stream.update(np.array([[0.0, 1.0, -800.0], [1.0, 0.0, -799.0]]))
    stream.save(tmp_path / "state")
    loaded = StreamingPrior.load(tmp_path / "state")
    assert np.array_equal(loaded.prior.probs, stream.prior.probs)
    assert loaded.carried.log_probs[2] == pytest.approx(-800 - math.log(2))


def test_class_names_are_kept(tmp_path):
    pandas = pytest.importorskip("pandas")
    stream = StreamingPrior({"cat": 0.5, "dog": 0.3, "owl": 0.2}, stream="a")
    table = pandas.DataFrame(LOGITS[:100], columns=["cat", "dog", "owl"])
    stream.update(table[["owl", "cat", "dog"]])
    plain = fed(LOGITS[:100], stream="b")
    assert np.allclose(stream.prior.probs, plain.prior.probs, atol=1e-12)
    assert stream.prior.names == stream.target.names == ("cat", "dog", "owl")
    stream.save(tmp_path / "state")
    loaded = StreamingPrior.load(tmp_path / "state")
    assert loaded.prior == stream.prior and loaded.carried == stream.carried
    assert plain.merge(loaded).prior.names == ("cat", "dog", "owl")
    with pytest.raises(ValueError, match="alike in `carried`"):
        loaded.merge(StreamingPrior({"cat": 0.5, "dog": 0.3, "emu": 0.2}, stream="c"))


def test_tensors_do_as_arrays_and_come_back_in_kind():
    torch = pytest.importorskip("torch")
    stream = StreamingPrior(SOURCE)
    stream.update(torch.from_numpy(LOGITS))
    assert np.array_equal(stream.prior.probs, fed(LOGITS, batch=3000).prior.probs)
    moved = stream.adapt(torch.from_numpy(LOGITS))
    assert isinstance(moved, torch.Tensor)
    assert np.array_equal(moved.numpy(), stream.adapt(LOGITS))


# After a change


def test_it_can_start_again_from_a_time_on():
    changed, _ = population(600, [0.9, 0.05, 0.05], seed=5)
    stream = StreamingPrior(SOURCE, method="mlls")
    stream.update(LOGITS)
    stream.update(changed)
    stream.forget_before(3001)
    assert np.allclose(stream.prior.probs, fed(changed, method="mlls").prior.probs, atol=1e-6)
    assert stream.estimate().num_samples == 600
    bounded = fed(np.concatenate([LOGITS, changed]), method="mlls", capacity=900)
    bounded.forget_before(3001)
    assert 100 < bounded.estimate().num_samples < 200
    assert np.allclose(bounded.prior.probs, stream.prior.probs, atol=0.05)
    bounded.update(changed)
    assert bounded.estimate().num_samples > 700
    stream.forget_before(1e9)
    assert stream.prior == SOURCE


# Adapting as it goes


def test_before_the_first_sample_nothing_is_known():
    stream = StreamingPrior(SOURCE)
    assert stream.prior == stream.target == SOURCE
    assert np.array_equal(stream.adapt(LOGITS[:4]), LOGITS[:4])
    with pytest.raises(ValueError, match="none yet"):
        stream.estimate()


def test_it_adapts_to_the_mix_that_it_saw():
    stream = fed(LOGITS)
    expected = adjust(LOGITS, carried=SOURCE, target=stream.target)
    assert np.array_equal(stream.adapt(LOGITS), expected)
    assert (stream.target.probs > 0).all()


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 60))
def test_how_samples_are_batched_does_not_matter(sizes, capacity):
    rows = LOGITS[: sum(sizes)]
    whole = fed(rows, batch=len(rows), capacity=capacity)
    parts = StreamingPrior(SOURCE, capacity=capacity)
    for part in in_parts(rows, sizes):
        parts.update(part)
    whole._summary.compact()
    parts._summary.compact()
    assert np.array_equal(whole._summary.marks, parts._summary.marks) and np.array_equal(
        whole._summary.rows, parts._summary.rows
    )
    assert np.abs(whole.prior.probs - parts.prior.probs).max() < 1e-9


# Mistakes


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"half_life": 0}, "`half_life` to be positive, but got 0"),
        ({"window": -1}, "`window` to be positive"),
        ({"capacity": 0}, "`capacity` to be positive"),
        ({"half_life": 3, "window": 3}, "either `half_life` or `window`"),
        ({"method": "bbse"}, "`method` to be one of empirical-bayes, mlls, mapls, but got 'bbse'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        StreamingPrior(SOURCE, **settings)


def test_batches_that_do_not_fit_are_refused_and_change_nothing():
    stream = fed(LOGITS[:100])
    before = stream.prior.probs
    with pytest.raises(ValueError, match="with 3 classes, but got 2"):
        stream.update(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="got nan for class 0 of sample 1"):
        stream.update(np.array([[0.0, 0.0, 0.0], [math.nan, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="`time` to be finite, but got inf"):
        stream.update(LOGITS[:2], time=math.inf)
    with pytest.raises(TypeError, match="floating-point"):
        stream.update(np.zeros((4, 3), dtype=np.int64))
    with pytest.raises(ValueError, match="`carried`"):
        StreamingPrior([1.0, 0.0])
    assert stream.num_samples == 100 and np.array_equal(stream.prior.probs, before)


def test_it_finds_a_change_dates_it_and_begins_again():
    before, _ = population(4000, [0.1, 0.3, 0.6], seed=6)
    after, _ = population(600, [0.6, 0.3, 0.1], seed=7)
    stream = StreamingPrior(SOURCE, run_length=100_000, method="mlls")
    found = [stream.update(part) for part in in_parts(np.concatenate([before, after]), 50)]
    assert found.count(True) == 1 and found.index(True) * 50 < 4300
    (changed,) = stream.changes
    assert changed == pytest.approx(4001, abs=60)
    alone = fed(np.concatenate([before, after])[changed - 1 :], method="mlls")
    assert np.allclose(stream.prior.probs, alone.prior.probs, atol=1e-6)
    never = fed(np.concatenate([before, after]), method="mlls")
    assert never.changes == () and np.abs(never.prior.probs - alone.prior.probs).max() > 0.2


@pytest.mark.parametrize("num_classes", [3, 60])
def test_a_mix_that_stays_is_no_change_though_what_it_is_compared_with_is_an_estimate(num_classes):
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(4):
        mix = rng.random(num_classes) ** 2
        labels = rng.choice(num_classes, 5000, p=mix / mix.sum())
        seen = rng.normal(size=(5000, num_classes)).astype(np.float32)
        seen[np.arange(5000), labels] += 2
        stream = StreamingPrior(Prior.uniform(num_classes), run_length=20_000)
        for part in in_parts(2 * seen, 250):
            alarms += stream.update(part)
    assert alarms <= 2


def test_a_state_that_looks_for_changes_goes_on_as_well(tmp_path):
    after, _ = population(1000, [0.6, 0.3, 0.1], seed=7)
    stream = fed(LOGITS, run_length=1000)
    stream.save(tmp_path / "state")
    loaded = StreamingPrior.load(tmp_path / "state")
    for part in in_parts(after, 100):
        assert stream.update(part) == loaded.update(part)
        assert stream.changes == loaded.changes
    assert stream.changes and np.array_equal(stream.prior.probs, loaded.prior.probs)
