"""Time and memory of the metrics, beside a copy of the probabilities and the formulas over whole arrays.

    python -m benchmarks.metrics_speed

All are timed in turns in one process, memory in a process of its own for each. Writes
`benchmarks/results/metrics_speed.md`.
"""

import argparse
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, softmax

from benchmarks.loss_speed import seconds, status
from priorshift import Predictions, Prior, metrics
from priorshift._blocks import num_threads
from priorshift.estimation._confusion import confusion_of
from priorshift.evaluation import score
from priorshift.report import Table, markdown

RESULTS = Path(__file__).parent / "results" / "metrics_speed.md"
SAMPLES, CLASSES, BINS = 50_000, 1_000, 20

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def made_up() -> tuple[Logits, Labels]:
    """Logits that lean to the labels, and these."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=SAMPLES)
    logits = rng.standard_normal((SAMPLES, CLASSES), dtype=np.float32)
    logits[np.arange(SAMPLES), labels] += 4
    return logits, labels


def one_hot(labels: Labels) -> npt.NDArray[np.float64]:
    return np.eye(CLASSES)[labels]


def brier_score(probs: Logits, labels: Labels) -> float:
    return float(((probs.astype(np.float64) - one_hot(labels)) ** 2).sum(axis=1).mean())


def negative_log_likelihood(log_probs: Logits, labels: Labels) -> float:
    return float(-log_probs.astype(np.float64)[np.arange(SAMPLES), labels].mean())


def expected_calibration_error(probs: Logits, labels: Labels) -> float:
    confidence, predicted = probs.max(axis=1).astype(np.float64), probs.argmax(axis=1)
    excess = (predicted == labels) - confidence
    bins = np.searchsorted(np.arange(1, BINS) / BINS, confidence)
    return float(np.abs(np.bincount(bins, excess, minlength=BINS)).sum() / SAMPLES)


def classwise_calibration_error(probs: Logits, labels: Labels) -> float:
    bins = np.searchsorted(np.arange(1, BINS) / BINS, probs.astype(np.float64))
    excess = one_hot(labels) - probs.astype(np.float64)
    cells = (bins + BINS * np.arange(CLASSES)).ravel()
    return float(np.abs(np.bincount(cells, excess.ravel())).sum() / (SAMPLES * CLASSES))


def confusion(logits: Logits, labels: Labels) -> npt.NDArray[np.float64]:
    probs = softmax(logits.astype(np.float64), axis=1)
    sums = np.zeros((CLASSES, CLASSES))
    np.add.at(sums, labels, probs)
    return (sums / np.bincount(labels, minlength=CLASSES)[:, None]).T


def every_score(logits: Logits, labels: Labels) -> list[float]:
    log_probs = log_softmax(logits.astype(np.float64), axis=1)
    probs = np.exp(log_probs)
    return [
        brier_score(probs, labels),
        negative_log_likelihood(log_probs, labels),
        expected_calibration_error(probs, labels),
        classwise_calibration_error(probs, labels),
    ]


def jobs() -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Name → ours, and the formula over whole arrays."""
    logits, labels = made_up()
    probs, log_probs = softmax(logits, axis=1), log_softmax(logits, axis=1)
    predictions = Predictions(logits=logits, labels=labels, carried=Prior.uniform(CLASSES))
    return {
        "copy": (probs.copy, probs.copy),
        "Brier score": (
            lambda: metrics.brier_score(probs, labels),
            lambda: brier_score(probs, labels),
        ),
        "negative log-likelihood": (
            lambda: metrics.negative_log_likelihood(log_probs, labels),
            lambda: negative_log_likelihood(log_probs, labels),
        ),
        "expected calibration error": (
            lambda: metrics.expected_calibration_error(probs, labels),
            lambda: expected_calibration_error(probs, labels),
        ),
        "classwise calibration error": (
            lambda: metrics.classwise_calibration_error(probs, labels),
            lambda: classwise_calibration_error(probs, labels),
        ),
        "mean probabilities": (
            lambda: metrics.mean_class_probs(probs),
            lambda: probs.mean(axis=0, dtype=np.float64),
        ),
        "soft confusion of BBSE": (
            lambda: confusion_of(logits, labels, None, hard=False),
            lambda: confusion(logits, labels),
        ),
        "every score at once": (
            lambda: score(predictions),
            lambda: every_score(logits, labels),
        ),
    }


def peak_of(name: str, side: int) -> None:
    """Print by how many times the array a job raises this process's peak."""
    job = jobs()[name][side]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    job()
    print((status("VmHWM") - before) / (4 * SAMPLES * CLASSES))


def peak(name: str, side: int) -> float:
    command = [sys.executable, "-m", "benchmarks.metrics_speed", "--peak-of", name, "--side", str(side)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measure, print and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        peak_of(options.peak_of, options.side)
        return
    every = jobs()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in every}
    for turn in range(-1, options.rounds):
        for name, (ours, whole) in every.items():
            taken = seconds(ours), seconds(whole)
            if turn >= 0:
                times[name].append(taken)
    copies = [copy for copy, _ in times["copy"]]
    rows = []
    for name, of_turns in times.items():
        ratios = sorted(whole / ours for ours, whole in of_turns)
        beside = statistics.median(ours / copy for (ours, _), copy in zip(of_turns, copies, strict=True))
        rows.append(
            (
                name,
                f"{1000 * statistics.median(ours for ours, _ in of_turns):.0f}",
                f"{1000 * statistics.median(whole for _, whole in of_turns):.0f}",
                f"{statistics.median(ratios):.1f} ({ratios[0]:.1f}–{ratios[-1]:.1f})",
                f"{beside:.1f}",
                f"{peak(name, 0):.2f}",
                f"{peak(name, 1):.2f}",
            )
        )
    headings = (
        "what",
        "ours, ms",
        "whole arrays, ms",
        "whole / ours",
        "copies",
        "memory, ours",
        "whole arrays",
    )
    caption = (
        f"{SAMPLES:,} × {CLASSES:,} in float32 (200 MB), {options.rounds} turns: medians, and the range of "
        "the ratio. Copies: our time by that of one copy into new memory. Memory: peak above the inputs, in "
        "multiples of their size. Ours also refuse rows that are no distributions."
    )
    text = f"""# Time and memory of the metrics

{date.today()}, {platform.machine()} CPU, {num_threads()} threads, Python {platform.python_version()},
NumPy {np.__version__}. Command: `python -m benchmarks.metrics_speed`.

{markdown(Table(headings, tuple(rows), caption))}
"""
    print(text)
    RESULTS.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
