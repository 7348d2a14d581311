"""Training with the losses' fast path and with their definitions: the same seeds, side by side.

Run from the repository root. It writes `benchmarks/results/training_speed.md` and `.svg`.

    python -m benchmarks.training_speed
"""

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from unittest.mock import patch

import matplotlib.pyplot as plt
import torch

from priorshift import kernels, metrics, recipes
from priorshift.recipes.methods import with_method
from priorshift.report import Table, markdown
from priorshift.training import predict, train

RESULTS = Path(__file__).parent / "results"
METHODS = {"LADE": "lade", "Balanced Softmax": "balanced-softmax"}
PATHS = ("definition", "fast")


@dataclass(frozen=True)
class Outcome:
    """What a run came to: losses and seconds of its epochs, and balanced accuracy on the test set."""

    losses: list[float]
    seconds: float
    accuracy: float


@contextmanager
def only(path: str) -> Iterator[None]:
    """Evaluate the definitions, or what a loss would choose."""
    if path == "fast":
        yield
        return
    with patch.object(kernels, "support", return_value=False):
        yield


def outcome(method: str, seed: int, path: str) -> Outcome:
    """Train on the digits on one thread."""
    config = replace(with_method(recipes.digits_softmax(), method), seed=seed, device="cpu")
    with tempfile.TemporaryDirectory() as folder, only(path):
        train(config, Path(folder))
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found = predict(Path(folder), "test", device="cpu")
    epochs = [json.loads(line) for line in lines]
    return Outcome(
        [epoch["loss"] for epoch in epochs],
        sum(epoch["train_seconds"] for epoch in epochs),
        100 * (1 - metrics.balanced_error(found.predicted, found.labels, found.num_classes)),
    )


def main() -> None:
    """Train all, print and write the page and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    figure, axes = plt.subplots(1, len(METHODS), figsize=(8, 3), layout="constrained")
    rows = []
    for ax, (name, method) in zip(axes, METHODS.items(), strict=True):
        runs = {path: [] for path in PATHS}
        for seed in range(seeds):
            for path in PATHS:
                runs[path].append(outcome(method, seed, path))
        for path, style in zip(PATHS, ("-", ":"), strict=True):
            for seed, run in enumerate(runs[path]):
                label = path if seed == 0 else None
                ax.plot(range(1, len(run.losses) + 1), run.losses, style, lw=1, label=label, color=f"C{seed}")
        ax.set(title=name, xlabel="epoch", ylabel="training loss")
        ax.legend(frameon=False)
        pairs = list(zip(*runs.values(), strict=True))
        apart = max(abs(a - b) for slow, fast in pairs for a, b in zip(slow.losses, fast.losses, strict=True))
        differences = [fast.accuracy - slow.accuracy for slow, fast in pairs]
        ratio = statistics.median(fast.seconds / slow.seconds for slow, fast in pairs)
        cells = [
            f"{statistics.mean(r.accuracy for r in runs[p]):.2f} ± "
            f"{statistics.stdev(r.accuracy for r in runs[p]):.2f}"
            for p in PATHS
        ]
        spread = f"{statistics.mean(differences):+.2f} ± {statistics.stdev(differences):.2f}"
        rows.append((name, *cells, spread, f"{apart:.1e}", f"{ratio:.3f}"))
    figure.savefig(RESULTS / "training_speed.svg", metadata={"Date": None})
    headings = ("loss", *(f"balanced accuracy, {path}, %" for path in PATHS), "difference, points")
    headings += ("losses apart, at most", "time of an epoch, fast / definition")
    caption = (
        f"Digits, small CNN, {seeds} seeds, each run twice; mean ± sd; the ratio is the median over seeds."
    )
    page = f"""# Training by the fast path and by the definition

{date.today()}, {platform.machine()} CPU, one thread, Python {platform.python_version()},
torch {torch.__version__}. Command: `python -m benchmarks.training_speed --seeds {seeds}`.

{markdown(Table(headings, tuple(rows), caption))}

![Training losses](training_speed.svg)

Solid: the definition; dotted: the fast path, one colour a seed. The two add up in another
order, so runs of one seed part by rounding, which training magnifies.
"""
    print(page)
    (RESULTS / "training_speed.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
