"""The target prior of a stream of unlabelled predictions, from a bounded summary that machines can merge."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, final

import numpy as np

from priorshift._files import read_envelope, write_envelope
from priorshift._inputs import Array, ArrayLike, require_one_of
from priorshift.adjustment import Scaling
from priorshift.estimation._estimate import PriorEstimate, doubts_of, estimate_by_likelihood
from priorshift.estimation._likelihood import Likelihood
from priorshift.estimation._methods import METHODS
from priorshift.priors import Prior, prior_as_arrays, prior_from_arrays
from priorshift.streams._scorer import Scorer
from priorshift.streams._summary import Summary, exponentials
from priorshift.streams._watch import Watch

KIND = "stream"
SCHEMA_VERSION = 2
_SETTINGS = ("half_life", "window", "capacity", "run_length", "method")
_ENTRIES = 2**24
"""Numbers in the sample that a stream keeps by default, $n C$: 64 MiB."""
_HALF_LIVES = 8
"""A sample that many half-lives old weighs 1/256; the default capacity has room for as many new ones."""
_ROUNDING = 1e-9
"""Difference of log-probabilities of priors that are the same."""


@final
class StreamingPrior:
    r"""The class prior of a stream of unlabelled predictions, estimated as they come, in bounded memory.

    $$\hat t = \arg\max_t \sum_i w_i \log \sum_y t_y\, r_{iy}, \qquad
      r_{iy} = e^{f(x_i)[y]} / q_y, \qquad w_i = 2^{-(\text{now} - i) / \text{half-life}}$$

    It is `estimate_prior` of all samples so far: with equal weights, or with weights that halve every
    `half_life` samples, or of the last `window` samples alone. As long as these fit into `capacity` the
    result is exactly that of `estimate_prior`. Beyond it, two things are kept: the mean posterior of *all*
    samples, and a random sample of them, drawn with probabilities proportional to their weights and then
    reweighted so that its own mean posterior is that of all. So most of the information of the discarded
    samples still counts.

    With `run_length` a `ChangeDetector` looks for changes, and `changes` lists them. Its reference is this
    estimate itself, renewed each time that the samples of one prior have doubled, 256 at first; its tolerance
    is $C$ over their number, the possible error of such an estimate, and 0.01 at least.

    **At test time** call `update` with each batch and `adapt` on its logits, or adapt first where the answer
    must not wait for it.

    Machines that see parts of the traffic each keep a `StreamingPrior` with a name of their own, and
    `merge` gives the state of one machine that saw everything. Merging is associative and does not depend on
    the order: a hash of stream name and position decides which samples are kept.

    Args:
        carried: The prior $q$ that the logits carry, `[C]`, strictly positive.
        scaling: Calibration to apply first, as `priorshift.adjustment.fit_scaling` gives it; recommended.
        half_life: Number of samples (or units of `time`) in which a sample's weight halves; None: never.
        window: Number of samples (or units of `time`) that count; older ones are forgotten. None: all.
            A merged state keeps that much of every stream; `capacity` has no say.
        capacity: Number of samples to keep at most (twice as many for moments); by default $2^{24} / C$, or
            8 half-lives if that is less.
        run_length: Look for changes of the prior, with a false alarm in about that many samples at most,
            such as 100,000, and begin again after each with the samples since; None: do not look.
        method: One of `priorshift.estimation.METHODS` by likelihood: "empirical-bayes", "mlls" or "mapls".
        stream: Name of the stream; needed to merge.

    Raises:
        ValueError: If `carried` has a zero, a number is not positive, both `half_life` and `window` are
            given, or `scaling` is of a scorer with another carried prior.

    Example:
        >>> import numpy as np
        >>> stream = StreamingPrior([0.5, 0.5], half_life=40)
        >>> for firsts in (20, 36, 36, 36):
        ...     _ = stream.update(np.log([[0.9, 0.1]] * firsts + [[0.1, 0.9]] * (40 - firsts)))
        ...     print(round(stream.prior[0], 2))
        0.49
        0.76
        0.88
        0.92

    References:
        Weighted samples of bounded size: Efraimidis and Spirakis, *Weighted random sampling with a
        reservoir*, Information Processing Letters 2006; decay that needs no clock: Cormode et al., *Forward
        decay*, ICDE 2009; weights of what is kept: Cohen and Kaplan, *Summarizing data using bottom-k
        sketches*, PODC 2007; reweighting to known totals: Deville and Särndal, *Calibration estimators in
        survey sampling*, JASA 1992. Their use for label shift is new here.
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
        method: str = "empirical-bayes",
        stream: str = "",
    ) -> None:
        self._scorer = Scorer(carried, scaling)
        if half_life is not None and window is not None:
            raise ValueError("Expected either `half_life` or `window`, but got both.")
        sizes = {"half_life": half_life, "window": window, "capacity": capacity, "run_length": run_length}
        for name, value in sizes.items():
            if value is not None and not value > 0:
                raise ValueError(f"Expected `{name}` to be positive, but got {value}.")
        require_one_of("method", method, [name for name, row in METHODS.items() if row.by_likelihood])
        self.half_life, self.window, self.run_length, self.method = half_life, window, run_length, method
        if capacity is None:
            capacity = max(1, _ENTRIES // self._scorer.num_classes)
            if half_life is not None:
                capacity = min(capacity, max(1000, math.ceil(_HALF_LIVES * half_life)))
        self.capacity = capacity
        self._streams = {stream: 0}
        self._own: str | None = stream
        self._summary = Summary(self._scorer, half_life=half_life, window=window, capacity=capacity)
        self._watch = None if run_length is None else Watch(self._scorer, run_length)
        self._estimate: PriorEstimate | None = None

    def __repr__(self) -> str:
        count = len(self._streams)
        names = ", ".join(map(repr, self.streams)) if count <= 3 else f"{count:,} streams"
        return (
            f"StreamingPrior({self.num_samples:,} samples of {names}, num_classes={self._scorer.num_classes})"
        )

    @property
    def num_samples(self) -> int:
        """Number of samples so far, in all streams that were merged."""
        return sum(self._streams.values())

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that were merged."""
        return tuple(sorted(self._streams))

    @property
    def carried(self) -> Prior:
        """The prior that the logits carry, after the calibration where there is one."""
        return self._scorer.carried

    @property
    def changes(self) -> tuple[int, ...]:
        """Positions in the stream, from 1, of the first sample of each new prior: see `run_length`."""
        return () if self._watch is None else tuple(self._watch.changes)

    def update(self, logits: ArrayLike, *, time: float | None = None) -> bool:
        """Take a batch of unlabelled samples; True if it revealed a change of the prior.

        Args:
            logits: Scores as the scorer gives them, `[B, C]`, of any kind.
            time: When the batch came, where half-life and window are not in samples of this stream: any clock
                that all streams to be merged share. By default the position in the stream.

        Raises:
            TypeError: If `logits` are not floating-point.
            ValueError: If they are not of $C$ classes, a row has nothing finite, or this state was merged
                from several streams.
        """
        if self._own is None:
            raise ValueError(
                f"Expected a state with a stream of its own, but this one was merged from {self.streams}: "
                "update those and merge again."
            )
        calibrated = self._scorer.calibrated(logits)
        if time is not None and not math.isfinite(time):
            raise ValueError(f"Expected `time` to be finite, but got {time}.")
        first = self._streams[self._own]
        count = first + len(calibrated)
        places = np.arange(first + 1, count + 1, dtype=np.float64)
        times = places if time is None else np.full(len(places), time, dtype=np.float64)
        draws = exponentials(self._own, np.arange(first, count, dtype=np.uint64))
        self._streams[self._own] = count
        self._summary.add(calibrated, places, times, draws)
        self._estimate = None
        if self._watch is None:
            return False
        changed = self._watch.look(calibrated)
        if changed is not None:
            self._summary.compact()
            self._restart(self._summary.marks[:, 2] >= changed)
        self._watch.renew(count, self.estimate)
        return changed is not None

    def estimate(self) -> PriorEstimate:
        """The estimate from all samples so far, as `estimate_prior` gives it, without intervals.

        It is computed once and kept until the next `update`. Its `num_samples` is the effective number of
        samples: with a half-life, the number of equally weighted ones with the same variance.

        Raises:
            ValueError: If there is no sample yet.
        """
        if self._estimate is None:
            summary = self._summary
            summary.compact()
            if not len(summary.rows):
                raise ValueError("Expected samples before an estimate, but there is none yet: call `update`.")
            weights, worth = summary.weights(), summary.worth
            likelihood = Likelihood.from_logits(
                summary.rows, None, weights * (worth / weights.sum()), self._scorer.names
            )
            found, _ = estimate_by_likelihood(
                self.method, likelihood, self._scorer.carried, self._scorer.source
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
        """The estimate; before any sample, the carried prior."""
        return self.estimate().prior if self._summary.mass else self._scorer.carried

    @property
    def target(self) -> Prior:
        """The prior to adapt to, which has no zeros; before any sample, the carried prior."""
        return self.estimate().target if self._summary.mass else self._scorer.carried

    def adapt(self, logits: ArrayLike) -> Any:
        """Calibrate logits of the same scorer, and move them to `target`; the result is of the same kind.

        Args:
            logits: Scores as the scorer gives them, `[C]` or `[N, C]`, of any kind.

        Raises:
            TypeError: If `logits` are not floating-point.
            ValueError: If they are of other classes.
        """
        return self._scorer.adapt(logits, self.target)

    def merge(self, *others: "StreamingPrior") -> "StreamingPrior":
        """The state of one that had seen all these streams; none of them changes.

        The result can be estimated from, adapt, be merged and saved, but not updated: its streams go on
        where they are. Half-lives and windows that are counted in samples run in each stream from its
        first sample, so streams of unequal pace need a common `time`.

        Raises:
            ValueError: If two are of the same stream, or differ in a setting or the scorer.
        """
        states = (self, *others)
        named = next((state for state in states if state._scorer.names is not None), self)
        merged = StreamingPrior(
            named._scorer.source,
            scaling=self._scorer.scaling,
            **{name: getattr(self, name) for name in _SETTINGS},
        )
        merged._streams, merged._own = {}, None
        ours = named._settings()
        for state in states:
            if twice := sorted(merged._streams.keys() & state._streams.keys()):
                raise ValueError(
                    f"Expected states of different streams, but two are of {twice[0]!r}: their samples would "
                    "count twice. Name each with `stream`."
                )
            named._require_same_scorer(state)
            for name, theirs in state._settings().items():
                if ours[name] != theirs:
                    raise ValueError(f"Expected states alike in `{name}`, but got {ours[name]} and {theirs}.")
            merged._streams |= state._streams
        merged._summary.absorb([state._summary for state in states])
        return merged

    def forget_before(self, time: float) -> None:
        """Start again with the samples from a time on, of those that are still kept, as after a change.

        Args:
            time: In the units of `update`; by default, positions in the stream, the first being 1.
        """
        self._summary.compact()
        self._restart(self._summary.marks[:, 1] >= time)

    def save(self, path: str | Path) -> None:
        """Write the state to one safetensors file, whole or not at all.

        Raises:
            OSError: If the file cannot be written.
        """
        numbers, arrays = self._summary.state()
        arrays |= prior_as_arrays(self._scorer.source, "source")
        header: dict[str, Any] = {
            "streams": self._streams,
            "own": self._own,
            "class_names": self._scorer.names,
            **{name: getattr(self, name) for name in _SETTINGS},
            "numbers": numbers,
            "scaling": None,
            "detector": None,
        }
        if self._scorer.scaling is not None:
            header["scaling"], parts = self._scorer.scaling.state()
            arrays |= {f"scaling.{name}": part for name, part in parts.items()}
        if self._watch is not None:
            facts, parts = self._watch.state()
            header |= facts
            arrays |= {f"detector.{name}": part for name, part in parts.items()}
        write_envelope(Path(path), KIND, SCHEMA_VERSION, header, arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a state that `save` wrote; it goes on bit by bit. Nothing in the file is executed.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, is no state of a stream, contradicts itself, or was written
                by a newer version; the message names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no state of a stream {path}.")
        header, arrays = read_envelope(path, KIND, SCHEMA_VERSION)
        try:
            return cls._from_state(header, arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} contradicts itself: {error}") from error

    @classmethod
    def _from_state(cls, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        scaling, names = None, header.get("class_names")
        if header["scaling"] is not None:
            scaling = Scaling.from_state(header["scaling"], _of(arrays, "scaling."))
        source = prior_from_arrays(arrays, "source").named(names)
        state = cls(source, scaling=scaling, **{name: header[name] for name in _SETTINGS})
        state._summary.load(header["numbers"], arrays)
        state._streams = {str(name): int(count) for name, count in header["streams"].items()}
        state._own = header["own"]
        if state._watch is not None:
            state._watch.load(header, _of(arrays, "detector."))
        return state

    def _restart(self, keep: Array) -> None:
        self._summary.restart(keep)
        self._estimate = None

    def _settings(self) -> dict[str, object]:
        calibration: tuple[object, ...] = ()
        if self._scorer.scaling is not None:
            facts, parts = self._scorer.scaling.state()
            calibration = (facts, {name: part.tolist() for name, part in parts.items()})
        return {"scaling": calibration, **{name: getattr(self, name) for name in _SETTINGS}}

    def _require_same_scorer(self, other: "StreamingPrior") -> None:
        ours, theirs = self._scorer.source, other._scorer.source
        same = ours.num_classes == theirs.num_classes and theirs.names in (None, ours.names)
        # Priors differ by rounding where one comes from a file and the other from its source.
        if not same or np.abs(ours.log_probs - theirs.log_probs).max() > _ROUNDING:
            raise ValueError(f"Expected states alike in `carried`, but got {ours} and {theirs}.")


def _of(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
