"""Estimates of a class prior that move in time, change detection, and files larger than memory."""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
