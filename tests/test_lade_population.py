"""What the two forms of LADE converge to on exact populations, and LADER's bias on batches (docs/lade.md)."""

from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.lade_variants import log_mean_given_presence, mean_given_presence, presence
from benchmarks.populations import Population, minimise, random_population
from priorshift.losses import lade_loss, lader, logit_adjusted_cross_entropy
from priorshift.priors import Prior
from priorshift.shift import long_tail_counts

TABLE_7 = {"CIFAR-100-LT 10, 50": (0.01, 0.01), "CIFAR-100-LT 100": (0.1, 0.01), "Places-LT": (0.005, 0.1)}
IMAGENET_LT = (0.05, 0.5)


def conditionals(population):
    """log(C p_u(y|x)) and log(C p_s(y|x)), from the counts alone."""
    joint = population.counts.numpy().astype(float)
    likelihood = joint / joint.sum(0)
    num_classes = joint.shape[1]
    uniform = num_classes * likelihood / likelihood.sum(1, keepdims=True)
    source = num_classes * joint / joint.sum(1, keepdims=True)
    return torch.from_numpy(np.log(uniform)), torch.from_numpy(np.log(source))


def distance(left, right):
    return float((left - right).abs().max())


def up_to_a_constant_per_point(logits):
    return logits - logits.mean(1, keepdim=True)


def fit_lade(population, alpha, lam, variant, start=None):
    return population.fit(partial(lade_loss, alpha=alpha, lam=lam, variant=variant), start)


def points_lost(population, logits):
    return 100 * (population.best_balanced_accuracy - population.balanced_accuracy(logits))


# The regulariser alone


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("lam", [0.01, 0.5])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_regulariser_alone_reaches_its_own_posterior_and_not_the_other(variant, lam, seed):
    population = random_population(seed)
    uniform, source = conditionals(population)
    own, other = (uniform, source) if variant == "paper" else (source, uniform)
    optimum = population.fit(partial(lader, lam=lam, variant=variant))
    assert distance(optimum, own) < 1e-6
    assert distance(optimum, other) > 3


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_without_the_squared_term_both_forms_find_the_same_columns_up_to_constants(variant):
    population = random_population(0)
    uniform, _ = conditionals(population)
    offsets = population.fit(partial(lader, lam=0.0, variant=variant)) - uniform
    shift = population.counts.double().sum(1).log() - population.likelihood.sum(1).log()
    if variant == "released":
        offsets = offsets + shift[:, None]
    assert distance(offsets, offsets[:1].expand_as(offsets)) < 1e-5


# The whole loss


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.1, 1.0, 10.0])
def test_paper_form_stays_optimal_for_the_balanced_error_at_any_strength(alpha, seed):
    population = random_population(seed)
    uniform, _ = conditionals(population)
    optimum = fit_lade(population, alpha, 0.5, "paper")
    assert distance(up_to_a_constant_per_point(optimum), up_to_a_constant_per_point(uniform)) < 1e-4
    assert torch.equal(optimum.argmax(1), uniform.argmax(1))
    if alpha > 0:
        assert distance(optimum, uniform) < 1e-4


def test_released_form_loses_balanced_accuracy_as_its_strength_grows():
    population = random_population(0)
    optima = [fit_lade(population, alpha, 0.5, "released") for alpha in (0.1, 1.0, 10.0)]
    assert [round(points_lost(population, table), 1) for table in optima] == [2.6, 6.4, 6.4]
    divergences = [population.divergence_from_uniform(table) for table in optima]
    np.testing.assert_allclose(divergences, [0.012, 0.347, 0.652], atol=0.001)


def test_released_form_comes_closer_to_the_source_posterior_as_its_strength_grows():
    population = random_population(0)
    _, source = conditionals(population)
    gaps = [
        distance(fit_lade(population, alpha, 0.5, "released"), source) for alpha in (0.1, 1.0, 10.0, 100.0)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.1 * gaps[0]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("setting", TABLE_7)
def test_released_form_costs_next_to_nothing_at_the_papers_weak_settings(setting, seed):
    population = random_population(seed)
    optimum = fit_lade(population, *TABLE_7[setting], "released")
    assert points_lost(population, optimum) < 0.01
    assert 0 < population.divergence_from_uniform(optimum) < 1e-5


@pytest.mark.parametrize(("seed", "lost"), [(0, 1.1), (1, 0.5), (7, 0.0)])
def test_cost_of_the_released_form_at_the_setting_of_imagenet_lt_depends_on_the_population(seed, lost):
    population = random_population(seed, imbalance=100)
    assert round(points_lost(population, fit_lade(population, *IMAGENET_LT, "released")), 1) == lost


@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_released_form_without_the_squared_term_stays_optimal_for_the_balanced_error(alpha):
    population = random_population(0)
    uniform, _ = conditionals(population)
    optimum = fit_lade(population, alpha, 0.0, "released")
    assert distance(up_to_a_constant_per_point(optimum), up_to_a_constant_per_point(uniform)) < 1e-4


def test_drift_of_the_released_form_is_a_matter_of_alpha_times_lambda():
    population = random_population(0)
    drifts = [
        population.divergence_from_uniform(fit_lade(population, alpha, 0.05 / alpha, "released"))
        for alpha in (0.01, 0.1, 1.0, 10.0)
    ]
    assert max(drifts) < 1.3 * min(drifts)


def test_released_optimum_does_not_depend_on_the_start():
    population = random_population(0)
    uniform, source = conditionals(population)
    noise = torch.randn(uniform.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, *others = (
        fit_lade(population, 1.0, 0.5, "released", start) for start in (None, uniform, source, noise)
    )
    assert max(distance(first, other) for other in others) < 1e-5


# On batches


def test_separable_class_has_the_batch_mean_that_the_closed_forms_are_about():
    prior = Prior([0.6, 0.3, 0.1])
    labels = torch.tensor([0, 0, 0, 2])
    perfect = torch.full((4, 3), -1e4, dtype=torch.float64)
    perfect[torch.arange(4), labels] = np.log(3)
    batch_mean = {0: 3 / (4 * 0.6), 2: 1 / (4 * 0.1)}
    expected = sum(
        prior.probs[c] * (-np.log(3) + np.log(m) + 0.5 * np.log(m) ** 2) for c, m in batch_mean.items()
    )
    torch.testing.assert_close(
        lader(perfect, labels, torch.tensor(prior.log_probs), lam=0.5), torch.tensor(expected)
    )


def test_presence_and_batch_mean_of_separable_classes_agree_with_simulated_batches():
    prior = Prior.from_counts(long_tail_counts(100, 500, 100))
    num_batches, batch_size = 20_000, 256
    tallies = np.random.default_rng(0).multinomial(batch_size, prior.probs, num_batches)
    probs = torch.tensor(prior.probs)
    for rank in (0, 53, 70, 99):
        present = tallies[:, rank] > 0
        means = tallies[present, rank] / (batch_size * float(prior.probs[rank]))
        closed = float(presence(probs, batch_size)[rank])
        assert abs(present.mean() - closed) < 4 * np.sqrt(closed * (1 - closed) / num_batches) + 1e-4
        for simulated, exact in (
            (means, float(mean_given_presence(probs, batch_size)[rank])),
            (np.log(means), float(log_mean_given_presence(probs, batch_size)[rank])),
        ):
            assert abs(simulated.mean() - exact) < 4 * simulated.std() / np.sqrt(len(means)) + 1e-9


def test_rarest_class_of_cifar_100_lt_is_in_a_ninth_of_the_batches_and_nine_times_too_large_there():
    probs = torch.tensor(Prior.from_counts(long_tail_counts(100, 500, 100)).probs)
    assert float(presence(probs, 256)[-1]) == pytest.approx(0.1113, abs=1e-4)
    assert float(mean_given_presence(probs, 256)[-1]) == pytest.approx(8.98, abs=0.01)
    assert float(log_mean_given_presence(probs, 256)[-1]) == pytest.approx(2.18, abs=0.01)


def test_overlap_shrinks_the_bias_of_the_batch_mean_as_its_closed_form_says():
    population = random_population(0)
    probs, last, batch_size = torch.tensor(population.prior.probs), 3, 20
    own = float((population.likelihood * population.uniform_posterior)[:, last].sum())
    samples = np.random.default_rng(0).integers(len(population.labels), size=(40_000, batch_size))
    points, labels = population.points.numpy()[samples], population.labels.numpy()[samples]
    present = (labels == last).any(1)
    weights = (population.uniform_posterior[:, last].numpy()[points] / probs.numpy()[labels])[present]
    means = weights.mean(1)
    exact = float(mean_given_presence(probs, batch_size, own)[last])
    assert abs(means.mean() - exact) < 4 * means.std() / np.sqrt(len(means))
    assert 1.5 < exact < float(mean_given_presence(probs, batch_size)[last])


# The populations themselves


def test_batch_of_a_population_has_its_frequencies_exactly():
    population = Population(torch.tensor([[3, 1], [2, 4]]))
    pairs = list(zip(population.points.tolist(), population.labels.tolist(), strict=True))
    assert {pair: pairs.count(pair) for pair in pairs} == {(0, 0): 3, (0, 1): 1, (1, 0): 2, (1, 1): 4}
    assert population.prior.probs.tolist() == [0.5, 0.5]
    assert population.balanced_accuracy(torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(0.7)
    assert population.best_balanced_accuracy == pytest.approx(0.7)


def test_fit_of_cross_entropy_is_the_source_posterior():
    population = random_population(3)
    table = population.fit(partial(logit_adjusted_cross_entropy, tau=0.0))
    assert distance(table.log_softmax(1), conditionals(population)[1] - np.log(4)) < 1e-5


def test_minimise_refuses_to_return_before_the_gradient_vanishes():
    with pytest.raises(RuntimeError, match="No minimum in 5 steps"):
        minimise(lambda x: x.exp().sum(), torch.zeros(2, dtype=torch.float64), max_steps=5)
