"""How a loss module keeps its prior."""

from typing import Any

import torch
from torch import Tensor, nn

from priorshift._inputs import ArrayLike
from priorshift.priors import Prior, as_prior


class SourcePrior(nn.Module):
    """Holds a prior in float64 and hands out its logarithm where and how the logits need it.

    The prior is no buffer: `.half()` and `.to(dtype)` would round it, and MPS has no float64. One copy per
    device and dtype is made at the first use there, never below float32. It travels with `state_dict` and
    pickles; the copies do not.

    Args:
        prior: The prior, strictly positive.
    """

    def __init__(self, prior: Prior | ArrayLike) -> None:
        super().__init__()
        self._keep(as_prior(prior, "source").require_positive("source"))

    def forward(self, logits: Tensor) -> Tensor:
        """The log-prior, shape `[C]`, on the device of `logits`, in their dtype but at least float32."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        key = (logits.device, dtype)
        if key not in self._copies:
            self._copies[key] = self._log_probs.to(dtype).to(logits.device)
        return self._copies[key]

    def get_extra_state(self) -> dict[str, Tensor | None]:
        """The prior as tensors, so that checkpoints hold it."""
        counts = self.prior.counts
        return {
            "probs": torch.tensor(self.prior.probs),
            "counts": None if counts is None else torch.tensor(counts),
        }

    def set_extra_state(self, state: dict[str, Tensor | None]) -> None:
        """Take the prior of a checkpoint."""
        counts, probs = state["counts"], state["probs"]
        if probs is None or probs.shape[0] != self.prior.num_classes:
            raise ValueError(
                f"Expected a state of {self.prior.num_classes} classes, "
                f"but got {None if probs is None else probs.shape[0]}."
            )
        self._keep(Prior(probs, counts=counts, names=self.prior.names))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copies": {}}

    def _keep(self, prior: Prior) -> None:
        self.prior = prior
        self._log_probs = torch.tensor(prior.log_probs)
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def extra_repr(self) -> str:
        """The prior in short."""
        return repr(self.prior)
