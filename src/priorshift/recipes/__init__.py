"""Complete configs as functions; `priorshift train` names them in kebab case.

Derive your own with `dataclasses.replace`. The header of each says what to expect of it.
"""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
