"""Class mixes that change over time, and batches of samples that follow them."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int

from priorshift._inputs import ArrayLike, read_labels, require_one_of
from priorshift.priors import Prior, as_prior, name_classes
from priorshift.shift._arguments import read_whole

StreamKind = Literal["constant", "monotone", "square", "sinusoidal", "bernoulli"]


def stream_priors(
    kind: StreamKind,
    source: Prior | ArrayLike,
    target: Prior | ArrayLike,
    num_steps: int,
    *,
    period: int | None = None,
    seed: int | None = None,
) -> list[Prior]:
    r"""The class mix at every step of a stream that moves between two mixes.

    $$t_i = (1 - \alpha_i)\, s + \alpha_i\, t, \qquad i = 0 … T-1$$

    | kind | $\alpha_i$ | |
    |---|---|---|
    | `constant` | $1$ | one shift, before the first step |
    | `monotone` | $i / (T-1)$ | from the source at the first step to the target at the last |
    | `square` | $\lfloor i / L \rfloor \bmod 2$ | $L$ steps of each, the source first |
    | `sinusoidal` | $\sin(\pi\, (i \bmod L) / L)$ | an arch to the target and back in $L$ steps |
    | `bernoulli` | $0$ at first, then changes sides with probability $1/L$ | stays of $L$ steps on average |

    For testing estimators that follow a changing mix; `draw_stream` draws the samples.

    Args:
        kind: How the mix moves.
        source: The mix $s$ that the stream starts from, `[C]`.
        target: The mix $t$ that it moves to, `[C]`.
        num_steps: Number of steps $T \ge 1$.
        period: The $L \ge 1$ of the last three kinds, in steps; $\lfloor\sqrt T\rfloor$ by default.
        seed: Of the Bernoulli stream, which needs one; the other kinds are not random.

    Raises:
        ValueError: If `kind` is none of these, the mixes differ in length, a number is out of range, or the
            Bernoulli stream is given no seed.

    Example:
        >>> for prior in stream_priors("sinusoidal", [0.9, 0.1], [0.1, 0.9], num_steps=4, period=4):
        ...     print([round(p, 3) for p in prior.probs.tolist()])
        [0.9, 0.1]
        [0.334, 0.666]
        [0.1, 0.9]
        [0.334, 0.666]

    References:
        Wu et al., "Online adaptation to label distribution shift", NeurIPS 2021; Bai et al., "Adapting to
        online label shift with provable guarantees", NeurIPS 2022, for the period; Baby et al., "Online label
        shift: optimal dynamic regret meets practical algorithms", NeurIPS 2023, whose monotone stream has
        $\alpha_i = i / T$ and so stops one step short of the target.
    """
    start = as_prior(source, "source")
    end = as_prior(target, "target", start.num_classes, names=start.names)
    require_one_of("kind", kind, get_args(StreamKind))
    num_steps = read_whole(num_steps, "num_steps", least=1)
    period = read_whole(math.isqrt(num_steps) if period is None else period, "period", least=1)
    return [
        Prior((1 - share) * start.probs + share * end.probs, names=end.names)
        for share in _shares(kind, num_steps, period, seed)
    ]


def draw_stream(
    labels: ArrayLike,
    priors: Sequence[Prior | ArrayLike],
    batch_size: int,
    seed: int,
    *,
    replacement: bool = True,
) -> Int[np.ndarray, "steps batch"]:
    r"""Draw one batch per step from a labelled pool, each from the class mix of its step.

    At every step `batch_size` classes are drawn from that step's prior, independently, and then a sample of
    each of these classes. The batch is thus a random sample of a population with exactly that prior; its own
    class frequencies scatter about it.

    Args:
        labels: Class indices of the pool, `[N]`, or class names where the priors have them.
        priors: The prior of every step, such as `stream_priors` gives.
        batch_size: Samples at each step $B$.
        seed: Non-negative. The first steps are the same however many follow.
        replacement: True draws each sample from all of its class, so it can occur again, in its own batch
            too. False lets no sample occur twice in the whole stream; the pool must be large enough.

    Returns:
        Row indices into the pool, int64, shape `[T, B]`, in random order within a step; iterate over it for
        one batch per step.

    Raises:
        TypeError: If `labels` or `seed` are not whole numbers.
        ValueError: If the priors differ in length or there is none, a class has no sample or (without
            replacement) too few, or a label is outside the classes.

    Example:
        >>> priors = stream_priors("monotone", [1.0, 0.0], [0.0, 1.0], num_steps=3)
        >>> draw_stream([0] * 10 + [1] * 10, priors, batch_size=4, seed=0, replacement=False)
        array([[ 4,  6,  2,  3],
               [ 8,  0, 19,  7],
               [13, 16, 11, 10]])
    """
    batch_size = read_whole(batch_size, "batch_size", least=1)
    seed = read_whole(seed, "seed", least=0)
    if not len(priors):
        raise ValueError("Expected `priors` with the prior of at least one step, but got none.")
    first = as_prior(priors[0], "priors")
    num_classes, names = first.num_classes, first.names
    probs = np.stack([as_prior(prior, "priors", num_classes, names=names).probs for prior in priors])
    pool = read_labels(labels, size=len(labels), num_classes=num_classes, names=names)
    available = np.bincount(pool, minlength=num_classes)
    absent = np.flatnonzero((available == 0) & (probs > 0).any(axis=0)).tolist()
    if absent:
        raise ValueError(
            "Expected `labels` to hold every class that `priors` give mass to, but there is no sample of "
            f"{name_classes(absent, names)}."
        )

    classes = np.empty((len(probs), batch_size), dtype=np.int64)
    positions = np.empty_like(classes)
    for step, masses in enumerate(probs):
        generator = np.random.default_rng([seed, step + 1])
        classes[step] = generator.choice(num_classes, size=batch_size, p=masses)
        positions[step] = generator.integers(available[classes[step]])
    order = np.arange(len(pool))
    if not replacement:
        positions = _ranks_within_classes(classes, available)
        order = np.random.default_rng([seed, 0]).permutation(order)
    by_class = order[np.argsort(pool[order], kind="stable")]
    starts = np.cumsum(available) - available
    rows: Int[np.ndarray, "steps batch"] = by_class[starts[classes] + positions]
    return rows


def _shares(kind: StreamKind, num_steps: int, period: int, seed: int | None) -> list[float]:
    steps = range(num_steps)
    match kind:
        case "constant":
            return [1.0 for _ in steps]
        case "monotone":
            return [step / max(num_steps - 1, 1) for step in steps]
        case "square":
            return [float(step // period % 2) for step in steps]
        case "sinusoidal":
            return [math.sin(math.pi * (step % period) / period) for step in steps]
        case "bernoulli":
            if seed is None:
                raise ValueError("Expected `seed` for the Bernoulli stream, which is random, but got None.")
            switches = (
                np.random.default_rng(read_whole(seed, "seed", least=0)).random(num_steps - 1) < 1 / period
            )
            return [0.0, *(np.cumsum(switches) % 2).astype(float).tolist()]


def _ranks_within_classes(
    classes: Int[np.ndarray, "steps batch"], available: Int[np.ndarray, " classes"]
) -> Int[np.ndarray, "steps batch"]:
    """How many of its class come before each entry; refused where the pool holds no more of a class."""
    drawn = classes.flatten()
    needed = np.bincount(drawn, minlength=len(available))
    short = np.flatnonzero(needed > available)
    if len(short):
        raise ValueError(
            f"Expected `labels` with enough samples to draw without replacement, but the stream takes "
            f"{needed[short[0]]} of class {short[0]}, which has {available[short[0]]}."
        )
    ranks = np.empty_like(drawn)
    ranks[np.argsort(drawn, kind="stable")] = np.arange(len(drawn)) - np.repeat(
        np.cumsum(needed) - needed, needed
    )
    return ranks.reshape(classes.shape)
