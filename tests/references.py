"""Slow float64 restatements of the published formulas, by plain loops; nothing here imports priorshift.

Logits are `[N, C]` arrays, labels `[N]` class indices or `[N, C]` class probabilities, priors `[C]`.
"""

import math
from decimal import Decimal, localcontext

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


def focal(logits, labels, prior, *, gamma=2.0, ignore_index=-100, reduction="mean"):
    """Lin et al., ICCV 2017, Eq. 4, with softmax: -(1 - p)^gamma log p."""
    losses = []
    for row, label in zip(logits, labels, strict=True):
        if label == ignore_index:
            losses.append(0.0)
        else:
            normaliser = log_sum_exp(row)
            log_rest = log_sum_exp([score for c, score in enumerate(row) if c != label]) - normaliser
            losses.append(math.exp(gamma * log_rest) * (normaliser - row[label]))
    return _reduce(losses, labels, ignore_index, reduction)


def class_balanced_weights(counts, beta):
    """Cui et al., CVPR 2019, Section 4, in 50 digits, scaled to the sum C; 1/n at beta = 1."""
    with localcontext() as context:
        context.prec = 50
        beta = Decimal(float(beta))
        sizes = [Decimal(float(count)) for count in counts]
        weights = [1 / n if beta == 1 else (1 - beta) / (1 - beta**n) for n in sizes]
        total = sum(weights)
        return np.array([float(len(weights) * weight / total) for weight in weights])


def class_balanced(logits, labels, prior, *, num_samples, beta=0.9999, ignore_index=-100, reduction="mean"):
    """Cui et al., Section 4.1: alpha_y times softmax cross-entropy."""
    alphas = class_balanced_weights([num_samples * mass for mass in prior], beta)
    losses = [
        0.0 if label == ignore_index else alphas[label] * (log_sum_exp(row) - row[label])
        for row, label in zip(logits, labels, strict=True)
    ]
    return _reduce(losses, labels, ignore_index, reduction)


def class_balanced_focal(
    logits, labels, prior, *, num_samples, beta=0.9999, gamma=2.0, ignore_index=-100, reduction="mean"
):
    """Cui et al., Section 4.3: alpha_y times the sum over classes of -(1 - p_t)^gamma log p_t."""
    alphas = class_balanced_weights([num_samples * mass for mass in prior], beta)
    losses = []
    for row, label in zip(logits, labels, strict=True):
        if label == ignore_index:
            losses.append(0.0)
        else:
            z = [score if c == label else -score for c, score in enumerate(row)]
            terms = [math.exp(-gamma * log_sum_exp([0.0, t])) * log_sum_exp([0.0, -t]) for t in z]
            losses.append(alphas[label] * math.fsum(terms))
    return _reduce(losses, labels, ignore_index, reduction)


def ldam(
    logits,
    labels,
    prior,
    *,
    max_margin=0.5,
    scale=30.0,
    reweight_beta=0.0,
    num_samples=1,
    normalization="population",
    ignore_index=-100,
    reduction="mean",
):
    """Cao et al., NeurIPS 2019, Section 3.2, the margins scaled to a largest one; weights of Algorithm 1."""
    margins = [mass**-0.25 for mass in prior]
    margins = [max_margin * margin / max(margins) for margin in margins]
    alphas = class_balanced_weights([num_samples * mass for mass in prior], reweight_beta)
    mean = math.fsum(mass * alpha for mass, alpha in zip(prior, alphas, strict=True))
    losses, batch_weight = [], 0.0
    for row, label in zip(logits, labels, strict=True):
        if label == ignore_index:
            losses.append(0.0)
        else:
            z = [scale * (score - margins[c] * (c == label)) for c, score in enumerate(row)]
            losses.append(alphas[label] / mean * (log_sum_exp(z) - z[label]))
            batch_weight += alphas[label] / mean
    if normalization == "batch" and reduction == "mean":
        return math.fsum(losses) / batch_weight if batch_weight else 0.0
    return _reduce(losses, labels, ignore_index, reduction)


def equalised(
    logits, labels, prior, *, threshold, drop_probability, draws=None, ignore_index=-100, reduction="mean"
):
    """Tan et al., CVPR 2020, softmax form; `draws` are the uniform numbers behind beta, `[N, C]`."""
    losses = []
    for i, (row, label) in enumerate(zip(logits, labels, strict=True)):
        if label == ignore_index:
            losses.append(0.0)
        else:
            kept = []
            for c, score in enumerate(row):
                beta = drop_probability if draws is None else float(draws[i, c] < drop_probability)
                if 1 - beta * (prior[c] < threshold) * (c != label) > 0:
                    kept.append(score)
            losses.append(log_sum_exp(kept) - row[label])
    return _reduce(losses, labels, ignore_index, reduction)


def pairwise_margin(logits, labels, alpha, delta, *, ignore_index=-100, reduction="mean"):
    """Menon et al., Eq. 11: alpha(y) log(1 + sum of e^(delta(y, y') + f_y' - f_y) over rivals y')."""
    losses = []
    for row, label in zip(logits, labels, strict=True):
        if label == ignore_index:
            losses.append(0.0)
        else:
            gaps = [
                delta(label, rival) + score - row[label] for rival, score in enumerate(row) if rival != label
            ]
            losses.append(alpha(label) * log_sum_exp([0.0, *gaps]))
    return _reduce(losses, labels, ignore_index, reduction)


def two_strengths(logits, labels, prior, *, tau1=1.0, tau2=1.0, weights=None, **options):
    """Menon et al., Section 5.3 with the sign of Eq. 6 and 10; weights scaled to a population mean of 1."""
    alphas = [1.0] * len(prior) if weights is None else weights
    mean = math.fsum(mass * alpha for mass, alpha in zip(prior, alphas, strict=True))
    return pairwise_margin(
        logits,
        labels,
        lambda y: alphas[y] / mean,
        lambda y, rival: tau2 * math.log(prior[rival]) - tau1 * math.log(prior[y]),
        **options,
    )


def logit_adjusted_adaptive(logits, labels, prior, *, tau=1.0, margin=1.0, **options):
    """Menon et al., Section 6.2: delta = log(pi_y'/pi_y) + pi_y^(-1/4)."""
    return pairwise_margin(
        logits,
        labels,
        lambda y: 1.0,
        lambda y, rival: tau * math.log(prior[rival] / prior[y]) + margin * prior[y] ** -0.25,
        **options,
    )


def binary_margin(score, label, *, weights, margins, temperature):
    """Menon et al., Eq. 13, of one score and a label of +1 or -1."""
    sign = 1 if label == 1 else -1
    weight, margin = (weights[0], margins[0]) if label == 1 else (weights[1], margins[1])
    return weight / temperature * log_sum_exp([0.0, temperature * (margin - sign * score)])
