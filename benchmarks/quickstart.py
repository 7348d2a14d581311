"""The result table of the README: `priorshift quickstart`, timed, as Markdown.

    python -m benchmarks.quickstart

Writes benchmarks/results/quickstart.md.
"""

import os
import platform
import subprocess
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from priorshift.evaluation import compare
from priorshift.predictions import Predictions
from priorshift.report import Table, comparison_table, markdown


def transposed(table: Table) -> Table:
    """Mixes as rows, which a narrow page can show."""
    columns = list(zip(table.headers, *table.rows, strict=True))
    best = frozenset((column - 1, row + 1) for row, column in table.best)
    return Table(("Test mix", *columns[0][1:]), tuple(columns[1:]), table.caption, best)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(["priorshift", "quickstart", "--output", folder], check=True)
        seconds = time.perf_counter() - started
        files = sorted(Path(folder).glob("*/predictions-test.safetensors"))
        runs = [Predictions.load(file) for file in files]
    order = ("Softmax", "Balanced Softmax", "LADE")
    runs.sort(key=lambda run: order.index(run.method))
    text = "\n".join(
        [
            "# Quickstart",
            "",
            f"{date.today()}, {os.cpu_count()} cores ({platform.machine()}), no GPU, Python "
            f"{platform.python_version()}, torch {torch.__version__}. Command: `priorshift quickstart` "
            f"({seconds:.0f} s of wall time). Seeds 0 to 2; data split 0, fingerprint of the test images "
            f"{runs[0].fingerprint}, of the training images {runs[0].facts['train_fingerprint']}.",
            "",
            markdown(transposed(comparison_table(compare(runs)))),
        ]
    )
    print(text)
    Path("benchmarks/results/quickstart.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
