"""Published experiments, run again: each target gives a figure, its numbers and a computed verdict.

`TARGETS` lists them. The module of a target holds its `Settings` and `reproduce(settings)`, which returns an
`Outcome`. A new target is one such module and one line of `TARGETS`.
"""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
