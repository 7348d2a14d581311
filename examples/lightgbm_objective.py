"""LightGBM with a logit-adjusted objective: boosting for every class mix at once.

Copy `LogitAdjustedObjective`, and ask for `raw_score=True`: raw scores are logits, which carry the uniform
prior. Run it with `python examples/lightgbm_objective.py`, after `pip install lightgbm`.
"""

import lightgbm as lgb
import numpy as np
from reversed_mix import long_tailed_digits, report
from scipy.special import log_softmax, softmax

from priorshift import Predictions, Prior, shift


class LogitAdjustedObjective:
    """Cross-entropy of scores plus the log-prior of the training labels."""

    def __init__(self, train: Prior) -> None:
        self.log_prior, self.carried_prior = train.log_probs, Prior.uniform(train.num_classes)

    def __call__(self, scores: np.ndarray, data: lgb.Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Gradient, and the diagonal of the Hessian times C / (C − 1) as LightGBM has it, both `[N, C]`."""
        probs, classes = softmax(scores + self.log_prior, axis=1), np.arange(len(self.log_prior))
        truth = data.get_label()[:, None] == classes
        return probs - truth, probs * (1 - probs) * len(classes) / (len(classes) - 1)

    def loss(self, scores: np.ndarray, data: lgb.Dataset) -> tuple[str, float, bool]:
        """What is minimised, for LightGBM's log."""
        log_probs = log_softmax(scores + self.log_prior, axis=1)
        own = np.take_along_axis(log_probs, data.get_label().astype(int)[:, None], axis=1)
        return "loss", float(-own.mean()), False


def main() -> dict[str, float]:
    """Train on digits with a long tail, and predict for the reversed mix."""
    images, labels, new_images, new_labels = long_tailed_digits()
    train = Prior.from_labels(labels, num_classes=10)
    objective = LogitAdjustedObjective(train)
    data, losses = lgb.Dataset(images.flatten(1).numpy(), labels.numpy()), {}
    settings = dict(objective=objective, num_class=10, num_leaves=7, num_threads=1, verbose=-1)
    watch = dict(valid_sets=[data], feval=objective.loss, callbacks=[lgb.record_evaluation(losses)])
    booster = lgb.train(settings, data, num_boost_round=60, **watch)
    logits = booster.predict(new_images.flatten(1).numpy(), raw_score=True)

    mix = shift.backward_prior(train.counts, mu=20)
    predictions = Predictions(logits=logits, labels=new_labels, carried=objective.carried_prior)
    return report(losses["training"]["loss"], predictions, predictions.adjusted(mix))


if __name__ == "__main__":
    main()
