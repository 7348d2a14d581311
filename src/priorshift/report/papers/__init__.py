"""The figures of the two papers from any run: their data, and functions that draw it.

`paper_figure` makes one from run folders or predictions files, in publication size, and `PAPER_FIGURES` lists
them. Where a figure of the report shows the same, it is that one: `plot_class_probs`, `plot_reliability`.
"""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
