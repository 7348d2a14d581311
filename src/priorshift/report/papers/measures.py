"""Data of the papers' figures; classes are in the order of descending training count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from priorshift import metrics
from priorshift._inputs import ArrayLike, read_array, read_per_class
from priorshift.adjustment import logit_adjust
from priorshift.evaluation import Spread, by_method
from priorshift.predictions import Predictions
from priorshift.priors import Prior

TAUS = tuple(step / 10 for step in range(31))
"""0, 0.1, …, 3."""


@dataclass(frozen=True, eq=False)
class ClassLogits:
    """Logits of each class: on its own samples, the positive ones, and on those of all other classes.

    Attributes:
        title: Title of the panel.
        method: Method of the runs.
        positive_mean: Shape `[C]`, by descending training count; NaN for a class without samples.
        positive_sd: Standard deviation over the same samples, `[C]`.
        negative_mean: Shape `[C]`.
        negative_sd: Shape `[C]`.
    """

    title: str
    method: str
    positive_mean: Float[np.ndarray, " classes"]
    positive_sd: Float[np.ndarray, " classes"]
    negative_mean: Float[np.ndarray, " classes"]
    negative_sd: Float[np.ndarray, " classes"]


@dataclass(frozen=True)
class TauErrors:
    """Balanced error of two post-hoc methods by their scaling parameter.

    Attributes:
        taus: The strengths.
        logit_adjustment: Spread over the runs at each strength.
        weight_normalization: The same.
    """

    taus: tuple[float, ...]
    logit_adjustment: tuple[Spread, ...]
    weight_normalization: tuple[Spread, ...]


@dataclass(frozen=True)
class GroupErrors:
    """Error of every method on groups of classes: the mean over the classes of a group.

    Attributes:
        axis: Label of the axis of a figure.
        groups: Name of each group.
        errors: Method → spread over its runs for each group; None for a group without classes.
    """

    axis: str
    groups: tuple[str, ...]
    errors: Mapping[str, tuple[Spread | None, ...]]


def class_logits(runs: Sequence[Predictions], title: str) -> ClassLogits:
    r"""Mean and standard deviation of the logits of each class on positive and on negative samples.

    The logits are first moved to the uniform prior, where they do not carry it yet. LADE's regularizer pulls
    them to $\log(C\, p_u(y \mid x))$: at most $\log C$, which a sample of a certain class attains.

    Args:
        runs: Predictions with labels and training counts; their samples are pooled.
        title: Title of the panel.

    Example:
        >>> logits, labels = [[3.0, 1.0], [1.0, 0.0], [0.0, 2.0]], [0, 0, 1]
        >>> run = Predictions(logits=logits, labels=labels, carried=[0.5, 0.5], train_counts=[9, 1])
        >>> panel = class_logits([run], "two classes")
        >>> panel.positive_mean.tolist(), panel.negative_mean.tolist()
        ([2.0, 2.0], [0.0, 0.5])

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*, CVPR 2021, Figure
        3.
    """
    num_classes = runs[0].num_classes
    uniform = Prior.uniform(num_classes)
    logits = np.concatenate([run.adjusted(uniform).logits.astype(np.float64) for run in runs])
    own = np.concatenate([_labels(run) for run in runs])[:, None] == np.arange(num_classes)
    order = _by_frequency(_counts(runs[0]))

    def moments(
        of: Bool[np.ndarray, "samples classes"],
    ) -> tuple[Float[np.ndarray, " classes"], Float[np.ndarray, " classes"]]:
        size = of.sum(axis=0)
        with np.errstate(invalid="ignore"):  # 0 / 0 of a class without samples
            mean = np.where(of, logits, 0).sum(axis=0) / size
            variance = np.square(np.where(of, logits - mean, 0)).sum(axis=0) / size
        return mean[order], np.sqrt(variance)[order]

    return ClassLogits(title, runs[0].method, *moments(own), *moments(~own))


def weight_norms(weights: Sequence[ArrayLike], train_counts: ArrayLike) -> tuple[Spread, ...]:
    r"""Euclidean norm $\lVert w_y \rVert$ of each class's weights, by descending training count.

    Args:
        weights: Of the linear classifier of each run, `[C, D]`.
        train_counts: Number of training samples of each class, `[C]`.

    Raises:
        ValueError: If the weights are not of as many classes as the counts.

    Example:
        >>> norms = weight_norms([[[3.0, 4.0], [0.0, 1.0]]], [1, 9])
        >>> [norm.mean for norm in norms]
        [1.0, 5.0]

    Reference:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Figure 1.
    """
    counts, _ = read_per_class(train_counts, "train_counts")
    norms = np.stack([_norms(weight, len(counts)) for weight in weights])
    return tuple(Spread.of(values) for values in norms[:, _by_frequency(counts)].T.tolist())


def tau_errors(
    runs: Sequence[Predictions],
    weights: Sequence[ArrayLike],
    *,
    taus: Sequence[float] = TAUS,
) -> TauErrors:
    r"""Balanced error of $f_y(x) - \tau \log \pi_y$ and of $f_y(x) / \lVert w_y \rVert^\tau$ by $\tau$.

    Both leave the logits as they are at $\tau = 0$. The second divides the whole logit, bias included, as the
    equation has it; `TauNormHead` leaves the bias out, as its authors do. The curves are descriptive:
    choose a $\tau$ on samples held out of training.

    Args:
        runs: Predictions of plain cross-entropy, with labels and training counts.
        weights: Of the linear classifier of each run, `[C, D]`.
        taus: Strengths.

    Raises:
        ValueError: If the logits of a run carry another prior than its training mix, or the weights do not
            fit.

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Eq. 3 and 9, Figures 3 and 9.
    """
    adjusted, normalized = [], []
    for run, weight in zip(runs, weights, strict=True):
        source = Prior.from_counts(_counts(run))
        if not run.carried.matches(source):
            raise ValueError(
                "Expected runs of plain cross-entropy, whose logits carry the training mix, "
                f"but those of {run.method or 'a run'} carry {run.carried}."
            )
        logits, norms = run.logits.astype(np.float64), _norms(weight, run.num_classes)
        adjusted.append([_balanced_error(run, logit_adjust(logits, source, tau)) for tau in taus])
        normalized.append([_balanced_error(run, logits / norms**tau) for tau in taus])
    return TauErrors(
        tuple(taus),
        *(tuple(map(Spread.of, zip(*errors, strict=True))) for errors in (adjusted, normalized)),
    )


def errors_by_group(runs: Sequence[Predictions]) -> GroupErrors:
    """Error of every method, as trained, on the classes of many, medium and few training samples.

    Many are at least 100, few at most 20.

    Args:
        runs: Predictions with labels and training counts, of one test set.

    Reference:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Figure 4.
    """
    counts = _counts(runs[0])
    many, few = counts >= 100, counts <= 20
    members = {"Many": many, "Medium": ~many & ~few, "Few": few}
    return _errors(
        runs,
        "Group of classes, by training samples",
        {
            f"{name}\n({int(inside.sum())} classes)": np.flatnonzero(inside)
            for name, inside in members.items()
        },
    )


def errors_by_frequency(runs: Sequence[Predictions], *, num_groups: int = 10) -> GroupErrors:
    """Error of every method, as trained, on groups of as many classes each, by descending training count.

    Args:
        runs: Predictions with labels and training counts, of one test set.
        num_groups: How many; with fewer classes, each is a group of its own.

    Raises:
        ValueError: If `num_groups` is below 1.

    Reference:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Figure 8.
    """
    if num_groups < 1:
        raise ValueError(f"Expected `num_groups` to be at least 1, but got {num_groups}.")
    order = _by_frequency(_counts(runs[0]))
    groups = np.array_split(order, min(num_groups, len(order)))
    names = {str(place): group for place, group in enumerate(groups)}
    what = "Class" if len(groups) == len(order) else "Group of classes"
    return _errors(runs, f"{what}, frequent → rare", names)


def _errors(
    runs: Sequence[Predictions], axis: str, groups: Mapping[str, Int[np.ndarray, " members"]]
) -> GroupErrors:
    errors = {}
    for method, of_method in by_method(runs).items():
        by_class = [
            1 - metrics.per_class_accuracy(run.predicted, _labels(run), run.num_classes) for run in of_method
        ]
        errors[method] = tuple(_spread([each[group] for each in by_class]) for group in groups.values())
    return GroupErrors(axis, tuple(groups), errors)


def _spread(of_runs: Sequence[Float[np.ndarray, " members"]]) -> Spread | None:
    known = [errors[~np.isnan(errors)] for errors in of_runs]
    return Spread.of([float(errors.mean()) for errors in known]) if all(map(len, known)) else None


def _norms(weight: ArrayLike, num_classes: int) -> Float[np.ndarray, " classes"]:
    matrix = read_array(weight, "weights").astype(np.float64)
    if matrix.ndim != 2 or len(matrix) != num_classes:
        raise ValueError(
            f"Expected `weights` with one row per class, ({num_classes}, D), but got shape {matrix.shape}."
        )
    norms: Float[np.ndarray, " classes"] = np.linalg.norm(matrix, axis=1)
    return norms


def _balanced_error(run: Predictions, logits: Float[np.ndarray, "samples classes"]) -> float:
    return metrics.balanced_error(logits.argmax(axis=1), _labels(run), run.num_classes)


def _by_frequency(counts: Shaped[np.ndarray, " classes"]) -> Int[np.ndarray, " classes"]:
    return np.argsort(-counts, kind="stable")


def _labels(run: Predictions) -> Int[np.ndarray, " samples"]:
    if run.labels is None:
        raise ValueError(f"Expected predictions with `labels`, but {run.method or 'a run'} has none.")
    return run.labels


def _counts(run: Predictions) -> Int[np.ndarray, " classes"]:
    if run.train_counts is None:
        raise ValueError(f"Expected predictions with `train_counts`, but {run.method or 'a run'} has none.")
    return run.train_counts
