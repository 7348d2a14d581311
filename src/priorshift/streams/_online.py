"""The class mix of a stream, followed with a few numbers per class: averages of estimates, or gradients."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from priorshift.adjustment import Scaling
from priorshift.estimation._confusion import confusion_of, nearest_mix, sum_of_predictions
from priorshift.estimation._estimate import Array, Logits, Scored, read_validation, with_one_sample
from priorshift.estimation._scorer import Scorer
from priorshift.priors import ArrayLike, Prior

HALF_LIVES = (64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)
_PULL = 1e-3
"""Share of the uniform mix in every step. No class is lost for good, and it costs a thousandth of a nat."""
_PATIENCE = 1000
"""Samples after which the weights of the half-lives begin to be shared out again."""


@final
class FollowTheHistory:
    r"""The average of all black box estimates so far: for a mix that settles.

    $$\hat t_n = \frac1n \sum_{i \le n} K^{-1} h(x_i) = K^{-1} \Bigl( \frac1n \sum_{i \le n} h(x_i) \Bigr)$$

    with the scorer's confusion $K_{\cdot y} = \operatorname{mean}_{i:\, y_i = y} h(x_i)$ on labelled source
    samples and $h$ the one-hot argmax (hard) or the softmax. Each $K^{-1} h(x_i)$ is an unbiased estimate of
    the mix that $x_i$ was drawn from, whatever the scorer's calibration. All of history weighs alike, so the
    average trails behind a mix that keeps moving.

    It keeps $C$ sums. **At test time** call `adapt` on a batch and then `update` with it, or the other way
    around where the answer can wait.

    The paper's average may leave the simplex and is projected onto it; here the mix is the one in the
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
        TypeError: If logits are no floating-point tensor or array.
        ValueError: If not exactly one of `validation` and `confusion` is given, `carried` has a zero, or the
            parts do not fit.

    Example:
        >>> confusion = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
        >>> follower = FollowTheHistory([0.5, 0.5], confusion=confusion, hard=True)
        >>> for first in (1, 4, 4):
        ...     follower.update(torch.tensor([[2.0, 0.0]] * first + [[0.0, 2.0]] * (5 - first)))
        ...     print([round(p, 3) for p in follower.prior.probs.tolist()])
        [0.0, 1.0]
        [0.5, 0.5]
        [0.667, 0.333]

    References:
        Wu et al., *Online adaptation to label distribution shift*, NeurIPS 2021, Section 4, "Follow The
        History", on the estimates of Lipton et al., ICML 2018.
    """

    def __init__(
        self,
        carried: Prior | ArrayLike,
        *,
        validation: Scored | Sequence[Any] | None = None,
        confusion: Float[Tensor, "classes classes"] | None = None,
        hard: bool = False,
        scaling: Scaling | None = None,
    ) -> None:
        self._scorer = Scorer.of(carried, scaling)
        self.hard = hard
        if (validation is None) == (confusion is None):
            raise ValueError("Expected either `validation` or `confusion`, but got both or neither.")
        if validation is not None:
            scores, labels = read_validation(validation, self._scorer.source)
            confusion, _, _ = confusion_of(self._scorer.calibrate(scores), labels, None, hard=hard)
        self._confusion = _read_confusion(confusion, self._scorer.source.num_classes)
        self._sums = torch.zeros(self._scorer.source.num_classes, dtype=torch.float64)
        self._num_samples = 0
        self._prior: Prior | None = None

    @property
    def num_samples(self) -> int:
        """Number of samples that came."""
        return self._num_samples

    def update(self, logits: Array) -> None:
        """Take a batch of unlabelled samples.

        Args:
            logits: Scores as the scorer gives them, `[B, C]`, torch or NumPy.

        Raises:
            TypeError: If `logits` are no floating-point tensor or array.
            ValueError: If they are not of $C$ classes, or a row has nothing finite.
        """
        scores = self._scorer.calibrate(self._scorer.read(logits))
        self._sums += sum_of_predictions(scores, "logits", hard=self.hard)
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
            self._prior = Prior(masses.clamp(min=0))
        return self._prior

    @property
    def target(self) -> Prior:
        """The prior to adapt to: the estimate with one sample spread over all classes."""
        return with_one_sample(self.prior, self._num_samples) if self._num_samples else self.prior

    def adapt(self, logits: Logits) -> Logits:
        """Calibrate logits of the same scorer, `[C]` or `[N, C]`, and move them to `target`."""
        return self._scorer.adapt(logits, self.target)

    def state_dict(self) -> dict[str, Any]:
        """What the stream left: tensors and numbers, without the settings."""
        return {"sums": self._sums.clone(), "num_samples": self._num_samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a follower of the same settings was.

        Raises:
            ValueError: If the state is not of $C$ classes.
        """
        self._sums = read_state(state, "sums", self._sums.shape)
        self._num_samples, self._prior = int(state["num_samples"]), None


@final
class OnlineGradient:
    r"""A mix that is followed by gradient steps at several paces at once, weighed by how well each predicts.

    $$t_k \leftarrow t_k \bigl( 1 - \eta_k + \eta_k\, g(t_k) \bigr), \quad
      g_y(t) = \frac1B \sum_i \frac{r_{iy}}{t \cdot r_i}, \quad \eta_k = 1 - 2^{-B / h_k}; \qquad
      \hat t = \sum_k w_k t_k, \quad w_k \propto \prod_i t_k \cdot r_i$$

    with $r_{iy} = e^{f(x_i)[y]} / q_y$ for logits that carry the prior $q$. A step multiplies by the gradient
    of the log-likelihood; since $t \cdot g(t) = 1$ it stays in the simplex, and it is the same as moving to
    the batch's mean posterior by $\eta$: the share of what came $h_k$ samples ago is halved. For every
    half-life $h_k$ there is such a learner, and one that stays at the carried prior. Each step also mixes in
    a thousandth of the uniform prior, so that no class is lost for good.

    **What is guaranteed**, for any stream, calibrated or not. A mix of priors is a prior whose likelihood is
    that same mix, so the weights need no learning rate (Bayes): over $n$ samples that come one by one,
    $\sum_i -\log \hat t \cdot r_i$ exceeds that of the best of $K$ learners by at most
    $\log K + \log(1 + n / 1000)$ *nats in all*, the last term being the price of weights that can change
    again later. In particular it is never worse than not adapting by more. One learner of constant
    $\eta$ is Soft-Bayes, whose regret to the best constant mix of hindsight is $O(\sqrt{T C \log C})$ after
    $T$ steps of a suitable $\eta$, however large the gradients. That holds for the mean loss of batches too,
    since by Jensen $\frac1B \sum_i \log \frac{s \cdot r_i}{t \cdot r_i} \le \log s \cdot g(t)$. With batches
    the weights bound the loss of each batch's joint likelihood instead of the sum over its samples.

    **At test time** call `adapt` on a batch and then `update` with it, or the other way around where the
    answer can wait. It keeps $K C$ numbers.

    Theirs and ours: Wu et al. and Bai et al. descend an estimate of the classification risk through the
    inverse confusion, by additive steps that are projected, and ATLAS weighs step sizes by Hedge. Ours
    descends the log-loss of the predictions themselves, which is convex in the mix and needs no labelled
    data, but wants calibrated logits.

    Args:
        carried: The prior $q$ that the logits carry, `[C]`, strictly positive; where every learner begins.
        half_lives: The paces $h_k$, in samples.
        scaling: Calibration to apply first, as `priorshift.adjustment.fit_scaling` gives it; recommended.

    Raises:
        ValueError: If `carried` has a zero, there is no half-life or one is not positive, or `scaling` is of
            a scorer with another carried prior.

    Example:
        >>> follower = OnlineGradient([0.5, 0.5])
        >>> batch = torch.tensor([[3.0, 0.0]] * 45 + [[0.0, 3.0]] * 5)
        >>> for _ in range(4):
        ...     follower.update(batch)
        ...     print(round(follower.prior.probs[0].item(), 3))
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
        self._scorer = Scorer.of(carried, scaling)
        read_half_lives(half_lives)
        self._learners = Learners((*half_lives, math.inf), self._scorer.source)
        size = len(self._learners.half_lives)
        self._log_weights = torch.full((size,), -math.log(size), dtype=torch.float64)
        self._num_samples = 0

    @property
    def num_samples(self) -> int:
        """Number of samples that came."""
        return self._num_samples

    @property
    def weights(self) -> dict[float, float]:
        """Half-life → the weight of its learner now; infinity is the learner that stays where it began."""
        half_lives: list[float] = self._learners.half_lives.tolist()
        return dict(zip(half_lives, self._log_weights.exp().tolist(), strict=True))

    def update(self, logits: Array) -> None:
        """Take a batch of unlabelled samples; one of more than 256 is taken in parts of 256.

        Args:
            logits: Scores as the scorer gives them, `[B, C]`, torch or NumPy.

        Raises:
            TypeError: If `logits` are no floating-point tensor or array.
            ValueError: If they are not of $C$ classes, or a row has nothing finite.
        """
        for ratios in self._scorer.ratios(logits):
            densities = self._learners.densities(ratios)
            log_weights = self._log_weights + densities.log().sum(dim=0)
            log_weights -= log_weights.logsumexp(dim=0)
            self._num_samples += len(ratios)
            shared = len(ratios) / (self._num_samples + _PATIENCE)
            self._log_weights = torch.logaddexp(
                log_weights + math.log1p(-shared),
                torch.full_like(log_weights, math.log(shared / len(log_weights))),
            )
            self._learners.step(ratios, densities)

    @property
    def prior(self) -> Prior:
        """The weighted mean of the learners, strictly positive; before any sample, the carried prior."""
        return Prior(self._log_weights.exp() @ self._learners.probs)

    @property
    def target(self) -> Prior:
        """The prior to adapt to: `prior` itself."""
        return self.prior

    def adapt(self, logits: Logits) -> Logits:
        """Calibrate logits of the same scorer, `[C]` or `[N, C]`, and move them to `target`."""
        return self._scorer.adapt(logits, self.target)

    def state_dict(self) -> dict[str, Any]:
        """What the stream left: tensors and numbers, without the settings."""
        return {
            "probs": self._learners.probs.clone(),
            "log_weights": self._log_weights.clone(),
            "num_samples": self._num_samples,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a follower of the same settings was.

        Raises:
            ValueError: If the state is not of as many half-lives and classes.
        """
        self._learners.probs = read_state(state, "probs", self._learners.probs.shape)
        self._log_weights = read_state(state, "log_weights", self._log_weights.shape)
        self._num_samples = int(state["num_samples"])


class Learners:
    """Priors that follow a stream by the steps of `OnlineGradient`, each at a pace of its own."""

    def __init__(self, half_lives: Sequence[float], start: Prior) -> None:
        self.half_lives = torch.tensor(half_lives, dtype=torch.float64)
        self.probs = start.probs.repeat(len(half_lives), 1)

    def densities(self, ratios: Float[Tensor, "samples classes"]) -> Float[Tensor, "samples learners"]:
        """How likely each learner says that each sample is, up to a constant of the sample."""
        return (ratios @ self.probs.T.to(ratios.dtype)).double()

    def step(
        self, ratios: Float[Tensor, "samples classes"], densities: Float[Tensor, "samples learners"]
    ) -> None:
        """Move all learners by one step over a block whose densities are known."""
        gradients = (densities.reciprocal().T.to(ratios.dtype) @ ratios).double() / len(ratios)
        rates = 1 - torch.exp2(-len(ratios) / self.half_lives)[:, None]
        moved = self.probs * (1 - rates + rates * (1 - _PULL) * gradients)
        moved += rates * _PULL / self.probs.shape[1]
        self.probs = moved / moved.sum(dim=1, keepdim=True)


def read_half_lives(half_lives: Sequence[float]) -> None:
    """Raise ValueError unless there is a half-life and all are positive and finite."""
    if not half_lives or not all(0 < value < math.inf for value in half_lives):
        raise ValueError(
            f"Expected `half_lives` to be positive and finite, at least one, but got {tuple(half_lives)}."
        )


def read_state(state: Mapping[str, Any], name: str, shape: torch.Size) -> Tensor:
    """A float64 copy of a tensor of a state.

    Raises:
        ValueError: If it has another shape than it had when it was saved.
    """
    value = torch.as_tensor(state[name], dtype=torch.float64)
    if value.shape != shape:
        raise ValueError(
            f"Expected `{name}` of the state with shape {tuple(shape)}, but got {tuple(value.shape)}."
        )
    return value.clone()


def _read_confusion(confusion: Tensor | None, num_classes: int) -> Float[Tensor, "classes classes"]:
    matrix = torch.as_tensor(confusion, dtype=torch.float64).detach().cpu()
    if matrix.shape != (num_classes, num_classes):
        raise ValueError(
            f"Expected `confusion` of shape ({num_classes}, {num_classes}), but got {tuple(matrix.shape)}."
        )
    sums = matrix.sum(dim=0)
    if not (matrix >= 0).all() or not torch.allclose(sums, torch.ones_like(sums), atol=1e-6):
        raise ValueError(
            "Expected `confusion` to be non-negative with columns that sum to 1, "
            f"but its columns sum to {[round(total, 4) for total in sums.tolist()[:10]]}."
        )
    return matrix
