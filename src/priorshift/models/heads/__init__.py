"""Heads, features to logits; a config names them in kebab case without "Head": `CosineHead` as `cosine`.

A head is a module built from the number of features and of classes. Two methods are optional:

- `begin(start)` is called when its stage begins, with the head before it and the features of the training and
  validation images (`Start`). A head that is made rather than trained, such as class means, is made here.
- `regulariser(features, labels)` is added to the loss of every batch.

A head after which theory no longer gives the carried prior says by the static `conventional_prior(source)` on
which mix its authors use its logits. A dict `chosen` of what `begin` chose is kept with the weights.
"""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
