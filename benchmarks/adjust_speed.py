"""What moving logits to another prior costs, beside one copy of the array.

Run from the repository root. It writes `benchmarks/results/adjust_speed.md`.

    python -m benchmarks.adjust_speed
"""

import argparse
import platform
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch

from benchmarks.loss_speed import seconds
from priorshift import Prior, adjust
from priorshift.report import Table, markdown

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure both kinds of arrays, each call beside a copy, print and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    array = np.random.default_rng(0).normal(size=(50_000, 1_000)).astype(np.float32)
    tensor = torch.from_numpy(array)
    carried = Prior(np.logspace(0, -2, 1_000))
    target = Prior.uniform(1_000)
    rows = []
    kinds: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "torch": (lambda: adjust(tensor, carried=carried, target=target), tensor.clone),
        "NumPy": (lambda: adjust(array, carried=carried, target=target), array.copy),
    }
    for kind, (moved, copied) in kinds.items():
        moved(), copied()
        times = [(seconds(moved), seconds(copied)) for _ in range(rounds)]
        ratios = sorted(move / copy for move, copy in times)
        rows.append(
            (
                kind,
                f"{1000 * statistics.median(move for move, _ in times):.0f}",
                f"{1000 * statistics.median(copy for _, copy in times):.0f}",
                f"{statistics.median(ratios):.2f}",
                f"{ratios[rounds // 4]:.2f} to {ratios[3 * rounds // 4]:.2f}",
            )
        )
    headings = ("kind", "`adjust`, ms", "copy, ms", "ratio, median", "middle half")
    table = markdown(
        Table(headings, tuple(rows), f"50,000 × 1,000 in float32 (200 MB), {rounds} rounds, interleaved.")
    )
    text = f"""# Moving logits to another prior

{date.today()}, {platform.machine()} CPU, {torch.get_num_threads()} threads,
Python {platform.python_version()}, NumPy {np.__version__}, torch {torch.__version__}.
Target: at most 1.2 copies. Command: `python -m benchmarks.adjust_speed`.

{table}
"""
    print(text)
    (RESULTS / "adjust_speed.md").write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
