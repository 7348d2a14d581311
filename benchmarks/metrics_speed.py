"""What metrics cost, beside a copy of the probabilities and the same formulas over whole arrays.

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

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.loss_speed import seconds, status
from priorshift import metrics
from priorshift.estimation._confusion import confusion_of
from priorshift.report import Table, markdown

RESULTS = Path(__file__).parent / "results" / "metrics_speed.md"
SAMPLES, CLASSES, BINS = 50_000, 1_000, 20


def made_up() -> tuple[Tensor, Tensor]:
    """Logits that lean to the labels, and these."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    logits = torch.randn(SAMPLES, CLASSES, generator=generator)
    logits[torch.arange(SAMPLES), labels] += 4
    return logits, labels


def brier_score(probs: Tensor, labels: Tensor) -> float:
    return (probs.double() - F.one_hot(labels, CLASSES)).square().sum(dim=1).mean().item()


def negative_log_likelihood(log_probs: Tensor, labels: Tensor) -> float:
    return F.nll_loss(log_probs.double(), labels).item()


def expected_calibration_error(probs: Tensor, labels: Tensor) -> float:
    confidence, predicted = probs.double().max(dim=1)
    excess = (predicted == labels).double() - confidence
    bins = torch.bucketize(confidence, torch.arange(1, BINS) / BINS)
    return torch.bincount(bins, excess, minlength=BINS).abs().sum().item() / SAMPLES


def classwise_calibration_error(probs: Tensor, labels: Tensor) -> float:
    bins = torch.bucketize(probs.double(), torch.arange(1, BINS) / BINS)
    excess = F.one_hot(labels, CLASSES) - probs.double()
    cells = (bins + BINS * torch.arange(CLASSES)).flatten()
    return torch.bincount(cells, excess.flatten()).abs().sum().item() / (SAMPLES * CLASSES)


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    probs = logits.double().softmax(dim=1)
    sums = torch.zeros(CLASSES, CLASSES, dtype=torch.float64).index_add_(0, labels, probs)
    return sums / torch.bincount(labels)[:, None]


def jobs() -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Name → ours, and the formula over whole arrays."""
    logits, labels = made_up()
    probs, log_probs = logits.softmax(dim=1), logits.log_softmax(dim=1)
    return {
        "copy": (probs.clone, probs.clone),
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
            lambda: probs.double().mean(dim=0),
        ),
        "soft confusion of BBSE": (
            lambda: confusion_of(logits, labels, None, hard=False),
            lambda: confusion(logits, labels),
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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
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
    text = f"""# What metrics cost

{date.today()}, {platform.machine()} CPU, {options.threads} threads, Python {platform.python_version()},
torch {torch.__version__}. Command: `python -m benchmarks.metrics_speed`.

{markdown(Table(headings, tuple(rows), caption))}
"""
    print(text)
    RESULTS.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
