"""Training losses for skewed labels: one idea a file, each a function and a thin final module.

A module is built from the class prior of the stream it will see and answers two questions about the scorer
it trains: `carried_prior`, the prior that its logits will carry, and `carried_by`, whether that is so by
`"theory"` or only by `"convention"`. Hand the prior to [`adjust`][priorshift.adjust] at test time.

Every loss takes `process_group` when it is called: with one, the batch is that of all its ranks, and the mean
over the ranks of what they return, and of its gradients, is the value of one process on the whole batch.
"""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
