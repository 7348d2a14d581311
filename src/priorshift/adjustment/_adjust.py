"""The one subtraction and one addition that every method of the two papers shares at test time."""

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from priorshift._blocks import for_blocks
from priorshift._inputs import Array, ArrayLike, Kind, read_kind, refuse_probs
from priorshift.priors import Prior, as_prior

_INSPECTED = 256  # samples that are looked at to tell probabilities from logits
_ROW = 8192  # entries of a row below which NumPy's addition of a row per sample is slow
_BLOCK = 2**18  # entries: an addition waits for memory, not for the caches


def adjust(logits: ArrayLike, *, carried: Prior | ArrayLike, target: Prior | ArrayLike) -> Any:
    r"""Move logits from the class prior they carry to a target prior.

    $$f^{t}(x)[y] = f(x)[y] - \log q(y) + \log t(y)$$

    This is what to do **at test time**, whatever the training method was. A scorer's logits are
    $\log p(x \mid y) + \log q(y) + \text{const}(x)$ for some carried prior $q$; if only the class prior
    changes between training and deployment, the softmax of the result is the posterior under $t$.

    - $q$ = training prior, $t$ = deployed prior: PC Softmax (LADE Eq. 4–7);
    - $q$ = uniform, $t$ = deployed prior: LADE's Eq. 17, PC Balanced Softmax, PC Causal Norm;
    - $q$ = training prior, $t$ = uniform: post-hoc logit adjustment at $\tau = 1$ (Menon et al., Eq. 9).

    Apply it to logits or log-probabilities, before the softmax. Probabilities are refused where their values
    can be read at no cost (NumPy, tables, torch on the CPU): use
    [`adjust_probs`][priorshift.adjust_probs] for those.

    Args:
        logits: Scores, shape `[C]`, `[N, C]` or `[N, C, …]`: an array of any library on any device, or a
            table with one column per class.
        carried: The prior that the logits carry, `[C]`, strictly positive. A loss of `priorshift.losses`
            names it as its `carried_prior`; for plain cross-entropy it is the training prior.
        target: The prior where the model is used, `[C]`. A class of zero mass gets probability exactly 0.

    Returns:
        Logits of the same shape, kind and device; at least float32, float64 stays float64. A tensor keeps its
        gradients, a table its column names and index. They are defined up to a constant per sample. With
        `carried == target` they equal the input. Priors given by name are matched to the columns' names.

    Raises:
        TypeError: If `logits` are no floating-point numbers.
        ValueError: If a prior is not of $C$ classes or names other classes, `carried` is zero for a class, or
            `logits` are probabilities.

    Example:
        >>> import numpy as np
        >>> moved = adjust(np.array([[2.0, 1.0]]), carried=[0.9, 0.1], target=[0.5, 0.5])
        >>> (np.exp(moved) / np.exp(moved).sum(axis=1)).round(4)
        array([[0.232, 0.768]])

    References:
        Hong et al., *Disentangling Label Distribution for Long-tailed Visual Recognition*, CVPR 2021,
        Definition 3.1, Theorem 1 and Eq. 17.
    """
    kind = read_logits(logits)
    source, destination = read_priors(kind, carried, target)
    return kind.back(_add_per_class(kind, destination.log_probs - source.log_probs, logits))


def logit_adjust(logits: ArrayLike, prior: Prior | ArrayLike, tau: float = 1.0) -> Any:
    r"""Post-hoc logit adjustment.

    $$f(x)[y] - \tau \log \pi_y$$

    For the balanced error of a scorer trained with plain cross-entropy: predict the argmax of the result.
    $\tau = 0$ returns the logits; $\tau = 1$ is `adjust(logits, carried=prior, target=uniform)` up to a
    constant. At other $\tau$ the decision may well be better (the paper tunes it), but the softmax of the
    result is no posterior of the uniform prior. Choose $\tau$ on held-out training data, never on test data.

    Args:
        logits: Scores, shape `[C]`, `[N, C]` or `[N, C, …]`, of any kind that `adjust` takes.
        prior: The training prior $\pi$, `[C]`, strictly positive.
        tau: The scaling parameter $\tau$.

    Returns:
        Logits of the same shape, kind and device; at least float32, float64 stays float64.

    Raises:
        TypeError: If `logits` are no floating-point numbers.
        ValueError: If `prior` is not of $C$ classes or has a zero, `tau` is not finite, or `logits` are
            probabilities.

    Example:
        >>> import numpy as np
        >>> logit_adjust(np.array([[2.0, 1.0]]), [0.9, 0.1], tau=1.0).round(3)
        array([[2.105, 3.303]])

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Eq. 9.
    """
    if not math.isfinite(tau):
        raise ValueError(f"Expected `tau` to be finite, but got {tau}.")
    kind = read_logits(logits)
    source = as_prior(prior, "prior", num_classes_of(kind), names=kind.names).require_positive("prior")
    return kind.back(_add_per_class(kind, -tau * source.log_probs, logits))


def read_logits(logits: ArrayLike) -> Kind:
    """Logits of shape `[C]`, `[N, C]` or `[N, C, …]`, which are refused if they are seen to be probabilities.

    Raises:
        TypeError: If they are no floating-point numbers.
        ValueError: If they are a scalar, or probabilities.
    """
    kind = read_kind(logits)
    if kind.scores.ndim == 0:
        raise ValueError("Expected `logits` of shape [C], [N, C] or [N, C, …], but got a scalar.")
    if (seen := looked_at(kind)) is not None and seen.size:
        first = seen if seen.ndim == 1 else seen[(0, slice(None)) + (0,) * (seen.ndim - 2)]
        # Nearly all logits are told from probabilities by a negative one in the first sample.
        if first.min() >= 0 and not (seen.ndim == 1 and np.isin(seen, (0, 1)).all()):
            rows = seen[None] if seen.ndim == 1 else np.moveaxis(seen, 1, -1)
            size = math.prod(rows.shape[:-1])
            some = np.linspace(0, size - 1, min(size, _INSPECTED)).astype(int)
            refuse_probs(rows[np.unravel_index(some, rows.shape[:-1])])
    return kind


def read_priors(
    kind: Kind, carried: Prior | ArrayLike, target: Prior | ArrayLike, num_classes: int | None = None
) -> tuple[Prior, Prior]:
    """The carried prior, strictly positive, and the target, both in the order of the scores' classes."""
    classes = num_classes_of(kind) if num_classes is None else num_classes
    source = as_prior(carried, "carried", classes, names=kind.names).require_positive("carried")
    return source, as_prior(target, "target", classes, names=kind.names or source.names)


def num_classes_of(kind: Kind) -> int:
    """The number of classes of scores of shape `[C]`, `[N, C]` or `[N, C, …]`."""
    return int(kind.scores.shape[0] if kind.scores.ndim == 1 else kind.scores.shape[1])


def looked_at(kind: Kind) -> Array | None:
    """The scores as NumPy's where that costs nothing; None on other devices and while a compiler traces."""
    if kind.xp is np:
        seen: Array = kind.scores
        return seen
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(kind.scores, torch.Tensor) or torch.compiler.is_compiling():
        return None
    if kind.scores.device.type != "cpu" or torch.jit.is_tracing():
        return None
    try:
        found: Array = kind.scores.detach().numpy()
    except RuntimeError:  # the tensors of vmap, and those without numbers
        return None
    return found


def in_kind(kind: Kind, values: npt.NDArray[Any], *, dtype: Any = None) -> Any:
    """NumPy's values as an array of the kind, on its device, by default of its precision."""
    if kind.xp is np:
        return values.astype(kind.scores.dtype if dtype is None else dtype)
    # What JAX traces is on no device, and torch takes no memory that is read-only.
    scores, device = kind.scores, getattr(kind.scores, "device", None)
    return kind.xp.asarray(values.copy(), dtype=scores.dtype if dtype is None else dtype, device=device)


def fresh(kind: Kind, given: ArrayLike) -> Array:
    """Where to write the result for NumPy's scores: over them if reading them made a copy."""
    scores: Array = kind.scores
    copied = isinstance(given, np.ndarray) and not np.may_share_memory(given, scores)
    return scores if copied and scores.flags.c_contiguous else np.empty(scores.shape, scores.dtype)


def add_rows(scores: Array, row: Array, out: Array) -> None:
    """`out = scores + row`, for a row of one entry per class along the second dimension."""
    if not scores.size:
        return
    if scores.flags.c_contiguous and scores.ndim > 2:
        # One entry for every pair of a sample and a class, so that a few large maps keep all threads busy.
        row = np.tile(row, len(scores))[:, None]
        scores, out = scores.reshape(len(row), -1), out.reshape(len(row), -1)
        for_blocks(lambda rows: np.add(scores[rows], row[rows], out=out[rows]), *scores.shape, entries=_BLOCK)
        return
    row = row.reshape(1, -1, *(1,) * (scores.ndim - 2))
    times = _ROW // len(row[0]) if scores.flags.c_contiguous else 0
    if times > 1 and len(scores) > times:
        many = len(scores) // times * times
        add_rows(scores[many:], row[0], out[many:])
        row = np.tile(row, times)
        scores, out = scores[:many].reshape(-1, row.size), out[:many].reshape(-1, row.size)
    size = scores[0].size
    for_blocks(lambda rows: np.add(scores[rows], row, out=out[rows]), len(scores), size, entries=_BLOCK)


def _add_per_class(kind: Kind, offset: npt.NDArray[np.float64], given: ArrayLike) -> Any:
    absent = offset == -np.inf
    offset = np.where(absent, 0.0, offset)
    scores, xp = kind.scores, kind.xp
    if xp is np:
        moved = fresh(kind, given)
        row = offset.astype(scores.dtype)
        if scores.ndim == 1:
            np.add(scores, row, out=moved)
        else:
            add_rows(scores, row, moved)
        if absent.any():
            moved[(slice(None),) * (scores.ndim > 1) + (absent,)] = -np.inf
        return moved
    shape = (-1,) if scores.ndim == 1 else (1, -1) + (1,) * (scores.ndim - 2)
    shifted = scores + xp.reshape(in_kind(kind, offset), shape)
    if not absent.any():
        return shifted
    ruled_out = xp.reshape(in_kind(kind, absent, dtype=xp.bool), shape)
    return xp.where(ruled_out, -np.inf, shifted)
