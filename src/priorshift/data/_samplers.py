"""Which images an epoch sees, and in which order: a pure function of the seed, shared out over ranks."""

from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from priorshift.priors import Prior, count_labels

Sampler: TypeAlias = Literal[
    "instance", "class-balanced", "square-root", "progressively-balanced", "reversed"
]
SAMPLERS: tuple[str, ...] = get_args(Sampler)


def sampled_prior(sampler: str, source: Prior, progress: float = 1.0) -> Prior:
    r"""The class mix of the stream that a sampler deals from data of the mix $\pi$.

    | sampler | class mix |
    |---|---|
    | `instance` | $\pi$: every image once an epoch |
    | `class-balanced` | uniform |
    | `square-root` | $\propto \pi^{1/2}$ |
    | `progressively-balanced` | $(1 - t)\,\pi + t\,\text{uniform}$ |
    | `reversed` | $\propto 1/\pi$ |

    Args:
        sampler: One of the above.
        source: The class mix $\pi$ of the data, `[C]`, strictly positive.
        progress: Share $t$ of the epochs that are over, between 0 and 1; 1 in the last epoch.

    Returns:
        The mix, with the counts of `source`.

    Raises:
        ValueError: If there is no such sampler or `progress` lies outside 0 … 1.

    Example:
        >>> sampled_prior("reversed", Prior([0.8, 0.2])).probs.tolist()
        [0.2, 0.8]

    References:
        Kang et al., *Decoupling Representation and Classifier for Long-Tailed Recognition*, ICLR 2020, Eq.
        1–2; reversed: Zhou et al., *BBN*, CVPR 2020, Section 4.2.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"There is no sampler {sampler!r}; there are {', '.join(SAMPLERS)}.")
    if not 0 <= progress <= 1:
        raise ValueError(f"Expected `progress` to be in [0, 1], but got {progress}.")
    if sampler == "instance":
        return source
    exponent = {"class-balanced": 0.0, "square-root": 0.5, "reversed": -1.0}.get(sampler)
    if exponent is None:
        mix = (1 - progress) * source.probs + progress / source.num_classes
    else:
        mix = source.tempered(exponent).probs
    return Prior(mix, counts=source.counts, names=source.names)


def sampled_order(
    labels: Int[Tensor, " samples"],
    num_classes: int,
    sampler: str,
    *,
    seed: int,
    progress: float = 1.0,
    rank: int = 0,
    world_size: int = 1,
) -> Int[Tensor, " share"]:
    """The indices that an epoch sees, in order: as many as there are images, dealt out over the ranks.

    `instance` takes every image once. The others draw a class for each place, then the next image of that
    class in a random order of its own, so that the images of a class are used evenly; a class that is drawn
    more often than it has images goes round again. The ranks' shares make up the order of one process: rank
    $r$ of $k$ takes every $k$-th place from the $r$-th. Nothing is padded, repeated or dropped for them.

    Args:
        labels: Class indices of the images, `[N]`, on the CPU.
        num_classes: Number of classes $C$, each with at least one image.
        sampler: As in `sampled_prior`.
        seed: Derive it from (seed, epoch), the same on all ranks.
        progress: As in `sampled_prior`.
        rank: This process.
        world_size: Number of processes.

    Returns:
        Row indices, int64, `[N / world_size]`, rounded up on the first ranks.

    Raises:
        ValueError: If there is no such sampler, a class has no image, or `rank` is out of range.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 1])
        >>> sampled_order(labels, 2, "class-balanced", seed=0)
        tensor([2, 3, 0, 1, 4, 2])
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"Expected `rank` between 0 and {world_size - 1}, but got {rank}.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    counts = torch.from_numpy(count_labels(labels, num_classes))
    source = Prior.from_counts(counts)
    mix = sampled_prior(sampler, source, progress)
    if sampler != "instance":
        classes = torch.multinomial(
            torch.tensor(mix.probs), len(labels), replacement=True, generator=generator
        )
        order = order[labels[order].argsort(stable=True)]
        first = counts.cumsum(0) - counts
        by_class = classes.argsort(stable=True)
        drawn = torch.bincount(classes, minlength=num_classes)
        turn = torch.empty_like(classes)
        turn[by_class] = torch.arange(len(classes)) - (drawn.cumsum(0) - drawn)[classes[by_class]]
        order = order[first[classes] + turn % counts[classes]]
    return order[rank::world_size]
