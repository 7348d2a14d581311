"""States of followers, arrays and numbers, are read back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from priorshift._inputs import read_array
from priorshift.priors import Prior, as_prior, prior_from_arrays
from priorshift.streams._scorer import Scorer


def read_state(state: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """A float64 copy of an array of a state.

    Raises:
        ValueError: If it has another shape than it had when it was saved.
    """
    value = np.array(read_array(state[name], name), dtype=np.float64)
    if value.shape != shape:
        raise ValueError(f"Expected `{name}` of the state with shape {shape}, but got {value.shape}.")
    return value


def read_number(state: Mapping[str, Any], name: str) -> int | None:
    """A whole number of a state; None if it has none."""
    value = state.get(name)
    return None if value is None else int(value)


def read_prior(state: Mapping[str, Any], name: str, scorer: Scorer) -> Prior | None:
    """A prior of a state, of the classes of the scorer; None if the state has none.

    Raises:
        ValueError: If it is not of $C$ classes.
    """
    if state.get(name) is None and state.get(f"{name}_log_probs") is None:
        return None
    return as_prior(prior_from_arrays(state, name), name, scorer.num_classes, names=scorer.names)
