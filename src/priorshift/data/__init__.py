"""Labelled images in memory, where they come from, and how they reach the device in batches."""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
