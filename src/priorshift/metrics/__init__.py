"""How good saved predictions are: accuracy by group, balanced error, calibration, proper scores.

Plain functions over predictions, labels and, where wanted, one weight per sample. Inputs are PyTorch tensors
or NumPy arrays on any device; the arithmetic is float64 on the CPU. A sample of weight zero is dropped before
anything else is looked at. Functions take class indices, probabilities or log-probabilities as they say, and
never guess which.

Weighting a full test set by `target / source` of each sample's class equals drawing a test set of the target
mix *in expectation* for accuracy, per-class accuracy, Brier score and negative log-likelihood; for
calibration errors and F1, which are no means over samples, only as the number of samples grows. The expected
calibration error of few samples is biased upward: **never compare it across sample sizes**, weighted (see
`effective_sample_size`) or drawn.
"""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
