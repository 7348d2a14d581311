"""Make label shift on purpose: long-tailed training subsets, and evaluation sets of any class mix.

Counts and priors come first (`long_tail_counts`, `forward_prior`, `target_prior`, …). A training subset is
then drawn with `draw_subset`, pinned by the content of its images; an evaluation set is moved to a target mix
either by weights (`mix_weights`) or by drawing without replacement (`draw_mix`).
"""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
