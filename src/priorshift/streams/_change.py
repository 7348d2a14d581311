"""The time of a change of a stream's class prior: a sequential test with a stated rate of false alarms."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Float

from priorshift._inputs import ArrayLike, read_array
from priorshift.adjustment import Scaling
from priorshift.estimation._estimate import with_one_sample
from priorshift.estimation._likelihood import Likelihood
from priorshift.priors import Prior, as_prior, prior_as_arrays
from priorshift.streams._online import Learners, check_half_lives
from priorshift.streams._scorer import Scorer
from priorshift.streams._state import read_number, read_prior, read_state

PACES = (32.0, 128.0, 512.0, 2048.0, 8192.0)
_ROUNDS = 5
"""Rounds of dating a change by a prior, and estimating the prior since that date."""


@final
class ChangeDetector:
    r"""An alarm when the class prior of a stream is no longer the reference, with few false alarms.

    $$M_n^{(k)} = e_n^{(k)} \bigl( M_{n-1}^{(k)} + 1 \bigr), \qquad
      e_n^{(k)} = \frac{t_{k,n-1} \cdot r_n}{(1 + \rho)\; t_\text{ref} \cdot r_n}, \qquad
      \text{alarm when } \frac1K \sum_k M_n^{(k)} \ge \text{run length}$$

    with $r_{ny} = e^{f(x_n)[y]} / q_y$ for logits that carry the prior $q$, and priors $t_{k,n-1}$ that
    follow the stream up to the sample before (the learners of `OnlineGradient`, at several paces: quick ones
    see large changes soon, slow ones see small changes at all).

    **What is guaranteed.** As long as the prior is the reference and the predictions are calibrated, the
    mean of $e_n$ given the past is at most 1 for any learners, so $M_n - n$ falls on average and the mean
    number of samples until an alarm is at least `run_length`. With a `tolerance` $\rho > 0$ the same
    holds for **every** prior in which no class has more than $1 + \rho$ times its share in the reference,
    since then $t \cdot r \le (1 + \rho)\, t_\text{ref} \cdot r$. The cost: evidence grows by at most
    $D(t \Vert t_\text{ref}) - \log(1 + \rho)$ nats a sample, and a change of a smaller divergence $D$ is
    never found. At $\rho = 0$ *any* departure from the reference is found in the end, one that is only an
    error of the reference or of the calibration too.

    After an alarm `changed_at` dates the change and `prior_since` is the prior since then; both look back
    over `memory` samples at most. The evidence begins again from zero with the same reference, so the alarm
    goes off again until `reset` is given a new one. With `StreamingPrior`:
    `stream.forget_before(detector.changed_at)`.

    Args:
        reference: The prior that is expected, `[C]`, strictly positive.
        carried: The prior $q$ that the logits carry, `[C]`, strictly positive.
        scaling: Calibration to apply first, as `priorshift.adjustment.fit_scaling` gives it; recommended: the
            guarantee is for calibrated predictions.
        run_length: Mean number of samples between false alarms, at least.
        tolerance: The $\rho \ge 0$ by which shares may exceed those of the reference.
        half_lives: Paces of the learners, in samples.
        memory: Number of samples that are kept for dating.

    Raises:
        ValueError: If a prior has a zero or the parts do not fit, or a setting is out of range.

    Example:
        >>> import numpy as np
        >>> detector = ChangeDetector([0.5, 0.5], carried=[0.5, 0.5], run_length=1000)
        >>> sure = np.array([[3.0, 0.0], [0.0, 3.0]])
        >>> [detector.update(sure[labels]) for labels in ([0, 1] * 20, [0] * 20, [0] * 20)]
        [False, False, True]
        >>> detector.changed_at, detector.prior_since.probs.round(2)
        (41, array([0.99, 0.01]))

    References:
        Shin, Ramdas and Rinaldo, *E-detectors: a nonparametric framework for sequential change detection*,
        New England Journal of Statistics in Data Science 2024: the Shiryaev-Roberts e-detector and its mean
        run length. The ratio of densities with a predictable numerator: Wald 1947, as in Wasserman et al.,
        *Universal inference*, PNAS 2020. Its use for class priors, and the tolerance, are new here.
    """

    def __init__(
        self,
        reference: Prior | ArrayLike,
        carried: Prior | ArrayLike,
        *,
        scaling: Scaling | None = None,
        run_length: float = 100_000,
        tolerance: float = 0.01,
        half_lives: Sequence[float] = PACES,
        memory: int = 4096,
    ) -> None:
        self._scorer = Scorer(carried, scaling)
        check_half_lives(half_lives)
        if not 1 <= run_length < math.inf:
            raise ValueError(f"Expected `run_length` to be at least 1 and finite, but got {run_length}.")
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"Expected `tolerance` to be non-negative and finite, but got {tolerance}.")
        if memory < 1:
            raise ValueError(f"Expected `memory` to be at least 1, but got {memory}.")
        self.run_length, self.tolerance, self.memory = run_length, tolerance, memory
        self._half_lives = tuple(half_lives)
        self._num_samples = self._alarms = 0
        self._alarmed_at: int | None = None
        self._changed_at: int | None = None
        self._since: Prior | None = None
        self.reset(reference)

    def reset(self, reference: Prior | ArrayLike) -> None:
        """Expect another prior from now on; the count of samples and of alarms goes on.

        Raises:
            ValueError: If `reference` is not of $C$ classes, or zero for one.
        """
        scorer = self._scorer
        expected = as_prior(reference, "reference", scorer.num_classes, names=scorer.names)
        self._reference = expected.require_positive("reference")
        self._learners = Learners(self._half_lives, self._reference)
        self._log_evidence = np.full(len(self._half_lives), -np.inf)
        self._recent: deque[Float[np.ndarray, "block classes"]] = deque()
        self._kept = 0

    @property
    def num_samples(self) -> int:
        """Number of samples so far."""
        return self._num_samples

    @property
    def reference(self) -> Prior:
        """The prior that is expected."""
        return self._reference

    @property
    def evidence(self) -> float:
        """The evidence $M_n$ for a change since the last alarm or reset; an alarm is at `run_length`."""
        return float(np.exp(_log_mean(self._log_evidence)))

    @property
    def alarms(self) -> int:
        """Number of alarms so far."""
        return self._alarms

    @property
    def alarmed_at(self) -> int | None:
        """Position in the stream of the sample that gave the last alarm, the first being 1."""
        return self._alarmed_at

    @property
    def changed_at(self) -> int | None:
        """Position of the first sample of the new prior, of the last alarm.

        It is the position of highest likelihood within the last `memory` samples before the alarm, for the
        prior `prior_since`.
        """
        return self._changed_at

    @property
    def prior_since(self) -> Prior | None:
        """The prior from `changed_at` to the last alarm, strictly positive; None before any alarm."""
        return self._since

    def update(self, logits: ArrayLike) -> bool:
        """Take a batch of unlabelled samples; True if it raised an alarm.

        The learners stay as they are for up to 256 samples, all of a smaller batch; the rest of such a block
        after an alarm is no evidence for the next.

        Args:
            logits: Scores as the scorer gives them, `[B, C]`, of any kind.

        Raises:
            TypeError: If `logits` are not floating-point.
            ValueError: If they are not of $C$ classes, or a row has nothing finite.
        """
        return self._take(self._scorer.calibrated(logits))

    def _take(self, calibrated: Float[np.ndarray, "samples classes"]) -> bool:
        """`update` with scores that were read and calibrated before."""
        before = self._alarms
        for ratios in self._scorer.ratios(calibrated):
            densities = self._learners.densities(ratios)
            expected = ratios @ self._reference.probs.astype(ratios.dtype)
            gains = np.log(densities) - np.log(expected.astype(np.float64))[:, None]
            path = (gains - math.log1p(self.tolerance)).cumsum(axis=0)
            begun = np.empty_like(path)
            begun[0], begun[1:] = np.logaddexp(self._log_evidence, 0.0), -path[:-1]
            evidence = path + np.logaddexp.accumulate(begun, axis=0)
            crossed = np.flatnonzero(_log_mean(evidence) >= math.log(self.run_length))
            self._remember(ratios)
            if len(crossed):
                position = int(crossed[0])
                self._alarm(position + 1, len(ratios), int(evidence[position].argmax()))
                self._log_evidence = np.full_like(self._log_evidence, -np.inf)
            else:
                self._log_evidence = evidence[-1]
            self._num_samples += len(ratios)
            self._learners.step(ratios, densities)
        return self._alarms > before

    def state_dict(self) -> dict[str, Any]:
        """The state of the stream as arrays and numbers, without the settings."""
        numbers = {"alarmed_at": self._alarmed_at, "changed_at": self._changed_at}
        return {
            **prior_as_arrays(self._reference, "reference"),
            "probs": self._learners.probs.copy(),
            "log_evidence": self._log_evidence.copy(),
            "recent": np.concatenate([np.empty((0, self._scorer.num_classes)), *self._recent]),
            "num_samples": self._num_samples,
            "alarms": self._alarms,
            **{name: number for name, number in numbers.items() if number is not None},
            **({} if self._since is None else prior_as_arrays(self._since, "prior_since")),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a detector of the same settings.

        Raises:
            ValueError: If the state is not of as many half-lives and classes.
        """
        reference = read_prior(state, "reference", self._scorer)
        self._reference = self._reference if reference is None else reference
        self._learners.probs = read_state(state, "probs", self._learners.probs.shape)
        self._log_evidence = read_state(state, "log_evidence", self._log_evidence.shape)
        self._recent = deque([read_array(state["recent"], "recent")])
        self._kept = len(self._recent[0])
        self._num_samples, self._alarms = int(state["num_samples"]), int(state["alarms"])
        self._alarmed_at, self._changed_at = (
            read_number(state, "alarmed_at"),
            read_number(state, "changed_at"),
        )
        self._since = read_prior(state, "prior_since", self._scorer)

    def _remember(self, ratios: Float[np.ndarray, "block classes"]) -> None:
        self._recent.append(ratios)
        self._kept += len(ratios)
        # The rows of this block that follow an alarm in it are not among those that date it.
        while self._kept - len(self._recent[0]) >= self.memory + len(ratios):
            self._kept -= len(self._recent.popleft())

    def _alarm(self, position: int, size: int, leader: int) -> None:
        """Date the change behind an alarm at a row of the last block, beginning from the leader's prior."""
        rows = np.concatenate(self._recent).astype(np.float64, copy=False)
        rows = rows[: len(rows) - size + position][-self.memory :]
        expected = np.log(rows @ self._reference.probs)
        since, names = Prior(self._learners.probs[leader], names=self._scorer.names), self._scorer.names
        length = 0
        for _ in range(_ROUNDS):
            gains = (np.log(rows @ since.probs) - expected)[::-1].cumsum()
            last, length = length, int(gains.argmax()) + 1
            if length == last:
                break
            likelihood = Likelihood.from_ratios(rows[-length:], names=names)
            since = with_one_sample(likelihood.maximize().prior, length)
        self._since = since
        self._alarms += 1
        self._alarmed_at = self._num_samples + position
        self._changed_at = self._alarmed_at - length + 1


def _log_mean(log_evidence: Float[np.ndarray, "*samples learners"]) -> Float[np.ndarray, "*samples"]:
    summed = np.logaddexp.reduce(log_evidence, axis=-1)
    return np.asarray(summed - math.log(log_evidence.shape[-1]))
