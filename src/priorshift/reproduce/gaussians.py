r"""The synthetic problem of Menon et al.: two Gaussians, one of them rare, and affine scorers fitted to them.

A sample has label $y = +1$ with probability $P(+1)$, else $-1$, and a point $x \sim N(y \cdot (1, 1), I)$ in
the plane. The best rule for the balanced error is $x_1 + x_2 > 0$ whatever $P(+1)$ is, and errs with
probability $\Phi(-\sqrt 2) = 7.865\,\%$. A separator $(w_1, w_2, b)$ stands for $f(x) = w^\top x + b$, the
difference $f_+ - f_-$ of two logits, and predicts $+1$ where $f(x) > 0$. Pairs are in the order $(+1, -1)$.

Reference:
    Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Section 6.1 and Appendix F.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from priorshift.reproduce.targets import Settings
from priorshift.training.seeds import derived_seed

BAYES_ERROR = math.erfc(1.0) / 2
r"""$\Phi(-\sqrt 2)$."""
POST_HOC = "cross-entropy + post-hoc"
LOGIT_ADJUSTED = "logit-adjusted"

Weighing = Callable[[Float[Tensor, "trials 2"]], tuple[Tensor, Tensor]]
LOSSES: Mapping[str, Weighing] = {
    "cross-entropy": lambda prior: (torch.ones_like(prior), torch.zeros_like(prior)),
    "adaptive": lambda prior: (torch.ones_like(prior), prior**-0.25),
    "equalised": lambda prior: (torch.ones_like(prior), prior.flip(-1).log()),
    "balanced": lambda prior: (1 / prior, torch.zeros_like(prior)),
    LOGIT_ADJUSTED: lambda prior: (torch.ones_like(prior), (prior.flip(-1) / prior).log()),
}
r"""Loss → its weights $\alpha_y$ and own-class margins $\Delta_{y,-y}$ (Eq. 11) at a class prior $\pi$."""

_AT_ONCE = 10
"""Trials in memory at a time; the results do not depend on it."""


@dataclass(frozen=True)
class GaussianSettings(Settings):
    """How much to simulate; the defaults are the paper's."""

    trials: int = 100
    """Independent training and test sets; at least 2, for a standard error."""
    samples: int = 10_000
    """Samples of each training set and of each test set."""
    seed: int = 0
    """Seed of all of them; a trial's samples do not depend on the number of trials."""


class Sample(NamedTuple):
    """Points and their labels, +1 or -1, of some trials."""

    points: Float[Tensor, "trials samples 2"]
    labels: Float[Tensor, "trials samples"]

    @property
    def prior(self) -> Float[Tensor, "trials 2"]:
        r"""Shares of the two classes in each trial."""
        share = (self.labels > 0).double().mean(1)
        return torch.stack([share, 1 - share], 1)


class Spread(NamedTuple):
    """Mean over trials, standard deviation, and standard error of the mean."""

    mean: float
    sd: float
    se: float

    def __str__(self) -> str:
        """Mean ± standard error, in percent."""
        return f"{100 * self.mean:.3f} ± {100 * self.se:.3f}"


@dataclass(frozen=True)
class Simulation:
    """What the trials at one class prior gave.

    Attributes:
        prior: Class shares of each training set, which the losses used.
        separators: Method → fitted separators.
        test_errors: Method → balanced errors on the test set of the trial.
        exact_errors: Method → balanced errors under the true distribution.
    """

    prior: Float[Tensor, "trials 2"]
    separators: Mapping[str, Float[Tensor, "trials 3"]]
    test_errors: Mapping[str, Float[Tensor, " trials"]]
    exact_errors: Mapping[str, Float[Tensor, " trials"]]


def simulate(share: float, settings: GaussianSettings) -> Simulation:
    """Draw the trials, fit every loss to each of them and measure its errors.

    Args:
        share: $P(+1)$.
        settings: How much to simulate.

    Raises:
        ValueError: If there are fewer than 2 trials, or a set has no sample of a class or classes that a line
            separates, so that no loss has a minimum.
    """
    if settings.trials < 2:
        raise ValueError(f"Expected `trials` to be at least 2, but got {settings.trials}.")
    if settings.samples < 1:
        raise ValueError(f"Expected `samples` to be at least 1, but got {settings.samples}.")
    trials = range(settings.trials)
    threads = torch.get_num_threads()
    # A second thread gains little, and on a busy machine the waiting for it takes far longer than the work.
    torch.set_num_threads(1)
    try:
        parts = [
            _simulate(share, settings, trials[start : start + _AT_ONCE])
            for start in range(0, settings.trials, _AT_ONCE)
        ]
    finally:
        torch.set_num_threads(threads)
    separators = {name: torch.cat([part[1][name] for part in parts]) for name in parts[0][1]}
    return Simulation(
        prior=torch.cat([part[0] for part in parts]),
        separators=separators,
        test_errors={name: torch.cat([part[2][name] for part in parts]) for name in separators},
        exact_errors={name: exact_balanced_error(fitted) for name, fitted in separators.items()},
    )


def draw(share: float, settings: GaussianSettings, purpose: str, trials: range) -> Sample:
    """The samples of some trials.

    Args:
        share: $P(+1)$.
        settings: How many samples, and the seed.
        purpose: Such as "train" or "test"; each has its own samples.
        trials: Which trials.

    Raises:
        ValueError: If a trial has no sample of a class.
    """
    points, labels = [], []
    for trial in trials:
        seed = derived_seed(settings.seed, purpose, str(share), trial)
        generator = torch.Generator().manual_seed(seed)
        positive = torch.rand(settings.samples, generator=generator, dtype=torch.float64) < share
        label = positive.double() * 2 - 1
        noise = torch.randn(settings.samples, 2, generator=generator, dtype=torch.float64)
        if positive.all() or not positive.any():
            raise ValueError(
                f"Expected `samples` to be large enough for both classes, but {settings.samples} samples of "
                f"trial {trial} have one only."
            )
        points.append(label.unsqueeze(1) + noise)
        labels.append(label)
    return Sample(torch.stack(points), torch.stack(labels))


def fit(
    sample: Sample, weights: Float[Tensor, "trials 2"], margins: Float[Tensor, "trials 2"]
) -> Float[Tensor, "trials 3"]:
    r"""The separators that minimise the mean binary pairwise margin loss of each trial.

    $$\ell(y, f) = \alpha_y \log\big(1 + e^{\Delta_{y,-y}} e^{-y f}\big)$$

    It is convex in $(w, b)$: Newton's method with exact Hessians, a step halved while it does not descend,
    until every gradient has a norm below 1e-10.

    Args:
        sample: Training sets.
        weights: $\alpha_y$.
        margins: $\Delta_{y,-y}$.

    Raises:
        ValueError: If a line separates the classes of a trial, so that there is no minimum.

    References:
        Menon et al., ICLR 2021, Eq. 11 and 13.
    """
    ones = torch.ones_like(sample.labels).unsqueeze(2)
    features = torch.cat([sample.points, ones], 2) * sample.labels.unsqueeze(2)
    positive = sample.labels > 0
    weight = torch.where(positive, weights[:, :1], weights[:, 1:]) / sample.labels.shape[1]
    margin = torch.where(positive, margins[:, :1], margins[:, 1:])

    def slack(separators: Tensor) -> Tensor:
        return margin - (features @ separators.unsqueeze(2)).squeeze(2)

    def loss(slacks: Tensor) -> Tensor:
        return -(weight * F.logsigmoid(-slacks)).sum(1)

    separators = torch.zeros(len(features), 3, dtype=torch.float64)
    slacks = slack(separators)
    for _ in range(100):
        pull = weight * torch.sigmoid(slacks)
        gradient = -(pull.unsqueeze(1) @ features).squeeze(1)
        if bool((gradient.norm(dim=1) < 1e-10).all()):
            break
        curvature = pull * torch.sigmoid(-slacks)
        hessian = (features * curvature.unsqueeze(2)).mT @ features
        step = torch.linalg.solve(hessian, gradient)
        value = loss(slacks)
        length = torch.ones(len(features), 1, dtype=torch.float64)
        while True:
            slacks = slack(separators - length * step)
            # Near the minimum a descent is smaller than the rounding of the loss.
            worse = loss(slacks) > value + 1e-12 * (1 + value.abs())
            if not bool(worse.any()):
                break
            length[worse] /= 2
        separators = separators - length * step
    else:
        raise RuntimeError(f"No minimum in 100 steps: a gradient is {float(gradient.norm(dim=1).max()):.1e}.")
    if bool((slacks < margin).all(1).any()):
        raise ValueError(
            "Expected classes that no line separates, as a loss has no minimum there, but a trial has such; "
            "raise `samples`."
        )
    return separators


def post_hoc(
    separators: Float[Tensor, "*batch trials 3"], prior: Float[Tensor, "trials 2"], tau: float | Tensor = 1.0
) -> Float[Tensor, "*batch trials 3"]:
    r"""Post-hoc logit adjustment: $f_y - \tau \log \pi_y$, so $b - \tau \log(\pi_+ / \pi_-)$ (Eq. 9)."""
    moved = separators.clone()
    moved[..., 2] -= tau * (prior[:, 0] / prior[:, 1]).log()
    return moved


def exact_balanced_error(separators: Float[Tensor, "*batch 3"]) -> Float[Tensor, " *batch"]:
    r"""The balanced error under the true distribution.

    $$\tfrac12 \Phi\Big({-\tfrac{w^\top \mu + b}{\lVert w \rVert}}\Big)
    + \tfrac12 \Phi\Big({-\tfrac{w^\top \mu - b}{\lVert w \rVert}}\Big), \qquad \mu = (1, 1)$$

    Example:
        >>> exact_balanced_error(torch.tensor([2.0, 2.0, 0.0], dtype=torch.float64))
        tensor(0.0786, dtype=torch.float64)
    """
    weights, bias = separators[..., :2], separators[..., 2]
    reach, norm = weights.sum(-1), weights.norm(dim=-1)
    misses: Tensor = torch.special.ndtr(torch.stack([-(reach + bias), -(reach - bias)]) / norm)
    return misses.mean(0)


def sample_balanced_error(separators: Float[Tensor, "trials 3"], sample: Sample) -> Float[Tensor, " trials"]:
    """The mean of the two classes' shares of wrong predictions, on the sample of each trial."""
    scores = (sample.points @ separators[:, :2].unsqueeze(2)).squeeze(2) + separators[:, 2:]
    wrong = ((scores > 0) != (sample.labels > 0)).double()
    positive = (sample.labels > 0).double()
    shares = [(wrong * among).sum(1) / among.sum(1) for among in (positive, 1 - positive)]
    return (shares[0] + shares[1]) / 2


def spread(values: Float[Tensor, " trials"]) -> Spread:
    """Mean, standard deviation and standard error."""
    sd = float(values.std())
    return Spread(float(values.mean()), sd, sd / math.sqrt(len(values)))


def _simulate(
    share: float, settings: GaussianSettings, trials: range
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    train, test = (draw(share, settings, purpose, trials) for purpose in ("train", "test"))
    prior = train.prior
    separators = {name: fit(train, *weighing(prior)) for name, weighing in LOSSES.items()}
    separators[POST_HOC] = post_hoc(separators["cross-entropy"], prior)
    errors = {name: sample_balanced_error(fitted, test) for name, fitted in separators.items()}
    return prior, separators, errors
