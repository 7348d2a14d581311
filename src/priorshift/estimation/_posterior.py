"""The target prior of highest posterior density under a Dirichlet prior: MAPLS and empirical Bayes."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln, xlogy

from priorshift._inputs import ArrayLike, read_array, read_per_class
from priorshift.estimation._identifiability import identifiability
from priorshift.estimation._likelihood import Likelihood, LikelihoodSolution
from priorshift.priors import Prior, as_prior

_STRENGTHS = np.concatenate([[0.0], np.logspace(-1, 6, 141, dtype=np.float32)])
"""Numbers of labelled samples that the source prior may count for."""


def maximize_posterior(
    likelihood: Likelihood,
    source: Prior | ArrayLike | None = None,
    *,
    concentration: ArrayLike | None = None,
    start: Prior | ArrayLike | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 1000,
) -> LikelihoodSolution:
    r"""Maximum a posteriori label shift: the likelihood with a Dirichlet prior on the target prior.

    $$\max_t \; \sum_i w_i \log \sum_y t_y\, r_{iy} + \sum_y (\alpha_y - 1) \log t_y$$

    In effect there are $\alpha_y - 1$ labelled pseudo-samples of each class. They keep rare classes away
    from 0, where maximum likelihood puts those that a finite sample happens to miss. $\alpha = 1$ is
    `Likelihood.maximize`; as $\alpha$ grows the estimate tends to the Dirichlet's mode,
    $(\alpha_y - 1) / \sum_z (\alpha_z - 1)$. The problem stays concave, and the certificate is that of
    `Likelihood.maximize`: `log_likelihood` and `shortfall` are the maximized sum and its shortfall divided by
    $\sum_i w_i + \sum_y (\alpha_y - 1)$.

    Without a `concentration` it is MAPLS, which mixes the uniform prior into every EM step in the proportion
    $1 - \lambda$: that is $\alpha_y = 1 + \frac{1 - \lambda}{\lambda} \frac{\sum_i w_i}{C}$, which grows with
    the sample, so MAPLS keeps a bias that no sample size removes. Its weight adapts to the divergences
    between the maximum-likelihood estimate $\hat t$, the source prior $q$ and the uniform prior $u$,

    $$\lambda = \frac{0.9 \cdot 4 D(\hat t \Vert u)}{D(q \Vert u) + 4 D(\hat t \Vert u)}
      + \frac{0.1 \cdot D(q \Vert u)}{D(q \Vert u) + 4 D(\hat t \Vert q)},$$

    which is what the composition of functions in the released code comes to. Theirs are the uniform center
    and this weight; ours are the search to a certificate in place of at most 100 EM steps, exact divergences
    in place of ones with $10^{-8}$ added, and any other `concentration`.

    Args:
        likelihood: The likelihood without pseudo-counts. Its weights are counts, since their sum stands
            against the pseudo-samples.
        source: The source prior $q$, `[C]`, strictly positive; for the adaptive weight only.
        concentration: $\alpha$, one number or one per class, at least 1.
        start: As in `Likelihood.maximize`.
        tolerance: As in `Likelihood.maximize`.
        max_steps: As in `Likelihood.maximize`.

    Raises:
        ValueError: If not exactly one of `source` and `concentration` is given, a concentration is below 1,
            or as `Likelihood.maximize`.

    Example:
        >>> import numpy as np
        >>> likelihood = Likelihood(np.array([[0.0, -9.0, -9.0]] * 8))
        >>> maximize_posterior(likelihood, concentration=2.0).prior.probs.round(3)
        array([0.818, 0.091, 0.091])
        >>> maximize_posterior(likelihood, [0.5, 0.3, 0.2]).prior.probs.round(3)
        array([0.926, 0.037, 0.037])

    References:
        Ye et al., *Label Shift Estimation for Class-Imbalance Problem: A Bayesian Approach*, WACV 2024, and
        the code released with it.
    """
    if (source is None) == (concentration is None):
        raise ValueError("Expected either `source` or `concentration`, but got both or neither.")
    num_classes = likelihood.num_classes
    if concentration is not None:
        pseudo_counts = _read_concentration(concentration, likelihood) - 1
    else:
        assert source is not None
        prior = as_prior(source, "source", num_classes, names=likelihood.names).require_positive("source")
        first = likelihood.maximize(start=start, tolerance=1e-6, max_steps=max_steps)
        lam = adaptive_weight(first.prior, prior)
        pseudo_counts = np.full(num_classes, (1 - lam) / lam * likelihood.total_weight / num_classes)
    posterior = likelihood.with_pseudo_counts(pseudo_counts)
    return posterior.maximize(start=start, tolerance=tolerance, max_steps=max_steps)


def empirical_bayes(
    likelihood: Likelihood,
    source: Prior | ArrayLike,
    *,
    likeliest: LikelihoodSolution | None = None,
    effective_sample_size: float | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 1000,
) -> LikelihoodSolution:
    r"""Maximum likelihood drawn towards the source, as strongly as the sample itself suggests.

    $$t \sim \mathrm{Dir}(1 + \lambda q), \qquad \hat\lambda = \arg\max_{\lambda \ge 0}
      \int p(\tilde n \mid t)\, \mathrm{Dir}(t;\, 1 + \lambda q)\, dt, \qquad
      \tilde n = N_\text{eff}\, \hat t_\text{ML}$$

    Near the source prior the estimate of highest likelihood mostly reports its own sampling noise. The
    Dirichlet prior has its mode at the source prior $q$; at $\lambda = 0$ it is flat, and the estimate is
    that of `Likelihood.maximize`, exactly; with $\lambda$ it is drawn to $q$ as by $\lambda$ labelled samples
    of that prior. $\lambda$ is the one of highest marginal likelihood of the estimate taken for counts of
    labels, of which the sample is worth $N_\text{eff}$ (`identifiability`). So a clear shift leaves the
    estimate alone, and without evidence of a shift it is nearly the source. All classes are drawn to $q$
    alike: where one class has moved and the others have not, these are drawn no more than it is.

    Args:
        likelihood: The likelihood without pseudo-counts; its weights are counts.
        source: The prior to draw to, $q$, `[C]`, strictly positive: the carried prior.
        likeliest: The result of `likelihood.maximize`, if it is known already.
        effective_sample_size: $N_\text{eff}$, if `identifiability` of the likeliest prior is known already.
        tolerance: As in `Likelihood.maximize`.
        max_steps: As in `Likelihood.maximize`.

    Raises:
        ValueError: If `source` is not positive or of other classes, or as `Likelihood.maximize`.

    Example:
        >>> import numpy as np
        >>> near, far = (np.log([[0.9, 0.1]] * n + [[0.1, 0.9]] * (40 - n)) for n in (21, 35))
        >>> for ratios in (near, far):
        ...     print(empirical_bayes(Likelihood(ratios), [0.5, 0.5]).prior.probs.round(3))
        [0.5 0.5]
        [0.969 0.031]

    References:
        Robbins, *An empirical Bayes approach to statistics*, 1956, for the idea; the Dirichlet-multinomial
        marginal likelihood as in Minka, *Estimating a Dirichlet distribution*, 2000. Its use here is ours.
    """
    prior = as_prior(source, "source", likelihood.num_classes, names=likelihood.names).require_positive(
        "source"
    )
    if likeliest is None:
        likeliest = likelihood.maximize(tolerance=tolerance, max_steps=max_steps)
    if effective_sample_size is None:
        effective_sample_size = identifiability(likelihood, likeliest.prior).effective_sample_size
    counts = effective_sample_size * likeliest.prior.probs
    concentrations = 1 + _STRENGTHS[:, None] * prior.probs
    total = concentrations.sum(axis=1)
    evidence = gammaln(total) - gammaln(total + counts.sum())
    evidence += (gammaln(concentrations + counts) - gammaln(concentrations)).sum(axis=1)
    best = int(evidence.argmax())
    if best == 0:
        return likeliest
    posterior = likelihood.with_pseudo_counts(_STRENGTHS[best] * prior.probs)
    return posterior.maximize(tolerance=tolerance, max_steps=max_steps)


def adaptive_weight(estimate: Prior, source: Prior) -> float:
    r"""The weight $\lambda$ of the sample in MAPLS, between 0 and 1: see `maximize_posterior`.

    Args:
        estimate: The maximum-likelihood estimate $\hat t$.
        source: The source prior $q$, strictly positive.

    Example:
        >>> round(adaptive_weight(Prior([0.7, 0.3]), Prior([0.9, 0.1])), 3)
        0.462
    """
    uniform = Prior.uniform(source.num_classes)
    imbalance = _divergence(source, uniform)
    moved, left = _divergence(estimate, uniform), _divergence(estimate, source)
    # Where everything is uniform, sample and prior agree.
    sample = 4 * moved / (imbalance + 4 * moved) if imbalance + moved > 0 else 1.0
    near = imbalance / (imbalance + 4 * left) if imbalance + left > 0 else 1.0
    return 0.9 * sample + 0.1 * near


def _divergence(first: Prior, second: Prior) -> float:
    terms = xlogy(first.probs, first.probs) - first.probs * second.log_probs
    return max(0.0, float(terms.sum()))


def _read_concentration(values: ArrayLike, likelihood: Likelihood) -> Float[np.ndarray, " classes"]:
    num_classes = likelihood.num_classes
    if np.ndim(values) == 0 and not isinstance(values, Mapping):
        values = [values]
    single = not isinstance(values, Mapping) and len(values) == 1
    if single:
        alpha = np.full(num_classes, read_array(values, "concentration").item(), dtype=np.float64)
    else:
        alpha, _ = read_per_class(values, "concentration", names=likelihood.names)
    if len(alpha) != num_classes:
        raise ValueError(
            f"Expected `concentration` to be one number or one per class, ({num_classes},), "
            f"but got shape {alpha.shape}."
        )
    if not (np.isfinite(alpha) & (alpha >= 1)).all():
        raise ValueError(f"Expected `concentration` to be finite and at least 1, but got {alpha.min():g}.")
    return alpha
