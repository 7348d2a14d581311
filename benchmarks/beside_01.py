"""What reads scores, beside version 0.1, which used torch: time and peak memory in turns, a process each.

    git worktree add ../old 5e32ead
    python -m benchmarks.beside_01 --old ../old/src

Both versions run in this environment, which needs torch for the old one. Each case runs in a process of its
own, old and new in turns; the table has the minimum over turns, of the time and of the memory beyond what was
there before the calls. Writes benchmarks/results/beside_01.md.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "beside_01.md"
ESTIMATES = {"estimate_prior 20,000 × 100": (20_000, 100), "estimate_prior 50,000 × 1,000": (50_000, 1_000)}
SIZES = {"10,000 × 10": (10_000, 10), "50,000 × 100": (50_000, 100)}
OF_SCORES = (
    "adjust",
    "accuracy",
    "balanced_error",
    "expected_calibration_error",
    "classwise_calibration_error",
    "brier_score",
    "negative_log_likelihood",
    "bbse",
    "bbse_hard",
    "fit_scaling",
    "streaming",
    "evaluate",
)
CASES = [*ESTIMATES, *(f"{name} {size}" for size in SIZES for name in OF_SCORES)]


def call_of(case, old):
    """The call that a case times."""
    from priorshift import Predictions, Prior, adjust, metrics
    from priorshift.adjustment import fit_scaling
    from priorshift.estimation import bbse, estimate_prior
    from priorshift.evaluation import evaluate

    size = ESTIMATES.get(case) or next(size for name, size in SIZES.items() if case.endswith(name))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, size[1], size[0])
    logits = rng.normal(size=size)
    logits[np.arange(size[0]), labels] += 3
    carried = Prior(np.ones(size[1]))
    if case in ESTIMATES:
        return lambda: estimate_prior(logits, carried=carried)
    name = case.split()[0]
    probs = np.exp(logits)
    probs /= probs.sum(axis=1, keepdims=True)
    predicted = logits.argmax(axis=1)
    half = size[0] // 2
    target = Prior(np.arange(1, size[1] + 1))

    def given(array):  # what version 0.1 took everywhere
        if not old:
            return array
        import torch

        return torch.from_numpy(array)

    if name == "streaming":
        if old:
            from priorshift.estimation import StreamingPrior
        else:
            from priorshift.streams import StreamingPrior

        def follow():
            stream = StreamingPrior(carried)
            for first in range(0, min(size[0], 10_000), 256):
                stream.update(logits[first : first + 256])
            return stream.prior

        return follow
    if name == "evaluate":
        predictions = Predictions(logits=given(logits), labels=given(labels), carried=carried)
        return lambda: evaluate(predictions, target)
    y, p, hard = given(labels), given(probs), given(predicted)
    log_probs = given(np.log(probs))
    return {
        "adjust": lambda: adjust(logits, carried=carried, target=target),
        "accuracy": lambda: metrics.accuracy(hard, y),
        "balanced_error": lambda: metrics.balanced_error(hard, y, size[1]),
        "expected_calibration_error": lambda: metrics.expected_calibration_error(p, y),
        "classwise_calibration_error": lambda: metrics.classwise_calibration_error(p, y),
        "brier_score": lambda: metrics.brier_score(p, y),
        "negative_log_likelihood": lambda: metrics.negative_log_likelihood(log_probs, y),
        "bbse": lambda: bbse(logits[:half], labels[:half], logits[half:]),
        "bbse_hard": lambda: bbse(logits[:half], labels[:half], logits[half:], hard=True),
        "fit_scaling": lambda: fit_scaling(logits[:half], labels[:half], carried=carried),
    }[name]


def measure(case, old):
    """Seconds of the quickest call, and mebibytes of peak memory that the first one added."""
    call = call_of(case, old)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    call()
    seconds = [time.perf_counter() - started]
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    while len(seconds) < 3 or (sum(seconds) < 1 and len(seconds) < 200):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds), memory


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, help="the folder `src` of version 0.1")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.old is not None)))
        return
    new = Path(__file__).parents[1] / "src"
    rows = []
    for case in arguments.cases:
        found = {"old": [], "new": []}
        for _ in range(arguments.turns):
            for which, source in (("old", arguments.old), ("new", new)):
                command = [sys.executable, __file__, "--case", case]
                command += ["--old", str(source)] if which == "old" else []
                environment = {**os.environ, "PYTHONPATH": str(source.resolve())}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                found[which].append(json.loads(done.stdout.splitlines()[-1]))
        times = {which: min(seconds for seconds, _ in each) for which, each in found.items()}
        peaks = {which: min(memory for _, memory in each) for which, each in found.items()}
        rows.append(
            f"| {case} | {1000 * times['old']:,.1f} | {1000 * times['new']:,.1f} | "
            f"{times['new'] / times['old']:.2f} | {peaks['old']:,.0f} | {peaks['new']:,.0f} |"
        )
        print(rows[-1], flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "torch"))
    RESULTS.write_text(
        "# What reads scores, beside version 0.1\n\n"
        f"{date.today()}, {os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}, "
        f"{versions}. float64 scores; minimum over {arguments.turns} turns, a process each. Command: "
        "`python -m benchmarks.beside_01 --old ../old/src`.\n\n"
        "| case | 0.1, ms | 0.2, ms | ratio | 0.1, MiB | 0.2, MiB |\n"
        "| :--- | ---: | ---: | ---: | ---: | ---: |\n" + "\n".join(rows) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
