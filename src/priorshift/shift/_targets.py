"""Target priors: the shifted mixes of the papers, mixes from a file, and random ones."""

import json
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Int

from priorshift._inputs import ArrayLike, align, read_names, require_at_least, require_between
from priorshift.priors import Prior, as_prior, check_num_classes
from priorshift.shift._arguments import read_counts, read_whole

STANDARD_MIXES: tuple[str, ...] = (
    "forward:50",
    "forward:25",
    "forward:10",
    "forward:5",
    "forward:2",
    "uniform",
    "backward:2",
    "backward:5",
    "backward:10",
    "backward:25",
    "backward:50",
)
"""The eleven target mixes of LADE's Table 6, in its order, as `target_prior` spells them."""


def forward_prior(order_counts: ArrayLike, mu: float) -> Prior:
    r"""The prior of LADE's forward shift: mass falls with the class's rank in the training set.

    $$t_y \propto \mu^{-r_y/(C-1)}$$

    where $r_y = 0 … C-1$ is the rank of class $y$ by descending training count; equal counts keep class
    order. This is the mix that `forward_counts` floors. $\mu = 1$ is the uniform prior.

    Args:
        order_counts: Training samples of each class, shape `[C]`; only their order matters.
        mu: Ratio $\mu \ge 1$ of the largest to the smallest mass.

    Raises:
        ValueError: If `mu` is below 1, or the counts are not whole numbers, one per class.

    Example:
        >>> [round(p, 3) for p in forward_prior([10, 300, 50], mu=4).probs.tolist()]
        [0.143, 0.571, 0.286]

    Reference:
        Hong et al., "Disentangling label distribution for long-tailed visual recognition", CVPR 2021, §4.3.
    """
    counts, names = read_counts(order_counts, "order_counts")
    return _decaying_prior(_ranks(counts), mu, names)


def backward_prior(order_counts: ArrayLike, mu: float) -> Prior:
    r"""The prior of LADE's backward shift: the rarest training class becomes the most frequent one.

    $$t_y \propto \mu^{-(C-1-r_y)/(C-1)}$$

    with the rank $r_y$ of `forward_prior`, whose mirror image it is. $\mu = 1$ is the uniform prior.

    Args:
        order_counts: Training samples of each class, shape `[C]`; only their order matters.
        mu: Ratio $\mu \ge 1$ of the largest to the smallest mass.

    Raises:
        ValueError: If `mu` is below 1, or the counts are not whole numbers, one per class.

    Example:
        >>> [round(p, 3) for p in backward_prior([10, 300, 50], mu=4).probs.tolist()]
        [0.571, 0.143, 0.286]

    Reference:
        Hong et al., "Disentangling label distribution for long-tailed visual recognition", CVPR 2021, §4.3.
    """
    counts, names = read_counts(order_counts, "order_counts")
    return _decaying_prior(len(counts) - 1 - _ranks(counts), mu, names)


def tweak_one_prior(source: Prior | ArrayLike, label: int, mass: float) -> Prior:
    r"""The source prior with the mass of one class set; the others share the rest as they did.

    $$t_y = \rho, \qquad t_c = (1 - \rho) \frac{\pi_c}{1 - \pi_y} \quad (c \ne y)$$

    An outbreak of one class ($\rho > \pi_y$) or its disappearance ($\rho = 0$). From a uniform source the
    others share the rest equally, which is Lipton et al.'s protocol; $\rho = \pi_y$ is the source itself.

    Args:
        source: The class mix $\pi$ to start from, `[C]`.
        label: The class $y$ whose mass is set.
        mass: Its new mass $\rho$, between 0 and 1.

    Raises:
        ValueError: If `label` is no class, `mass` is out of range, or there is mass to share and no other
            class has any.

    Example:
        >>> tweak_one_prior([0.6, 0.3, 0.1], label=2, mass=0.7)
        Prior([0.2, 0.1, 0.7])

    Reference:
        Lipton et al., "Detecting and correcting for label shift with black box predictors", ICML 2018.
    """
    prior = as_prior(source, "source")
    probs = prior.probs.copy()
    if not 0 <= label < len(probs):
        raise ValueError(f"Expected `label` between 0 and {len(probs) - 1}, but got {label}.")
    require_between("mass", mass, 0, 1, closed=True)
    probs[label] = 0.0
    others = probs.sum()
    if others == 0 and mass < 1:
        raise ValueError(
            f"Expected `source` to give mass to another class than {label}, to take the {1 - mass:g} "
            "that `mass` leaves, but it has none."
        )
    if mass < 1:
        probs *= (1 - mass) / others
    else:
        probs[:] = 0.0
    probs[label] = mass
    return Prior(probs, names=prior.names)


def target_prior(
    name: str | PathLike[str], train_counts: ArrayLike, *, class_names: Sequence[str] | None = None
) -> Prior:
    """A target prior from how a person spells it on a command line.

    - `uniform`: every class equally often;
    - `source`: the class mix of the training set;
    - `forward:25`, `backward:25`: LADE's shifts with mu = 25 (its Table 6 is `STANDARD_MIXES`);
    - `tweak:3:0.5`: class 3 has mass 0.5, the others share the rest as in the training set
      (`tweak_one_prior`); with `class_names` a name may stand for the index, as in `tweak:cat:0.5`;
    - the path of a JSON file: a list of one number per class, or, with `class_names`, an object that gives
      every class name its mass. The numbers are divided by their sum; a class that does not occur gets 0.

    Args:
        name: The spelled mix or the path.
        train_counts: Training samples of each class, shape `[C]`, or class names and their counts.
        class_names: The names of the classes in their order, where `train_counts` does not bring them; the
            prior has them.

    Raises:
        TypeError: If the file holds something other than numbers.
        ValueError: If the spelling is unknown, or the file is missing, is no JSON, or does not fit the
            classes.

    Example:
        >>> target_prior("uniform", [90, 9, 1, 1]).probs.tolist()
        [0.25, 0.25, 0.25, 0.25]
        >>> [round(p, 3) for p in target_prior("backward:4", [90, 9, 1]).probs.tolist()]
        [0.143, 0.286, 0.571]

    Reference:
        The standard mixes: Hong et al., CVPR 2021, Table 6.
    """
    counts, names = read_counts(train_counts, "train_counts", names=class_names)
    if class_names is not None:
        names = read_names(class_names, "class_names", len(counts))
    source, spelling = as_prior(counts, "train_counts", names=names), str(name)
    if spelling == "uniform":
        return Prior.uniform(len(counts), names=names)
    if spelling == "source":
        return source
    if shift := re.fullmatch(r"(forward|backward):(\d+(?:\.\d+)?)", spelling):
        make = forward_prior if shift[1] == "forward" else backward_prior
        return make(counts, float(shift[2])).named(names)
    if tweak := re.fullmatch(r"tweak:(.+):(\d+(?:\.\d+)?)", spelling):
        return tweak_one_prior(source, _class_index(tweak[1], len(counts), names), float(tweak[2]))
    path = Path(name)
    if path.is_file():
        return _prior_from_json(path, len(counts), names)
    raise ValueError(
        "Expected `name` to be 'uniform', 'source', 'forward:<mu>', 'backward:<mu>' (such as 'forward:25'), "
        f"'tweak:<class>:<mass>' or the path of an existing JSON file, but got {spelling!r}."
    )


def dirichlet_priors(num_classes: int, alpha: float, num_draws: int, seed: int) -> list[Prior]:
    r"""Random target priors from the symmetric Dirichlet distribution.

    $$t \sim \mathrm{Dir}(\alpha, …, \alpha), \qquad
      \mathbb E[t_y] = \tfrac1C, \quad \mathrm{Var}[t_y] = \frac{C-1}{C^2(C\alpha+1)}$$

    A large $\alpha$ gives nearly uniform mixes, a small one mixes of a few classes; $\alpha = 1$ draws every
    mix of the simplex alike, the uniform prevalence protocol (UPP) of quantification. They are drawn in log
    space, $\log G_\alpha = \log G_{\alpha+1} + \tfrac1\alpha \log U$, so a tiny $\alpha$ cannot underflow
    every class to zero.

    Args:
        num_classes: Number of classes $C \ge 2$.
        alpha: Concentration of every class, between 1e-300 and 1e300.
        num_draws: Number of priors. The first ones are the same however many are drawn.
        seed: The same seed gives the same priors.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> for prior in dirichlet_priors(3, alpha=1.0, num_draws=2, seed=0):
        ...     print([round(p, 3) for p in prior.probs.tolist()])
        [0.418, 0.554, 0.028]
        [0.171, 0.058, 0.771]

    Reference:
        The gamma identity: Marsaglia and Tsang, ACM TOMS 26(3), 2000. As a benchmark of label shift: Lipton
        et al., "Detecting and correcting for label shift with black box predictors", ICML 2018.
    """
    check_num_classes(num_classes)
    require_between("alpha", alpha, 1e-300, 1e300, closed=True)
    num_draws = read_whole(num_draws, "num_draws", least=0)
    generator = np.random.default_rng(read_whole(seed, "seed", least=0))
    priors = []
    for _ in range(num_draws):
        log_gammas = np.log(generator.standard_gamma(alpha + 1, num_classes))
        log_gammas -= generator.standard_exponential(num_classes) / alpha
        priors.append(Prior(np.exp(log_gammas - log_gammas.max())))
    return priors


def _ranks(counts: Int[np.ndarray, " classes"]) -> Int[np.ndarray, " classes"]:
    return np.argsort(np.argsort(-counts, kind="stable"))


def _decaying_prior(ranks: Int[np.ndarray, " classes"], mu: float, names: tuple[str, ...] | None) -> Prior:
    require_at_least("mu", mu, 1)
    return Prior(float(mu) ** -(ranks / (len(ranks) - 1)), names=names)


def _class_index(spelled: str, num_classes: int, class_names: Sequence[str] | None) -> int:
    if class_names is not None and spelled in class_names:
        return list(class_names).index(spelled)
    if spelled.isdecimal() and int(spelled) < num_classes:
        return int(spelled)
    raise ValueError(
        f"Expected the class in 'tweak:<class>:<mass>' to be an index between 0 and {num_classes - 1}"
        f"{'' if class_names is None else ' or a class name'}, but got {spelled!r}."
    )


def _prior_from_json(path: Path, num_classes: int, class_names: Sequence[str] | None) -> Prior:
    try:
        masses = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected `{path}` to hold JSON, but it does not: {error}.") from error
    if isinstance(masses, dict):
        if class_names is None:
            raise ValueError(
                f"Expected `class_names` to read the object in `{path}`, but got None; "
                f"without them the file must hold a list of {num_classes} numbers."
            )
        shares = list(masses.values())
        masses = [shares[place] for place in align(list(masses), class_names, str(path))]
    if not isinstance(masses, list):
        raise ValueError(
            f"Expected `{path}` to hold a list of {num_classes} numbers or an object of class names and "
            f"numbers, but got {masses!r}."
        )
    return as_prior(masses, str(path), num_classes, names=class_names)
