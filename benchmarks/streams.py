"""Following a class prior that changes: regret on real predictions, alarms, memory and speed.

Run from the repository root. It writes `benchmarks/results/streams.md` and `.svg`.

    OMP_NUM_THREADS=1 PRIORSHIFT_DATA=folder python -m benchmarks.streams

The folder holds `predictions/cifar10_densenet190.npz`: `probs` and `labels` of the test images of CIFAR-10 by
a DenseNet-BC-190 (https://github.com/GavinKerrigan/conf_matrix_and_calibration). The digits are trained here,
a network per seed.
"""

import argparse
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Protocol, get_args

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax, softmax

from priorshift import Prior
from priorshift.adjustment import Scaling, adjust, fit_scaling
from priorshift.metrics import negative_log_likelihood
from priorshift.recipes import digits_softmax
from priorshift.report import Table, markdown
from priorshift.shift import draw_stream, stream_priors
from priorshift.shift._streams import StreamKind
from priorshift.streams import ChangeDetector, FollowTheHistory, OnlineGradient, StreamingPrior
from priorshift.training import predict, train

RESULTS = Path(__file__).parent / "results"

SEEDS = 3
STEPS, BATCH, PERIOD = 300, 100, 75
PACE = 1000
"""Half-life and window of the streaming estimates, in samples; not tuned."""
CAPACITY = 4000
"""Samples that a streaming estimate keeps."""
KINDS: tuple[StreamKind, ...] = get_args(StreamKind)
NEVER, ORACLE = "never adapting", "oracle"
RESET = "StreamingPrior, reset on alarm"
LINES = {
    NEVER: "0.45",
    f"StreamingPrior, half-life {PACE:,}": "#0072B2",
    f"StreamingPrior, window {PACE:,}": "#56B4E9",
    RESET: "#CC79A7",
    "FollowTheHistory": "#E69F00",
    "OnlineGradient": "#009E73",
}
"""Color of each method."""
QUIET, AFTER, RUN_LENGTH = 30_000, 5_000, 10_000
"""Samples before the change, and at most after it, and the stated run length, of the alarms."""
STREAMS, LONGEST = 30, 10_000
"""Simulated streams, and the samples at which they end."""
MARKS = (1_000_000, 2_000_000, 5_000_000, 10_000_000)
ROWS = 1000
"""Rows of a batch where memory and time are measured."""


class Follower(Protocol):
    """An object that follows a class prior."""

    @property
    def target(self) -> Prior:
        """The prior to adapt to."""

    def update(self, logits: np.ndarray) -> object:
        """Take a batch."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Real predictions: labelled ones for calibration, and others that streams are drawn from.

    Args:
        name: For the tables.
        held_out: Logits `[N, C]` and labels of the calibration samples.
        logits: `[M, C]`.
        labels: `[M]`.
        carried: The prior that the logits carry.
        mixes: The two mixes that streams move between, the source first.
    """

    name: str
    held_out: tuple[Float[np.ndarray, "samples classes"], Int[np.ndarray, " samples"]]
    logits: Float[np.ndarray, "rows classes"]
    labels: Int[np.ndarray, " rows"]
    carried: Prior
    mixes: tuple[Prior, Prior]

    def scaling(self) -> Scaling:
        """Bias-corrected temperature scaling on the held-out samples."""
        return fit_scaling(*self.held_out, carried=self.carried)


def followers(pool: Pool, scaling: Scaling) -> dict[str, Follower]:
    """A fresh one of every method."""
    half_life, window, reset, history, gradient = list(LINES)[1:]
    return {
        half_life: StreamingPrior(pool.carried, scaling=scaling, half_life=PACE, capacity=CAPACITY),
        window: StreamingPrior(pool.carried, scaling=scaling, window=PACE, capacity=CAPACITY),
        reset: StreamingPrior(pool.carried, scaling=scaling, run_length=RUN_LENGTH, capacity=CAPACITY),
        history: FollowTheHistory(pool.carried, validation=pool.held_out, scaling=scaling),
        gradient: OnlineGradient(pool.carried, scaling=scaling),
    }


def cifar(folder: Path, seed: int) -> Pool:
    """Half of the test images to calibrate by; between a long tail and that tail turned around."""
    with np.load(folder / "predictions" / "cifar10_densenet190.npz") as file:
        logits, labels = np.log(np.clip(file["probs"], 1e-12, None)), file["labels"]
    order = np.random.default_rng([0, seed]).permutation(len(labels))
    first, second = order[:5000], order[5000:]
    tail = Prior(50 ** -np.linspace(0, 1, 10))
    return Pool(
        "CIFAR-10, DenseNet-BC-190",
        (logits[first], labels[first]),
        logits[second],
        labels[second],
        Prior.uniform(10),
        (tail, Prior(tail.probs[::-1])),
    )


def digits(seed: int) -> Pool:
    """A small network on long-tailed digits; between its training mix and that mix turned around."""
    with tempfile.TemporaryDirectory() as folder:
        train(replace(digits_softmax(), seed=seed), Path(folder))
        held_out, rest = (predict(Path(folder), split, device="cpu") for split in ("validation", "test"))
    assert held_out.labels is not None and rest.labels is not None
    return Pool(
        "Digits, small CNN, cross-entropy",
        (held_out.logits.astype(np.float64), held_out.labels),
        rest.logits.astype(np.float64),
        rest.labels,
        rest.carried,
        (rest.carried, Prior(rest.carried.probs[::-1])),
    )


@dataclass(frozen=True, eq=False)
class Run:
    """Errors and log-losses of every method at every step of a stream, `[T]` each: means over the batch."""

    errors: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    alarms: int


def follow(pool: Pool, kind: StreamKind, seed: int) -> Run:
    """Every method answers for each batch before it learns from it."""
    scaling = pool.scaling()
    priors = stream_priors(kind, *pool.mixes, STEPS, period=PERIOD, seed=seed)
    methods = followers(pool, scaling)
    calibrated = scaling(pool.logits)
    errors: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    for rows, prior in zip(draw_stream(pool.labels, priors, BATCH, seed), priors, strict=True):
        targets = {NEVER: pool.carried, ORACLE: prior}
        targets |= {name: method.target for name, method in methods.items()}
        for name, target in targets.items():
            moved = adjust(calibrated[rows], carried=scaling.carried, target=target)
            labels = pool.labels[rows]
            errors.setdefault(name, []).append(float((moved.argmax(axis=1) != labels).mean()))
            losses.setdefault(name, []).append(
                float(negative_log_likelihood(log_softmax(moved, axis=1), labels))
            )
        for method in methods.values():
            method.update(pool.logits[rows])
    reset = methods[RESET]
    assert isinstance(reset, StreamingPrior)
    return Run(
        {name: np.array(values) for name, values in errors.items()},
        {name: np.array(values) for name, values in losses.items()},
        len(reset.changes),
    )


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def regret_tables(runs: dict[StreamKind, list[Run]]) -> str:
    """Mean errors, and mean log-losses, over all samples of a stream."""
    tables = []
    for what, scale, digits_shown in (("errors", 100.0, 2), ("losses", 1.0, 4)):
        rows = []
        for name in (ORACLE, *LINES):
            cells = []
            for kind in KINDS:
                values = [scale * getattr(run, what)[name] for run in runs[kind]]
                if name != ORACLE:
                    values = [
                        value - scale * getattr(run, what)[ORACLE]
                        for value, run in zip(values, runs[kind], strict=True)
                    ]
                cells.append(spread([value.mean().item() for value in values], digits_shown))
            rows.append((name if name == ORACLE else f"{name}, over the oracle", *cells))
        caption = {
            "errors": f"Error in %, and regret in points, mean ± standard deviation over {SEEDS} seeds.",
            "losses": f"Log-loss in nats, and regret, mean ± standard deviation over {SEEDS} seeds.",
        }[what]
        tables.append(markdown(Table(("method", *KINDS), tuple(rows), caption)))
    return "\n".join(tables)


def kept(runs: dict[StreamKind, list[Run]]) -> str:
    """Of what the oracle gains in errors on never adapting, how much each method keeps."""
    rows = []
    for name in list(LINES)[1:]:
        cells = []
        for kind in KINDS:
            shares = []
            for run in runs[kind]:
                gain = (run.errors[NEVER] - run.errors[ORACLE]).sum()
                shares.append(100 * float((run.errors[NEVER] - run.errors[name]).sum() / gain))
            cells.append(spread(shares, 0))
        rows.append((name, *cells))
    alarms = tuple(spread([float(run.alarms) for run in runs[kind]], 1) for kind in KINDS)
    caption = "Share in % of what the oracle gains on never adapting, in errors; and alarms of the detector."
    return markdown(Table(("method", *KINDS), (*rows, ("alarms", *alarms)), caption))


def draw_figure(all_runs: dict[str, dict[StreamKind, list[Run]]], file: Path) -> None:
    """Cumulative regret in errors against the oracle: a row for each pool, a column for each stream."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "priorshift", "font.size": 8})
    figure, panels = plt.subplots(
        len(all_runs), len(KINDS), figsize=(11, 2.5 * len(all_runs) + 0.6), layout="constrained", sharex=True
    )
    shown = slice(4, None, 5)
    samples = BATCH * np.arange(1, STEPS + 1)[shown]
    for row, (name, runs) in zip(panels, all_runs.items(), strict=True):
        for panel, kind in zip(row, KINDS, strict=True):
            for method, color in LINES.items():
                regrets = np.array(
                    [BATCH * (run.errors[method] - run.errors[ORACLE]).cumsum() for run in runs[kind]]
                )[:, shown]
                panel.plot(samples, regrets.mean(axis=0), color=color, label=method, linewidth=1.2)
                panel.fill_between(
                    samples, regrets.min(axis=0), regrets.max(axis=0), color=color, alpha=0.12, linewidth=0
                )
            top = max((run.errors[NEVER] - run.errors[ORACLE]).sum() * BATCH for run in runs[kind])
            panel.set(title=kind, ylim=(-0.06 * top, 1.08 * top))
            panel.grid(alpha=0.3)
        row[0].set_ylabel(f"{name.split(',')[0]}: errors over the oracle's")
    for panel in panels[-1]:
        panel.set_xlabel("samples")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    figure.savefig(file, metadata={"Date": None})


def alarm_table(make: Callable[[int], Pool]) -> tuple[str, str]:
    """False alarms while the mix is the reference, then the delay and the date of a change."""
    counts: dict[tuple[str, float], dict[str, list[float]]] = {}
    for seed in range(SEEDS):
        pool = make(seed)
        source, target = pool.mixes
        near = Prior(0.8 * source.probs + 0.2 * target.probs)
        for calibration, scaling in (("bcts", pool.scaling()), ("none", None)):
            for tolerance in (0.0, 0.01, 0.05):
                cell = counts.setdefault((calibration, tolerance), {})
                before = draw_stream(pool.labels, [source] * (QUIET // BATCH), BATCH, 10 + seed)
                begin = partial(
                    ChangeDetector,
                    source,
                    pool.carried,
                    scaling=scaling,
                    run_length=RUN_LENGTH,
                    tolerance=tolerance,
                )
                quiet = begin()
                for rows in before:
                    quiet.update(pool.logits[rows])
                cell.setdefault("false", []).append(1e4 * quiet.alarms / QUIET)
                for change, mix in (("large", target), ("small", near)):
                    detector = begin()
                    for rows in before[: 2000 // BATCH]:
                        detector.update(pool.logits[rows])
                    missed = detector.alarms
                    for rows in draw_stream(pool.labels, [mix] * (AFTER // BATCH), BATCH, 20 + seed):
                        if detector.update(pool.logits[rows]):
                            break
                    found = detector.alarms > missed
                    assert (detector.alarmed_at is not None and detector.changed_at is not None) or not found
                    delay = detector.alarmed_at - 2000 if found and detector.alarmed_at else AFTER
                    off = abs(detector.changed_at - 2001) if found and detector.changed_at else AFTER
                    cell.setdefault(f"{change} delay", []).append(float(delay))
                    cell.setdefault(f"{change} date", []).append(float(off))
    rows_shown = []
    for (calibration, tolerance), cell in counts.items():
        rows_shown.append(
            (
                calibration,
                f"{tolerance:g}",
                f"{statistics.mean(cell['false']):.1f}",
                *(
                    f"{statistics.median(cell[name]):,.0f}"
                    for name in ("large delay", "large date", "small delay", "small date")
                ),
            )
        )
    head = (
        "calibration", "tolerance", "false alarms per 10,000",
        "delay, source → target", "date off by", "delay, a fifth of the way", "date off by ",
    )  # fmt: skip
    caption = (
        f"Run length {RUN_LENGTH:,}, so at most 1 false alarm per 10,000 samples where predictions are "
        f"calibrated; {SEEDS} seeds × {QUIET:,} samples. Delays and dates in samples, medians; {AFTER:,} is "
        "not found."
    )
    return pool.name, markdown(Table(head, tuple(rows_shown), caption))


def simulated_run_lengths() -> str:
    """Mean run lengths where predictions are calibrated exactly, or too sure, or not sure enough."""
    mix = np.array([0.4, 0.25, 0.15, 0.12, 0.08])

    def length(rng: np.random.Generator, temperature: float, tolerance: float) -> int:
        detector = ChangeDetector(mix, mix, run_length=1000, tolerance=tolerance)
        while detector.num_samples < LONGEST:
            labels = rng.choice(5, 100, p=mix)
            points = rng.normal(size=(100, 5))
            points[np.arange(100), labels] += 2.0
            if detector.update(2.0 * points / temperature + np.log(mix)):
                return detector.alarmed_at or 0
        return LONGEST

    rows = []
    for temperature in (1.0, 0.9, 0.75, 0.5, 1.25):
        cells = []
        for tolerance in (0.0, 0.01, 0.05):
            rng = np.random.default_rng([round(100 * temperature), round(100 * tolerance)])
            lengths = [length(rng, temperature, tolerance) for _ in range(STREAMS)]
            error = statistics.stdev(lengths) / len(lengths) ** 0.5
            full = "≥ " if max(lengths) == LONGEST else ""
            cells.append(f"{full}{statistics.mean(lengths):,.0f} ± {error:,.0f}")
        rows.append((f"{temperature:g}", *cells))
    head = ("temperature of the predictions", "tolerance 0", "0.01", "0.05")
    caption = (
        f"Samples until a false alarm at a stated run length of 1,000, mean ± standard error of {STREAMS} "
        f"streams that end at {LONGEST:,}. Below 1 the scorer is too sure of itself."
    )
    return markdown(Table(head, tuple(rows), caption))


def memory_and_speed() -> str:
    """Peak memory of the process as rows come, and time as a multiple of the softmax of the same rows."""
    rng = np.random.default_rng(0)
    carried = Prior(50 ** -np.linspace(0, 1, 10))
    methods: dict[str, Follower | ChangeDetector] = {
        f"StreamingPrior, half-life {PACE:,}": StreamingPrior(carried, half_life=PACE),
        "StreamingPrior, all history": StreamingPrior(carried, capacity=100_000),
        "FollowTheHistory": FollowTheHistory(carried, confusion=0.9 * np.eye(10) + 0.01),
        "OnlineGradient": OnlineGradient(carried),
        "ChangeDetector": ChangeDetector(carried, carried),
    }
    seconds = dict.fromkeys(["softmax", *methods], 0.0)
    peaks = []
    for count in range(ROWS, MARKS[-1] + 1, ROWS):
        labels = rng.choice(10, ROWS, p=carried.probs)
        logits = (2 * rng.normal(size=(ROWS, 10)) + carried.log_probs).astype(np.float32)
        logits[np.arange(ROWS), labels] += 4
        began = time.process_time()
        softmax(logits, axis=1)
        seconds["softmax"] += time.process_time() - began
        for name, method in methods.items():
            began = time.process_time()
            method.update(logits)
            seconds[name] += time.process_time() - began
        if count in MARKS:
            peaks.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f}")
    memory = markdown(
        Table(
            ("rows", *(f"{mark:,}" for mark in MARKS)),
            (("peak MiB of the process", *peaks),),
            f"All methods of the table below at once, batches of {ROWS:,} × 10 that are made as they come.",
        )
    )
    ratios = [
        (name, f"{MARKS[-1] / spent / 1e6:,.2f}", f"{spent / seconds['softmax']:.0f}")
        for name, spent in seconds.items()
    ]
    return (
        memory
        + "\n"
        + markdown(
            Table(
                ("update", "million rows a second", "times softmax"),
                tuple(ratios),
                "Updates alone, one thread, softmax by SciPy. An estimate of `StreamingPrior` comes on top.",
            )
        )
    )


def page(
    all_runs: dict[str, dict[StreamKind, list[Run]]],
    alarms: list[tuple[str, str]],
    lengths: str,
    memory: str,
    seconds: float,
) -> str:
    sections = "\n".join(
        f"### {name}\n\n{kept(runs)}\n{regret_tables(runs)}" for name, runs in all_runs.items()
    )
    found = "\n".join(f"### {name}\n\n{table}" for name, table in alarms)
    return f"""# Following a class prior that changes

{date.today()}, one core of {os.cpu_count()} ({platform.machine()}), Python {platform.python_version()},
NumPy {np.__version__}; {seconds:.0f} s. Command: `OMP_NUM_THREADS=1 python -m benchmarks.streams`.

![Cumulative regret](streams.svg)

Lines are means over {SEEDS} seeds, bands their range.

## Regret

Streams of {STEPS} batches of {BATCH} samples, drawn with replacement from predictions that were not
calibrated by; the period of the last three is {PERIOD} batches (of the last, on average). Every method
answers for a batch before it learns from it. The oracle knows the mix of every batch. All use the same
calibration. CIFAR-10 moves between a long tail of imbalance 50 and that tail turned around, and its scorer
carries the uniform mix; the digits move from the mix that they were trained on to that mix turned around. A
seed is a split (CIFAR-10) or a trained network (digits), and a stream. A `StreamingPrior` keeps {CAPACITY:,}
samples. The pace of {PACE:,} samples was not tuned; *reset on alarm* is its `run_length`, {RUN_LENGTH:,}.

{sections}
## Alarms

{found}
Simulated, five Gaussian classes, the mix never changes:

{lengths}
## Memory and speed

{memory}"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    start = time.perf_counter()
    folder = Path(os.environ.get("PRIORSHIFT_DATA", "../shared/data"))
    memory = memory_and_speed()
    print(memory, flush=True)
    lengths = simulated_run_lengths()
    print(lengths, flush=True)
    trained = [digits(seed) for seed in range(SEEDS)]
    makers: tuple[Callable[[int], Pool], ...] = (trained.__getitem__, lambda seed: cifar(folder, seed))
    all_runs: dict[str, dict[StreamKind, list[Run]]] = {}
    alarms = []
    for make in makers:
        alarms.append(alarm_table(make))
        print(*alarms[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
        runs = {kind: [follow(make(seed), kind, seed) for seed in range(SEEDS)] for kind in KINDS}
        all_runs[make(0).name] = runs
        print(kept(runs), f"{time.perf_counter() - start:.0f} s", flush=True)
    draw_figure(all_runs, RESULTS / "streams.svg")
    text = page(all_runs, alarms, lengths, memory, time.perf_counter() - start)
    (RESULTS / "streams.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
