"""Change detection against the plain recursion; false alarms exactly and by simulation; delay and dating."""

import io
import math

import numpy as np
import pytest

from priorshift import Prior
from priorshift.streams import ChangeDetector

REFERENCE = np.array([0.5, 0.3, 0.15, 0.05])
MOVED = REFERENCE[::-1].copy()


def scored(rng, mix, size, *, distance=2.0, temperature=1.0):
    """Logits of Gaussian classes that carry the reference; calibrated at a temperature of 1."""
    labels = rng.choice(len(mix), size, p=mix)
    points = rng.normal(size=(size, len(mix)))
    points[np.arange(size), labels] += distance
    return distance * points / temperature + np.log(REFERENCE)


def detector(**settings):
    return ChangeDetector(REFERENCE, REFERENCE, **settings)


def evidence_by_recursion(blocks, half_lives, tolerance, *, pull=1e-3):
    """The mean over learners of M = e (M + 1), a sample at a time, and whether it ever passed a level."""
    learners = [REFERENCE.copy() for _ in half_lives]
    evidence = np.zeros(len(half_lives))
    path = []
    for block in blocks:
        posteriors = [np.zeros(len(REFERENCE)) for _ in half_lives]
        for row in block:
            ratios = np.exp(row) / REFERENCE
            for k, t in enumerate(learners):
                e = (t @ ratios) / (REFERENCE @ ratios) / (1 + tolerance)
                evidence[k] = e * (evidence[k] + 1)
                posteriors[k] += t * ratios / (t @ ratios) / len(block)
            path.append(evidence.mean())
        for k, half_life in enumerate(half_lives):
            rate = 1 - 0.5 ** (len(block) / half_life)
            target = (1 - pull) * posteriors[k] + pull / len(REFERENCE)
            learners[k] = (1 - rate) * learners[k] + rate * target
    return path


# A discrete world in which the predictions are exactly calibrated: p(x | y) of six possible x.

LIKELIHOOD = np.array(
    [[0.4, 0.1, 0.1, 0.05], [0.3, 0.1, 0.1, 0.05], [0.1, 0.5, 0.1, 0.1],
     [0.1, 0.1, 0.5, 0.1], [0.05, 0.1, 0.1, 0.3], [0.05, 0.1, 0.1, 0.4]]
)  # fmt: skip
LOGITS = np.log(LIKELIHOOD) + np.log(REFERENCE)


def copy_of(original, **settings):
    other = detector(**settings)
    other.load_state_dict(original.state_dict())
    return other


@pytest.mark.parametrize("tolerance", [0.0, 0.2])
def test_evidence_is_that_of_the_recursion(tolerance):
    rng = np.random.default_rng(0)
    half_lives = (8.0, 50.0, 400.0)
    stream = np.concatenate([scored(rng, REFERENCE, 60), scored(rng, MOVED, 60)])
    blocks = np.split(stream, [1, 31, 60, 100])
    path = evidence_by_recursion(blocks, half_lives, tolerance)
    found = detector(half_lives=half_lives, tolerance=tolerance, run_length=1e12)
    seen = 0
    for block in blocks:
        assert not found.update(block)
        seen += len(block)
        assert found.evidence == pytest.approx(path[seen - 1], rel=1e-9)
    level = path[-1] / 2
    first = next(i for i, value in enumerate(path) if value >= level)
    alarmed = detector(half_lives=half_lives, tolerance=tolerance, run_length=level)
    for block in blocks:
        alarmed.update(block)
        if alarmed.alarms:
            break
    assert alarmed.alarmed_at == first + 1


def test_without_a_change_evidence_grows_by_one_a_sample_on_average_whatever_the_learners_say():
    rng = np.random.default_rng(1)
    chances = LIKELIHOOD @ REFERENCE
    for batches in (0, 3, 20):
        before = detector(tolerance=0.0, run_length=1e9)
        for _ in range(batches):
            before.update(LOGITS[rng.choice(6, 30, p=LIKELIHOOD @ MOVED)])
        mean = 0.0
        for x in range(6):
            trial = copy_of(before, tolerance=0.0, run_length=1e9)
            trial.update(LOGITS[x : x + 1])
            mean += chances[x] * trial.evidence
        assert mean == pytest.approx(before.evidence + 1, rel=1e-10)


def test_a_tolerance_holds_for_every_mix_that_exceeds_no_share_by_more():
    rng = np.random.default_rng(2)
    tolerance = 0.25
    before = detector(tolerance=tolerance, run_length=1e9)
    for _ in range(5):
        before.update(LOGITS[rng.choice(6, 30, p=LIKELIHOOD @ MOVED)])
    for corner in range(1, 15):
        raised = np.array([corner >> y & 1 for y in range(4)], dtype=bool)
        mix = np.where(raised, (1 + tolerance) * REFERENCE, 0)
        if mix.sum() > 1:
            continue
        mix = mix + np.where(raised, 0, REFERENCE) * (1 - mix.sum()) / REFERENCE[~raised].sum()
        mean = 0.0
        for x in range(6):
            trial = copy_of(before, tolerance=tolerance, run_length=1e9)
            trial.update(LOGITS[x : x + 1])
            mean += (LIKELIHOOD @ mix)[x] * trial.evidence
        assert mean <= before.evidence + 1 + 1e-9


def run_length_of(rng, **settings):
    found = detector(**settings)
    while not found.update(scored(rng, REFERENCE, 20)):
        pass
    return found.alarmed_at


def test_false_alarms_are_no_more_frequent_than_stated():
    rng = np.random.default_rng(3)
    lengths = [run_length_of(rng, run_length=150, tolerance=0.0) for _ in range(40)]
    assert np.mean(lengths) + 3 * np.std(lengths) / math.sqrt(len(lengths)) >= 150


@pytest.mark.slow
def test_the_mean_run_length_is_what_is_stated_and_not_far_more():
    rng = np.random.default_rng(4)
    lengths = [run_length_of(rng, run_length=1000, tolerance=0.0) for _ in range(200)]
    error = np.std(lengths) / math.sqrt(len(lengths))
    assert 1000 - 3 * error <= np.mean(lengths) <= 3000


def test_a_tolerance_makes_false_alarms_rare_and_forgives_a_wrong_temperature():
    rng = np.random.default_rng(5)
    for temperature in (0.8, 1.0, 1.25):
        found = detector(run_length=500, tolerance=0.05)
        for _ in range(50):
            found.update(scored(rng, REFERENCE, 200, temperature=temperature))
        assert found.alarms == 0


@pytest.mark.parametrize("batch", [10, 100, 1000])
def test_a_change_is_found_soon_and_dated(batch):
    dates, delays, errors = [], [], []
    for seed in range(8):
        rng = np.random.default_rng([6, seed])
        found = detector(run_length=10_000)
        for _ in range(2000 // batch):
            assert not found.update(scored(rng, REFERENCE, batch))
        while not found.update(scored(rng, MOVED, batch)):
            assert found.num_samples < 6000
        delays.append(found.alarmed_at - 2000)
        dates.append(found.changed_at - 2001)
        errors.append(np.abs(found.prior_since.probs - MOVED).max())
    assert 0 < np.median(delays) <= 256 + 2 * batch
    assert abs(np.median(dates)) <= 10
    assert np.median(errors) < 0.15


def test_alarms_go_on_until_the_reference_is_reset():
    rng = np.random.default_rng(7)
    found = detector()
    assert found.alarmed_at is found.changed_at is found.prior_since is None
    for _ in range(40):
        found.update(scored(rng, MOVED, 100))
    assert found.alarms > 3
    found.reset(MOVED)
    assert found.evidence == 0 and found.reference == Prior(MOVED)
    before = found.alarms
    for _ in range(100):
        found.update(scored(rng, MOVED, 100))
    assert found.alarms == before and found.num_samples == 14_000
    while not found.update(scored(rng, REFERENCE, 100)):
        assert found.num_samples < 15_000
    assert abs(found.changed_at - 14_001) < 40


def test_the_date_lies_within_the_memory():
    rng = np.random.default_rng(8)
    found = detector(memory=50, half_lives=(4096.0,), run_length=1e6)
    while not found.update(scored(rng, MOVED, 30)):
        pass
    assert found.alarmed_at > 100
    assert found.changed_at == found.alarmed_at - 49


def test_what_is_kept_does_not_grow():
    rng = np.random.default_rng(9)
    found = detector(memory=100)
    sizes = set()
    for _ in range(60):
        found.update(scored(rng, REFERENCE, 40))
        sizes.add(len(found.state_dict()["recent"]))
    assert max(sizes) <= 100 + 2 * 40


def test_a_reloaded_state_goes_on_bit_by_bit():
    rng = np.random.default_rng(10)
    stream = [scored(rng, mix, 60).astype(np.float32) for mix in [REFERENCE] * 5 + [MOVED] * 12]
    for restart in (3, 7, 12):
        whole, first, second = detector(memory=150), detector(memory=150), detector(memory=150)
        for batch in stream[:restart]:
            whole.update(batch)
            first.update(batch)
        file = io.BytesIO()
        np.savez(file, **first.state_dict())
        file.seek(0)
        with np.load(file) as state:
            second.load_state_dict(state)
        for batch in stream[restart:]:
            assert whole.update(batch) == second.update(batch)
            assert whole.evidence == second.evidence
        assert whole.alarms == second.alarms > 0
        assert (whole.alarmed_at, whole.changed_at) == (second.alarmed_at, second.changed_at)
        assert whole.prior_since == second.prior_since


def test_wrong_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="`reference` to be strictly positive"):
        ChangeDetector([1.0, 0.0], [0.5, 0.5])
    with pytest.raises(ValueError, match="`carried` to be strictly positive"):
        ChangeDetector([0.5, 0.5], [1.0, 0.0])
    with pytest.raises(ValueError, match="`reference` with one entry per class, 2, but got 3"):
        ChangeDetector([0.5, 0.3, 0.2], [0.5, 0.5])
    for name, value in (("run_length", 0.5), ("tolerance", -0.1), ("memory", 0), ("run_length", math.nan)):
        with pytest.raises(ValueError, match=f"`{name}`"):
            detector(**{name: value})
    with pytest.raises(ValueError, match="`half_lives`"):
        detector(half_lives=())
    found = detector()
    with pytest.raises(ValueError, match="`logits` with 4 classes, but got 3"):
        found.update(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="`probs` of the state with shape"):
        found.load_state_dict(detector(half_lives=(3.0,)).state_dict())
