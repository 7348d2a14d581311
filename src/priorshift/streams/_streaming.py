"""The target prior of a stream of unlabelled predictions, from a bounded summary that machines can merge."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, final, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt64
from torch import Tensor

from priorshift._files import read_with_header, write_with_header
from priorshift.adjustment import Scaling
from priorshift.estimation._change import ChangeDetector
from priorshift.estimation._estimate import (
    Array,
    Logits,
    PriorEstimate,
    doubts_of,
    estimate_by_likelihood,
    require_one_of,
)
from priorshift.estimation._scorer import Scorer
from priorshift.priors import ArrayLike, Prior

StreamingMethod: TypeAlias = Literal["empirical-bayes", "mlls", "mapls"]

SCHEMA_VERSION = 1
_SETTINGS = ("half_life", "window", "capacity", "run_length", "method")
_METADATA_KEY = "priorshift-stream"
_ENTRIES = 2**24
"""Numbers in the sample that a stream keeps by default, $n C$: 64 MiB."""
_HALF_LIVES = 8
"""A sample that many half-lives old weighs 1/256; the default capacity has room for as many new ones."""
_SETTLED = 256
"""Samples of one mix before a change from it is looked for."""
_TOLERANCE = 0.01
"""Relative excess of a share over the mix so far that is no change."""
_CLOSE = 1e-12
"""How far the calibrated sample's mean posterior may be from that of all samples."""


@final
class StreamingPrior:
    r"""The class mix of a stream of unlabelled predictions, estimated as they come, in bounded memory.

    $$\hat t = \arg\max_t \sum_i w_i \log \sum_y t_y\, r_{iy}, \qquad
      r_{iy} = e^{f(x_i)[y]} / q_y, \qquad w_i = 2^{-(\text{now} - i) / \text{half-life}}$$

    It is `estimate_prior` of everything that came: all alike, or with weights that halve every `half_life`
    samples, or of the last `window` samples alone. As long as all of that fits into `capacity` samples the
    answer is exactly that of `estimate_prior`. Beyond it, two things are kept: the mean posterior of *all*
    samples, and a random sample of them, drawn with probabilities proportional to their weights and then
    reweighted so that its own mean posterior is that of all. So most of what the discarded samples said
    is still counted.

    With `run_length` a `ChangeDetector` looks for changes, and `changes` lists them. What it compares with
    is this estimate itself, renewed each time that the samples of one mix have doubled, 256 at first; its
    tolerance is $C$ over their number, since so much an estimate may be off, and 0.01 at least.

    **At test time** call `update` with each batch and `adapt` on its logits, or adapt first where the answer
    must not wait for it.

    Machines that see parts of the traffic each keep a `StreamingPrior` with a name of their own, and
    `merge` gives the state that one machine would have that saw everything. Merging is associative and
    does not depend on the order: which samples are kept is decided by a hash of stream name and position.

    Args:
        carried: The prior $q$ that the logits carry, `[C]`, strictly positive.
        scaling: Calibration to apply first, as `priorshift.adjustment.fit_scaling` gives it; recommended.
        half_life: Number of samples (or units of `time`) in which a sample's weight halves; None: never.
        window: Number of samples (or units of `time`) that count, all else is forgotten at once; None: all.
            A merged state keeps that much of every stream; `capacity` has no say.
        capacity: Number of samples to keep at most (twice as many for moments); by default $2^{24} / C$, or
            8 half-lives if that is less.
        run_length: Look for changes of the mix, with a false alarm in about that many samples at most,
            such as 100,000, and begin again after each with the samples since; None: do not look.
        method: "empirical-bayes", "mlls" or "mapls", as in `estimate_prior`.
        stream: Name of the stream; needed to merge.

    Raises:
        ValueError: If `carried` has a zero, a number is not positive, both `half_life` and `window` are
            given, or `scaling` is of a scorer with another carried prior.

    Example:
        >>> stream = StreamingPrior([0.5, 0.5], half_life=40)
        >>> for share in (0.5, 0.9, 0.9, 0.9):
        ...     firsts = int(40 * share)
        ...     _ = stream.update(torch.tensor([[0.9, 0.1]] * firsts + [[0.1, 0.9]] * (40 - firsts)).log())
        ...     print(round(stream.prior.probs[0].item(), 2))
        0.49
        0.76
        0.88
        0.92

    References:
        Weighted samples of bounded size: Efraimidis and Spirakis, *Weighted random sampling with a
        reservoir*, Information Processing Letters 2006; decay that needs no clock: Cormode et al., *Forward
        decay*, ICDE 2009; weights of what is kept: Cohen and Kaplan, *Summarizing data using bottom-k
        sketches*, PODC 2007; reweighting to known totals: Deville and Särndal, *Calibration estimators in
        survey sampling*, JASA 1992. Their use for label shift is ours.
    """

    def __init__(
        self,
        carried: Prior | ArrayLike,
        *,
        scaling: Scaling | None = None,
        half_life: float | None = None,
        window: float | None = None,
        capacity: int | None = None,
        run_length: float | None = None,
        method: StreamingMethod = "empirical-bayes",
        stream: str = "",
    ) -> None:
        self._scorer = Scorer.of(carried, scaling)
        self._log_carried = self._scorer.carried.log_probs
        if half_life is not None and window is not None:
            raise ValueError("Expected either `half_life` or `window`, but got both.")
        sizes = {"half_life": half_life, "window": window, "capacity": capacity, "run_length": run_length}
        for name, value in sizes.items():
            if value is not None and not value > 0:
                raise ValueError(f"Expected `{name}` to be positive, but got {value}.")
        require_one_of("method", method, get_args(StreamingMethod))
        num_classes = len(self._log_carried)
        self.half_life, self.window, self.run_length, self.method = half_life, window, run_length, method
        if capacity is None:
            capacity = max(1, _ENTRIES // num_classes)
            if half_life is not None:
                capacity = min(capacity, max(1000, math.ceil(_HALF_LIVES * half_life)))
        self.capacity = capacity
        self._streams = {stream: 0}
        self._own: str | None = stream
        self._now = -math.inf
        # Of all samples: the sums of weights, of their squares, and of the weighted posteriors.
        self._mass, self._squares = 0.0, 0.0
        self._posterior = torch.zeros(num_classes, dtype=torch.float64)
        self._rows = [torch.empty(0, num_classes)]
        # Of each row: the key that decides who is kept, the smaller the longer; when it came; its position.
        self._marks = [torch.empty(0, 3, dtype=torch.float64)]
        self._pending = 0
        # The smallest key of those that were not kept.
        self._threshold = math.inf
        self._estimate: PriorEstimate | None = None
        self._changes: list[int] = []
        # Samples that came before the detector's first, and of this mix when its reference is renewed.
        self._watched, self._renewal = 0, _SETTLED
        self._detector: ChangeDetector | None = None

    def __repr__(self) -> str:
        count = len(self._streams)
        names = ", ".join(map(repr, self.streams)) if count <= 3 else f"{count:,} streams"
        return (
            f"StreamingPrior({self.num_samples:,} samples of {names}, num_classes={len(self._log_carried)})"
        )

    @property
    def num_samples(self) -> int:
        """Number of samples that came, in all streams that were merged."""
        return sum(self._streams.values())

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that it is of."""
        return tuple(sorted(self._streams))

    @property
    def carried(self) -> Prior:
        """The prior that the logits carry, after the calibration where there is one."""
        return self._scorer.carried

    @property
    def changes(self) -> tuple[int, ...]:
        """Positions in the stream, the first being 1, from which on the mix was another: see `run_length`."""
        return tuple(self._changes)

    def update(self, logits: Array, *, time: float | None = None) -> bool:
        """Take a batch of unlabelled samples, and say if it revealed a change of the mix.

        Args:
            logits: Scores as the scorer gives them, `[B, C]`, torch or NumPy.
            time: When the batch came, where half-life and window are not to be in samples of this stream:
                any clock that all streams to be merged share. By default the position in the stream.

        Raises:
            TypeError: If `logits` are no floating-point tensor or array.
            ValueError: If they are not of $C$ classes, a row has nothing finite, or this state was merged
                from several streams.
        """
        if self._own is None:
            raise ValueError(
                f"Expected a state with a stream of its own, but this one was merged from {self.streams}: "
                "update those and merge again."
            )
        scores = self._scorer.read(logits)
        if time is not None and not math.isfinite(time):
            raise ValueError(f"Expected `time` to be finite, but got {time}.")
        calibrated = self._scorer.calibrate(scores)
        first = self._streams[self._own]
        positions = np.arange(first, first + len(scores), dtype=np.uint64)
        places = torch.arange(first + 1, first + len(scores) + 1, dtype=torch.float64)
        times = places if time is None else torch.full_like(places, time)
        keys = torch.from_numpy(_exponentials(self._own, positions)).log() - self._growth(times)
        self._streams[self._own] += len(scores)
        self._advance(times.max().item())
        posterior = calibrated.double().softmax(dim=1)
        weights = (self._growth(times) - self._growth(self._now)).exp()
        self._add(weights.sum().item(), weights.square().sum().item(), weights @ posterior)
        rows = calibrated - self._log_carried.to(calibrated.dtype)
        rows = (rows - rows.amax(dim=1, keepdim=True)).float()
        wanted = keys < self._threshold
        self._rows.append(rows[wanted])
        self._marks.append(torch.stack([keys, times, places], dim=1)[wanted])
        self._pending += int(wanted.sum())
        if self._pending >= (self.capacity if self.window is None else max(1000, len(self._rows[0]))):
            self._compact()
        self._estimate = None
        return self.run_length is not None and self._look_for_change(scores)

    def estimate(self) -> PriorEstimate:
        """The estimate from everything so far, as `estimate_prior` gives it, without intervals.

        It is computed once and kept until the next `update`. Its `num_samples` is what the samples are
        worth: with a half-life, the number of equally weighted ones with the same variance.

        Raises:
            ValueError: If no sample came yet.
        """
        if self._estimate is None:
            self._compact()
            if not len(self._rows[0]):
                raise ValueError("Expected samples before an estimate, but there is none yet: call `update`.")
            weights = self._weights()
            worth = len(weights) if self.window is not None else self._mass**2 / self._squares
            found, _ = estimate_by_likelihood(
                self.method,
                self._rows[0],
                self._scorer.carried,
                self._scorer.source,
                weights * (worth / weights.sum()),
            )
            doubts = doubts_of(self._scorer.scaling, None, by_likelihood=True)
            self._estimate = replace(
                found,
                scaling=self._scorer.scaling,
                num_samples=max(1, round(worth)),
                warnings=(*doubts, *found.warnings),
            )
        return self._estimate

    @property
    def prior(self) -> Prior:
        """The estimate; before any sample came, the carried prior."""
        return self.estimate().prior if self._mass else self._scorer.carried

    @property
    def target(self) -> Prior:
        """The prior to adapt to, which has no zeros; before any sample came, the carried prior."""
        return self.estimate().target if self._mass else self._scorer.carried

    def adapt(self, logits: Logits) -> Logits:
        """Calibrate logits of the same scorer, and move them to `target`.

        Args:
            logits: Scores as the scorer gives them, `[C]` or `[N, C]`, torch or NumPy.

        Raises:
            TypeError: If `logits` is no floating-point tensor or array.
            ValueError: If it has another number of classes.
        """
        return self._scorer.adapt(logits, self.target)

    def merge(self, *others: "StreamingPrior") -> "StreamingPrior":
        """The state of one that had seen all these streams; none of them changes.

        The result can be estimated from, adapt, be merged and saved, but not updated: its streams go on
        where they are. Half-lives and windows that are counted in samples run in each stream from its
        first sample, so that streams of unequal pace want a common `time`.

        Raises:
            ValueError: If two are of the same stream, or differ in a setting or the scorer.
        """
        merged = StreamingPrior(
            self._scorer.source,
            scaling=self._scorer.scaling,
            **{name: getattr(self, name) for name in _SETTINGS},
        )
        merged._streams, merged._own = {}, None
        for state in (self, *others):
            twice = sorted(merged._streams.keys() & state._streams.keys())
            if twice:
                raise ValueError(
                    f"Expected states of different streams, but two are of {twice[0]!r}: their samples would "
                    "count twice. Name each with `stream`."
                )
            for name, ours in self._settings().items():
                theirs = state._settings()[name]
                if ours != theirs:
                    raise ValueError(f"Expected states alike in `{name}`, but got {ours} and {theirs}.")
            merged._streams |= state._streams
            if state.num_samples:
                merged._advance(state._now)
                decay = math.exp(state._growth(state._now) - merged._growth(merged._now))
                merged._add(decay * state._mass, decay**2 * state._squares, decay * state._posterior)
            merged._rows += state._rows
            merged._marks += state._marks
            merged._threshold = min(merged._threshold, state._threshold)
        merged._compact()
        return merged

    def forget_before(self, time: float) -> None:
        """Start again with the samples from a time on, of those that are still kept, as after a change.

        Args:
            time: In the units of `update`; by default, positions in the stream, the first sample being 1.
        """
        self._compact()
        self._restart(self._marks[0][:, 1] >= time)

    def _restart(self, keep: Bool[Tensor, " kept"]) -> None:
        """Go on as if only these rows had ever come."""
        self._rows, self._marks = [self._rows[0][keep]], [self._marks[0][keep]]
        # What is kept is now all there is: the same mix as that of the dropped ones, only fewer.
        self._threshold = math.inf
        weights = self._weights()
        posterior = weights @ self._posteriors()
        self._mass, self._squares, self._posterior = 0.0, 0.0, torch.zeros_like(posterior)
        self._add(weights.sum().item(), weights.square().sum().item(), posterior)
        self._estimate = None

    def save(self, path: str | Path) -> None:
        """Write the state to one safetensors file, whole or not at all.

        Raises:
            OSError: If the file cannot be written.
        """
        self._compact()
        tensors = {
            "rows": self._rows[0],
            "marks": self._marks[0],
            "source": self._scorer.source.probs,
            "posterior": self._posterior,
        }
        header: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "streams": self._streams,
            "own": self._own,
            **{name: getattr(self, name) for name in _SETTINGS},
            "numbers": [number.hex() for number in (self._now, self._mass, self._squares, self._threshold)],
            "changes": self._changes,
            "watched": self._watched,
            "renewal": self._renewal,
            "scaling": None,
            "detector": None,
        }
        if self._scorer.scaling is not None:
            header["scaling"], parts = self._scorer.scaling.state()
            tensors |= {f"scaling.{name}": part for name, part in parts.items()}
        if self._detector is not None:
            header["detector"], header["tolerance"] = {}, self._detector.tolerance
            for name, fact in self._detector.state_dict().items():
                if isinstance(fact, Tensor):
                    tensors[f"detector.{name}"] = fact
                else:
                    header["detector"][name] = fact
        write_with_header(Path(path), _METADATA_KEY, header, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "StreamingPrior":
        """Read a state that `save` wrote; it goes on as if nothing had happened. Nothing in it is executed.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, is no state of a stream, contradicts itself, or was written
                by a newer version; the message names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no state of a stream {path}.")
        header, tensors = read_with_header(path, "stream", _METADATA_KEY, SCHEMA_VERSION)
        try:
            return cls._from_state(header, tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} contradicts itself: {error}") from error

    @classmethod
    def _from_state(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "StreamingPrior":
        scaling = None
        if header["scaling"] is not None:
            scaling = Scaling.from_state(header["scaling"], _of(tensors, "scaling."))
        settings = {name: header[name] for name in _SETTINGS}
        state = cls(Prior(tensors["source"]), scaling=scaling, **settings)
        rows, marks, posterior = tensors["rows"], tensors["marks"], tensors["posterior"]
        if rows.shape != (len(marks), len(state._log_carried)) or marks.shape != (len(rows), 3):
            raise ValueError(f"expected a mark for each row, but got {tuple(marks.shape)}")
        if posterior.shape != (len(state._log_carried),):
            raise ValueError(f"expected one posterior per class, but got {tuple(posterior.shape)}")
        state._rows, state._marks, state._posterior = [rows], [marks], posterior
        state._streams = {str(name): int(count) for name, count in header["streams"].items()}
        state._own = header["own"]
        state._now, state._mass, state._squares, state._threshold = map(float.fromhex, header["numbers"])
        state._changes = [int(position) for position in header["changes"]]
        state._watched, state._renewal = int(header["watched"]), int(header["renewal"])
        if header["detector"] is not None:
            state._watch(state._scorer.source, header["tolerance"])
            assert state._detector is not None
            state._detector.load_state_dict({**header["detector"], **_of(tensors, "detector.")})
        return state

    def _settings(self) -> dict[str, object]:
        calibration: tuple[object, ...] = ()
        if self._scorer.scaling is not None:
            facts, parts = self._scorer.scaling.state()
            calibration = (facts, {name: part.tolist() for name, part in parts.items()})
        return {
            "carried": self._scorer.source,
            "scaling": calibration,
            **{name: getattr(self, name) for name in _SETTINGS},
        }

    def _look_for_change(self, scores: Tensor) -> bool:
        """Look for a change in a batch that is counted in already, and begin again with the samples since."""
        count = self._streams[self._own or ""]
        changed = self._detector is not None and self._detector.update(scores)
        if self._detector is not None and changed:
            self._changes.append(self._watched + (self._detector.changed_at or 1))
            self._compact()
            self._restart(self._marks[0][:, 2] >= self._changes[-1])
            self._detector, self._renewal = None, _SETTLED
        settled = count + 1 - (self._changes[-1] if self._changes else 1)
        if settled >= self._renewal:
            self._renewal, self._watched = 2 * settled, count
            # An estimate from n samples is off by (C − 1) / 2n nats on average, which must not be a change.
            error = len(self._log_carried) / self.estimate().num_samples
            self._watch(self.target, max(_TOLERANCE, error))
        return changed

    def _watch(self, reference: Prior, tolerance: float) -> None:
        assert self.run_length is not None
        self._detector = ChangeDetector(
            reference,
            self._scorer.source,
            scaling=self._scorer.scaling,
            run_length=self.run_length,
            tolerance=tolerance,
        )

    def _growth(self, time: Any) -> Any:
        """The logarithm of a weight, but for a constant: later samples weigh more, earlier ones stay."""
        return 0.0 * time if self.half_life is None else time * (math.log(2) / self.half_life)

    def _advance(self, now: float) -> None:
        if now > self._now:
            if self._mass:
                decay = math.exp(self._growth(self._now) - self._growth(now))
                self._mass, self._squares = decay * self._mass, decay**2 * self._squares
                self._posterior = decay * self._posterior
            self._now = now

    def _add(self, mass: float, squares: float, posterior: Float[Tensor, " classes"]) -> None:
        self._mass, self._squares = self._mass + mass, self._squares + squares
        self._posterior = self._posterior + posterior

    def _compact(self) -> None:
        """Forget what is outside the window, or all but `capacity` samples; in the order of their keys."""
        rows, marks = torch.cat(self._rows), torch.cat(self._marks)
        if self.window is not None:
            keep = marks[:, 1] > self._now - self.window
            rows, marks = rows[keep], marks[keep]
        order = marks[:, 0].argsort(stable=True)
        if self.window is None and len(order) > self.capacity:
            self._threshold = min(self._threshold, marks[order[self.capacity], 0].item())
            order = order[: self.capacity]
        order = order[marks[order, 0] < self._threshold]
        self._rows, self._marks, self._pending = [rows[order]], [marks[order]], 0

    def _weights(self) -> Float[Tensor, " kept"]:
        """Of the rows that are kept: their own weights, or where others were dropped, for those as well."""
        own: Tensor = (self._growth(self._marks[0][:, 1]) - self._growth(self._now)).exp()
        if self._threshold == math.inf:
            return own
        # The chance to be kept, given the others: that an exponential time comes before the threshold.
        reach = math.exp(self._threshold + self._growth(self._now))
        weights = own / -torch.expm1(-own * reach)
        return _reweighted(weights, self._posteriors(), self._posterior / self._mass)

    def _posteriors(self) -> Float[Tensor, "kept classes"]:
        return (self._rows[0].double() + self._log_carried).softmax(dim=1)


def _exponentials(
    stream: str, positions: UInt64[np.ndarray, " positions"]
) -> Float64[np.ndarray, " positions"]:
    """A number for each position of a stream, as if drawn from the exponential distribution of mean 1."""
    digest = hashlib.blake2b(stream.encode(), digest_size=8).digest()
    mixed = positions * np.uint64(0x9E3779B97F4A7C15) + np.uint64(int.from_bytes(digest, "little"))
    # The finaliser of SplitMix64 (Steele et al., 2014), which leaves no pattern of the positions.
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return -np.log(((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def _of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _reweighted(
    weights: Float[Tensor, " kept"],
    posterior: Float[Tensor, "kept classes"],
    mean: Float[Tensor, " classes"],
) -> Float[Tensor, " kept"]:
    r"""Weights of sum 1, nearest to the given ones in divergence, whose mean posterior is `mean`.

    They are $w_i e^{\lambda \cdot p_i}$; where none are found, which a tiny sample can bring about, the
    given ones stay.
    """
    start = weights / weights.sum()
    centred = posterior - mean
    gap = start @ centred
    spread = (centred * start[:, None]).T @ centred - torch.outer(gap, gap)
    spread.diagonal().add_(1e-9 * spread.diagonal().mean() + 1e-300)
    factor = torch.linalg.cholesky(spread)
    tilt = torch.zeros_like(mean)
    for _ in range(50):
        tilted = start * (centred @ tilt).exp()
        tilted /= tilted.sum()
        gap = tilted @ centred
        if not gap.isfinite().all():
            return start
        if gap.abs().max() <= _CLOSE:
            return tilted
        tilt -= torch.cholesky_solve(gap[:, None], factor)[:, 0]
    return tilted if gap.abs().max() <= 1e-6 else start
