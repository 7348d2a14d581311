"""The losses against `F.cross_entropy`: forward and backward on a CPU, time and memory.

    python -m benchmarks.loss_speed

All are timed in turns in one process. A ratio is the median over the turns of one loss's time by that of
another in the same turn, so that what else the machine does falls on both. Memory is that of a process of
its own for each loss.
"""

import argparse
import json
import math
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from priorshift import Prior
from priorshift.kernels import _fused
from priorshift.losses import LADELoss, LogitAdjustedLoss
from priorshift.report import Table, markdown

RESULTS = Path(__file__).parent / "results" / "loss_speed.md"
BATCH = 256
TURNS = {100: 1000, 1_000: 400, 8_142: 40, 100_000: 7}
"""Number of classes → turns in a repeat."""
REPEATS = 3
TARGETS = {
    ("LADE", "cross-entropy"): {100: "≤ 4", 1_000: "≤ 1.8", 8_142: "≤ 1.4", 100_000: "≤ 1.1"},
    ("LADE, released variant", "cross-entropy"): {
        100: "≤ 4",
        1_000: "≤ 1.8",
        8_142: "≤ 1.4",
        100_000: "≤ 1.1",
    },
    ("LADE, without Numba", "cross-entropy"): {100: "≤ 4", 1_000: "≤ 1.8", 8_142: "≤ 1.4", 100_000: "≤ 1.1"},
    ("logit-adjusted", "cross-entropy"): {8_142: "≤ 1.1", 100_000: "≤ 1.1"},
    ("released formulation", "LADE, released variant"): {
        100: "≥ 2",
        1_000: "≥ 3",
        8_142: "≥ 4",
        100_000: "≥ 5",
    },
}

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def released_formulation(prior: Prior, alpha: float, lam: float) -> Loss:
    """LADE as the formula reads: a class-by-batch mask picks the scores of each class's own samples."""
    log_prior, classes = torch.tensor(prior.log_probs).float(), torch.arange(prior.num_classes)[:, None]

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        own = labels == classes
        own_mean = (logits.T * own).sum(dim=1) / (own.sum(dim=1) + 1e-8)
        weighted = (logits - log_prior - math.log(len(classes))).T
        log_mean = torch.logsumexp(weighted, dim=1) - math.log(len(labels))
        regulariser = (log_prior.exp() * (-own_mean + log_mean + lam * log_mean**2)).sum()
        return F.cross_entropy(logits + log_prior, labels) + alpha * regulariser

    return loss


def without_numba(loss: Loss) -> Loss:
    """The loss as it is computed where Numba is not installed."""

    def plain(logits: Tensor, labels: Tensor) -> Tensor:
        found, _fused._numba = _fused._numba, lambda: None
        try:
            return loss(logits, labels)
        finally:
            _fused._numba = found

    return plain


def losses(num_classes: int) -> dict[str, Loss]:
    """What is compared, for a long-tailed prior of imbalance 100."""
    prior = Prior(100 ** -torch.linspace(0, 1, num_classes))
    return {
        "cross-entropy": F.cross_entropy,
        "logit-adjusted": LogitAdjustedLoss(prior),
        "LADE": LADELoss(prior, alpha=0.1, lam=0.1),
        "LADE, released variant": LADELoss(prior, alpha=0.1, lam=0.1, variant="released"),
        "LADE, without Numba": without_numba(LADELoss(prior, alpha=0.1, lam=0.1)),
        "released formulation": released_formulation(prior, 0.1, 0.1),
    }


def made_up(num_classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A batch of scores and labels that follow the prior."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(BATCH, num_classes, generator=generator)
    masses = 100 ** -torch.linspace(0, 1, num_classes)
    labels = torch.multinomial(masses, BATCH, replacement=True, generator=generator)
    return logits.to(dtype).requires_grad_(), labels


def seconds(job: Callable[[], object]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def step(loss: Loss, logits: Tensor, labels: Tensor) -> None:
    """What a training step does with a loss."""
    loss(logits, labels).backward()
    logits.grad = None


def timed(num_classes: int, dtype: torch.dtype, turns: int) -> dict[str, list[float]]:
    """Seconds of each loss and of a copy of the logits, turn by turn, the first left out."""
    logits, labels = made_up(num_classes, dtype)
    plain, other = logits.detach(), torch.empty_like(logits.detach())
    jobs: dict[str, Callable[[], object]] = {
        name: (lambda loss=loss: step(loss, logits, labels)) for name, loss in losses(num_classes).items()
    }
    jobs |= {"copy": lambda: other.copy_(plain), "copy into new memory": plain.clone}
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(-1, turns):
        # In any order, since a job leaves caches, threads and memory to the next.
        for name, job in random.Random(turn).sample(list(jobs.items()), len(jobs)):
            taken = seconds(job)
            if turn >= 0:
                found[name].append(taken)
    return found


def peak_of(name: str, num_classes: int, dtype: torch.dtype) -> None:
    """Print the bytes by which a step of a loss raises this process's peak."""
    logits, labels = made_up(num_classes, dtype)
    loss = losses(num_classes)[name]
    few = made_up(10, dtype)
    step(losses(10)[name], *few)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    step(loss, logits, labels)
    print(json.dumps(status("VmHWM") - before))


def status(key: str) -> int:
    """A number of bytes that Linux knows of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def memory(num_classes: int, dtype: torch.dtype) -> dict[str, float]:
    """The peak of each loss above the process that holds the logits, as a multiple of their size."""
    size = BATCH * num_classes * dtype.itemsize
    found = {}
    for name in losses(10):
        command = [sys.executable, "-m", "benchmarks.loss_speed", "--peak-of", name]
        command += ["--classes", str(num_classes), "--dtype", str(dtype).removeprefix("torch.")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout) / size
    return found


def spread(values: list[float], digits: int) -> str:
    """The median of the repeats, and their range."""
    low, middle, high = (f"{f(values):.{digits}f}" for f in (min, statistics.median, max))
    return f"{middle} ({low}–{high})"


def report(dtype: torch.dtype, threads: int, scale: float) -> str:
    """Measure, and tell it in Markdown."""
    times, ratios, limits, peaks = [], [], [], []
    for num_classes, turns in TURNS.items():
        size = f"{BATCH} × {num_classes:,}"
        repeats = [timed(num_classes, dtype, max(3, round(scale * turns))) for _ in range(REPEATS)]
        medians = {name: [1000 * statistics.median(r[name]) for r in repeats] for name in repeats[0]}
        times.append((size, *(spread(medians[name], 3) for name in losses(10))))
        for (name, other), targets in TARGETS.items():
            if num_classes not in targets:
                continue
            of_repeat = [
                statistics.median(a / b for a, b in zip(r[name], r[other], strict=True)) for r in repeats
            ]
            ratios.append((size, f"{name} / {other}", spread(of_repeat, 2), targets[num_classes]))
        copy, lade = statistics.median(medians["copy"]), statistics.median(medians["LADE"])
        moved = 3 * BATCH * num_classes * dtype.itemsize
        limits.append(
            (
                size,
                f"{moved / 1e6:.1f}",
                f"{moved / 1.5 / copy / 1e6:.1f}",
                f"{1.5 * copy:.3f}",
                f"{statistics.median(medians['copy into new memory']) + copy / 2:.3f}",
                f"{lade:.3f}",
                f"{1.5 * copy / lade:.0%}",
            )
        )
        if num_classes > 1000:
            used = memory(num_classes, dtype)
            extra = used["LADE"] - used["cross-entropy"]
            peaks.append((size, *(f"{value:.2f}" for value in used.values()), f"{extra:+.2f}"))
    processor = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    tables = (
        Table(("N × C", *losses(10)), tuple(times), f"Forward and backward, ms: {SPREAD}"),
        Table(
            ("N × C", "ratio", "measured", "target"), tuple(ratios), f"Medians of ratios in a turn: {SPREAD}"
        ),
        Table(
            (
                "N × C",
                "MB at least",
                "copy, GB/s",
                "time of that, ms",
                "in new memory, ms",
                "LADE, ms",
                "limit / LADE",
            ),
            tuple(limits),
            LIMIT,
        ),
        Table(("N × C", *losses(10), "LADE less cross-entropy"), tuple(peaks), MEMORY),
    )
    return "\n".join(
        [
            "# The losses beside cross-entropy: time and memory on a CPU",
            "",
            f"{date.today()}, {processor}, {threads} threads, {str(dtype).removeprefix('torch.')}, "
            f"torch {torch.__version__}, Numba {version('numba')}, Python {platform.python_version()}.",
            "Command: `python -m benchmarks.loss_speed`"
            + ("." if dtype == torch.float32 else f" with `--dtype {str(dtype).removeprefix('torch.')}`."),
            "",
            *(text for table in tables for text in (markdown(table), "")),
        ]
    )


SPREAD = f"median of {REPEATS} repeats, in brackets their range."
LIMIT = (
    "Distance to the limit. No loss with column statistics gets by with less than reading the logits twice "
    "and writing their gradient once. The time of that is taken from a copy of the logits between memory in "
    "use (or between caches, where they fit), and, since a gradient is new memory, from a copy into new "
    "memory, which from 32 MiB on the system hands out page by page. Up to a thousand classes or so it is "
    "not the bytes that count but the calls: of Python, of autograd and, without Numba, of about 85 "
    "operations at a microsecond or two each."
)
MEMORY = "Peak above the process that holds the logits, forward and backward, in multiples of their size."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--scale", type=float, default=1.0, help="fewer or more turns")
    parser.add_argument("--peak-of", choices=tuple(losses(10)), help=argparse.SUPPRESS)
    parser.add_argument("--classes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    if options.peak_of:
        peak_of(options.peak_of, options.classes, dtype)
        return
    text = report(dtype, options.threads, options.scale)
    print(text)
    if dtype == torch.float32:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
