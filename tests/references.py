"""Slow float64 restatements of the published formulas, by plain loops; nothing here imports priorshift.

Logits are `[N, C]` arrays, labels `[N]` class indices or `[N, C]` class probabilities, priors `[C]`.
"""

import math

import numpy as np


def softmax(scores):
    """Probabilities of one row of scores."""
    largest = max(scores)
    exponentials = [math.exp(score - largest) for score in scores]
    total = math.fsum(exponentials)
    return np.array([exponential / total for exponential in exponentials])


def log_sum_exp(scores):
    largest = max(scores)
    return largest + math.log(math.fsum(math.exp(score - largest) for score in scores))


def bayes_posterior(likelihood, prior):
    """p(y | x) for each x, from a table p(x | y) of shape `[X, C]` and p(y)."""
    posterior = np.empty_like(likelihood)
    for x in range(likelihood.shape[0]):
        joint = [likelihood[x, y] * prior[y] for y in range(len(prior))]
        posterior[x] = [mass / math.fsum(joint) for mass in joint]
    return posterior


def adjust(logits, carried, target):
    """LADE, Eq. 7 and 17: f(x)[y] - log q(y) + log t(y)."""
    moved = np.empty(logits.shape)
    for i, row in enumerate(logits):
        for y, score in enumerate(row):
            moved[i, y] = -math.inf if target[y] == 0 else score - math.log(carried[y]) + math.log(target[y])
    return moved


def cross_entropy(logits, labels, prior, *, label_smoothing=0.0, ignore_index=-100, reduction="mean"):
    """LADE, Eq. 1-2, with the label spread by Szegedy et al. (CVPR 2016), Section 7."""
    num_classes = logits.shape[1]
    losses = []
    for row, label in zip(logits, _one_hot(labels, num_classes, ignore_index), strict=True):
        share = label_smoothing * math.fsum(label) / num_classes
        spread = [(1 - label_smoothing) * mass + share for mass in label]
        losses.append(_surprise(row, spread))
    return _reduce(losses, labels, ignore_index, reduction)


def logit_adjusted(logits, labels, prior, *, tau=1.0, ignore_index=-100, reduction="mean"):
    """Menon et al., Eq. 10, second form: log(1 + sum of (pi_y'/pi_y)^tau e^(f_y' - f_y) over rivals y')."""
    losses = []
    for row, label in zip(logits, _one_hot(labels, logits.shape[1], ignore_index), strict=True):
        loss = 0.0
        for y, mass in enumerate(label):
            if mass > 0:
                margins = [
                    tau * (math.log(prior[rival]) - math.log(prior[y])) + row[rival] - row[y]
                    for rival in range(len(row))
                    if rival != y
                ]
                loss += mass * log_sum_exp([0.0, *margins])
        losses.append(loss)
    return _reduce(losses, labels, ignore_index, reduction)


def weighted(
    logits, labels, prior, *, weights=None, normalization="population", ignore_index=-100, reduction="mean"
):
    """Menon et al., Eq. 4, for any weights, scaled to sum over c of pi_c alpha_c = 1."""
    alphas = [1 / mass for mass in prior] if weights is None else list(weights)
    scale = math.fsum(mass * alpha for mass, alpha in zip(prior, alphas, strict=True))
    alphas = [alpha / scale for alpha in alphas]
    losses, batch_weight = [], 0.0
    for row, label in zip(logits, labels, strict=True):
        if label == ignore_index:
            losses.append(0.0)
        else:
            losses.append(alphas[label] * (log_sum_exp(row) - row[label]))
            batch_weight += alphas[label]
    if normalization == "batch" and reduction == "mean":
        return math.fsum(losses) / batch_weight if batch_weight else 0.0
    return _reduce(losses, labels, ignore_index, reduction)


def lader(logits, labels, prior, *, lam, variant="paper", ignore_index=-100):
    """LADE, Eq. 15-16 with alpha_c = p_s(c); "released" is hyperconnect/LADE's `loss/LADELoss.py`."""
    kept = [(row, int(label)) for row, label in zip(logits, labels, strict=True) if label != ignore_index]
    num_classes = logits.shape[1]
    uniform = 1 / num_classes
    if not kept:
        return 0.0
    total = 0.0
    for c in range(num_classes):
        of_class = [row[c] for row, label in kept if label == c]
        if variant == "paper":
            if not of_class:
                continue
            first = math.fsum(of_class) / len(of_class)
            spread = [row[c] + math.log(uniform / prior[label]) for row, label in kept]
        else:
            first = math.fsum(of_class) / len(of_class) if of_class else 0.0
            spread = [row[c] - math.log(prior[c]) + math.log(uniform) for row, label in kept]
        second = log_sum_exp(spread) - math.log(len(kept))
        total += prior[c] * (-first + second + lam * second**2)
    return total


def lade(logits, labels, prior, *, alpha, lam, variant="paper", ignore_index=-100, reduction="mean"):
    """LADE, Eq. 18-20, the cross-entropy written as minus the log of the source posterior."""
    regulariser = lader(logits, labels, prior, lam=lam, variant=variant, ignore_index=ignore_index)
    losses = []
    for row, label in zip(logits, labels, strict=True):
        if label == ignore_index:
            losses.append(0.0)
        else:
            shifted = [math.log(mass) + score for mass, score in zip(prior, row, strict=True)]
            losses.append(log_sum_exp(shifted) - shifted[label] + alpha * regulariser)
    return _reduce(losses, labels, ignore_index, reduction)


def _one_hot(labels, num_classes, ignore_index):
    """Soft labels as they are; indices as rows of zeros and a one, all zeros where ignored."""
    if labels.ndim == 2:
        return labels
    return np.array([[float(c == label != ignore_index) for c in range(num_classes)] for label in labels])


def _surprise(row, label):
    normaliser = log_sum_exp(row)
    return math.fsum(mass * (normaliser - score) for mass, score in zip(label, row, strict=True))


def _reduce(losses, labels, ignore_index, reduction):
    counted = len(losses) if labels.ndim == 2 else sum(label != ignore_index for label in labels)
    if reduction == "none":
        return np.array(losses)
    return math.fsum(losses) / (max(counted, 1) if reduction == "mean" else 1)
