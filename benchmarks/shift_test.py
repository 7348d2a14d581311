"""Level and power of the test of label shift on real predictions.

Run from the repository root; it prints the tables and writes `benchmarks/results/shift_test.md`.

    PRIORSHIFT_DATA=folder python -m benchmarks.shift_test

The folder holds `predictions/cifar10_densenet190.npz`: `probs`, `labels` and `human_counts` of the test
images of CIFAR-10 by a DenseNet-BC-190 (https://github.com/GavinKerrigan/conf_matrix_and_calibration).
"""

import argparse
import os
import platform
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import scipy

from priorshift._blocks import num_threads
from priorshift.estimation import label_shift_test
from priorshift.report import Table, markdown

RESULTS = Path(__file__).parent / "results" / "shift_test.md"

ALPHAS = (0.1, 1.0, 10.0)
SIZES = (300, 1000, 3000)
SOURCE = 3000
NOMINAL = 0.05
NEW_CLASS = {"new class, 5 %": 0.05, "new class, 10 %": 0.1, "new class, 20 %": 0.2}
TEMPERATURES = {"flattened, T = 1.25": 1.25, "sharpened, T = 0.8": 0.8}
ALTERNATIVES = (*NEW_CLASS, *TEMPERATURES, "noise, sd 1", "images people disagree on")


@dataclass(frozen=True)
class Pool:
    """Real predictions, from which both samples are drawn without overlap.

    Args:
        logits: Log-probabilities, `[N, C]`.
        labels: Classes, `[N]`.
        readiness: How readily an image is drawn where people's disagreement counts, `[N]`.
    """

    logits: np.ndarray
    labels: np.ndarray
    readiness: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> "Pool":
        """Read the stored predictions; images on which fewer than 90 % of people agree weigh 10, others 1."""
        file = np.load(folder / "predictions" / "cifar10_densenet190.npz")
        agreement = file["human_counts"].max(axis=1) / file["human_counts"].sum(axis=1)
        return cls(np.log(file["probs"]), file["labels"], np.where(agreement < 0.9, 10.0, 1.0))


def draw(pool: Pool, alpha: float, size: int, world: str, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Logits and labels of a source and logits of a target; each class gives no more images than it has."""
    num_classes = pool.logits.shape[1]
    order = rng.permutation(len(pool.labels))
    source, left = order[:SOURCE], order[SOURCE:]
    mix = rng.dirichlet(np.full(num_classes, alpha))
    kept = np.arange(num_classes)
    if world in NEW_CLASS:
        new = rng.integers(num_classes)
        kept = np.delete(kept, new)
        mix[new] = 0
        mix *= (1 - NEW_CLASS[world]) / mix.sum()
        mix[new] = NEW_CLASS[world]
        source = source[pool.labels[source] != new]
    if world == "images people disagree on":
        left = left[np.argsort(rng.exponential(size=len(left)) / pool.readiness[left])]
    wanted = rng.multinomial(size, mix)
    target = np.concatenate([left[pool.labels[left] == y][: wanted[y]] for y in range(num_classes)])
    logits = pool.logits[target]
    if world in TEMPERATURES:
        logits = logits / TEMPERATURES[world]
    elif world == "noise, sd 1":
        logits = logits + rng.normal(size=logits.shape)
    return pool.logits[source][:, kept], np.searchsorted(kept, pool.labels[source]), logits[:, kept]


def p_values(pool: Pool, alpha: float, size: int, world: str, draws: int) -> tuple[np.ndarray, float, float]:
    """The p-values of the draws that can be tested, the mean size of the target and of the freedom."""
    rng = np.random.default_rng(
        [SIZES.index(size), ALPHAS.index(alpha), ("none", *ALTERNATIVES).index(world)]
    )
    values, sizes, freedom = [], [], []
    for _ in range(draws):
        source, labels, target = draw(pool, alpha, size, world, rng)
        result = label_shift_test(source, labels, target)
        sizes.append(len(target))
        if result.p_value is not None:
            values.append(result.p_value)
            freedom.append(result.degrees_of_freedom)
    return np.array(values), float(np.mean(sizes)), float(np.mean(freedom))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--level-draws", type=int, default=1000)
    parser.add_argument("--power-draws", type=int, default=200)
    chosen = parser.parse_args()
    start = time.perf_counter()
    pool = Pool.read(Path(os.environ.get("PRIORSHIFT_DATA", "../shared/data")))
    levels, powers = [], []
    for size in SIZES:
        for alpha in ALPHAS:
            values, drawn, freedom = p_values(pool, alpha, size, "none", chosen.level_draws)
            shares = [(values < level).mean() for level in (0.01, NOMINAL, 0.2)]
            error = np.sqrt(shares[1] * (1 - shares[1]) / len(values))
            levels.append(
                (
                    f"{size}",
                    f"{alpha:g}",
                    f"{drawn:.0f}",
                    f"{freedom:.1f}",
                    f"{len(values)} of {chosen.level_draws}",
                    f"{100 * shares[0]:.1f}",
                    f"{100 * shares[1]:.1f} ± {100 * error:.1f}",
                    f"{100 * shares[2]:.1f}",
                )
            )
            found = [
                (p_values(pool, alpha, size, world, chosen.power_draws)[0] < NOMINAL).mean()
                for world in ALTERNATIVES
            ]
            powers.append((f"{size}", f"{alpha:g}", *(f"{100 * share:.0f}" for share in found)))
            print(*levels[-1], *powers[-1][2:], flush=True)
    seconds = time.perf_counter() - start
    headers = ("n", "α", "mean size", "mean freedom", "testable", "at 1 %", "at 5 %", "at 20 %")
    caption = (
        "Rejections in % under true label shift, the target mix drawn from Dirichlet(α); ± is the binomial "
        "standard error. A mix may want more images of a class than are left: targets can be smaller than n."
    )
    level = markdown(Table(headers, tuple(levels), caption))
    caption = (
        f"Rejections in % at the nominal 5 %, {chosen.power_draws} draws each, label shift on top of each."
    )
    power = markdown(Table(("n", "α", *ALTERNATIVES), tuple(powers), caption))
    text = f"""# Level and power of the test of label shift

{date.today()}, {num_threads()} CPU cores ({platform.machine()}), Python {platform.python_version()},
NumPy {np.__version__}, SciPy {scipy.__version__}, {seconds:.0f} s.
Command: `python -m benchmarks.shift_test`.

Predictions of a DenseNet-BC-190 on the 10,000 test images of CIFAR-10. Each draw takes {SOURCE:,} labelled
source images at random and a target of at most n from the rest, so no image is used twice within a draw.

## Level

{level}
## Power

{power}
A new class is one whose images and logit the source lacks. Temperatures divide the logits of the target,
noise is normal and added to them. In the last column images on which fewer than 90 % of people agree are
drawn ten times as readily within their class; the more of a class a target takes, the less that can change.
"""
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
