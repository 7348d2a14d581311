"""The tables of two papers as data: every number as printed, with its method, setting and source.

`TABLES["lade-table-2"]` is Table 2 of Hong et al., *Disentangling Label Distribution for Long-tailed Visual
Recognition* (LADE), CVPR 2021, and `TABLES["la-table-2"]` that of Menon et al., *Long-tail learning via logit
adjustment*, ICLR 2021. The file of a paper shows each table as the paper prints it. Nothing here needs torch.
"""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
