"""Accuracy by group, balanced error, calibration errors and proper scores of predictions.

Plain functions of predictions, labels and optionally one weight per sample. Inputs are arrays of NumPy,
torch, JAX or CuPy, or pandas, polars and pyarrow tables and columns; results are floats and NumPy arrays,
computed in float64. Samples of weight zero are dropped before anything else is checked. Functions take class
indices, probabilities or log-probabilities as they say, and never guess which. A label may be a class name
where the probabilities are a table whose columns are named by class.

Weighting a full test set by `target / source` of each sample's class equals drawing a test set of the target
mix *in expectation* for accuracy, per-class accuracy, Brier score and negative log-likelihood; for
calibration errors and F1, which are not means over samples, only as the number of samples grows. The expected
calibration error of few samples is biased upward: **never compare it across sample sizes**, weighted (see
`effective_sample_size`) or drawn.
"""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
