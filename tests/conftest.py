import os

import torch
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

torch.set_num_threads(1)
settings.register_profile("priorshift", deadline=None, derandomize=True)
settings.load_profile("priorshift")


def checked(function):
    """Check the types and shapes of every call; a whole number will do for a float, as it does in Python."""
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


if os.environ.get("CHECK_SHAPES"):
    install_import_hook("priorshift", "conftest.checked")
    from priorshift.kernels import _fused

    _fused._numba = lambda: None  # what Numba compiles cannot be wrapped, and states no shapes
