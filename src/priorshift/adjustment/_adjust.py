"""The one subtraction and one addition that every method of the two papers shares at test time."""

import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from priorshift.priors import ArrayLike, Prior, as_prior

Logits = TypeVar("Logits", Tensor, npt.NDArray[Any])


def adjust(logits: Logits, *, carried: Prior | ArrayLike, target: Prior | ArrayLike) -> Logits:
    r"""Move logits from the class prior they carry to a target prior.

    $$f^{t}(x)[y] = f(x)[y] - \log q(y) + \log t(y)$$

    This is what to do **at test time**, whatever the training method was. A scorer's logits are
    $\log p(x \mid y) + \log q(y) + \text{const}(x)$ for some carried prior $q$; if only the class mix
    changes between training and deployment, the softmax of the result is the posterior under $t$.

    - $q$ = training prior, $t$ = deployed mix: PC Softmax (LADE Eq. 4–7);
    - $q$ = uniform, $t$ = deployed mix: LADE's Eq. 17, PC Balanced Softmax, PC Causal Norm;
    - $q$ = training prior, $t$ = uniform: post-hoc logit adjustment at $\tau = 1$ (Menon et al., Eq. 9).

    Apply it to logits or log-probabilities, before the softmax. Never to probabilities: adding a logarithm
    to those is a common mistake and gives neither a distribution nor the right decision.

    Args:
        logits: Scores, shape `[C]`, `[N, C]` or `[N, C, …]`, a torch tensor or a NumPy array.
        carried: The prior that the logits carry, `[C]`, strictly positive. A loss of `priorshift.losses`
            names it as its `carried_prior`; for plain cross-entropy it is the training prior.
        target: The prior of the deployed mix, `[C]`. A class of zero mass gets probability exactly 0.

    Returns:
        Logits of the same shape, kind and device; at least float32, float64 stays float64. They are defined
        up to a constant per sample. With `carried == target` they equal the input.

    Raises:
        TypeError: If `logits` is no floating-point tensor or array.
        ValueError: If a prior is not of $C$ classes, or `carried` is zero for a class.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
        >>> adjust(logits, carried=[0.9, 0.1], target=[0.5, 0.5]).softmax(dim=1)
        tensor([[0.2320, 0.7680]], dtype=torch.float64)

    References:
        Hong et al., *Disentangling Label Distribution for Long-tailed Visual Recognition*, CVPR 2021,
        Definition 3.1, Theorem 1 and Eq. 17.
    """
    num_classes = num_classes_of(logits)
    source = as_prior(carried, "carried", num_classes).require_positive("carried")
    destination = as_prior(target, "target", num_classes)
    return _add_per_class(logits, destination.log_probs - source.log_probs)


def logit_adjust(logits: Logits, prior: Prior | ArrayLike, tau: float = 1.0) -> Logits:
    r"""Post-hoc logit adjustment.

    $$f(x)[y] - \tau \log \pi_y$$

    For the balanced error of a scorer trained with plain cross-entropy: predict the argmax of the result.
    $\tau = 0$ returns the logits; $\tau = 1$ is `adjust(logits, carried=prior, target=uniform)` up to a
    constant. At other $\tau$ the decision may well be better (the paper tunes it), but the softmax of the
    result is no posterior of the uniform mix. Choose $\tau$ on held-out training data, never on test data.

    Args:
        logits: Scores, shape `[C]`, `[N, C]` or `[N, C, …]`, a torch tensor or a NumPy array.
        prior: The training prior $\pi$, `[C]`, strictly positive.
        tau: The scaling parameter $\tau$.

    Returns:
        Logits of the same shape, kind and device; at least float32, float64 stays float64.

    Raises:
        TypeError: If `logits` is no floating-point tensor or array.
        ValueError: If `prior` is not of $C$ classes or has a zero, or `tau` is not finite.

    Example:
        >>> import numpy as np
        >>> logit_adjust(np.array([[2.0, 1.0]]), [0.9, 0.1], tau=1.0).round(3)
        array([[2.105, 3.303]])

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Eq. 9.
    """
    if not math.isfinite(tau):
        raise ValueError(f"Expected `tau` to be finite, but got {tau}.")
    source = as_prior(prior, "prior", num_classes_of(logits)).require_positive("prior")
    return _add_per_class(logits, -tau * source.log_probs)


def require_floating(logits: Tensor | npt.NDArray[Any]) -> None:
    """Raise TypeError if logits are no floating-point tensor or array."""
    if isinstance(logits, Tensor):
        floating = logits.is_floating_point()
    elif isinstance(logits, np.ndarray):
        floating = np.issubdtype(logits.dtype, np.floating)
    else:
        raise TypeError(
            f"Expected `logits` to be a torch tensor or a NumPy array, but got {type(logits).__name__}."
        )
    if not floating:
        raise TypeError(f"Expected `logits` to be floating-point, but got dtype {logits.dtype}.")


def num_classes_of(logits: Tensor | npt.NDArray[Any]) -> int:
    """The number of classes of logits of shape `[C]`, `[N, C]` or `[N, C, …]`.

    Raises:
        TypeError: If they are no floating-point tensor or array.
        ValueError: If they are a scalar.
    """
    require_floating(logits)
    if logits.ndim == 0:
        raise ValueError("Expected `logits` of shape [C], [N, C] or [N, C, …], but got a scalar.")
    return int(logits.shape[0] if logits.ndim == 1 else logits.shape[1])


def _add_per_class(logits: Logits, offset: Tensor) -> Logits:
    shape = (-1,) if logits.ndim == 1 else (1, -1) + (1,) * (logits.ndim - 2)
    absent = offset == -torch.inf
    offset = offset.masked_fill(absent, 0)
    if isinstance(logits, Tensor):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        moved = logits.to(dtype) + offset.to(dtype).to(logits.device).view(shape)
        if absent.any():
            moved = moved.masked_fill(absent.to(logits.device).view(shape), -torch.inf)
        return moved
    array_dtype = np.promote_types(logits.dtype, np.float32)
    shifted: npt.NDArray[Any] = np.empty(logits.shape, array_dtype)
    row = offset.numpy().astype(array_dtype).reshape(shape)
    if logits.dtype in (np.float32, np.float64) and logits.flags.c_contiguous and logits.flags.writeable:
        # Torch adds in all threads, NumPy in one; torch does not take other arrays.
        torch.add(torch.from_numpy(logits), torch.from_numpy(row), out=torch.from_numpy(shifted))
    else:
        np.add(logits, row, out=shifted)
    if absent.any():
        np.copyto(shifted, -np.inf, where=absent.numpy().reshape(shape))
    return shifted
