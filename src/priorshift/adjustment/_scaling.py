"""Calibration by scaling: the few numbers per class that calibrate a scorer's probabilities."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float

from priorshift._blocks import for_blocks
from priorshift._inputs import (
    Array,
    ArrayLike,
    Kind,
    align,
    read_labels,
    read_scores,
    read_weights,
    require_one_of,
)
from priorshift.adjustment._adjust import fresh, in_kind, looked_at, num_classes_of, read_logits
from priorshift.adjustment._calibrations import CALIBRATIONS, ScalingMethod
from priorshift.adjustment._scaling_fit import Problem, Samples
from priorshift.priors import Prior, as_prior

_FACTS = ("method", "ridge", "num_samples", "nll_before", "nll_after")


@final
@dataclass(frozen=True, eq=False)
class Scaling:
    r"""A fitted calibration: call it on logits of the scorer that it was fitted for.

    $$z_y = a_y \, (f_y - \log q_y) + b_y + \log \pi_y$$

    with the prior $q$ that the scorer's logits carry and the class mix $\pi$ of the samples of the fit (both
    left out when no `carried` prior was given). **At test time** the result carries `carried`, not $q$:
    continue with `adjust(scaling(logits), carried=scaling.carried, target=…)`.

    Attributes:
        method: "ts", "bcts", "vs" or "nbvs".
        scale: Inverse temperature $a$, shape `[1]`, or one weight per class, `[C]`; positive.
        bias: $b$, shape `[C]`, which sums to 0; None for the methods without.
        carried: The class mix $\pi$ of the samples of the fit, which calibrated logits carry.
        source: The prior $q$ that the scorer's logits carry; None where they carry that class mix.
        ridge: The strength of the shrinkage; None for "ts".
        num_samples: Number of samples of the fit, the sum of their weights.
        nll_before: Mean negative log-likelihood of these samples, in nats, with $a = 1$ and $b = 0$.
        nll_after: The same with the fitted numbers.
    """

    method: ScalingMethod
    scale: Float[np.ndarray, " scales"]
    bias: Float[np.ndarray, " classes"] | None
    carried: Prior
    source: Prior | None
    ridge: float | None
    num_samples: float
    nll_before: float
    nll_after: float

    def __call__(self, logits: ArrayLike) -> Any:
        """Calibrate logits of shape `[C]` or `[N, C]`, of any kind that `adjust` takes, which comes back.

        The columns of a table are matched by name to the classes of `carried`, where both have names.

        Raises:
            TypeError: If `logits` are no floating-point numbers.
            ValueError: If there are other classes or dimensions, or they are seen to be probabilities, or to
                hold −inf, which weights per class cannot scale.
        """
        kind = read_logits(logits)
        if num_classes_of(kind) != self.carried.num_classes or kind.scores.ndim > 2:
            raise ValueError(
                f"Expected `logits` of shape [N, {self.carried.num_classes}], "
                f"but got shape {tuple(kind.scores.shape)}."
            )
        per_class = len(self.scale) > 1
        if per_class and (seen := looked_at(kind)) is not None and np.isneginf(seen).any():
            raise ValueError(
                f"Expected finite `logits` for the scaling {self.method!r}, which weighs classes apart, "
                "but some are −inf."
            )
        order: Any = slice(None)
        if kind.names is not None and self.carried.names is not None:
            order = align(self.carried.names, kind.names, "logits")
        constant = np.zeros(self.carried.num_classes) if self.bias is None else self.bias
        removed = np.zeros(1)
        if self.source is not None:
            constant, removed = constant + self.carried.log_probs, self.source.log_probs[order]
        scale = self.scale[order] if per_class else self.scale
        return kind.back(_calibrated(kind, removed, scale, constant[order], per_class, logits))

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Everything in it as JSON types and arrays, which `from_state` reads."""
        facts = {name: getattr(self, name) for name in _FACTS}
        facts["class_names"] = None if self.carried.names is None else list(self.carried.names)
        parts = {
            "scale": self.scale,
            "bias": self.bias,
            "carried_log_probs": self.carried.log_probs,
            "source_log_probs": None if self.source is None else self.source.log_probs,
        }
        return facts, {name: part for name, part in parts.items() if part is not None}

    @classmethod
    def from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, ArrayLike]) -> "Scaling":
        """Read what `state` gave, in this version or in 0.1, which kept probabilities.

        Raises:
            KeyError: If something is missing.
        """
        names = facts.get("class_names")
        bias, source = arrays.get("bias"), None
        if "source_log_probs" in arrays:
            source = Prior.from_log_probs(arrays["source_log_probs"], names=names)
        elif "moved_from" in arrays:
            source = Prior(arrays["moved_from"], names=names)
        if "carried_log_probs" in arrays:
            carried = Prior.from_log_probs(arrays["carried_log_probs"], names=names)
        else:
            carried = Prior(arrays["carried"], names=names)
        return cls(
            scale=np.asarray(arrays["scale"], dtype=np.float64),
            bias=None if bias is None else np.asarray(bias, dtype=np.float64),
            carried=carried,
            source=source,
            **{name: facts[name] for name in _FACTS},
        )


def fit_scaling(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    method: ScalingMethod = "bcts",
    carried: Prior | ArrayLike | None = None,
    weights: ArrayLike | None = None,
    ridge: float | None = None,
) -> Scaling:
    r"""Fit a calibration by scaling to labelled samples of the *source* that were held out of training.

    $$\min_{a > 0,\, b} \; \sum_i w_i \, \mathrm{CE}(z_i, y_i) + \lambda \, \Omega(a, b), \qquad
      z_{iy} = a_y s_{iy} + b_y + \log \pi_y, \quad s_{iy} = f_{iy} - \log q_y$$

    - "ts", temperature scaling: one $a$;
    - "bcts", bias-corrected temperature scaling: one $a$ and $b$;
    - "vs", vector scaling: a weight $a_y$ of each class and $b$;
    - "nbvs", no-bias vector scaling: a weight $a_y$ of each class.

    An overconfident scorer misjudges how much another class mix explains, so estimate a target prior from
    calibrated logits. Calibrated logits carry the class mix $\pi$ of the *samples of the fit*, and so the
    temperature applies to the evidence $s$ alone: where $s = 0$ the answer stays $\pi$, however few samples
    a rare class has. Without `carried` the published form $z_y = a_y f_y + b_y$ is fitted; with it "bcts"
    and "vs" differ from that by the shrinkage only, "ts" and "nbvs" unless $\pi$ is uniform.

    **Shrinkage.** $\Omega = \tfrac12 \lVert b \rVert^2$, and for weights of each class in addition
    $v \sum_y (\rho_y - 1 - \log \rho_y)$ with $\rho = a / a_\text{ts}$, where
    $v = \sum p(1-p) s^2 / \sum p(1-p)$ says how much more a sample tells of a weight than of a bias. So all
    is drawn towards temperature scaling, by a force that vanishes as samples are added ($\lambda$ stands
    against $\sum_i p_{iy}(1 - p_{iy})$), and separable samples have a finite answer. By default $\lambda$ is
    chosen by the marginal likelihood (empirical Bayes: $b_y$ and $\sqrt v \rho_y$ have variance $1/\lambda$):
    where the samples show no bias, "bcts" is nearly "ts"; where there are many of them or the bias is large
    it is nearly the published "bcts", which a tiny `ridge` always gives. The common temperature is not drawn
    by $\lambda$: a term $\rho - 1 - \log \rho$ of weight $\min(\lambda, 1)$, by default 1, keeps it positive
    and finite.

    Args:
        logits: Scores of the held-out samples, `[N, C]`, finite.
        labels: Their class indices, `[N]`.
        method: "ts", "bcts", "vs" or "nbvs".
        carried: The prior $q$ that the logits carry, `[C]`, strictly positive: the training prior for
            cross-entropy, uniform for Balanced Softmax. None: that of the held-out samples.
        weights: Non-negative, `[N]`; a weight of 2 counts a sample twice.
        ridge: $\lambda > 0$; None chooses it from the data.

    Returns:
        The calibration. A class of less than half a sample counts as half a sample in its `carried`.

    Raises:
        TypeError: If `logits` are no floating-point tensor or array, or `labels` no whole numbers.
        ValueError: If the parts do not fit, a value is not finite, or `method` or `ridge` is none.

    Example:
        >>> logits = [[4.0, 0.0], [3.0, 0.0], [0.0, 4.0], [0.0, 3.0], [0.0, 2.0]]
        >>> scaling = fit_scaling(logits, [0, 0, 1, 1, 0], method="ts")
        >>> scaling.scale.round(3)
        array([0.69])
        >>> print(f"{scaling.nll_before:.3f} → {scaling.nll_after:.3f}")
        0.452 → 0.393

    References:
        Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, Section 4.2 ("ts", "vs").
        Alexandari et al., *Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label Shift
        Adaptation*, ICML 2020, Section 3 ("bcts", "nbvs"). The marginal likelihood: MacKay, *Bayesian
        Interpolation*, Neural Computation 4(3), 1992.
    """
    scores, names = read_scores(logits, rule="finite")
    num_samples, num_classes = scores.shape
    source = None
    if carried is not None:
        source = as_prior(carried, "carried", num_classes, names=names).require_positive("carried")
        names = names or source.names
    classes = read_labels(labels, size=num_samples, num_classes=num_classes, names=names)
    masses = read_weights(weights, num_samples)
    require_one_of("method", method, tuple(CALIBRATIONS))
    if ridge is not None and not 0 < ridge < math.inf:
        raise ValueError(f"Expected `ridge` to be a positive finite number, but got {ridge}.")
    if (masses == 0).any():
        scores, classes, masses = scores[masses > 0], classes[masses > 0], masses[masses > 0]
    samples = Samples(scores, None if source is None else source.log_probs, classes, masses)
    mix = Prior(np.maximum(samples.counts, 0.5), names=names)
    offset = np.zeros(num_classes) if source is None else mix.log_probs

    hold = 1.0 if ridge is None else min(ridge, 1.0)
    problem = Problem(samples, offset, method="ts", hold=hold)
    nll_before = problem.at(problem.start).loss
    temperature = problem.minimize(problem.start, ridge=0.0)
    scale, bias, nll_after = temperature, None, problem.at(temperature).loss
    if method == "ts":
        ridge = None
    else:
        samples.scale(float(temperature[0]))
        problem = Problem(samples, offset, method=method, hold=hold)
        params = problem.start
        if ridge is None:
            # On real predictions the choice settles in two rounds, and the first need not be exact.
            params = problem.minimize(params, problem.likeliest_ridge(params), tolerance=1e-4)
            ridge = problem.likeliest_ridge(params)
        params = problem.minimize(params, ridge)
        relative, shifts = problem.split(params)
        scale, bias = temperature * relative, shifts if len(shifts) else None
        nll_after = problem.at(params).loss
    return Scaling(
        method=method,
        scale=scale,
        bias=bias,
        carried=mix,
        source=source,
        ridge=ridge,
        num_samples=samples.total,
        nll_before=nll_before / samples.total,
        nll_after=nll_after / samples.total,
    )


def _calibrated(
    kind: Kind, removed: Array, scale: Array, constant: Array, per_class: bool, given: ArrayLike
) -> Any:
    """`scale · (logits − removed) + constant`; with weights per class of logits whose mean is removed."""
    xp, scores = kind.xp, kind.scores
    removed, scale, constant = (in_kind(kind, values) for values in (removed, scale, constant))
    if xp is not np:
        evidence = scores - removed
        if per_class:
            # Weights per class see the constant of a row; without this two equal scorers would differ.
            evidence = evidence - xp.mean(evidence, axis=-1, keepdims=True)
        return evidence * scale + constant
    found = fresh(kind, given)
    rows, out = np.atleast_2d(scores), np.atleast_2d(found)

    def work(block: slice) -> None:
        moved = np.subtract(rows[block], removed, out=out[block])
        if per_class:
            moved -= moved.mean(axis=-1, keepdims=True)
        moved *= scale
        moved += constant

    for_blocks(work, *rows.shape)
    return found
