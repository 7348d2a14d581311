"""From saved predictions to tables, figures and one self-contained HTML page.

`write_report` compares runs on known class mixes, `write_adaptation_report` describes one estimate of an
unknown mix; the parts can be used on their own. The functions of `measures` return the data of the figures;
those named `plot_…` draw it on a Matplotlib Axes; `comparison_table` makes it text for a page, a README or a
terminal. Only this room imports Matplotlib and Jinja, which the extra `cli` installs.
"""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
