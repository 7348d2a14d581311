"""Backbones, images to features; a config names them in kebab case, `SmallCNN` as `small-cnn`."""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
