"""LADE as printed against LADE as released: what each converges to, and what small batches do to the first.

Run from the repository root; it prints the tables and writes `benchmarks/results/lade_variants.md`.

    python -m benchmarks.lade_variants
"""

import math
import os
import platform
import time
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.populations import Population, hessian, random_population
from priorshift.losses import lade_loss, lader, logit_adjusted_cross_entropy
from priorshift.losses._lade import Variant
from priorshift.priors import Prior
from priorshift.shift import long_tail_counts

RESULTS = Path(__file__).parent / "results" / "lade_variants.md"

SEEDS = range(20)
IMBALANCE = 100.0
SPREADS = (1.0, 2.0)


class Setting(NamedTuple):
    """One row of the accuracy table."""

    variant: Variant
    alpha: float
    lam: float
    place: str = ""


SETTINGS = (
    Setting("paper", 10, 0.5),
    Setting("released", 0.01, 0.01, "Table 7: CIFAR-100-LT 10, 50"),
    Setting("released", 0.1, 0.01, "Table 7: CIFAR-100-LT 100"),
    Setting("released", 0.005, 0.1, "Table 7: Places-LT"),
    Setting("released", 0.05, 0.5, "Table 7: ImageNet-LT, iNaturalist"),
    Setting("released", 0.1, 0.5),
    Setting("released", 1, 0.5),
    Setting("released", 1, 0),
)

BATCH_SIZE = 256
NUM_BATCHES = 20_000
RANKS = (0, 20, 35, 53, 70, 85, 99)

TABLE_SEEDS = range(5)
TABLE_BATCHES = 1000
TABLE_SETTINGS = ((0.1, 0.01), (0.05, 0.5), (1.0, 0.5))


def main() -> None:
    torch.set_num_threads(1)  # The tables are small: threads cost more than they bring.
    began = time.perf_counter()
    sections = [regulariser_alone(), *map(whole_loss, SPREADS), class_in_a_batch(), fitted_on_batches()]
    seconds = time.perf_counter() - began
    header = (
        "# LADE: the paper's form and the released one\n\n"
        f"{date.today()}, {len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), float64, "
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, one thread, "
        f"{seconds:.0f} s.\n\n"
        "Command: `python -m benchmarks.lade_variants`. What the tables mean: `docs/lade.md`.\n"
        "± is the standard deviation over the populations of the seeds that are named.\n"
    )
    report = "\n".join([header, *sections])
    print(report)
    RESULTS.write_text(report, encoding="utf-8")


def regulariser_alone() -> str:
    rows = []
    for variant in ("paper", "released"):
        gaps = []
        for seed in SEEDS:
            population = random_population(seed, imbalance=IMBALANCE)
            table = population.fit(partial(lader, lam=0.5, variant=variant))
            posteriors = population.uniform_posterior, population.source_posterior
            targets = [posterior.log() + math.log(posterior.shape[1]) for posterior in posteriors]
            gaps.append([float((table - target).abs().max()) for target in targets])
        uniform, source = torch.tensor(gaps).T
        rows.append([variant, *(f"{gap.mean():.1e} (worst {gap.max():.1e})" for gap in (uniform, source))])
    return section(
        "The regulariser alone",
        f"{describe_populations(1.0)} Minimised at λ = 0.5; largest distance of a logit from each target.",
        ["variant", "from log(C·p_u(y given x))", "from log(C·p_s(y given x))"],
        rows,
    )


def whole_loss(spread: float) -> str:
    populations = [random_population(seed, imbalance=IMBALANCE, spread=spread) for seed in SEEDS]
    rows = []
    for variant, alpha, lam, place in SETTINGS:
        loss = partial(lade_loss, alpha=alpha, lam=lam, variant=variant)
        starts = [None if variant == "paper" else optimum(population) for population in populations]
        tables = [population.fit(loss, start) for population, start in zip(populations, starts, strict=True)]
        lost, divergence = costs(populations, tables)
        rows.append([variant, f"{alpha:g}", f"{lam:g}", lost, divergence, place])
    best = torch.tensor([100 * population.best_balanced_accuracy for population in populations])
    return section(
        f"Cross-entropy plus α·LADER, spread {spread:g}",
        f"{describe_populations(spread)} Best balanced accuracy {mean_sd(best, '.1f')} %. Points of it lost "
        "by the optimum of the loss, and the divergence of its softmax from p_u(y given x).",
        ["variant", "α", "λ", "points lost", "KL, nats", "setting of"],
        rows,
    )


def class_in_a_batch() -> str:
    prior = Prior.from_counts(long_tail_counts(100, 500, 100))
    probs = torch.tensor(prior.probs)
    present = presence(probs, BATCH_SIZE)
    batch_mean = mean_given_presence(probs, BATCH_SIZE)
    log_mean = log_mean_given_presence(probs, BATCH_SIZE)
    tallies = simulate_tallies(prior, seed=0)
    seen = tallies > 0
    simulated_mean = tallies.sum(0) / (BATCH_SIZE * probs) / seen.sum(0)
    counts = long_tail_counts(100, 500, 100)
    rows = [
        [
            str(rank + 1),
            str(int(counts[rank])),
            f"{BATCH_SIZE * float(probs[rank]):.3f}",
            f"{100 * float(present[rank]):.1f} ({100 * float(seen[:, rank].double().mean()):.1f})",
            f"{float(batch_mean[rank]):.3f} ({float(simulated_mean[rank]):.3f})",
            f"{float(log_mean[rank]):+.3f}",
            f"{float(present[rank] * log_mean[rank]):+.3f}",
        ]
        for rank in RANKS
    ]
    rare = BATCH_SIZE * probs < 1
    pulls = present * log_mean
    overlapping = mean_given_presence(probs, BATCH_SIZE, own=1 / 3)[-1]
    return section(
        "A class in a batch",
        f"CIFAR-100-LT's profile at imbalance 100 ({int(counts.sum()):,} images), N = {BATCH_SIZE}, perfect "
        "logits of separable classes: M is the mean inside LADER's logarithm, 1 in the population. Closed "
        f"form, in brackets {NUM_BATCHES:,} simulated batches (seed 0).\n\n"
        f"{int(rare.sum())} classes have Nπ < 1; together they hold "
        f"{100 * float(probs[rare].sum()):.2f} % of π. The last column lies between "
        f"{float(pulls.min()):+.3f} and {float(pulls.max()):+.3f} over all classes; times 2αλ it is the "
        "pull on a column of logits, in units of the class's weight π in the "
        f"cross-entropy. Where classes overlap so that p_u(y given x) averages 1/3 on its own class, E[M] of "
        f"the rarest class given that it is present is {float(overlapping):.2f}.",
        ["class", "images", "Nπ", "in % of batches", "E[M] if present", "E[log M] if present", "P·E[log M]"],
        rows,
    )


def fitted_on_batches() -> str:
    populations = [
        random_population(seed, num_classes=6, num_points=18, imbalance=IMBALANCE) for seed in TABLE_SEEDS
    ]
    rows = []
    for alpha, lam in TABLE_SETTINGS:
        tables = [
            fit_on_batches(population, alpha, lam, seed)
            for population, seed in zip(populations, TABLE_SEEDS, strict=True)
        ]
        rows.append([f"{alpha:g}", f"{lam:g}", *costs(populations, tables)])
    return section(
        "The paper's form fitted on small batches",
        f"Seeds {TABLE_SEEDS[0]}–{TABLE_SEEDS[-1]}, 6 classes on 18 points, imbalance {IMBALANCE:g}, N such "
        "that the rarest class has Nπ ≈ 0.118 as in the table above; cross-entropy over the population "
        f"plus α times the mean of LADER over {TABLE_BATCHES:,} sampled batches. The same measures as above.",
        ["α", "λ", "points lost", "KL, nats"],
        rows,
    )


def presence(probs: Float[Tensor, " classes"], batch_size: int) -> Float[Tensor, " classes"]:
    """Probability that a class occurs in a batch."""
    return 1 - (1 - probs) ** batch_size


def mean_given_presence(
    probs: Float[Tensor, " classes"], batch_size: int, own: float = 1.0
) -> Float[Tensor, " classes"]:
    """Expectation of LADER's batch mean for perfect logits, over the batches in which the class occurs.

    Args:
        probs: Class prior of the stream.
        batch_size: Samples $N$ in a batch.
        own: Mean of $p_u(c | x)$ over class $c$'s own samples; 1 where the classes are separable.
    """
    others = 1 - (1 - probs) ** (batch_size - 1)
    return (own + (1 - own) * others) / presence(probs, batch_size)


def log_mean_given_presence(probs: Float[Tensor, " classes"], batch_size: int) -> Float[Tensor, " classes"]:
    """Expectation of the mean's logarithm, separable classes, over the batches in which the class occurs."""
    tally = torch.arange(1, batch_size + 1, dtype=torch.float64)[:, None]
    rest = batch_size - tally
    log_choose = math.lgamma(batch_size + 1) - (tally + 1).lgamma() - (rest + 1).lgamma()
    chances = (log_choose + tally * probs.log() + rest * (-probs).log1p()).exp()
    log_means: Tensor = (chances * (tally / (batch_size * probs)).log()).sum(0)
    return log_means / presence(probs, batch_size)


def simulate_tallies(prior: Prior, seed: int) -> Float[Tensor, "batches classes"]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(
        torch.tensor(prior.probs), NUM_BATCHES * BATCH_SIZE, replacement=True, generator=generator
    ).view(NUM_BATCHES, BATCH_SIZE)
    ones = torch.ones(labels.shape, dtype=torch.float64)
    return torch.zeros(NUM_BATCHES, len(prior), dtype=torch.float64).scatter_add(1, labels, ones)


def fit_on_batches(
    population: Population, alpha: float, lam: float, seed: int, *, num_steps: int = 8
) -> Float[Tensor, "points classes"]:
    """Newton's method from the Bayes optimum with the whole population's curvature kept fixed."""
    log_prior = torch.tensor(population.prior.log_probs)
    batch_size = round(0.118 / float(population.prior.probs[-1]))
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randint(len(population.labels), (TABLE_BATCHES, batch_size), generator=generator)
    points, labels = population.points[samples], population.labels[samples]
    regulariser = torch.vmap(lambda logits, labels: lader(logits, labels, log_prior, lam=lam))

    def objective(table: Tensor) -> Tensor:
        cross_entropy = population.loss(logit_adjusted_cross_entropy, table)
        return cross_entropy + alpha * regulariser(table[points], labels).mean()

    table = optimum(population)
    exact = partial(population.loss, partial(lade_loss, alpha=alpha, lam=lam))
    inverse = torch.linalg.pinv(hessian(exact, table), rtol=1e-11, hermitian=True)
    for _ in range(num_steps):
        table.requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(table), table)
        table = table.detach() - (inverse @ gradient.flatten()).view(table.shape)
    return table


def optimum(population: Population) -> Float[Tensor, "points classes"]:
    """The optimum of the paper's form, log(C·p_u(y given x))."""
    return population.uniform_posterior.log() + math.log(len(population.prior))


def costs(populations: Sequence[Population], tables: Sequence[Tensor]) -> tuple[str, str]:
    """Points of balanced accuracy lost and divergence, over populations, in words."""
    pairs = list(zip(populations, tables, strict=True))
    lost = torch.tensor([100 * (p.best_balanced_accuracy - p.balanced_accuracy(t)) for p, t in pairs])
    divergence = torch.tensor([p.divergence_from_uniform(t) for p, t in pairs])
    # Float round-off makes exact zeros come out as ±1e-15.
    lost, divergence = lost.clamp(min=0), torch.where(divergence.abs() < 1e-12, 0, divergence)
    return f"{mean_sd(lost, '.3f')} (worst {lost.max():.2f})", mean_sd(divergence, ".1e")


def describe_populations(spread: float) -> str:
    return (
        f"Seeds {SEEDS[0]}–{SEEDS[-1]}: random populations of 4 classes on 12 points, imbalance "
        f"{IMBALANCE:g}, spread {spread:g}."
    )


def mean_sd(values: Tensor, form: str) -> str:
    return f"{values.mean():{form}} ± {values.std():{form}}"


def section(title: str, text: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(row) for row in (head, ["---"] * len(head), *rows)]
    return f"## {title}\n\n{text}\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
