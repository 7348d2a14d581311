"""The likelihood of a target prior: its maximum, with a certificate of how close to the highest it is."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float

from priorshift._blocks import for_blocks, row_blocks
from priorshift._inputs import ArrayLike, read_per_class, read_scores, read_weights
from priorshift.estimation._ascent import ascend
from priorshift.priors import Prior, as_prior

_EXACT = 2**22
"""Entries up to which ratios are kept in float64."""
_PASS = 2**18
"""Entries that a thread turns into float64 at a time: many enough for two threads not to wait for Python."""
_PRODUCT = 2**22
"""Entries of a matrix product."""
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class LikelihoodSolution:
    r"""A prior that maximizes a likelihood, and the proof of it.

    Args:
        prior: The maximizer $t$, in float64.
        log_likelihood: The maximized sum, at `prior`.
        shortfall: The certificate: no prior exceeds `log_likelihood` by more. It bounds the likelihood, not
            the prior: where the likelihood is flat, priors far apart are equally likely.
        steps: Number of evaluations of the gradient, each one pass over the data.
        converged: True if `shortfall` came down to the tolerance.
    """

    prior: Prior
    log_likelihood: float
    shortfall: float
    steps: int
    converged: bool


class Likelihood:
    r"""The mean log-likelihood of a target prior $t$, given unlabelled predictions.

    $$L(t) = \frac{\sum_i w_i \log \sum_y t_y\, r_{iy} + \sum_y b_y \log t_y}{\sum_i w_i + \sum_y b_y},
      \qquad r_{iy} = e^{f(x_i)[y]} / q_y$$

    for logits $f$ that carry the prior $q$. The pseudo-counts $b$ are labelled samples: a Dirichlet prior
    with the parameters $1 + b$. All estimates that use a likelihood, their intervals and their diagnostics
    share one such object, so that the predictions are read once.

    Ratios of more than $2^{22}$ entries are kept in float32 and summed in float64; fewer are float64
    throughout. They are all the memory that grows with the sample.

    Args:
        log_ratios: $f(x_i)[y] - \log q_y$, `[N, C]`, floating-point. A constant on a row moves the
            log-likelihood only; $-\infty$ says that a class is impossible for a sample.
        weights: $w$, a non-negative weight per sample, `[N]`, such as bootstrap counts; ones by default.
        pseudo_counts: $b$, a non-negative number per class, `[C]`; none by default.

    Raises:
        TypeError: If `log_ratios` are not floating-point.
        ValueError: If a row holds NaN or $+\infty$ or nothing finite, or an argument does not fit.

    Example:
        >>> import numpy as np
        >>> probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
        >>> likelihood = Likelihood(np.log(probs) - np.log([0.5, 0.5]))
        >>> round(likelihood.value([0.5, 0.5]), 4)
        0.0
        >>> solution = likelihood.maximize()
        >>> solution.prior
        Prior([0.6776, 0.3224])
        >>> solution.converged, solution.shortfall <= 1e-8
        (True, True)

    References:
        Saerens et al., *Adjusting the outputs of a classifier to new a priori probabilities*, Neural
        Computation 2002, Eq. 2.9.
    """

    ratios: Float[np.ndarray, "samples classes"]
    """$r$, each row divided by its largest entry."""
    names: tuple[str, ...] | None
    """The class names, where they are known."""

    def __init__(
        self,
        log_ratios: ArrayLike,
        weights: ArrayLike | None = None,
        pseudo_counts: ArrayLike | None = None,
    ) -> None:
        rows, names = read_scores(log_ratios, "log_ratios")
        counts = None if weights is None else read_weights(weights, len(rows))
        pseudo = None
        if pseudo_counts is not None:
            pseudo = _read_pseudo_counts(pseudo_counts, rows.shape[1], names)
        self._set(*_exponentials(rows, None), counts, pseudo, names)

    @classmethod
    def from_logits(
        cls,
        logits: Float[np.ndarray, "samples classes"],
        carried: Prior | None,
        weights: Float[np.ndarray, " samples"] | None = None,
        names: tuple[str, ...] | None = None,
    ) -> Self:
        """Of logits and weights that were read before, which are not checked; None carries nothing.

        The classes have the names of `carried`, or else `names`.
        """
        known = names if carried is None or carried.names is None else carried.names
        return cls._made(*_exponentials(logits, carried), weights, None, known)

    @classmethod
    def from_ratios(
        cls,
        ratios: Float[np.ndarray, "samples classes"],
        weights: Float[np.ndarray, " samples"] | None = None,
        names: tuple[str, ...] | None = None,
    ) -> Self:
        """Of ratios $r$ themselves, which are kept as they are and not checked."""
        return cls._made(ratios, np.zeros(len(ratios)), weights, None, names)

    def with_pseudo_counts(self, pseudo_counts: Float[np.ndarray, " classes"]) -> Self:
        """The same likelihood with other pseudo-counts, `[C]`; the ratios are shared."""
        return self._made(self.ratios, self._tops, self._counts, pseudo_counts, self.names)

    def with_weights(self, weights: Float[np.ndarray, " samples"]) -> Self:
        """The same likelihood with other weights of the samples, `[N]`; the ratios are shared."""
        return self._made(self.ratios, self._tops, weights, None, self.names)

    @property
    def num_samples(self) -> int:
        """Number of samples, $N$."""
        return len(self.ratios)

    @property
    def num_classes(self) -> int:
        """Number of classes, $C$."""
        return int(self.ratios.shape[1])

    @property
    def total_weight(self) -> float:
        r"""$\sum_i w_i$: what the sample stands for against pseudo-counts."""
        return float(self.num_samples if self._counts is None else self._counts.sum())

    @property
    def equal_samples(self) -> float:
        r"""$(\sum_i w_i)^2 / \sum_i w_i^2$: equally weighted samples of the same variance (Kish)."""
        if self._counts is None:
            return float(self.num_samples)
        return float(self._counts.sum() ** 2 / (self._counts @ self._counts))

    def value(self, prior: Prior | ArrayLike) -> float:
        r"""$L(t)$, in nats, nothing left out; $-\infty$ if `prior` forbids a sample.

        Args:
            prior: The target prior $t$, `[C]`; zeros are allowed.

        Raises:
            ValueError: If `prior` is of other classes.

        Example:
            >>> import numpy as np
            >>> round(Likelihood(np.array([[0.0, -np.inf]])).value([0.25, 0.75]), 4)
            -1.3863
        """
        return self.evaluate(self._probs(prior))[0] + self.offset

    def em_step(self, prior: Prior | ArrayLike) -> Prior:
        r"""One step of expectation maximization: the mean posterior, $t_y \leftarrow t_y\, g_y$.

        It never lowers the likelihood, and a class of zero mass keeps it. Many of these steps reach what
        `maximize` reaches in few.

        Args:
            prior: The prior to step from, `[C]`.

        Raises:
            ValueError: If `prior` is of other classes, or a sample has no class that it allows.

        Example:
            >>> import numpy as np
            >>> Likelihood(np.log([[0.9, 0.1], [0.3, 0.7]])).em_step([0.5, 0.5])
            Prior([0.6, 0.4])

        References:
            Saerens et al., Neural Computation 2002, Eq. 2.9.
        """
        probs = self._probs(prior)
        value, gradient = self.evaluate(probs)
        if value == -np.inf:
            raise ValueError("Expected `prior` to allow some class of every sample, but one is impossible.")
        return Prior(probs * gradient, names=self.names)

    def curvature(self, prior: Prior | ArrayLike) -> Float[np.ndarray, "classes classes"]:
        r"""Minus the second derivatives of the mean log-likelihood, float64, `[C, C]`.

        $$H_{yz} = \sum_i w_i \frac{r_{iy}\, r_{iz}}{(t \cdot r_i)^2}$$

        It is also the second moment of the score, so $N\,H$ is both the observed information and the
        information by outer products. It is 0 in directions of which the predictions hold no information.

        Args:
            prior: The target prior $t$, `[C]`, positive for some possible class of every sample.

        Raises:
            ValueError: If `prior` is of other classes.

        Example:
            >>> import numpy as np
            >>> Likelihood(np.log([[2.0, 1.0]])).curvature([0.5, 0.5]).round(4)
            array([[1.7778, 0.8889],
                   [0.8889, 0.4444]])
        """
        return self.second_derivatives(self._probs(prior))

    def maximize(
        self, *, start: Prior | ArrayLike | None = None, tolerance: float = 1e-8, max_steps: int = 1000
    ) -> LikelihoodSolution:
        r"""Maximum-likelihood label shift (MLLS): the target prior that makes the predictions likeliest.

        $L$ is concave on the simplex; EM climbs it surely and slowly, and this search ends at the same
        maximum. With the gradient $g_y = \sum_i w_i\, r_{iy} / (t \cdot r_i)$, $\sum_i w_i = 1$, concavity of
        the logarithm bounds what any other prior $s$ can gain,

        $$L(s) - L(t) = \sum_i w_i \log \frac{s \cdot r_i}{t \cdot r_i}
          \le \log \sum_i w_i \frac{s \cdot r_i}{t \cdot r_i} = \log \sum_y s_y\, g_y \le \log \max_y g_y,$$

        and the search stops when that bound is at most `tolerance`.

        The search runs over $t_y = s_y^2$ without constraints: $L(s^2) - \lVert s \rVert^2$ has its maximum
        on the simplex, since $t \cdot g = 1$ for every $t$. EM steps come first; then quasi-Newton steps
        (L-BFGS), with at most 4,096 classes seeded by all second derivatives every $C / 64$ steps: with fewer
        than 128 classes at every step, which is Newton's method. A step that fails is replaced by EM's.

        Args:
            start: Where to begin, strictly positive; uniform by default.
            tolerance: The shortfall of the mean log-likelihood at which to stop, in nats per sample.
            max_steps: Number of evaluations of the gradient after which to give up.

        Raises:
            ValueError: If `start` is not positive or of other classes, or a setting is not positive.

        References:
            Saerens et al., Neural Computation 2002; Alexandari et al., *Maximum likelihood with
            bias-corrected calibration is hard-to-beat at label shift adaptation*, ICML 2020; Garg et al., *A
            unified view of label shift estimation*, NeurIPS 2020.
        """
        if not tolerance > 0 or max_steps < 1:
            raise ValueError(
                f"Expected `tolerance` and `max_steps` to be positive, but got {tolerance} and {max_steps}."
            )
        probs = np.full(self.num_classes, 1 / self.num_classes)
        if start is not None:
            probs = (
                as_prior(start, "start", self.num_classes, names=self.names).require_positive("start").probs
            )
        # Products that are singular, as those of identical classes are, are known to this rounding.
        slack = float(np.finfo(self.ratios.dtype).eps) ** 0.5
        point, steps = ascend(
            self.evaluate,
            self.second_derivatives,
            probs,
            slack=slack,
            tolerance=tolerance,
            max_steps=max_steps,
        )
        total = point.probs.sum()
        return LikelihoodSolution(
            prior=Prior(point.probs, names=self.names),
            log_likelihood=float(point.value + total - 1 - np.log(total)) + self.offset,
            shortfall=point.shortfall,
            steps=steps,
            converged=point.shortfall <= tolerance,
        )

    def evaluate(self, probs: Float[np.ndarray, " classes"]) -> tuple[float, Float[np.ndarray, " classes"]]:
        """$L$ less `offset`, which the largest ratio of each row has, and its gradient."""

        def work(part: slice) -> tuple[float, Float[np.ndarray, " classes"]]:
            block, weight = self.ratios[part].astype(np.float64, copy=False), self._weights[part]
            density = block @ probs
            with np.errstate(divide="ignore", invalid="ignore"):
                value = weight @ np.log(density)
                if np.isnan(value):  # 0 · log 0: an impossible sample of no weight
                    value = weight[weight > 0] @ np.log(density[weight > 0])
            return float(value), (weight / np.maximum(density, _TINY)) @ block

        if self.ratios.dtype == np.float64:  # products alone, which BLAS does as fast without our threads
            found = [work(part) for part in row_blocks(self.num_samples, self.num_classes)]
        else:
            found = for_blocks(work, self.num_samples, self.num_classes, entries=_PASS)
        value, gradient = sum(part for part, _ in found), np.sum([part for _, part in found], axis=0)
        if self._pseudo is not None:
            labelled = self._pseudo > 0
            with np.errstate(divide="ignore"):
                value += float(self._pseudo[labelled] @ np.log(probs[labelled]))
                gradient[labelled] += self._pseudo[labelled] / probs[labelled]
        return value, gradient

    def second_derivatives(
        self, probs: Float[np.ndarray, " classes"]
    ) -> Float[np.ndarray, "classes classes"]:
        """Minus the second derivatives, by products in the precision of the ratios."""
        dtype, roots = self.ratios.dtype, np.sqrt(self._weights)
        matrix = np.zeros((self.num_classes, self.num_classes))
        for part in row_blocks(self.num_samples, self.num_classes, entries=_PRODUCT):
            block = self.ratios[part]
            density = (block @ probs.astype(dtype)).astype(np.float64)
            scaled = block * (roots[part] / density).astype(dtype)[:, None]
            matrix += scaled.T @ scaled
        if self._pseudo is not None:
            labelled = np.flatnonzero(self._pseudo)
            matrix[labelled, labelled] += self._pseudo[labelled] / probs[labelled] ** 2
        return matrix

    def information(self, inside: Float[np.ndarray, " classes"]) -> Float[np.ndarray, "classes classes"]:
        """The information of one prediction at a positive prior: that of a label less what is missing."""
        _, gradient = self.evaluate(inside)
        matrix = self.second_derivatives(inside)
        np.einsum("ii->i", matrix)[:] += np.maximum(1 - gradient, 0) / inside
        return matrix

    def half_a_sample_inside(self, probs: Float[np.ndarray, " classes"]) -> Float[np.ndarray, " classes"]:
        """A prior with half a sample of each class added to what these samples are worth."""
        size = self.equal_samples
        return np.asarray((size * probs + 0.5) / (size + 0.5 * len(probs)))

    def _probs(self, prior: Prior | ArrayLike) -> Float[np.ndarray, " classes"]:
        return as_prior(prior, "prior", self.num_classes, names=self.names).probs

    @classmethod
    def _made(cls, *parts: object) -> Self:
        likelihood = cls.__new__(cls)
        likelihood._set(*parts)  # type: ignore[arg-type]
        return likelihood

    def _set(
        self,
        ratios: Float[np.ndarray, "samples classes"],
        tops: Float[np.ndarray, " samples"],
        counts: Float[np.ndarray, " samples"] | None,
        pseudo: Float[np.ndarray, " classes"] | None,
        names: tuple[str, ...] | None,
    ) -> None:
        self.ratios, self._tops, self._counts, self.names = ratios, tops, counts, names
        total = self.total_weight + (0.0 if pseudo is None else float(pseudo.sum()))
        self._weights = np.full(len(ratios), 1 / total) if counts is None else counts / total
        self._pseudo = None if pseudo is None else pseudo / total
        self.offset = float(self._weights @ tops)


def _read_pseudo_counts(
    values: ArrayLike, num_classes: int, names: tuple[str, ...] | None
) -> Float[np.ndarray, " classes"]:
    pseudo, _ = read_per_class(values, "pseudo_counts", names=names)
    if len(pseudo) != num_classes or not (np.isfinite(pseudo) & (pseudo >= 0)).all():
        raise ValueError(
            f"Expected `pseudo_counts` with a finite non-negative number per class, {num_classes}, but got "
            f"{pseudo[:10].tolist()}."
        )
    return pseudo


def _exponentials(
    rows: Float[np.ndarray, "samples classes"], carried: Prior | None
) -> tuple[Float[np.ndarray, "samples classes"], Float[np.ndarray, " samples"]]:
    """Ratios of logits, each row divided by its largest, and the logarithms of what it was divided by."""
    dtype = np.dtype(np.float64 if rows.size <= _EXACT else np.float32)
    wide = np.promote_types(rows.dtype, dtype)
    ratios, tops = np.empty(rows.shape, dtype=dtype), np.empty(len(rows))
    shift = None if carried is None else carried.log_probs.astype(rows.dtype)

    def work(part: slice) -> None:
        block = (rows[part] if shift is None else rows[part] - shift).astype(wide, copy=False)
        top, out = block.max(axis=1), ratios[part]
        np.subtract(block, top[:, None], out=out, casting="same_kind")
        np.exp(out, out=out)
        tops[part] = top

    for_blocks(work, *rows.shape)
    return ratios, tops
