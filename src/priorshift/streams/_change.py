"""When the class mix of a stream changed: a sequential test with a stated rate of false alarms."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from priorshift.adjustment import Scaling
from priorshift.estimation._estimate import Array, with_one_sample
from priorshift.estimation._likelihood import maximise_likelihood
from priorshift.estimation._online import Learners, read_half_lives, read_state
from priorshift.estimation._scorer import Scorer
from priorshift.priors import ArrayLike, Prior, as_prior

PACES = (32.0, 128.0, 512.0, 2048.0, 8192.0)
_ROUNDS = 5
"""Rounds of dating a change by a mix, and estimating the mix since that date."""


@final
class ChangeDetector:
    r"""An alarm when the class mix of a stream is no longer the reference: at most one in `run_length`.

    $$M_n^{(k)} = e_n^{(k)} \bigl( M_{n-1}^{(k)} + 1 \bigr), \qquad
      e_n^{(k)} = \frac{t_{k,n-1} \cdot r_n}{(1 + \rho)\; t_\text{ref} \cdot r_n}, \qquad
      \text{alarm when } \frac1K \sum_k M_n^{(k)} \ge \text{run length}$$

    with $r_{ny} = e^{f(x_n)[y]} / q_y$ for logits that carry the prior $q$, and mixes $t_{k,n-1}$ that follow
    the stream up to the sample before (the learners of `OnlineGradient`, at several paces: quick ones see
    large changes soon, slow ones see small changes at all).

    **What is guaranteed.** As long as the mix is the reference and the predictions are calibrated, the mean
    of $e_n$ given the past is at most 1 whatever the learners say, so $M_n - n$ falls on average and the mean
    number of samples until an alarm is at least `run_length`. With a `tolerance` $\rho > 0$ the same
    holds for **every** mix in which no class has more than $1 + \rho$ times its share in the reference, since
    then $t \cdot r \le (1 + \rho)\, t_\text{ref} \cdot r$. The price: evidence grows by at most
    $D(t \Vert t_\text{ref}) - \log(1 + \rho)$ nats a sample, and a change of a smaller divergence $D$ is
    never found. At $\rho = 0$ *any* departure from the reference is found in the end, one that is only an
    error of the reference or of the calibration too.

    After an alarm `changed_at` dates the change and `prior_since` is the mix since then; both look back over
    `memory` samples at most. The evidence begins again from zero with the same reference, so the alarm goes
    off again until `reset` is given a new one. With `StreamingPrior`:
    `stream.forget_before(detector.changed_at)`.

    Args:
        reference: The mix that is expected, `[C]`, strictly positive.
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
        >>> detector = ChangeDetector([0.5, 0.5], carried=[0.5, 0.5], run_length=1000)
        >>> sure = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
        >>> [detector.update(sure[torch.tensor(labels)]) for labels in ([0, 1] * 20, [0] * 20, [0] * 20)]
        [False, False, True]
        >>> detector.changed_at, [round(p, 2) for p in detector.prior_since.probs.tolist()]
        (41, [0.99, 0.01])

    References:
        Shin, Ramdas and Rinaldo, *E-detectors: a nonparametric framework for sequential change detection*,
        New England Journal of Statistics in Data Science 2024: the Shiryaev-Roberts e-detector and its mean
        run length. The ratio of densities with a predictable numerator: Wald 1947, as in Wasserman et al.,
        *Universal inference*, PNAS 2020. Its use for class mixes, and the tolerance, are ours.
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
        self._scorer = Scorer.of(carried, scaling)
        read_half_lives(half_lives)
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
        """Expect another mix from now on; the count of samples and of alarms goes on.

        Raises:
            ValueError: If `reference` is not of $C$ classes, or zero for one.
        """
        num_classes = len(self._scorer.source)
        self._reference = as_prior(reference, "reference", num_classes).require_positive("reference")
        self._learners = Learners(self._half_lives, self._reference)
        self._log_evidence = torch.full((len(self._half_lives),), -torch.inf, dtype=torch.float64)
        self._recent: deque[Tensor] = deque()

    @property
    def num_samples(self) -> int:
        """Number of samples that came."""
        return self._num_samples

    @property
    def reference(self) -> Prior:
        """The mix that is expected."""
        return self._reference

    @property
    def evidence(self) -> float:
        """The evidence $M_n$ for a change since the last alarm or reset; an alarm is at `run_length`."""
        return _log_mean(self._log_evidence).exp().item()

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
        """Position of the sample from which on the stream of the last alarm was likely another one.

        It is that of highest likelihood within the last `memory` samples before the alarm, for the mix
        `prior_since`.
        """
        return self._changed_at

    @property
    def prior_since(self) -> Prior | None:
        """The mix from `changed_at` to the last alarm, strictly positive; None before any alarm."""
        return self._since

    def update(self, logits: Array) -> bool:
        """Take a batch of unlabelled samples, and say if it gave an alarm.

        The learners stay as they are for up to 256 samples, all of a smaller batch; what is left of such a
        block after an alarm is no evidence for the next.

        Args:
            logits: Scores as the scorer gives them, `[B, C]`, torch or NumPy.

        Raises:
            TypeError: If `logits` are no floating-point tensor or array.
            ValueError: If they are not of $C$ classes, or a row has nothing finite.
        """
        before = self._alarms
        for ratios in self._scorer.ratios(logits):
            densities = self._learners.densities(ratios)
            expected = (ratios @ self._reference.probs.to(ratios.dtype)).double()[:, None]
            path = (densities.log() - expected.log() - math.log1p(self.tolerance)).cumsum(dim=0)
            begun = torch.cat([torch.zeros_like(path[:1]), -path[:-1]]).logcumsumexp(dim=0)
            evidence = path + torch.logaddexp(begun, self._log_evidence)
            crossed = torch.nonzero(_log_mean(evidence) >= math.log(self.run_length))
            self._remember(ratios)
            if len(crossed):
                position = int(crossed[0])
                self._alarm(position + 1, len(ratios), int(evidence[position].argmax()))
                self._log_evidence = torch.full_like(self._log_evidence, -torch.inf)
            else:
                self._log_evidence = evidence[-1]
            self._num_samples += len(ratios)
            self._learners.step(ratios, densities)
        return self._alarms > before

    def state_dict(self) -> dict[str, Any]:
        """What the stream left: tensors and numbers, without the settings."""
        return {
            "reference": self._reference.probs,
            "probs": self._learners.probs.clone(),
            "log_evidence": self._log_evidence.clone(),
            "recent": torch.cat([self._scorer.source.probs[None][:0], *self._recent]),
            "num_samples": self._num_samples,
            "alarms": self._alarms,
            "alarmed_at": self._alarmed_at,
            "changed_at": self._changed_at,
            "prior_since": None if self._since is None else self._since.probs,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a detector of the same settings was.

        Raises:
            ValueError: If the state is not of as many half-lives and classes.
        """
        num_classes = len(self._scorer.source)
        self._reference = as_prior(state["reference"], "reference", num_classes)
        self._learners.probs = read_state(state, "probs", self._learners.probs.shape)
        self._log_evidence = read_state(state, "log_evidence", self._log_evidence.shape)
        self._recent = deque([torch.as_tensor(state["recent"])])
        self._num_samples, self._alarms = int(state["num_samples"]), int(state["alarms"])
        self._alarmed_at, self._changed_at = state["alarmed_at"], state["changed_at"]
        since = state["prior_since"]
        self._since = None if since is None else as_prior(since, "prior_since", num_classes)

    def _remember(self, ratios: Float[Tensor, "samples classes"]) -> None:
        self._recent.append(ratios)
        kept = sum(map(len, self._recent))
        # The rows of this block that follow an alarm in it are not among those that date it.
        while kept - len(self._recent[0]) >= self.memory + len(ratios):
            kept -= len(self._recent.popleft())

    def _alarm(self, position: int, size: int, leader: int) -> None:
        """Date the change behind an alarm at a row of the last block, beginning from the leader's mix."""
        rows = torch.cat(tuple(self._recent)).double()
        rows = rows[: len(rows) - size + position][-self.memory :]
        expected = (rows @ self._reference.probs).log()
        since = Prior(self._learners.probs[leader])
        length = 0
        for _ in range(_ROUNDS):
            gains = ((rows @ since.probs).log() - expected).flip(0).cumsum(dim=0)
            last, length = length, int(gains.argmax()) + 1
            if length == last:
                break
            since = with_one_sample(maximise_likelihood(rows[-length:].log()).prior, length)
        self._since = since
        self._alarms += 1
        self._alarmed_at = self._num_samples + position
        self._changed_at = self._alarmed_at - length + 1


def _log_mean(log_evidence: Float[Tensor, "*samples learners"]) -> Float[Tensor, "*samples"]:
    return log_evidence.logsumexp(dim=-1) - math.log(log_evidence.shape[-1])
