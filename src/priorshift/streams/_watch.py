"""Looks for changes in the stream of a `StreamingPrior`, which begins again after each."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from priorshift.estimation._estimate import PriorEstimate
from priorshift.priors import Prior
from priorshift.streams._change import ChangeDetector
from priorshift.streams._scorer import Scorer

_SETTLED = 256
"""Samples of one prior before a change from it is looked for."""
_TOLERANCE = 0.01
"""Relative excess of a share over the estimate so far that is no change."""


class Watch:
    """A detector whose reference is the estimate itself, renewed each time that the samples have doubled."""

    def __init__(self, scorer: Scorer, run_length: float) -> None:
        self._scorer, self._run_length = scorer, run_length
        self.changes: list[int] = []
        # Samples before the detector's first one, and of this prior when its reference is renewed.
        self._watched, self._renewal = 0, _SETTLED
        self._detector: ChangeDetector | None = None

    def look(self, calibrated: Float[np.ndarray, "samples classes"]) -> int | None:
        """The position from which on the prior is another one, if a batch reveals it."""
        if self._detector is None or not self._detector._take(calibrated):
            return None
        self.changes.append(self._watched + (self._detector.changed_at or 1))
        self._detector, self._renewal = None, _SETTLED
        return self.changes[-1]

    def renew(self, count: int, estimate: Callable[[], PriorEstimate]) -> None:
        """After `count` samples of the stream, compare with a new estimate if it is time."""
        settled = count + 1 - (self.changes[-1] if self.changes else 1)
        if settled >= self._renewal:
            self._renewal, self._watched = 2 * settled, count
            found = estimate()
            # An estimate from n samples is off by (C − 1) / 2n nats on average, which must not be a change.
            self._begin(found.target, max(_TOLERANCE, self._scorer.num_classes / found.num_samples))

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything in it, as JSON types and arrays."""
        facts: dict[str, Any] = {
            "changes": self.changes,
            "watched": self._watched,
            "renewal": self._renewal,
            "detector": None,
        }
        arrays: dict[str, Any] = {}
        if self._detector is not None:
            facts["detector"], facts["tolerance"] = {}, self._detector.tolerance
            for name, fact in self._detector.state_dict().items():
                (arrays if isinstance(fact, np.ndarray) else facts["detector"])[name] = fact
        return facts, arrays

    def load(self, facts: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Read what `state` gave.

        Raises:
            KeyError, TypeError, ValueError: If the parts do not fit.
        """
        self.changes = [int(position) for position in facts["changes"]]
        self._watched, self._renewal = int(facts["watched"]), int(facts["renewal"])
        if facts["detector"] is not None:
            self._begin(self._scorer.source, facts["tolerance"]).load_state_dict(
                {**facts["detector"], **arrays}
            )

    def _begin(self, reference: Prior, tolerance: float) -> ChangeDetector:
        self._detector = ChangeDetector(
            reference,
            self._scorer.source,
            scaling=self._scorer.scaling,
            run_length=self._run_length,
            tolerance=tolerance,
        )
        return self._detector
