"""What the curvature of the likelihood tells of an estimated prior: standard errors and flat directions."""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float

from priorshift._inputs import ArrayLike
from priorshift.estimation._likelihood import Likelihood
from priorshift.priors import Prior, as_prior, name_classes

_FLAT = 0.02
"""Share of a label's information below which a direction is called flat, and two classes alike."""
_PAIRS = 10
"""Pairs of classes that warnings name at most."""


@final
@dataclass(frozen=True, eq=False)
class Identifiability:
    """How much the curvature of the likelihood tells of a target prior.

    Attributes:
        standard_errors: Of each class's share, `[C]`. Near the edge of the simplex an interval says more.
        sample_sizes: For each class the number of labelled samples whose frequency of that class would have
            the same variance, `[C]`.
        effective_sample_size: The number of labelled samples whose class frequencies would have the same sum
            of variances.
        weakest: The smallest share of a label's information that a prediction holds, over all directions in
            which the prior can move: 1 for perfect predictions, 0 if some priors cannot be told apart.
        pairwise_information: For each pair of classes the share of a label's information on how much of their
            sum either has, all others known, `[C, C]`; 1 on the diagonal.
        warnings: One sentence each; empty if all is well.
    """

    standard_errors: Float[np.ndarray, " classes"]
    sample_sizes: Float[np.ndarray, " classes"]
    effective_sample_size: float
    weakest: float
    pairwise_information: Float[np.ndarray, "classes classes"]
    warnings: tuple[str, ...]


def identifiability(likelihood: Likelihood, prior: Prior | ArrayLike) -> Identifiability:
    r"""Standard errors of an estimated prior, and the directions in which the likelihood is flat.

    $$\hat V = \frac{1}{N} \Big(H^{-1} - \frac{H^{-1} 1 1^\top H^{-1}}{1^\top H^{-1} 1}\Big), \qquad
      H = \frac{1}{N} \sum_i \frac{r_i r_i^\top}{(t \cdot r_i)^2}$$

    the inverse information on the directions that sum to 0. $H$ is the information by second derivatives and
    by outer products alike, so there is no other sandwich. It is taken half a sample of each class inside the
    simplex, where absent classes have a variance too; what the gradient falls short of 1 there,
    $\operatorname{diag}((1 - g) / t)$, is added, so that $H$ is the information of labels,
    $\operatorname{diag}(1/t)$, less the mean information that is missing for want of them. The eigenvalues
    of $\sqrt{t} H \sqrt{t}$ are shares of a label's information.

    Args:
        likelihood: The likelihood. Unequal weights of its samples make them worth less,
            $N = (\sum_i w_i)^2 / \sum_i w_i^2$ (Kish).
        prior: The estimate $t$, `[C]`.

    Raises:
        ValueError: If `prior` is of other classes.

    Example:
        >>> import numpy as np
        >>> clear = np.array([[9.0, 0.0]] * 30 + [[0.0, 9.0]] * 70)
        >>> round(identifiability(Likelihood(clear), [0.3, 0.7]).effective_sample_size, 1)
        100.0
        >>> hazy = Likelihood(clear / 6)
        >>> found = identifiability(hazy, hazy.maximize().prior)
        >>> round(found.effective_sample_size, 1), round(found.weakest, 2)
        (29.5, 0.3)
        >>> found.warnings
        ()

    References:
        Louis, *Finding the observed information matrix when using the EM algorithm*, JRSS B 1982. Kish,
        *Survey Sampling*, 1965, for unequal weights.
    """
    num_classes, size = likelihood.num_classes, likelihood.equal_samples
    probs = as_prior(prior, "prior", num_classes, names=likelihood.names).probs
    inside = likelihood.half_a_sample_inside(probs)
    roots = np.sqrt(inside)
    information = likelihood.information(inside)
    relative = roots[:, None] * information * roots
    # A prior moves in directions at right angles to √t; √t itself is pushed to the end of the spectrum:
    # (1 − √t √tᵀ) relative (1 − √t √tᵀ) + C √t √tᵀ.
    across = relative @ roots
    relative -= roots[:, None] * across
    relative -= across[:, None] * roots
    relative += (num_classes + roots @ across) * np.outer(roots, roots)
    shares, directions = np.linalg.eigh(relative)
    shares, directions = np.maximum(shares[:-1], 1e-12), directions[:, :-1]
    variances = inside / size * (np.square(directions) @ (1 / shares))
    spread = inside * (1 - inside)
    own = information.diagonal()
    pairwise = (own[:, None] + own - 2 * information) / (1 / inside[:, None] + 1 / inside)
    pairwise = np.clip(pairwise, 0, 1, out=pairwise)
    np.fill_diagonal(pairwise, 1.0)
    weakest = min(1.0, float(shares[0]))
    return Identifiability(
        standard_errors=np.sqrt(variances),
        sample_sizes=spread / variances,
        effective_sample_size=float(spread.sum() / variances.sum()),
        weakest=weakest,
        pairwise_information=pairwise,
        warnings=_warnings(weakest, directions[:, 0], pairwise, likelihood.names),
    )


def _warnings(
    weakest: float,
    direction: Float[np.ndarray, " classes"],
    pairwise: Float[np.ndarray, "classes classes"],
    names: tuple[str, ...] | None,
) -> tuple[str, ...]:
    found = []
    if weakest < _FLAT:
        moved = np.square(direction)
        movers = np.argsort(-moved, kind="stable")
        enough = int((np.cumsum(moved[movers]) < 0.8).sum()) + 1
        found.append(
            "The likelihood is nearly flat: some shifts of the class mix, most of all of "
            f"{name_classes(sorted(movers[:enough].tolist()), names)}, change it by "
            f"{100 * weakest:.2g} % of what labels would."
        )
    if len(direction) > 2:
        alike = np.argwhere(np.triu(pairwise < _FLAT, k=1))[:_PAIRS]
        for first, second in alike.tolist():
            pair = f"{first} and {second}" if names is None else f"{names[first]!r} and {names[second]!r}"
            found.append(
                f"Classes {pair} can hardly be told apart: the predictions hold "
                f"{100 * pairwise[first, second]:.2g} % of the information that labels would have on their "
                "shares."
            )
    return tuple(found)
