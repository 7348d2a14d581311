"""How often intervals of an estimated target prior hold the truth.

Run from the repository root; it prints the tables and writes `benchmarks/results/interval_coverage.md`.

    OMP_NUM_THREADS=1 PRIORSHIFT_DATA=folder python -m benchmarks.interval_coverage

The folder holds `predictions/cifar10_densenet190.npz`: `probs` and `labels` of the test images of CIFAR-10 by
a DenseNet-BC-190 (https://github.com/GavinKerrigan/conf_matrix_and_calibration).
"""

import argparse
import os
import platform
import time
from collections.abc import Iterator
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np

from priorshift import Prior
from priorshift.adjustment import fit_scaling
from priorshift.estimation import Likelihood, bootstrap_intervals, identifiability, likelihood_intervals
from priorshift.report import Table, markdown

RESULTS = Path(__file__).parent / "results" / "interval_coverage.md"

LEVEL = 0.9
SIZES = (300, 1000)
GROUPS = {"≥ 5 %": (0.05, 1.01), "below 5 %": (0.0, 0.05), "1–5 %": (0.01, 0.05), "below 1 %": (0.0, 0.01)}
CALIBRATIONS = (300, 1000)
TARGET = 1000
RESAMPLES = 100
HEADERS = ("world", "n", "intervals", "draws", "effective n", *GROUPS)


class Coverage:
    """Whether intervals held, class by class and draw by draw."""

    def __init__(self) -> None:
        self.targets: list[np.ndarray] = []
        self.held: list[np.ndarray] = []
        self.worth: list[float] = []

    def add(self, target: np.ndarray, lower: np.ndarray, upper: np.ndarray, worth: float) -> None:
        """Record a draw."""
        self.targets.append(target)
        self.held.append((lower <= target) & (target <= upper))
        self.worth.append(worth)

    def row(self, world: str, size: int, kind: str) -> tuple[str, ...]:
        """A row of the table."""
        shares = [self.share(*bounds) for bounds in GROUPS.values()]
        return (world, str(size), kind, str(len(self.held)), f"{np.mean(self.worth):.0f}", *shares)

    def share(self, least: float, below: float) -> str:
        """Coverage of the classes within bounds, in %, with a standard error over draws."""
        targets, held = np.array(self.targets), np.array(self.held)
        chosen = (targets >= least) & (targets < below)
        mean = held[chosen].mean()
        # Classes of one draw depend on each other.
        residuals = ((held - mean) * chosen).sum(axis=1)
        return f"{100 * mean:.1f} ± {100 * np.sqrt((residuals**2).sum()) / chosen.sum():.1f}"


def gaussians(spread: int, seed: int) -> np.ndarray:
    """Exact posteriors of 20,000 points of 10 Gaussian classes with means drawn in `spread` dimensions."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(10, spread))
    points = means[rng.integers(10, size=20_000)] + rng.normal(size=(20_000, spread))
    return softmax(points @ means.T - (means**2).sum(axis=1) / 2)


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def populations(probs: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Pools of posteriors, each declared to be the truth of its population."""
    yield "DenseNet's posteriors", probs
    yield "the same, T = 3", softmax(np.log(probs) / 3)
    yield "Gaussian classes", gaussians(6, seed=0)


def calibrated(pool: np.ndarray, size: int, draws: int, bootstraps: int) -> tuple[Coverage, Coverage]:
    """Coverage where the model is exactly calibrated: points are drawn as the target mix would have them."""
    likelihood, bootstrap = Coverage(), Coverage()
    rng = np.random.default_rng(size)
    source = pool.mean(axis=0)
    ratios = pool / source
    for draw in range(draws):
        target = rng.dirichlet(np.ones(len(source)))
        weights = ratios @ target
        rows = np.log(ratios[rng.choice(len(pool), size, p=weights / weights.sum())])
        sample = Likelihood(rows)
        prior = sample.maximize().prior
        worth = identifiability(sample, prior).effective_sample_size
        found = likelihood_intervals(sample, prior, level=LEVEL)
        likelihood.add(target, found.lower, found.upper, worth)
        if draw < bootstraps:
            found = bootstrap_intervals(sample, level=LEVEL, seed=draw, draws=RESAMPLES)
            bootstrap.add(target, found.lower, found.upper, worth)
    return likelihood, bootstrap


def fitted(
    logits: np.ndarray, labels: np.ndarray, held_out: int, draws: int
) -> tuple[Coverage, Coverage, Coverage]:
    """Coverage on real images after a calibration on others, fitted once or with each bootstrap draw."""
    likelihood, once, again = Coverage(), Coverage(), Coverage()
    rng = np.random.default_rng(held_out)
    num_classes = logits.shape[1]
    uniform = Prior.uniform(num_classes)
    while len(likelihood.held) < draws:
        order = rng.permutation(len(labels))
        chosen, left = order[:held_out], order[held_out:]
        target = rng.dirichlet(np.ones(num_classes))
        wanted = rng.multinomial(TARGET, target)
        if (wanted > np.bincount(labels[left])).any():
            continue
        rows = np.concatenate([left[labels[left] == y][: wanted[y]] for y in range(num_classes)])

        def sample(
            weights: np.ndarray | None, chosen: np.ndarray = chosen, rows: np.ndarray = rows
        ) -> Likelihood:
            scaling = fit_scaling(logits[chosen], labels[chosen], carried=uniform, weights=weights)
            return Likelihood.from_logits(scaling(logits[rows]), scaling.carried)

        plain = sample(None)
        prior = plain.maximize().prior
        worth = identifiability(plain, prior).effective_sample_size
        found = likelihood_intervals(plain, prior, level=LEVEL)
        likelihood.add(target, found.lower, found.upper, worth)
        seed = len(once.held)
        resample = partial(bootstrap_intervals, plain, level=LEVEL, seed=seed, draws=RESAMPLES)
        found = resample()
        once.add(target, found.lower, found.upper, worth)
        found = resample(refit=sample, num_validation=held_out)
        again.add(target, found.lower, found.upper, worth)
    return likelihood, once, again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--bootstraps", type=int, default=100, help="draws that are bootstrapped too")
    parser.add_argument("--fitted-draws", type=int, default=60)
    chosen = parser.parse_args()
    start = time.perf_counter()
    folder = Path(os.environ.get("PRIORSHIFT_DATA", "../shared/data"))
    file = np.load(folder / "predictions" / "cifar10_densenet190.npz")
    exact, real = [], []
    for world, pool in populations(file["probs"]):
        for size in SIZES:
            found = calibrated(pool, size, chosen.draws, chosen.bootstraps)
            exact += [
                each.row(world, size, kind)
                for each, kind in zip(found, ("likelihood", "bootstrap"), strict=True)
            ]
            print(*exact[-2:], sep="\n", flush=True)
    for held_out in CALIBRATIONS:
        found = fitted(np.log(file["probs"]), file["labels"], held_out, chosen.fitted_draws)
        kinds = ("likelihood", "bootstrap", "bootstrap, re-fitted")
        real += [
            each.row(f"BCTS on {held_out:,}", TARGET, kind) for each, kind in zip(found, kinds, strict=True)
        ]
        print(*real[-3:], sep="\n", flush=True)
    seconds = time.perf_counter() - start
    caption = (
        "Coverage in % of 90 % intervals of classes by their true share, ± the standard error over draws. "
        "Target mixes are drawn from the uniform distribution over the simplex."
    )
    text = f"""# Coverage of the intervals of a target prior

{date.today()}, one CPU core ({platform.machine()}), Python {platform.python_version()},
NumPy {np.__version__}, {seconds:.0f} s. Command: `OMP_NUM_THREADS=1 python -m benchmarks.interval_coverage`.

## An exactly calibrated model

{markdown(Table(HEADERS, tuple(exact), caption))}
The posteriors of a pool are declared to be the truth, so the share of the target population that each point
makes up is known. The first pool is a DenseNet-BC-190 on CIFAR-10's test images, the second the same with
logits divided by 3, the third {20_000:,} points of 10 Gaussian classes. Bootstraps have {RESAMPLES} draws
each, and are taken of the first {chosen.bootstraps} samples.

## A calibration fitted to real images

{markdown(Table(HEADERS, tuple(real), caption))}
The DenseNet's logits, a calibration on the stated number of its test images and a target of {TARGET:,}
others, none used twice in a draw; mixes that need more images of a class than there are left are drawn anew.
Bootstraps have {RESAMPLES} draws; "re-fitted" ones weigh the images of the calibration too and fit it with
each draw.
"""
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
