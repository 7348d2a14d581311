"""How long the likeliest target prior takes, beside QuaPy's EMQ at the same tolerance.

    python -m benchmarks.estimation_speed --quapy PYTHON

PYTHON is an interpreter that can import quapy, by default the one that runs this. Simulates calibrated
predictions of a scorer trained on a long tail, for a target mix from a Dirichlet distribution. Each side is a
process of its own that keeps its input in memory; one command goes to the one and then to the other, round by
round. Writes benchmarks/results/estimation_speed.md.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "estimation_speed.md"
ROUNDS = 3
EPSILONS = (1e-4, 1e-6, 1e-8, 1e-10)
DEFAULT = 1e-8
LONG = 500
NOTE = """\
EMQ stops when one EM step moves the class shares by less than epsilon on average (1e-4 by default). Ours
stops at a certified bound on the likelihood that is missing; each row has the largest tolerance of ours, in
quarter powers of ten, after which an EM step moves the shares by less than that epsilon, and the last row of
each size is our default. EMQ is given posteriors in float64, ours log-ratios in float32.

With many classes the product of the source prior underflows to zero, and EMQ then adds its epsilon to every
share of it: at 1,000 classes and 1e-4 it solves another problem, hence the distance.
"""


@dataclass(frozen=True)
class Problem:
    """Gaussian classes around random means, seen through their exact log-densities.

    Args:
        num_samples: N.
        num_classes: C.
        spread: Standard deviation of the means in each of 64 dimensions.
    """

    num_samples: int
    num_classes: int
    spread: float

    def __str__(self) -> str:
        return f"{self.num_samples:,} × {self.num_classes:,}"

    def simulate(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits in float32 that carry a long-tailed source prior (imbalance 100), the prior, the labels."""
        rng = np.random.default_rng(0)
        means = rng.normal(scale=self.spread, size=(self.num_classes, 64))
        source = 100 ** -np.linspace(0, 1, self.num_classes)
        source /= source.sum()
        target = rng.dirichlet(np.ones(self.num_classes))
        labels = rng.choice(self.num_classes, size=self.num_samples, p=target)
        points = means[labels] + rng.normal(size=(self.num_samples, 64))
        logits = points @ means.T - (means**2).sum(axis=1) / 2 + np.log(source)
        return logits.astype(np.float32), source, labels


PROBLEMS = (Problem(10_000, 10, 0.3), Problem(10_000, 100, 0.45), Problem(50_000, 1000, 0.53))


def work(side: str, file: Path) -> None:
    """Answer each tolerance on standard input by the seconds, the estimate and the peak memory, in JSON."""
    threads = int(os.environ["OMP_NUM_THREADS"])
    clock = time.process_time if threads == 1 else time.perf_counter
    data = np.load(file)
    logits, source = data["logits"], data["source"]
    if side == "quapy":
        import quapy
        from quapy.method.aggregative import EMQ

        EMQ.MAX_ITER = 100_000
        version = quapy.__version__
        probs = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        probs /= probs.sum(axis=1, keepdims=True)
        del logits

        def solve(tolerance: float) -> dict[str, Any]:
            return {"probs": EMQ.EM(source, probs, tolerance)[0].tolist()}
    else:
        from priorshift import Prior
        from priorshift.estimation import Likelihood

        version = np.__version__
        carried = Prior(source)
        log_ratios = logits - carried.log_probs.astype(np.float32)
        del logits

        def solve(tolerance: float) -> dict[str, Any]:
            found = Likelihood(log_ratios).maximize(start=carried, tolerance=tolerance)
            return {"probs": found.prior.probs.tolist(), "shortfall": found.shortfall, "steps": found.steps}

    before = resident()
    print(json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        started = clock()
        answer = solve(float(line))
        seconds = clock() - started
        print(json.dumps({"seconds": seconds, "memory": peak() - before, **answer}), flush=True)


def resident() -> float:
    """Resident MiB of this process now; of Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak() -> float:
    """Peak resident MiB of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Worker:
    """A process that solves one problem again and again."""

    def __init__(self, python: str, side: str, file: Path, threads: int) -> None:
        limits = {
            name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.estimation_speed", "--side", side, "--file", str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | limits,
        )
        self.version = self._answer()["version"]

    def solve(self, tolerance: float) -> dict[str, Any]:
        """Have the problem solved to a tolerance, and wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{tolerance}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


class PlainEM:
    """Expectation maximization as it is written, in float64: the reference of the others."""

    def __init__(self, logits: np.ndarray, source: np.ndarray) -> None:
        self._ratios = logits - np.log(source)
        self._ratios -= self._ratios.max(axis=1, keepdims=True)
        np.exp(self._ratios, out=self._ratios)
        self._source = source

    def likelihood(self, probs: Any) -> float:
        """The mean log-likelihood, up to a constant."""
        return float(np.log(self._ratios @ np.asarray(probs)).mean())

    def step(self, probs: Any) -> np.ndarray:
        """The mean posterior."""
        probs = np.asarray(probs)
        return probs * ((1 / (self._ratios @ probs)) @ self._ratios) / len(self._ratios)

    def change(self, probs: Any) -> float:
        """What EMQ compares with its tolerance: the mean absolute change by one more step."""
        return float(np.abs(self.step(probs) - np.asarray(probs)).mean())

    def run(self, steps: int) -> float:
        """The likelihood after so many steps."""
        probs = self._source
        for _ in range(steps):
            probs = self.step(probs)
        return self.likelihood(probs)


def matching(worker: Worker, reference: PlainEM, epsilon: float) -> float:
    """The largest tolerance of ours, in quarter powers of ten, that keeps EM from moving by `epsilon`."""
    for exponent in range(2, 33):
        tolerance = 10 ** (-exponent / 4)
        if reference.change(worker.solve(tolerance)["probs"]) < epsilon:
            return tolerance
    return DEFAULT


def compare(problem: Problem, python: str, threads: int) -> tuple[list[tuple[str, ...]], str, str]:
    """Rows of the table, the accuracy of the scorer, and QuaPy's version."""
    logits, source, labels = problem.simulate()
    accuracy = f"{problem}: {100 * (logits.argmax(axis=1) == labels).mean():.0f}%"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predictions.npz"
        np.savez(file, logits=logits, source=source)
        ours = Worker(sys.executable, "ours", file, threads)
        theirs = Worker(python, "quapy", file, threads)
        reference = PlainEM(logits, source)
        highest = reference.run(LONG)
        matched = {epsilon: matching(ours, reference, epsilon) for epsilon in EPSILONS}
        cases = [("QuaPy", epsilon) for epsilon in EPSILONS]
        cases += [("ours", tolerance) for tolerance in dict.fromkeys([*matched.values(), DEFAULT])]
        answers = {case: [] for case in cases}
        for _ in range(ROUNDS):
            for case in cases:
                answers[case].append((theirs if case[0] == "QuaPy" else ours).solve(case[1]))
        ours.close()
        theirs.close()
    seconds = {case: statistics.median(answer["seconds"] for answer in answers[case]) for case in cases}
    memory = {
        side: max(a["memory"] for c in cases if c[0] == side for a in answers[c])
        for side in ("QuaPy", "ours")
    }

    def missing(case: tuple[str, float]) -> str:
        return f"{highest - reference.likelihood(answers[case][0]['probs']):.1e}"

    rows = []
    for epsilon in (*EPSILONS, None):
        mine = ("ours", DEFAULT if epsilon is None else matched[epsilon])
        its = None if epsilon is None else ("QuaPy", epsilon)
        rows.append(
            (
                str(problem),
                "–" if epsilon is None else f"{epsilon:.0e}",
                "–" if its is None else f"{seconds[its]:.3f}",
                "–" if its is None else missing(its),
                f"{mine[1]:.1e}" + (" (default)" if epsilon is None else ""),
                f"{seconds[mine]:.3f}",
                missing(mine),
                f"{answers[mine][0]['shortfall']:.1e}",
                str(answers[mine][0]["steps"]),
                "–" if its is None else f"{seconds[its] / seconds[mine]:.1f}",
                "–" if its is None else f"{seconds[its] / seconds['ours', DEFAULT]:.1f}",
                f"{memory['QuaPy']:.0f} / {memory['ours']:.0f}",
            )
        )
    return rows, accuracy, theirs.version


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quapy", default=sys.executable, metavar="PYTHON")
    parser.add_argument(
        "--threads", type=int, default=1, help="more than one: timed by the clock on the wall"
    )
    parser.add_argument("--side", choices=("ours", "quapy"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options.side, options.file)
        return

    from priorshift.report import Table, markdown

    rows, accuracies = [], []
    for problem in PROBLEMS:
        found, accuracy, version = compare(problem, options.quapy, options.threads)
        rows += found
        accuracies.append(accuracy)
    headers = (
        "N × C",
        "EMQ's epsilon",
        "EMQ, s",
        "EMQ below long EM",
        "our tolerance",
        "ours, s",
        "ours below long EM",
        "ours, certified",
        "passes",
        "EMQ / ours",
        "EMQ / our default",
        "memory, EMQ / ours, MiB",
    )
    clock = (
        "processor time of one thread" if options.threads == 1 else f"{options.threads} threads, wall time"
    )
    caption = (
        f"Medians of {ROUNDS} rounds, each solver in turn; {clock}. Below long EM: "
        f"the mean log-likelihood of {LONG:,} plain EM steps in float64 less that of the result, in nats a "
        "sample; negative is likelier. Memory is the peak while solving, less what the process held before."
    )
    table = markdown(Table(headers, tuple(rows), caption))
    text = "\n".join(
        [
            "# The likeliest target prior: time beside QuaPy's EMQ",
            "",
            f"{date.today()}, {platform.machine()} CPU, Python {platform.python_version()}, "
            f"NumPy {np.__version__}, QuaPy {version}.",
            "Command: `python -m benchmarks.estimation_speed --quapy PYTHON`.",
            "",
            NOTE,
            f"Accuracy of the simulated scorer on its target: {', '.join(accuracies)}.",
            "",
            table,
        ]
    )
    print(text)
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
