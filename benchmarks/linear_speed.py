"""The time and memory of a linear classifier with its loss: fused in chunks of classes, and by its logits.

    python -m benchmarks.linear_speed

All are timed in turns in one process, forward and backward, and compared by the median of the ratios of
neighbouring runs; each one's peak memory is that of a process of its own. Where there is a GPU it is measured
too. Writes benchmarks/results/linear_speed.md.
"""

import argparse
import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.loss_speed import status
from priorshift import Prior
from priorshift.losses import lade_loss, linear_lade, linear_logit_adjusted

RESULTS = Path(__file__).parent / "results" / "linear_speed.md"
Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "logits, F.cross_entropy": lambda x, w, y, log_prior: F.cross_entropy(x @ w.T, y),
    "logits, lade_loss": lambda x, w, y, log_prior: lade_loss(x @ w.T, y, log_prior, alpha=0.1, lam=0.1),
    "chunks, cross-entropy": lambda x, w, y, log_prior: linear_logit_adjusted(x, w, y, log_prior, tau=0.0),
    "chunks, linear_lade": lambda x, w, y, log_prior: linear_lade(x, w, y, log_prior, alpha=0.1, lam=0.1),
}
FUSED = "chunks, linear_lade"


@dataclass(frozen=True)
class Size:
    """Rows × classes × features in a dtype, and whether the logits fit into memory."""

    rows: int
    classes: int
    features: int
    dtype: torch.dtype
    device: str
    logits_fit: bool = True

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.rows:,} × {self.classes:,} × {self.features}, {dtype}, {self.device}"

    def names(self) -> list[str]:
        """The losses that are measured."""
        return [name for name in LOSSES if self.logits_fit or name.startswith("chunks")]

    def problem(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, weight, labels of a long tail and its log-prior."""
        generator = torch.Generator(self.device).manual_seed(0)
        options = {"device": self.device, "dtype": self.dtype, "generator": generator}
        features = torch.randn(self.rows, self.features, **options).requires_grad_()
        weight = torch.randn(self.classes, self.features, **options).mul_(0.1).requires_grad_()
        prior = Prior(100 ** -torch.linspace(0, 1, self.classes, dtype=torch.float64))
        shares = torch.tensor(prior.probs).cumsum(0).to(torch.float32)
        labels = torch.searchsorted(shares, torch.rand(self.rows)).clamp(max=self.classes - 1)
        return features, weight, labels.to(self.device), torch.tensor(prior.log_probs).float().to(self.device)


CPU = [
    Size(512, 50_000, 128, torch.float32, "cpu"),
    Size(256, 200_000, 64, torch.float32, "cpu"),
]
CUDA = [
    Size(8192, 32_768, 512, torch.bfloat16, "cuda"),
    Size(8192, 1_000_000, 512, torch.bfloat16, "cuda", logits_fit=False),
]


def step(loss: Loss, problem: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    for leaf in problem[:2]:
        leaf.grad = None
    gc.collect()
    cuda = problem[0].is_cuda
    if cuda:
        torch.cuda.synchronize()
    # Other processes disturb the processor time of a single thread less than the clock on the wall.
    clock = time.perf_counter if cuda or torch.get_num_threads() > 1 else time.process_time
    started = clock()
    loss(*problem).backward()
    if cuda:
        torch.cuda.synchronize()
    return clock() - started


def peak_memory(size: Size, name: str) -> float:
    """MiB of a pass at its peak, less those of the inputs and their gradients; of Linux or CUDA."""
    tiny = Size(2, 9, size.features, size.dtype, size.device)
    step(LOSSES[name], tiny.problem())
    problem = size.problem()
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in problem[:2])
    if size.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(LOSSES[name], problem)
        return (torch.cuda.max_memory_allocated() - before - gradients) / 2**20
    before = status("VmRSS")
    step(LOSSES[name], problem)
    return (status("VmHWM") - before - gradients) / 2**20


def measure(size: Size, rounds: int) -> list[tuple[str, ...]]:
    """Rows of the table."""
    problem = size.problem()
    names = size.names()
    for name in names:
        step(LOSSES[name], problem)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            seconds[name].append(step(LOSSES[name], problem))
    rows = []
    for name in names:
        command = [sys.executable, "-m", "benchmarks.linear_speed", "--memory-of", str(size), name]
        command += ["--threads", str(torch.get_num_threads())]
        memory = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        ratios = sorted(ours / other for ours, other in zip(seconds[FUSED], seconds[name], strict=True))
        rows.append(
            (
                str(size),
                name,
                f"{statistics.median(seconds[name]):.3f}",
                f"{min(seconds[name]):.3f} – {max(seconds[name]):.3f}",
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} – {ratios[-1]:.2f})",
                f"{memory:,.0f}",
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-of", nargs=2, metavar=("SIZE", "LOSS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = CPU + (CUDA if torch.cuda.is_available() else [])
    if options.memory_of:
        size = next(size for size in sizes if str(size) == options.memory_of[0])
        print(peak_memory(size, options.memory_of[1]))
        return

    from priorshift.report import Table, markdown

    rows = [row for size in sizes for row in measure(size, options.rounds)]
    headers = (
        "rows × classes × features",
        "loss",
        "s, median",
        "s, least – most",
        "linear_lade / this, median (least – most)",
        "memory, MiB",
    )
    clock = (
        "on the CPU, processor time of one thread"
        if options.threads == 1
        else f"{options.threads} CPU threads, wall time"
    )
    caption = (
        f"Forward and backward; {options.rounds} rounds, each loss in turn; {clock}. "
        "The ratio is that of neighbouring runs. Memory is the peak of a pass less inputs and gradients. "
        "Chunked cross-entropy is `linear_logit_adjusted` with tau=0."
    )
    table = markdown(Table(headers, tuple(rows), caption))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU at hand"
    text = "\n".join(
        [
            "# A linear classifier and its loss, in chunks of classes",
            "",
            f"{date.today()}, {platform.machine()} CPU, {gpu}; Python {platform.python_version()}, "
            f"torch {torch.__version__}.",
            f"Command: `python -m benchmarks.linear_speed --threads {options.threads} "
            f"--rounds {options.rounds}`.",
            "",
            table,
        ]
    )
    print(text)
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
