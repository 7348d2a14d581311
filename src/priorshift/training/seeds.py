"""All randomness of a run is derived from its seed and where in the run it is used."""

import hashlib


def derived_seed(seed: int, *where: int | str) -> int:
    """A seed for one purpose at one place of a run, such as `("order", epoch)`: 63 well-mixed bits.

    Example:
        >>> derived_seed(0, "order", 1) == derived_seed(0, "order", 1)
        True
        >>> derived_seed(0, "order", 1) == derived_seed(1, "order", 0)
        False
    """
    digest = hashlib.blake2b(repr((seed, *where)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
