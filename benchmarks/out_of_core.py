"""Memory and time of one pass over files of logits, as the files grow.

    python -m benchmarks.out_of_core

Writes four parts to a temporary folder, as predictions and as Parquet, links them under more names, and
estimates the class mix of two to 32 in a fresh process each, with the default capacity. Reading alone goes
through the same batches and adds them up. Writes benchmarks/results/out_of_core.md.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "out_of_core.md"
SHAPES = ((250_000, 100), (1_000_000, 10))
PARTS = (2, 8, 32)
WRITTEN = 4
ENDINGS = (".safetensors", ".parquet")


def write_part(number: int, rows: int, classes: int, folder: Path) -> None:
    """Logits of a scorer on a class prior that halves from the first class to the last."""
    import numpy as np
    import pyarrow
    from pyarrow import parquet

    from priorshift import Predictions, Prior

    rng = np.random.default_rng(number)
    mix = Prior(2 ** -np.linspace(0, 1, classes))
    labels = rng.choice(classes, rows, p=mix.probs)
    logits = rng.standard_normal((rows, classes), dtype=np.float32)
    logits[np.arange(rows), labels] += 2.5
    Predictions(logits=logits, carried=Prior.uniform(classes)).save(folder / f"{number}.safetensors")
    table = pyarrow.table({f"logits_{label}": logits[:, label] for label in range(classes)})
    parquet.write_table(table, folder / f"{number}.parquet", row_group_size=2**17)


def measure(paths: list[Path], classes: int) -> dict[str, float]:
    """Seconds of the processor and peak resident MiB of this process, step by step."""
    import resource

    from priorshift.streams import estimate_files, read_batches

    next(read_batches(paths[0]))  # imports pyarrow where it is needed

    def timed(step: Callable[[], object]) -> float:
        started = time.process_time()
        step()
        return time.process_time() - started

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    states = []
    found = {"imports": peak()}
    found["read"] = timed(lambda: sum(batch.sum() for path in paths for batch in read_batches(path)))
    found["pass"] = timed(lambda: states.append(estimate_files(paths, carried=[1.0] * classes)))
    found["pass peak"] = peak()
    found["estimate"] = timed(lambda: states[0].estimate())
    found["peak"] = peak()
    return found


def main() -> None:
    rows_of_table = []
    for rows, classes in SHAPES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for number in range(WRITTEN):
                write_part(number, rows, classes, folder)
            for number in range(WRITTEN, max(PARTS)):
                for ending in ENDINGS:
                    os.link(folder / f"{number % WRITTEN}{ending}", folder / f"{number}{ending}")
            for ending in ENDINGS:
                for parts in PARTS:
                    paths = [folder / f"{number}{ending}" for number in range(parts)]
                    # By a shell: the peak of a child counts from what its parent held.
                    command = [sys.executable, "-m", "benchmarks.out_of_core", str(classes), *map(str, paths)]
                    done = subprocess.run(
                        ["/bin/sh", "-c", '"$@" || exit 1', "sh", *command],
                        capture_output=True,
                        text=True,
                        check=True,
                        env=os.environ | {"OMP_NUM_THREADS": "1"},
                    )
                    found = json.loads(done.stdout)
                    numbers = parts * rows * classes
                    rows_of_table.append(
                        f"| {ending[1:]} | {parts * rows:,} × {classes} | {numbers * 4 / 2**20:,.0f} | "
                        f"{found['read']:.2f} | {found['pass']:.2f} | {found['pass'] / found['read']:.0f} | "
                        f"{numbers / found['pass'] / 1e6:.0f} | {found['estimate']:.1f} | "
                        f"{found['pass peak'] - found['imports']:.0f} | "
                        f"{found['peak'] - found['imports']:.0f} |"
                    )
                    print(rows_of_table[-1], flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "safetensors", "pyarrow"))
    RESULTS.write_text(
        "# One pass over files larger than memory: time and memory\n\n"
        f"{date.today()}, {platform.machine()} CPU, {os.cpu_count()} cores, one thread, "
        f"Python {platform.python_version()}, {versions}. Command: `python -m benchmarks.out_of_core`.\n\n"
        "| files | samples × classes | logits, MiB | read, s | pass, s | pass / read | numbers a second of "
        "the pass, millions | estimate, s | peak of the pass, MiB | peak with the estimate, MiB |\n"
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        + "\n".join(rows_of_table)
        + "\n\nSeconds are the processor's, and those of the pass include the reading. The file system's "
        "cache was warm, so that reading predictions is adding up memory; a disk or a network takes longer. "
        "Peaks are resident memory beyond the imports, pages of mapped files included. The capacity is the "
        "default, 2²⁴ numbers (64 MiB): 167,772 samples of 100 classes, 1,677,721 of 10.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure([Path(word) for word in sys.argv[2:]], int(sys.argv[1]))))
    else:
        main()
