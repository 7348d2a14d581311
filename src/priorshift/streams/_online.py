"""A class prior that is followed by gradient steps at several paces at once: a few numbers per class."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Float

from priorshift._inputs import ArrayLike
from priorshift.adjustment import Scaling
from priorshift.priors import Prior
from priorshift.streams._scorer import Scorer
from priorshift.streams._state import read_state

HALF_LIVES = (64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)
_PULL = 1e-3
"""Share of the uniform prior in every step. No class is lost for good, at a cost of a thousandth of a nat."""
_PATIENCE = 1000
"""Samples after which the weights of the half-lives begin to be shared out again."""


@final
class OnlineGradient:
    r"""A prior followed by gradient steps at several paces at once, weighed by how well each predicts.

    $$t_k \leftarrow t_k \bigl( 1 - \eta_k + \eta_k\, g(t_k) \bigr), \quad
      g_y(t) = \frac1B \sum_i \frac{r_{iy}}{t \cdot r_i}, \quad \eta_k = 1 - 2^{-B / h_k}; \qquad
      \hat t = \sum_k w_k t_k, \quad w_k \propto \prod_i t_k \cdot r_i$$

    with $r_{iy} = e^{f(x_i)[y]} / q_y$ for logits that carry the prior $q$. A step multiplies by the gradient
    of the log-likelihood; since $t \cdot g(t) = 1$ it stays in the simplex, and it is the same as moving to
    the batch's mean posterior by $\eta$: the share of a sample halves in $h_k$ samples. For every
    half-life $h_k$ there is such a learner, and one that stays at the carried prior. Each step also mixes in
    a thousandth of the uniform prior, so that no class is lost for good.

    **What is guaranteed**, for any stream, calibrated or not. A weighted mean of priors is a prior whose
    likelihood is the same weighted mean, so the weights need no learning rate (Bayes): over $n$
    samples that come one by one, $\sum_i -\log \hat t \cdot r_i$ exceeds that of the best of $K$ learners by
    at most $\log K + \log(1 + n / 1000)$ *nats in all*; the last term is the cost of weights that can change
    again later. In particular it is never worse than not adapting by more. One learner of constant
    $\eta$ is Soft-Bayes, whose regret to the best constant prior of hindsight is $O(\sqrt{T C \log C})$ after
    $T$ steps of a suitable $\eta$, however large the gradients. That holds for the mean loss of batches too,
    since by Jensen $\frac1B \sum_i \log \frac{s \cdot r_i}{t \cdot r_i} \le \log s \cdot g(t)$. With batches
    the weights bound the loss of each batch's joint likelihood instead of the sum over its samples.

    **At test time** call `adapt` on a batch and then `update` with it, or the other way around where the
    answer can wait. It keeps $K C$ numbers.

    Wu et al. and Bai et al. descend an estimate of the classification risk through the
    inverse confusion, by additive steps that are projected, and ATLAS weighs step sizes by Hedge. This
    class descends the log-loss of the predictions themselves, which is convex in the prior and needs no
    labelled data, but calibrated logits.

    Args:
        carried: The prior $q$ that the logits carry, `[C]`, strictly positive; where every learner begins.
        half_lives: The paces $h_k$, in samples.
        scaling: Calibration to apply first, as `priorshift.adjustment.fit_scaling` gives it; recommended.

    Raises:
        ValueError: If `carried` has a zero, there is no half-life or one is not positive, or `scaling` is of
            a scorer with another carried prior.

    Example:
        >>> import numpy as np
        >>> follower = OnlineGradient([0.5, 0.5])
        >>> for _ in range(4):
        ...     follower.update(np.array([[3.0, 0.0]] * 45 + [[0.0, 3.0]] * 5))
        ...     print(round(follower.prior[0], 3))
        0.53
        0.739
        0.801
        0.84

    References:
        Wu et al., *Online adaptation to label distribution shift*, NeurIPS 2021; Bai et al., *Adapting to
        online label shift with provable guarantees*, NeurIPS 2022 (ATLAS), for the ensemble of step sizes.
        The step: Orseau et al., *Soft-Bayes: Prod for mixtures of experts with log-loss*, ALT 2017. Weights
        that are shared out: Herbster and Warmuth, *Tracking the best expert*, Machine Learning 1998.
    """

    def __init__(
        self,
        carried: Prior | ArrayLike,
        *,
        half_lives: Sequence[float] = HALF_LIVES,
        scaling: Scaling | None = None,
    ) -> None:
        self._scorer = Scorer(carried, scaling)
        check_half_lives(half_lives)
        self._learners = Learners((*half_lives, math.inf), self._scorer.source)
        size = len(self._learners.half_lives)
        self._log_weights = np.full(size, -math.log(size))
        self._num_samples = 0

    @property
    def num_samples(self) -> int:
        """Number of samples so far."""
        return self._num_samples

    @property
    def weights(self) -> dict[float, float]:
        """Half-life → the weight of its learner now; infinity is the learner that stays where it began."""
        weights: list[float] = np.exp(self._log_weights).tolist()
        return dict(zip(self._learners.half_lives.tolist(), weights, strict=True))

    def update(self, logits: ArrayLike) -> None:
        """Take a batch of unlabelled samples; one of more than 256 is taken in parts of 256.

        Args:
            logits: Scores as the scorer gives them, `[B, C]`, of any kind.

        Raises:
            TypeError: If `logits` are not floating-point.
            ValueError: If they are not of $C$ classes, or a row has nothing finite.
        """
        for ratios in self._scorer.ratios(self._scorer.calibrated(logits)):
            densities = self._learners.densities(ratios)
            log_weights = self._log_weights + np.log(densities).sum(axis=0)
            log_weights -= np.logaddexp.reduce(log_weights)
            self._num_samples += len(ratios)
            shared = len(ratios) / (self._num_samples + _PATIENCE)
            self._log_weights = np.logaddexp(
                log_weights + math.log1p(-shared), math.log(shared / len(log_weights))
            )
            self._learners.step(ratios, densities)

    @property
    def prior(self) -> Prior:
        """The weighted mean of the learners, strictly positive; before any sample, the carried prior."""
        return Prior(np.exp(self._log_weights) @ self._learners.probs, names=self._scorer.names)

    @property
    def target(self) -> Prior:
        """The prior to adapt to: `prior` itself."""
        return self.prior

    def adapt(self, logits: ArrayLike) -> Any:
        """Calibrate logits of the same scorer, `[C]` or `[N, C]`, and move them to `target`; kept in kind."""
        return self._scorer.adapt(logits, self.target)

    def state_dict(self) -> dict[str, Any]:
        """The state of the stream as arrays and numbers, without the settings."""
        return {
            "probs": self._learners.probs.copy(),
            "log_weights": self._log_weights.copy(),
            "num_samples": self._num_samples,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a follower of the same settings.

        Raises:
            ValueError: If the state is not of as many half-lives and classes.
        """
        self._learners.probs = read_state(state, "probs", self._learners.probs.shape)
        self._log_weights = read_state(state, "log_weights", self._log_weights.shape)
        self._num_samples = int(state["num_samples"])


class Learners:
    """Priors that follow a stream by the steps of `OnlineGradient`, each at a pace of its own."""

    def __init__(self, half_lives: Sequence[float], start: Prior) -> None:
        self.half_lives = np.array(half_lives, dtype=np.float64)
        self.probs = np.tile(start.probs, (len(half_lives), 1))

    def densities(
        self, ratios: Float[np.ndarray, "samples classes"]
    ) -> Float[np.ndarray, "samples learners"]:
        """The density of each sample under each learner, up to a constant of the sample."""
        densities = ratios @ self.probs.T.astype(ratios.dtype)
        return np.asarray(densities, dtype=np.float64)

    def step(
        self,
        ratios: Float[np.ndarray, "samples classes"],
        densities: Float[np.ndarray, "samples learners"],
    ) -> None:
        """Move all learners by one step over a block whose densities are known."""
        size = len(ratios)
        gradients = ((1 / densities).T.astype(ratios.dtype, copy=False) @ ratios).astype(
            np.float64, copy=False
        )
        rates = 1 - np.exp2(-size / self.half_lives)[:, None]
        moved = self.probs * (1 - rates + rates * (1 - _PULL) / size * gradients)
        moved += rates * _PULL / self.probs.shape[1]
        self.probs = moved / moved.sum(axis=1, keepdims=True)


def check_half_lives(half_lives: Sequence[float]) -> None:
    """Raise ValueError unless there is a half-life and all are positive and finite."""
    if not half_lives or not all(0 < value < math.inf for value in half_lives):
        raise ValueError(
            f"Expected `half_lives` to be positive and finite, at least one, but got {tuple(half_lives)}."
        )
