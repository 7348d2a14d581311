"""The average of all black box estimates of a stream: one sum per class."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Float

from priorshift._inputs import ArrayLike, read_array
from priorshift.adjustment import Scaling
from priorshift.estimation._confusion import confusion_of
from priorshift.estimation._estimate import with_one_sample
from priorshift.estimation._problem import Scored, read_validation
from priorshift.estimation._simplex import nearest_mix
from priorshift.priors import Prior
from priorshift.streams._scorer import Scorer, sum_of_posteriors
from priorshift.streams._state import read_state


@final
class FollowTheHistory:
    r"""The average of all black box estimates so far: for a prior that settles.

    $$\hat t_n = \frac1n \sum_{i \le n} K^{-1} h(x_i) = K^{-1} \Bigl( \frac1n \sum_{i \le n} h(x_i) \Bigr)$$

    with the scorer's confusion $K_{\cdot y} = \operatorname{mean}_{i:\, y_i = y} h(x_i)$ on labelled source
    samples and $h$ the one-hot argmax (hard) or the softmax. Each $K^{-1} h(x_i)$ is an unbiased estimate of
    the prior that $x_i$ was drawn from, whatever the scorer's calibration. All samples weigh alike, so the
    average trails behind a prior that keeps moving.

    It keeps $C$ sums. **At test time** call `adapt` on a batch and then `update` with it, or the other way
    around where the answer can wait.

    The paper's average may leave the simplex and is projected onto it; here the estimate is the prior in the
    simplex whose mean prediction $K t$ is nearest to the observed one, as in `bbse`, of which this is the
    running form: after any number of samples it equals `bbse` of all of them.

    Args:
        carried: The prior that the logits carry, `[C]`, strictly positive; where the estimate begins.
        validation: Labelled samples of the source that were held out of training, scored by the same scorer:
            `Predictions` with labels, or a pair of logits and labels. Every class must occur.
        confusion: The confusion itself in place of `validation`, `[C, C]`; column $y$ is the mean prediction
            of class $y$ and sums to 1.
        hard: Count predicted classes, as the paper does, instead of averaging probabilities.
        scaling: Calibration to apply first, as `priorshift.adjustment.fit_scaling` gives it.

    Raises:
        TypeError: If logits are not floating-point.
        ValueError: If not exactly one of `validation` and `confusion` is given, `carried` has a zero, or the
            parts do not fit.

    Example:
        >>> import numpy as np
        >>> follower = FollowTheHistory([0.5, 0.5], confusion=[[0.8, 0.2], [0.2, 0.8]], hard=True)
        >>> for first in (1, 4, 4):
        ...     follower.update(np.array([[2.0, 0.0]] * first + [[0.0, 2.0]] * (5 - first)))
        ...     print(follower.prior.probs.round(3))
        [0. 1.]
        [0.5 0.5]
        [0.667 0.333]

    References:
        Wu et al., *Online adaptation to label distribution shift*, NeurIPS 2021, Section 4, "Follow The
        History", on the estimates of Lipton et al., ICML 2018.
    """

    def __init__(
        self,
        carried: Prior | ArrayLike,
        *,
        validation: Scored | Sequence[Any] | None = None,
        confusion: ArrayLike | None = None,
        hard: bool = False,
        scaling: Scaling | None = None,
    ) -> None:
        self._scorer = Scorer(carried, scaling)
        self.hard = hard
        if (validation is None) == (confusion is None):
            raise ValueError("Expected either `validation` or `confusion`, but got both or neither.")
        if validation is None:
            self._confusion = _read_confusion(confusion, self._scorer.num_classes)
        else:
            scores, labels = read_validation(validation, self._scorer.source)
            self._confusion, _, _ = confusion_of(self._scorer.calibrate(scores), labels, None, hard=hard)
        self._sums = np.zeros(self._scorer.num_classes)
        self._num_samples = 0
        self._prior: Prior | None = None

    @property
    def num_samples(self) -> int:
        """Number of samples so far."""
        return self._num_samples

    def update(self, logits: ArrayLike) -> None:
        """Take a batch of unlabelled samples.

        Args:
            logits: Scores as the scorer gives them, `[B, C]`, of any kind.

        Raises:
            TypeError: If `logits` are not floating-point.
            ValueError: If they are not of $C$ classes, or a row has nothing finite.
        """
        scores = self._scorer.calibrated(logits)
        if self.hard:
            self._sums += np.bincount(scores.argmax(axis=1), minlength=len(self._sums))
        else:
            self._sums += sum_of_posteriors(scores)
        self._num_samples += len(scores)
        self._prior = None

    @property
    def prior(self) -> Prior:
        """The estimate, in which a class may have a share of 0; before any sample, the carried prior."""
        if self._num_samples == 0:
            return self._scorer.source
        if self._prior is None:
            confusion, mean = self._confusion, self._sums / self._num_samples
            masses = nearest_mix(confusion.T @ confusion, confusion.T @ mean)
            self._prior = Prior(np.maximum(masses, 0), names=self._scorer.names)
        return self._prior

    @property
    def target(self) -> Prior:
        """The prior to adapt to: the estimate with one sample spread over all classes."""
        return with_one_sample(self.prior, self._num_samples) if self._num_samples else self.prior

    def adapt(self, logits: ArrayLike) -> Any:
        """Calibrate logits of the same scorer, `[C]` or `[N, C]`, and move them to `target`; kept in kind."""
        return self._scorer.adapt(logits, self.target)

    def state_dict(self) -> dict[str, Any]:
        """The state of the stream as arrays and numbers, without the settings."""
        return {"sums": self._sums.copy(), "num_samples": self._num_samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a follower of the same settings.

        Raises:
            ValueError: If the state is not of $C$ classes.
        """
        self._sums = read_state(state, "sums", self._sums.shape)
        self._num_samples, self._prior = int(state["num_samples"]), None


def _read_confusion(confusion: ArrayLike, num_classes: int) -> Float[np.ndarray, "classes classes"]:
    matrix = read_array(confusion, "confusion").astype(np.float64)
    if matrix.shape != (num_classes, num_classes):
        raise ValueError(
            f"Expected `confusion` of shape ({num_classes}, {num_classes}), but got {matrix.shape}."
        )
    sums = matrix.sum(axis=0)
    if not (matrix >= 0).all() or not np.allclose(sums, 1, atol=1e-6):
        raise ValueError(
            "Expected `confusion` to be non-negative with columns that sum to 1, "
            f"but its columns sum to {[round(total, 4) for total in sums.tolist()[:10]]}."
        )
    return matrix
