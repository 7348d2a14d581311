"""The theory of Menon et al. (ICLR 2021) in numbers: losses fitted to optimality on exact populations."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.loss_consistency import CARRIED, RESULTS, ROWS, SEEDS, centred, outcome, population_of
from benchmarks.populations import Population, minimise, random_population
from priorshift.losses import (
    binary_margin_inverse_link,
    binary_margin_link,
    binary_margin_loss,
    binary_margin_threshold,
    pairwise_margin_loss,
)

# Theorem 1


def fitted(population, weights, delta):
    vectors = {"weights": weights, "positive": -delta.log(), "negative": delta.log()}
    return population.fit(lambda logits, labels, _: pairwise_margin_loss(logits, labels, **vectors))


def random_vectors(seed, num_classes=4):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(2, num_classes, generator=generator, dtype=torch.float64)).exp()


@pytest.mark.parametrize("seed", range(4))
def test_theorem_1_every_delta_weighted_by_delta_over_pi_gives_the_bayes_scorer(seed):
    population = random_population(seed)
    delta = random_vectors(seed)[0]
    logits = fitted(population, delta / torch.tensor(population.prior.probs), delta)
    bayes = population.likelihood.log()
    np.testing.assert_allclose(centred(logits), centred(bayes), atol=1e-5)
    assert torch.equal(logits.argmax(1), bayes.argmax(1))
    assert population.balanced_accuracy(logits) == population.best_balanced_accuracy


@pytest.mark.parametrize("seed", range(4))
def test_with_other_weights_the_logits_carry_pi_alpha_over_delta(seed):
    population = random_population(seed)
    delta, alpha = random_vectors(seed)
    logits = fitted(population, alpha, delta)
    carried = torch.tensor(population.prior.probs) * alpha / delta
    np.testing.assert_allclose(centred(logits), centred((population.likelihood * carried).log()), atol=1e-5)
    assert population.balanced_accuracy(logits) < population.best_balanced_accuracy


# Theorem 2, Lemmas 3 and 4


def dense_binary_population():
    """39 points with p(+1 | x) = 1/40 ... 39/40, column 1 the positive class; the rarer the more positive."""
    k = torch.arange(1, 40)
    points = (40 - k) ** 2 // 100 + 1
    return Population(torch.stack([(40 - k) * points, k * points], dim=1))


DENSE = dense_binary_population()
ETA = DENSE.source_posterior[:, 1]
PI = float(DENSE.prior.probs[1])
ODDS = math.log((1 - PI) / PI)
BALANCED = (1 / PI, 1 / (1 - PI))


def family(weights=(1.0, 1.0), margins=(0.0, 0.0), temperature=1.0):
    return {"weights": weights, "margins": margins, "temperature": temperature}


def solved(margins, temperature):
    """The weight of the positive class that Lemma 3 asks for at these margins."""
    plus, minus = (1 / (1 + math.exp(-temperature * margin)) for margin in margins)
    return family(((1 - PI) / PI * minus / plus, 1.0), margins, temperature)


CONSISTENT = {
    "balanced": family(BALANCED),
    "balanced, equal margins": family(BALANCED, (1.0, 1.0)),
    "balanced, equal margins, hot": family(BALANCED, (1.0, 1.0), 4.0),
    "logit-adjusted": family(margins=(ODDS, -ODDS)),
    "logit-adjusted, hot": family(margins=(ODDS / 4, -ODDS / 4), temperature=4.0),
    "solved": solved((0.7, -0.3), 1.0),
    "solved, cold": solved((-1.2, 0.5), 0.5),
}
INCONSISTENT = {
    "plain": family(),
    "adaptive": family(margins=(PI**-0.25, (1 - PI) ** -0.25)),
    "equalised": family(margins=(math.log(1 - PI), math.log(PI))),
    "logit-adjusted plus adaptive": family(margins=(ODDS + PI**-0.25, -ODDS + (1 - PI) ** -0.25)),
    "weights and margins together": family(BALANCED, (ODDS, -ODDS)),
    "margins 1 - pi and pi": family(margins=(1 - PI, PI)),
    "margins of gamma log, as printed": family(margins=(4 * ODDS, -4 * ODDS), temperature=4.0),
    "the sign of section 5.3": family(margins=(-ODDS, ODDS)),
    "balanced, unequal margins": family(BALANCED, (1.0, PI / (1 - PI))),
}
EVERY = CONSISTENT | INCONSISTENT


@cache
def fitted_scores(name):
    scores = torch.zeros(len(ETA), dtype=torch.float64)
    return minimise(lambda f: binary_margin_loss(f[DENSE.points], DENSE.labels, **EVERY[name]), scores)


def lemma_3_ratio(weights, margins, temperature):
    plus, minus = (1 / (1 + math.exp(-temperature * margin)) for margin in margins)
    return weights[0] * plus / (weights[1] * minus)


def test_no_point_of_the_population_is_a_tie():
    assert (ETA - PI).abs().min() > 1e-3


@pytest.mark.parametrize("name", CONSISTENT)
def test_lemma_3_where_the_condition_holds_the_optimum_decides_as_bayes(name):
    assert lemma_3_ratio(**EVERY[name]) == pytest.approx((1 - PI) / PI, rel=1e-12)
    assert binary_margin_threshold(**EVERY[name]) == pytest.approx(PI, rel=1e-12)
    assert torch.equal(fitted_scores(name) > 0, ETA > PI)


@pytest.mark.parametrize("name", INCONSISTENT)
def test_lemma_3_where_it_does_not_the_optimum_misses(name):
    threshold = binary_margin_threshold(**EVERY[name])
    assert lemma_3_ratio(**EVERY[name]) != pytest.approx((1 - PI) / PI, rel=0.05)
    assert threshold != pytest.approx(PI, rel=0.05)
    assert not torch.equal(fitted_scores(name) > 0, ETA > PI)
    assert torch.equal(fitted_scores(name) > 0, threshold < ETA)


@pytest.mark.parametrize("name", EVERY)
def test_lemma_4_the_optimal_score_is_the_link_of_the_probability(name):
    np.testing.assert_allclose(fitted_scores(name), binary_margin_link(ETA, **EVERY[name]), atol=1e-5)
    np.testing.assert_allclose(binary_margin_inverse_link(fitted_scores(name), **EVERY[name]), ETA, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in EVERY if EVERY[name]["temperature"] == 1.0])
def test_theorem_2_the_pairwise_loss_of_two_classes_decides_as_bayes_iff_the_condition_holds(name):
    weights, margins = (torch.tensor(EVERY[name][part][::-1]) for part in ("weights", "margins"))
    logits = DENSE.fit(
        lambda logits, labels, _: pairwise_margin_loss(logits, labels, weights=weights, positive=margins)
    )
    scores = logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(scores, fitted_scores(name), atol=1e-4)
    best = DENSE.balanced_accuracy(logits) == pytest.approx(DENSE.best_balanced_accuracy, abs=1e-12)
    assert best == (name in CONSISTENT)


def test_unequal_margins_on_balanced_weights_become_consistent_as_the_temperature_grows():
    gaps = [
        abs(binary_margin_threshold(**family(BALANCED, (1.0, PI / (1 - PI)), temperature)) - PI)
        for temperature in (1.0, 4.0, 16.0, 64.0)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.02
    assert gaps[-1] < 1e-6


# The table of docs/losses.md

TABLE_SEEDS = (0, 1, 2)
over_rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@cache
def outcomes(row):
    return [outcome(row, population_of(seed)) for seed in TABLE_SEEDS]


@over_rows
def test_column_consistent(row):
    results = outcomes(row)
    plain_is_bayes = all(abs(result.lost) < 1e-9 for result in results)
    adjusted_is_bayes = all(abs(result.lost_adjusted) < 1e-9 for result in results)
    logits_are_bayes = all(result.distance < 1e-5 for result in results)
    assert row.verdict == {
        (True, True, True): "yes",
        (True, True, False): "argmax only",
        (False, True, True): "after `adjust`",
        (False, False, False): "no",
    }.get((plain_is_bayes, adjusted_is_bayes, logits_are_bayes))


@over_rows
def test_column_carried_prior(row):
    population = population_of(0)
    masses = CARRIED[row.carried](population)
    loss = row.build(population.prior)
    np.testing.assert_allclose(loss.carried_prior.probs, masses / masses.sum(), rtol=1e-12)
    assert loss.carried_by == row.by


@over_rows
def test_a_prior_that_theory_gives_is_the_one_that_is_carried(row):
    assert (max(result.distance for result in outcomes(row)) < 1e-5) == (row.by == "theory")


def test_the_table_in_the_docs_is_the_one_of_the_benchmark():
    written = RESULTS.read_text(encoding="utf-8")
    lines = [line for line in written.splitlines() if line.startswith("|")]
    assert len(lines) == len(ROWS) + 2
    page = (Path(__file__).parents[1] / "docs" / "losses.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in page
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [row.name for row in ROWS]


@over_rows
def test_the_committed_numbers_are_those_of_the_fits(row):
    """Fits a part of the seeds again: a maximum is at least a part's, a mean within reach of a part's."""
    written = RESULTS.read_text(encoding="utf-8")
    line = next(line for line in written.splitlines() if line.startswith(f"| {row.name} |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:4] == [row.verdict, row.carried, row.by]
    largest = max(result.distance for result in outcomes(row))
    assert (cells[6] == "< 1e-5") == (largest < 1e-5)
    assert cells[6] == "< 1e-5" or largest <= float(cells[6]) + 0.005
    n, k = len(SEEDS), len(TABLE_SEEDS)
    reach = math.sqrt((n - 1) * (n - k) / (n * k))
    for cell, part in ((cells[4], "lost"), (cells[5], "lost_adjusted")):
        mean, deviation = map(float, cell.split(" ± "))
        found = sum(getattr(result, part) for result in outcomes(row)) / k
        assert abs(found - mean) <= reach * (deviation + 0.005) + 0.005
