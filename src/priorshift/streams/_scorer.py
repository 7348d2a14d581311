"""What a stream's logits carry: read, calibrated and adapted alike by all that follow it."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from priorshift.adjustment import Scaling, adjust
from priorshift.estimation._estimate import Array, Logits, read_calibration, read_logits
from priorshift.priors import ArrayLike, Prior, as_prior

BLOCK = 256
"""Samples that one gradient is taken over, at most: what a step does not depend on larger batches."""


@dataclass(frozen=True, eq=False)
class Scorer:
    """What a stream's logits carry, and the calibration to apply to them first."""

    source: Prior
    scaling: Scaling | None

    @classmethod
    def of(cls, carried: Prior | ArrayLike, scaling: Scaling | None) -> "Scorer":
        source = as_prior(carried, "carried").require_positive("carried")
        return cls(source, None if scaling is None else read_calibration(scaling, None, source))

    @property
    def carried(self) -> Prior:
        """The prior that calibrated logits carry."""
        return self.source if self.scaling is None else self.scaling.carried

    def read(self, logits: Array) -> Float[Tensor, "samples classes"]:
        scores = read_logits(logits, "logits")
        if scores.shape[1] != len(self.source):
            raise ValueError(f"Expected `logits` with {len(self.source)} classes, but got {scores.shape[1]}.")
        return scores

    def calibrate(self, logits: Logits) -> Logits:
        return logits if self.scaling is None else self.scaling(logits)

    def ratios(self, logits: Array) -> Iterator[Float[Tensor, "samples classes"]]:
        """Likelihood ratios in blocks, of each row divided by its largest."""
        scores = self.calibrate(self.read(logits))
        log_carried = self.carried.log_probs.to(scores.dtype)
        for first in range(0, len(scores), BLOCK):
            rows = scores[first : first + BLOCK] - log_carried
            yield rows.sub_(rows.amax(dim=1, keepdim=True)).exp_()

    def adapt(self, logits: Logits, target: Prior) -> Logits:
        return adjust(self.calibrate(logits), carried=self.carried, target=target)
