"""Class priors, the one validated form of a class mix. Over 400 lines, half of which document one class."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, final, overload

import numpy as np
import numpy.typing as npt

from priorshift._inputs import Array, ArrayLike, Names, align, quoted, read_labels, read_names, read_per_class

__all__ = ["Prior"]

Shares: TypeAlias = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[np.int64]
_NAMED = 6
"""Classes that a `repr` shows."""


@final
class Prior:
    r"""A class prior $\pi$: one probability per class, float64, validated once and immutable.

    Every scorer's logits carry such a prior, every deployment has one as its target, and
    [`adjust`][priorshift.adjust] moves logits from the first to the second.

    A class may have zero mass when it is a *target* (that class does not occur there). A *source* or
    *carried* prior must be strictly positive, since its logarithm is subtracted: the functions that need
    that refuse zeros by the name or index of the class.

    A prior composes with NumPy: `np.asarray(prior)` are its probabilities, `prior[2]` and `prior["cat"]` the
    share of a class, and it has a length and can be iterated over.

    Args:
        probs: One non-negative number per class, shape `[C]`: an array of any library, a list, a column, or
            class names and their shares as a mapping, a Series with an index or a table of two columns. It
            is divided by its sum, so any positive multiple of a distribution is accepted.
        counts: The sample counts behind the probabilities, whole numbers, `[C]`, where they are known.
        names: The class names in order, where `probs` does not bring them. Given both, `probs` is put in the
            order of `names`.

    Raises:
        TypeError: If `probs` cannot be read as real numbers.
        ValueError: If `probs` is not one-dimensional with at least two entries, or holds a negative or
            non-finite number, or sums to zero; or `counts` or `names` do not fit.

    Example:
        >>> prior = Prior({"cat": 70, "dog": 20, "owl": 10})
        >>> prior
        Prior({'cat': 0.7, 'dog': 0.2, 'owl': 0.1})
        >>> prior["dog"], len(prior)
        (0.2, 3)
        >>> Prior([0.7, 0.2, 0.1]).tempered(0.5).probs.round(3)
        array([0.523, 0.279, 0.198])
    """

    __slots__ = ("_counts", "_log_probs", "_names", "_probs")

    _probs: Shares
    _log_probs: Shares
    _counts: Counts | None
    _names: Names

    def __init__(
        self, probs: ArrayLike, *, counts: ArrayLike | None = None, names: Sequence[str] | None = None
    ) -> None:
        masses, found = _read_masses(probs, "probs", names)
        # Sums that are 1 up to rounding stay, so that the probabilities of a prior give the same prior.
        total = masses.sum()
        rounding = len(masses) * np.finfo(np.float64).eps
        shares = masses if abs(total - 1) <= rounding else masses / total
        with np.errstate(divide="ignore"):
            log_probs = np.log(shares)
        tallies = None if counts is None else _read_counts(counts, "counts", found)[0]
        if tallies is not None and tallies.shape != shares.shape:
            raise ValueError(
                f"Expected `counts` with one entry per class, {shares.shape}, but got shape {tallies.shape}."
            )
        self._set(shares, log_probs, tallies, found)

    @classmethod
    def uniform(cls, num_classes: int, *, names: Sequence[str] | None = None) -> "Prior":
        """The uniform prior $p_u(y) = 1/C$, the target of the balanced error.

        Example:
            >>> Prior.uniform(4)
            Prior([0.25, 0.25, 0.25, 0.25])
        """
        check_num_classes(num_classes)
        return cls(np.ones(num_classes), names=names)

    @classmethod
    def from_log_probs(cls, log_probs: ArrayLike, *, names: Sequence[str] | None = None) -> "Prior":
        r"""The prior of log-probabilities, up to a constant, where probabilities would underflow.

        Args:
            log_probs: One number per class, shape `[C]`; $-\infty$ gives a class zero mass.
            names: The class names in order.

        Raises:
            TypeError: If `log_probs` cannot be read as real numbers.
            ValueError: If it is not of shape `[C]` with $C \ge 2$, holds NaN or $+\infty$, or nothing finite.

        Example:
            >>> Prior.from_log_probs([-1000.0, -1000.0])
            Prior([0.5, 0.5])
        """
        logs, found = read_per_class(log_probs, "log_probs", names=names)
        if np.isnan(logs).any() or (logs == np.inf).any() or not np.isfinite(logs).any():
            raise ValueError(
                "Expected `log_probs` to be finite or −inf, and finite for some class, "
                f"but got {logs.tolist()[:10]}."
            )
        logs = logs - logs.max()
        masses = np.exp(logs)
        prior = cls(masses, names=_names_of(found, names, len(logs)))
        prior._set(prior._probs, logs - np.log(masses.sum()), None, prior._names)
        return prior

    @classmethod
    def from_counts(
        cls, counts: ArrayLike, *, names: Sequence[str] | None = None, smoothing: float | None = None
    ) -> "Prior":
        r"""The empirical class frequencies $\pi_y = (n_y + s) / (N + C s)$.

        Args:
            counts: Number of training samples of each class, whole numbers: an array, `[C]`, or names and
                counts as a dict, a Counter, a Series as `value_counts()` gives it, or a table of two columns.
            names: The class names in order, where `counts` does not bring them.
            smoothing: Pseudo-count $s > 0$ added to every class (1 is Laplace's rule). Without it a class of
                zero samples is refused: its log-prior would be $-\infty$.

        Raises:
            ValueError: If a count is negative or not whole, or a class has no sample and `smoothing` is None.

        Example:
            >>> Prior.from_counts({"cat": 6, "dog": 3, "owl": 1})
            Prior({'cat': 0.6, 'dog': 0.3, 'owl': 0.1})
            >>> Prior.from_counts([6, 3, 0])
            Traceback (most recent call last):
            ValueError: Expected every class to have training samples, but `counts` is zero for class 2. Pass
            `smoothing=1.0` to add a pseudo-count to every class.
        """
        tallies, found = _read_counts(counts, "counts", names)
        if smoothing is None:
            absent = np.flatnonzero(tallies == 0).tolist()
            if absent:
                raise ValueError(
                    "Expected every class to have training samples, but `counts` is zero for "
                    f"{name_classes(absent, found)}. Pass `smoothing=1.0` to add a pseudo-count to every "
                    "class."
                )
        elif not 0 < smoothing < float("inf"):
            raise ValueError(f"Expected `smoothing` to be a positive finite number, but got {smoothing}.")
        return cls(tallies + (smoothing or 0.0), counts=tallies, names=found)

    @classmethod
    def from_labels(
        cls,
        labels: ArrayLike,
        num_classes: int | None = None,
        *,
        names: Sequence[str] | None = None,
        smoothing: float | None = None,
    ) -> "Prior":
        """The empirical class frequencies of some labels.

        Args:
            labels: Class indices or class names, any shape.
            num_classes: Number of classes $C$, required with indices unless `names` are given; a class may be
                missing from `labels` only with `smoothing`.
            names: The class names in order. Without them names are sorted, or in the order of the categories
                of a categorical column.
            smoothing: As in `from_counts`.

        Raises:
            ValueError: If a label is no class, or a class has no sample and `smoothing` is None.

        Example:
            >>> Prior.from_labels(["dog", "cat", "cat", "cat"])
            Prior({'cat': 0.75, 'dog': 0.25})
            >>> Prior.from_labels([0, 0, 1, 0], num_classes=2)
            Prior([0.75, 0.25])
        """
        if names is None and num_classes is None:
            names = _names_in(labels)
        if names is not None:
            names = read_names(names, "names", num_classes)
            num_classes = len(names)
        elif _named(labels):
            names = _names_in(labels)
            assert num_classes is not None and names is not None
            read_names(names, "labels", num_classes)
        assert num_classes is not None
        check_num_classes(num_classes)
        return cls.from_counts(
            count_labels(labels, num_classes, names=names), names=names, smoothing=smoothing
        )

    @property
    def probs(self) -> Shares:
        """The probabilities, float64, shape `[C]`, summing to 1; read-only."""
        return self._probs

    @property
    def log_probs(self) -> Shares:
        r"""The log-probabilities, float64, shape `[C]`; $-\infty$ for a class of zero mass; read-only."""
        return self._log_probs

    @property
    def counts(self) -> Counts | None:
        """The sample counts the prior was made from, int64, shape `[C]`; None where they are not known."""
        return self._counts

    @property
    def names(self) -> Names:
        """The class names in order; None where they are not known."""
        return self._names

    @property
    def num_classes(self) -> int:
        """The number of classes, $C$."""
        return len(self._probs)

    def to_dict(self) -> dict[str, float] | dict[int, float]:
        """Class name → share; class index → share where there are no names.

        Example:
            >>> Prior([0.25, 0.75]).to_dict()
            {0: 0.25, 1: 0.75}
        """
        if self._names is None:
            return dict(enumerate(self._probs.tolist()))
        return dict(zip(self._names, self._probs.tolist(), strict=True))

    def named(self, names: Sequence[str] | None) -> "Prior":
        """The prior in the order of `names`: sorted into it if it has names, else given these.

        Raises:
            ValueError: If `names` are not one for each class, or others than the prior's own.
        """
        if names is None or self._names == tuple(names):
            return self
        known = read_names(names, "names", self.num_classes)
        if self._names is None:
            return _restored(self._probs, self._log_probs, self._counts, known)
        order = align(self._names, known, "names")
        counts = None if self._counts is None else self._counts[order]
        return _restored(self._probs[order], self._log_probs[order], counts, known)

    def tempered(self, exponent: float) -> "Prior":
        r"""The prior $\propto \pi^t$: 1 leaves it, 0 gives the uniform prior, 0.5 is square-root sampling.

        Raises:
            ValueError: If `exponent` is not finite, or is at most zero while a class has zero mass.

        Example:
            >>> Prior([0.9, 0.1]).tempered(0.0)
            Prior([0.5, 0.5])
        """
        if not np.isfinite(exponent):
            raise ValueError(f"Expected `exponent` to be finite, but got {exponent}.")
        if exponent <= 0:
            self.require_positive("prior")
        if exponent == 0:
            return self.uniform(self.num_classes, names=self._names)
        return self.from_log_probs(exponent * self._log_probs, names=self._names)

    def matches(self, other: "Prior") -> bool:
        """True if another prior is the same up to rounding: as many classes, each within a millionth.

        Classes are matched by name where both priors have names.

        Example:
            >>> Prior([0.1, 0.9]).matches(Prior([1, 9])), Prior([0.1, 0.9]).matches(Prior([0.2, 0.8]))
            (True, False)
        """
        if self.num_classes != other.num_classes:
            return False
        if self._names is not None and other._names is not None:
            if set(self._names) != set(other._names):
                return False
            other = other.named(self._names)
        with np.errstate(invalid="ignore"):
            near = np.abs(self._log_probs - other._log_probs) <= 1e-6
        return bool((near | (self._log_probs == other._log_probs)).all())

    def require_positive(self, argument: str) -> "Prior":
        """Return the prior itself, or refuse it by the names or indices of its classes of zero mass.

        Raises:
            ValueError: If a class has zero mass; the message names `argument`.
        """
        absent = np.flatnonzero(self._log_probs == -np.inf).tolist()
        if absent:
            raise ValueError(
                f"Expected `{argument}` to be strictly positive, "
                f"but it is zero for {name_classes(absent, self._names)}."
            )
        return self

    def __len__(self) -> int:
        return len(self._probs)

    def __iter__(self) -> Iterator[float]:
        return iter(self._probs.tolist())

    @overload
    def __getitem__(self, key: int | str) -> float: ...
    @overload
    def __getitem__(self, key: Any) -> Any: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if self._names is None or key not in self._names:
                raise KeyError(f"There is no class {key!r}; there are {quoted(self._names or ())}.")
            key = self._names.index(key)
        found = self._probs[key]
        return float(found) if np.ndim(found) == 0 else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False and dtype not in (None, np.float64):
            raise ValueError(f"Expected `dtype` float64 where no copy may be made, but got {dtype}.")
        return np.array(self._probs, dtype=dtype, copy=copy)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prior):
            return NotImplemented
        return self._names == other._names and np.array_equal(self._probs, other._probs)

    def __hash__(self) -> int:
        return hash((self._names, tuple(self._probs.tolist())))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._probs, self._log_probs, self._counts, self._names)

    def __repr__(self) -> str:
        shares = [f"{share:.4g}" for share in self._probs[:_NAMED].tolist()]
        if self._names is not None:
            shares = [f"{name!r}: {share}" for name, share in zip(self._names, shares, strict=False)]
        rest = f", …, {self.num_classes} classes" if self.num_classes > _NAMED else ""
        inside = f"{', '.join(shares)}{rest}"
        return f"Prior([{inside}])" if self._names is None else f"Prior({{{inside}}})"

    def _set(self, probs: Shares, log_probs: Shares, counts: Counts | None, names: Names) -> "Prior":
        for array in (probs, log_probs, counts):
            if array is not None:
                array.flags.writeable = False
        self._probs, self._log_probs, self._counts, self._names = probs, log_probs, counts, names
        return self


def as_prior(
    prior: Prior | ArrayLike,
    argument: str,
    num_classes: int | None = None,
    *,
    names: Sequence[str] | None = None,
) -> Prior:
    """Read an argument that may be a `Prior` or anything that makes one, and match it to the classes.

    Args:
        prior: The argument.
        argument: Its name in messages.
        num_classes: The number of classes that is expected.
        names: The class names that are expected, where they are known; the result is in their order.

    Raises:
        ValueError: If it is no prior, not of `num_classes` classes, or names other classes.
    """
    if not isinstance(prior, Prior):
        masses, found = _read_masses(prior, argument, None)
        prior = Prior(masses, names=found)
    if num_classes is not None and prior.num_classes != num_classes:
        if names is not None and prior.names is not None:
            align(prior.names, names, argument)
        raise ValueError(
            f"Expected `{argument}` with one entry per class, {num_classes}, but got {prior.num_classes}."
        )
    if names is not None and prior.names is not None and prior.names != tuple(names):
        align(prior.names, names, argument)
    return prior.named(names)


def count_labels(labels: ArrayLike, num_classes: int, *, names: Sequence[str] | None = None) -> Counts:
    """Number of occurrences of each class, int64, shape `[C]`.

    Raises:
        TypeError: If `labels` are neither whole numbers nor names.
        ValueError: If a label is no class.
    """
    return np.bincount(read_labels(labels, num_classes=num_classes, names=names), minlength=num_classes)


def name_classes(indices: Sequence[int], names: Sequence[str] | None = None) -> str:
    """Classes in words, at most ten of them: `class 2`, `classes 0, 3 and 7 more`, `class 'cat'`."""
    shown = ", ".join(str(index) if names is None else repr(names[index]) for index in indices[:10])
    more = f" and {len(indices) - 10} more" if len(indices) > 10 else ""
    return f"{'class' if len(indices) == 1 else 'classes'} {shown}{more}"


def prior_as_arrays(prior: Prior, name: str) -> dict[str, Shares]:
    """What a file holds of a prior: its probabilities, or its log-probabilities where one underflows."""
    lost = (prior.probs < np.finfo(np.float64).tiny) & (prior.log_probs > -np.inf)
    return {f"{name}_log_probs": prior.log_probs} if lost.any() else {name: prior.probs}


def prior_from_arrays(arrays: Mapping[str, Array], name: str) -> Prior:
    """Read what `prior_as_arrays` gave.

    Raises:
        KeyError: If the file holds no such prior.
        ValueError: If what it holds is none.
    """
    if (logs := arrays.get(f"{name}_log_probs")) is not None:
        return Prior.from_log_probs(logs)
    return Prior(arrays[name])


def check_num_classes(num_classes: int) -> None:
    """Refuse fewer than two classes."""
    if num_classes < 2:
        raise ValueError(f"Expected `num_classes` to be at least 2, but got {num_classes}.")


def _restored(*parts: Any) -> Prior:
    return object.__new__(Prior)._set(*parts)


def _read_masses(values: ArrayLike, argument: str, names: Sequence[str] | None) -> tuple[Shares, Names]:
    if isinstance(values, Prior):
        values = values.to_dict() if values.names is not None else values.probs
    masses, found = read_per_class(values, argument, names=names)
    found = _names_of(found, names, len(masses))
    wrong = np.flatnonzero(~(np.isfinite(masses) & (masses >= 0)))
    if len(wrong):
        raise ValueError(
            f"Expected `{argument}` to be finite and non-negative, "
            f"but got {masses[wrong[0]]} for {name_classes([int(wrong[0])], found)}."
        )
    with np.errstate(over="ignore"):
        total = masses.sum()
    if total == 0 or total == np.inf:
        raise ValueError(f"Expected `{argument}` to have a positive finite sum, but it sums to {total:g}.")
    return masses, found


def _read_counts(counts: ArrayLike, argument: str, names: Sequence[str] | None) -> tuple[Counts, Names]:
    tallies, found = _read_masses(counts, argument, names)
    fractional = np.flatnonzero(tallies != np.round(tallies)).tolist()
    if fractional:
        raise ValueError(
            f"Expected `{argument}` to hold whole numbers, but got {tallies[fractional[0]]} "
            f"for {name_classes(fractional[:1], found)}."
        )
    return tallies.astype(np.int64), found


def _names_of(found: Names, names: Sequence[str] | None, num_classes: int) -> Names:
    return found if names is None else read_names(names, "names", num_classes)


def _named(labels: ArrayLike) -> bool:
    return np.asarray(labels).dtype.kind in "OUST" if not hasattr(labels, "detach") else False


def _names_in(labels: ArrayLike) -> tuple[str, ...]:
    """The categories of a categorical column, or the different names in some labels, sorted."""
    if not _named(labels):
        raise ValueError(
            "Expected `num_classes`, the number of classes, with labels that are indices, but got None."
        )
    categories = getattr(getattr(labels, "cat", None), "categories", None)
    return tuple(map(str, np.unique(np.asarray(labels).astype(str)) if categories is None else categories))
