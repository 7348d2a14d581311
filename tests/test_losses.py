"""What every loss promises, over one list of cases; then the limits and refusals of single losses."""

import copy
import inspect
import io
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import priorshift.losses
import references
from priorshift import Prior
from priorshift.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedFocalLoss,
    ClassBalancedLoss,
    CrossEntropyLoss,
    EqualisedLoss,
    FocalLoss,
    LADELoss,
    LDAMLoss,
    LogitAdjustedAdaptiveLoss,
    LogitAdjustedLoss,
    PairwiseMarginLoss,
    WeightedCrossEntropyLoss,
    class_balanced_cross_entropy,
    class_balanced_focal_loss,
    cross_entropy,
    equalised_loss,
    focal_loss,
    lade_loss,
    lader,
    ldam_loss,
    logit_adjusted_adaptive_cross_entropy,
    logit_adjusted_cross_entropy,
    pairwise_margin_loss,
    weighted_cross_entropy,
)
from priorshift.losses._source import SourcePrior


def source(pi):
    return pi


def uniform(pi):
    return np.full(len(pi), 1 / len(pi))


def tempered(exponent):
    return lambda pi: pi**exponent / np.sum(pi**exponent)


def rising(num_classes):
    return np.linspace(1.0, 3.0, num_classes)


def weighted_source(pi):
    return pi * rising(len(pi)) / np.sum(pi * rising(len(pi)))


def class_balanced_source(beta):
    def carried(pi):
        masses = pi * references.class_balanced_weights(100 * pi, beta)
        return masses / masses.sum()

    return carried


def half_tempered_and_weighted(pi):
    return pi**0.5 * rising(len(pi)) / np.sum(pi**0.5 * rising(len(pi)))


def two_strengths(logits, labels, log_prior, *, tau1=1.0, tau2=1.0, weights=None, **options):
    """What `PairwiseMarginLoss` stands for, from the general function."""
    alphas = None if weights is None else weights / (log_prior.exp() * weights).sum()
    vectors = {"weights": alphas, "positive": -tau1 * log_prior, "negative": tau2 * log_prior}
    return pairwise_margin_loss(logits, labels, **vectors, **options)


@dataclass(frozen=True)
class Case:
    """A loss with options (a callable one is made per class count), its reference and its promises."""

    name: str
    options: dict[str, Any]
    carries: Callable[[np.ndarray], np.ndarray]
    module: type[nn.Module]
    function: Callable[..., torch.Tensor]
    reference: Callable[..., Any]
    by: str = "theory"
    soft_labels: bool = False
    shift_invariant: bool = True

    @property
    def uses_prior(self):
        return "log_prior" in inspect.signature(self.function).parameters

    def settings(self, num_classes):
        return {name: o(num_classes) if callable(o) else o for name, o in self.options.items()}

    def build(self, prior, **options):
        return self.module(prior, **self.settings(prior.num_classes), **options)

    def call(self, logits, labels, prior, **options):
        if self.uses_prior:
            options["log_prior"] = torch.tensor(prior.log_probs)
        settings = self.settings(prior.num_classes)
        tensors = {n: torch.as_tensor(o) if isinstance(o, np.ndarray) else o for n, o in settings.items()}
        return self.function(logits, labels, **options, **tensors)

    def expect(self, logits, labels, prior, *, reduction="mean", ignore_index=-100):
        """The reference on `[N, C, ...]` logits, as float64, one row per position."""
        num_classes = prior.num_classes
        table = np.moveaxis(logits.detach().double().numpy(), 1, -1)
        soft = labels.is_floating_point()
        targets = np.moveaxis(labels.double().numpy(), 1, -1) if soft else labels.numpy()
        value = self.reference(
            table.reshape(-1, num_classes),
            targets.reshape(-1, num_classes) if soft else targets.reshape(-1),
            prior.probs,
            ignore_index=ignore_index,
            reduction=reduction,
            **self.settings(num_classes),
        )
        return value.reshape(table.shape[:-1]) if reduction == "none" else value


ce = partial(
    Case,
    module=CrossEntropyLoss,
    function=cross_entropy,
    reference=references.cross_entropy,
    soft_labels=True,
)
la = partial(
    Case,
    module=LogitAdjustedLoss,
    function=logit_adjusted_cross_entropy,
    reference=references.logit_adjusted,
    soft_labels=True,
)
weighted = partial(
    Case, module=WeightedCrossEntropyLoss, function=weighted_cross_entropy, reference=references.weighted
)
lade = partial(Case, module=LADELoss, function=lade_loss, reference=references.lade, shift_invariant=False)
focal = partial(Case, module=FocalLoss, function=focal_loss, reference=references.focal, by="convention")
class_balanced = partial(
    Case,
    module=ClassBalancedLoss,
    function=class_balanced_cross_entropy,
    reference=references.class_balanced,
)
class_balanced_focal = partial(
    Case,
    carries=uniform,
    module=ClassBalancedFocalLoss,
    function=class_balanced_focal_loss,
    reference=references.class_balanced_focal,
    by="convention",
    shift_invariant=False,
)
ldam = partial(
    Case,
    carries=uniform,
    module=LDAMLoss,
    function=ldam_loss,
    reference=references.ldam,
    by="convention",
)
equalised = partial(
    Case,
    module=EqualisedLoss,
    function=equalised_loss,
    reference=references.equalised,
    by="convention",
)
pairwise = partial(
    Case, module=PairwiseMarginLoss, function=two_strengths, reference=references.two_strengths
)
adaptive = partial(
    Case,
    carries=uniform,
    module=LogitAdjustedAdaptiveLoss,
    function=logit_adjusted_adaptive_cross_entropy,
    reference=references.logit_adjusted_adaptive,
    by="convention",
)
HUNDRED = {"num_samples": 100}
BATCH = {"normalization": "batch"}
RELEASED = {"variant": "released"}

LOSSES = [
    ce("cross-entropy", {}, source),
    ce("smoothed", {"label_smoothing": 0.1}, source, by="convention"),
    la("logit-adjusted", {}, uniform),
    la("logit-adjusted tau=0", {"tau": 0.0}, source),
    la("logit-adjusted tau=0.5", {"tau": 0.5}, tempered(0.5)),
    la("logit-adjusted tau=1.7", {"tau": 1.7}, tempered(-0.7)),
    la("balanced softmax", {}, uniform, module=BalancedSoftmaxLoss),
    weighted("weighted", {}, uniform),
    weighted("weighted rising", {"weights": rising}, weighted_source),
    weighted("weighted batch", BATCH, uniform, by="convention"),
    weighted("weighted rising batch", {"weights": rising} | BATCH, weighted_source, by="convention"),
    lade("lade", {"alpha": 0.1, "lam": 0.01}, uniform),
    lade("lade strong", {"alpha": 2.0, "lam": 0.5}, uniform),
    lade("lade alpha=0", {"alpha": 0.0, "lam": 0.5}, uniform, shift_invariant=True),
    lade("lade lam=0", {"alpha": 0.5, "lam": 0.0}, uniform),
    lade("released lade", {"alpha": 0.1, "lam": 0.1} | RELEASED, uniform, by="convention"),
    lade("released lade lam=0", {"alpha": 0.5, "lam": 0.0} | RELEASED, uniform),
    lade("released lade alpha=0", {"alpha": 0.0, "lam": 0.5} | RELEASED, uniform, shift_invariant=True),
    focal("focal", {}, source),
    focal("focal gamma=0.5", {"gamma": 0.5}, source),
    focal("focal gamma=0", {"gamma": 0.0}, source, by="theory"),
    class_balanced("class-balanced", {"beta": 0.97} | HUNDRED, class_balanced_source(0.97)),
    class_balanced("class-balanced beta=0", {"beta": 0.0} | HUNDRED, source),
    class_balanced("class-balanced beta=1", {"beta": 1.0} | HUNDRED, uniform),
    class_balanced_focal("class-balanced focal", {"beta": 0.97} | HUNDRED),
    class_balanced_focal("class-balanced focal gamma=0.5", {"gamma": 0.5} | HUNDRED),
    ldam("ldam", {}),
    ldam("ldam of logits", {"scale": 1.0, "max_margin": 2.0}),
    ldam("ldam re-weighted", {"reweight_beta": 0.97} | HUNDRED),
    ldam("ldam re-weighted batch", {"reweight_beta": 0.97} | HUNDRED | BATCH),
    equalised("equalised", {"threshold": 0.5, "drop_probability": 1.0}, uniform),
    equalised("equalised gamma=0", {"threshold": 0.5, "drop_probability": 0.0}, source, by="theory"),
    pairwise("pairwise margin", {}, uniform),
    pairwise(
        "pairwise margin weighted", {"tau1": 0.5, "tau2": 0.5, "weights": rising}, half_tempered_and_weighted
    ),
    pairwise("pairwise margin tau1<tau2", {"tau1": 0.3, "tau2": 0.8}, uniform, by="convention"),
    adaptive("logit-adjusted adaptive", {}),
    adaptive("logit-adjusted adaptive tau=0", {"tau": 0.0}),
    adaptive("logit-adjusted adaptive margin=0", {"margin": 0.0}, by="theory"),
]


def over(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


every_loss = over(LOSSES)
ONE_OF_EACH = list({case.module: case for case in reversed(LOSSES)}.values())
each_module = over(ONE_OF_EACH)
of_soft_labels = over([c for c in LOSSES if c.soft_labels])
of_hard_labels = over([c for c in LOSSES if not c.soft_labels])
of_a_prior = over([c for c in LOSSES if c.uses_prior])
by_theory = over([c for c in LOSSES if c.by == "theory"])

COUNTS = [60, 25, 10, 4, 1]
PRIOR = Prior.from_counts(COUNTS)
LOG_PRIOR = torch.tensor(PRIOR.log_probs)


def batch(*positions, n=7, num_classes=5, scale=3.0, ignored=0, ignore_index=-100, seed=0):
    """Float64 logits `[N, C, ...]` and labels `[N, ...]`, the first `ignored` of which are `ignore_index`."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, num_classes, *positions, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_classes, (n, *positions), generator=generator)
    labels.view(-1)[:ignored] = ignore_index
    return logits, labels


def soft_batch(*positions):
    logits, labels = batch(*positions)
    other = batch(*positions, seed=1)[1]
    hard = [F.one_hot(y, 5).movedim(-1, 1).double() for y in (labels, other)]
    return logits, (labels, other), 0.3 * hard[0] + 0.7 * hard[1]


def gradient(loss, logits, labels):
    leaf = logits.detach().clone().requires_grad_()
    loss(leaf, labels).sum().backward()
    return leaf.grad


def test_every_public_loss_stands_in_the_list_of_cases():
    modules = {name for name in priorshift.losses.__all__ if name.endswith("Loss")}
    assert modules == {case.module.__name__ for case in LOSSES}


# Values


@every_loss
@pytest.mark.parametrize("ignored", [0, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("positions", [(), (3, 2)], ids=["rows", "maps"])
def test_a_loss_follows_its_formula(case, positions, reduction, ignored):
    logits, labels = batch(*positions, ignored=ignored)
    value = case.build(PRIOR, reduction=reduction)(logits, labels)
    expected = case.expect(logits, labels, PRIOR, reduction=reduction)
    assert value.dtype == torch.float64
    assert value.shape == (labels.shape if reduction == "none" else ())
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10)


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_function_and_module_agree(case, reduction):
    logits, labels = batch(ignored=1)
    from_function = case.call(logits, labels, PRIOR, reduction=reduction)
    from_module = case.build(PRIOR, reduction=reduction)(logits, labels)
    np.testing.assert_allclose(from_function, from_module, rtol=1e-13, atol=1e-15)


@every_loss
@pytest.mark.parametrize("ignore_index", [-1, 0, 255])
def test_any_index_may_be_the_ignored_one(case, ignore_index):
    logits, labels = batch(ignored=3, ignore_index=ignore_index)
    value = case.build(PRIOR, ignore_index=ignore_index)(logits, labels)
    expected = case.expect(logits, labels, PRIOR, ignore_index=ignore_index)
    assert value.item() == pytest.approx(expected, rel=1e-10)


@every_loss
def test_ignored_positions_do_not_count(case):
    logits, labels = batch(ignored=3)
    loss = case.build(PRIOR)
    assert loss(logits, labels).item() == pytest.approx(loss(logits[3:], labels[3:]).item(), rel=1e-13)
    assert gradient(loss, logits, labels)[:3].abs().max() == 0


@every_loss
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_may_be_of_any_integer_dtype(case, dtype):
    logits, labels = batch(ignored=2, ignore_index=0)
    loss = case.build(PRIOR, ignore_index=0)
    assert torch.equal(loss(logits, labels.to(dtype)), loss(logits, labels))


@every_loss
def test_an_unsigned_label_is_not_taken_for_a_negative_ignore_index(case):
    """156 and -100 are the same byte."""
    prior = Prior.uniform(200)
    logits, _ = batch(n=2, num_classes=200)
    labels = torch.tensor([3, 156])
    loss = case.build(prior)
    assert torch.equal(loss(logits, labels.to(torch.uint8)), loss(logits, labels))


@every_loss
def test_classes_in_another_order_give_the_same_value(case):
    order = torch.tensor([3, 0, 4, 2, 1])
    logits, labels = batch(ignored=1)
    relabelled = torch.where(labels == -100, labels, order.argsort()[labels.clamp(min=0)])
    permuted = case.settings(5)
    if "weights" in permuted:
        permuted["weights"] = permuted["weights"][order.numpy()]
    value = case.module(Prior(PRIOR.probs[order], counts=PRIOR.counts[order]), **permuted)(
        logits[:, order], relabelled
    )
    assert value.item() == pytest.approx(case.build(PRIOR)(logits, labels).item(), rel=1e-13)


@every_loss
def test_adding_a_constant_to_a_sample_matters_only_to_losses_that_normalise_logits(case):
    logits, labels = batch()
    loss = case.build(PRIOR)
    shift = torch.linspace(-5, 5, len(labels), dtype=torch.float64)[:, None]
    unchanged = loss(logits + shift, labels).item() == pytest.approx(loss(logits, labels).item(), rel=1e-12)
    assert unchanged == case.shift_invariant


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_are_those_of_the_value(case, reduction):
    logits, labels = batch(2, n=3, ignored=1)
    loss = case.build(PRIOR, reduction=reduction)
    assert torch.autograd.gradcheck(lambda f: loss(f, labels), logits.requires_grad_())


# Extremes


@every_loss
def test_an_ignored_batch_has_loss_zero_and_gradient_zero(case):
    logits, labels = batch(ignored=7)
    for reduction in ("mean", "sum", "none"):
        loss = case.build(PRIOR, reduction=reduction)
        assert loss(logits, labels).abs().max() == 0
        assert torch.equal(gradient(loss, logits, labels), torch.zeros_like(logits))


@every_loss
def test_an_empty_batch_has_loss_zero(case):
    assert case.build(PRIOR)(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)).item() == 0


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_ten_thousand_are_exact(case, dtype, sign):
    logits, labels = batch()
    logits = (sign * 1e4 * logits.sign() + logits).to(dtype)
    loss = case.build(PRIOR)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    assert loss(logits, labels).item() == pytest.approx(case.expect(logits, labels, PRIOR), rel=tolerance)
    assert gradient(loss, logits, labels).isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_half_precision_is_computed_and_returned_in_float32(case, dtype, reduction):
    logits, labels = batch(ignored=1)
    rounded = logits.to(dtype)
    loss = case.build(PRIOR, reduction=reduction)
    value = loss(rounded, labels)
    assert value.dtype == torch.float32
    expected = case.expect(rounded, labels, PRIOR, reduction=reduction)
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-6)
    assert gradient(loss, rounded, labels).dtype == dtype


@every_loss
@pytest.mark.parametrize("label", range(5))
def test_a_batch_of_one_follows_the_formula(case, label):
    logits, labels = batch(n=1)[0], torch.tensor([label])
    value = case.build(PRIOR)(logits, labels)
    assert value.item() == pytest.approx(case.expect(logits, labels, PRIOR), rel=1e-10)


@every_loss
def test_classes_absent_from_the_batch_follow_the_formula(case):
    logits, _ = batch()
    labels = torch.tensor([0, 0, 3, 0, 3, 3, 3])
    value = case.build(PRIOR)(logits, labels)
    assert value.item() == pytest.approx(case.expect(logits, labels, PRIOR), rel=1e-10)


@every_loss
@pytest.mark.parametrize("num_classes", [2, 10_000])
def test_few_and_many_classes_follow_the_formula(case, num_classes):
    prior = Prior.from_counts(torch.arange(num_classes) + 1)
    logits, labels = batch(n=3, num_classes=num_classes)
    value = case.build(prior)(logits, labels)
    assert value.item() == pytest.approx(case.expect(logits, labels, prior), rel=1e-10)


@every_loss
def test_a_very_long_tail_stays_finite_in_float32(case):
    prior = Prior([1.0, 1e-30, 1e-20, 1e-12, 1e-3])
    logits, labels = batch()
    loss = case.build(prior)
    assert loss(logits.float(), labels).isfinite()
    assert gradient(loss, logits.float(), labels).isfinite().all()


# Modules


@every_loss
@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.float, nn.Module.double])
def test_casting_a_module_changes_nothing(case, cast):
    logits, labels = batch()
    loss = case.build(PRIOR)
    expected = loss(logits, labels)
    cast(loss)
    assert torch.equal(loss(logits, labels), expected)
    assert np.array_equal(loss.carried_prior.probs, case.build(PRIOR).carried_prior.probs)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(case, dtype):
    logits, labels = batch()
    loss = case.build(PRIOR)
    expected = loss(logits.to(dtype), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits.to(dtype), labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@every_loss
@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda loss: pickle.loads(pickle.dumps(loss)),
    ],
    ids=["deepcopy", "pickle"],
)
def test_a_copied_module_keeps_every_bit(case, duplicate):
    logits, labels = batch()
    loss = case.build(PRIOR)
    expected = loss(logits, labels)
    again = duplicate(loss)
    assert again.source.prior == PRIOR
    assert np.array_equal(again.source.prior.counts, PRIOR.counts)
    assert torch.equal(again(logits, labels), expected)
    assert again.carried_prior == loss.carried_prior


@every_loss
def test_a_module_takes_over_the_prior_and_the_counts_of_a_checkpoint(case):
    logits, labels = batch()
    trained, fresh = case.build(PRIOR), case.build(Prior.uniform(5))
    fresh(logits, labels)
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.source.prior == PRIOR
    assert np.array_equal(fresh.source.prior.log_probs, PRIOR.log_probs)
    assert np.array_equal(fresh.source.prior.counts, PRIOR.counts)
    assert fresh.carried_prior == trained.carried_prior
    assert torch.equal(fresh(logits, labels), trained(logits, labels))


@every_loss
def test_a_checkpoint_of_another_class_count_is_refused(case):
    with pytest.raises(ValueError, match=r"Expected a state of 5 classes, but got 4"):
        case.build(PRIOR).load_state_dict(case.build(Prior.uniform(4)).state_dict())


@every_loss
def test_a_loss_has_nothing_to_train(case):
    assert list(case.build(PRIOR).parameters()) == []


@pytest.mark.parametrize(
    "called",
    [
        getattr(priorshift.losses, name)
        for name in priorshift.losses.__all__
        if name.endswith(("loss", "cross_entropy", "lader"))
    ]
    + [case.module.forward for case in ONE_OF_EACH],
    ids=lambda called: called.__qualname__,
)
def test_a_loss_is_told_its_process_group_when_it_is_called(called):
    parameter = inspect.signature(called).parameters["process_group"]
    assert parameter.kind is parameter.KEYWORD_ONLY and parameter.default is None


@each_module
def test_a_module_is_made_without_a_process_group(case):
    assert "process_group" not in inspect.signature(case.module).parameters


@each_module
def test_a_compiled_module_gives_the_same_value(case):
    logits, labels = batch(ignored=1)
    loss = case.build(PRIOR)
    value = torch.compile(loss, fullgraph=True, backend="eager")(logits, labels)
    torch._dynamo.reset()
    assert torch.equal(value, loss(logits, labels))


@every_loss
@pytest.mark.parametrize("prior", [PRIOR, Prior.uniform(3), Prior([0.9, 0.1])], ids=["long", "flat", "two"])
def test_the_carried_prior_has_its_closed_form(case, prior):
    loss = case.build(prior)
    np.testing.assert_allclose(loss.carried_prior.probs, case.carries(prior.probs), rtol=1e-13)
    assert loss.carried_by == case.by


@every_loss
def test_a_source_may_be_plain_numbers_and_must_be_positive(case):
    assert np.array_equal(
        case.build(PRIOR).carried_prior.probs, case.build(Prior(COUNTS)).carried_prior.probs
    )
    assert case.module(COUNTS, **case.settings(5)).source.prior == PRIOR
    with pytest.raises(ValueError, match="`source` to be strictly positive, but it is zero for class 2"):
        case.build(Prior([1, 1, 0, 1, 1]))


@pytest.mark.parametrize(
    ("logits", "cached"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("cast", [None, torch.float16, torch.bfloat16])
def test_the_cached_log_prior_never_goes_below_float32(logits, cached, cast):
    kept = SourcePrior(PRIOR)
    kept(torch.zeros(1, 5, dtype=logits))
    kept = kept if cast is None else kept.to(cast)
    log_prior = kept(torch.zeros(1, 5, dtype=logits))
    assert log_prior.dtype == cached
    assert torch.equal(log_prior, LOG_PRIOR.to(cached))


def test_pickles_hold_no_copies_of_the_log_prior():
    kept = SourcePrior(PRIOR)
    unused = pickle.dumps(kept)
    kept(torch.zeros(1, 5))
    assert len(pickle.dumps(kept)) == len(unused)


def test_the_log_prior_is_copied_once_per_dtype():
    kept = SourcePrior(PRIOR)
    assert kept(torch.zeros(1, 5)) is kept(torch.zeros(3, 5, dtype=torch.float16))
    assert kept(torch.zeros(1, 5)) is not kept(torch.zeros(1, 5, dtype=torch.float64))


# Soft labels


@of_soft_labels
class TestLossesOfSoftLabels:
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("positions", [(), (3, 2)], ids=["rows", "maps"])
    def test_soft_labels_follow_the_formula(self, case, positions, reduction):
        logits, _, mixture = soft_batch(*positions)
        value = case.build(PRIOR, reduction=reduction)(logits, mixture)
        expected = case.expect(logits, mixture, PRIOR, reduction=reduction)
        np.testing.assert_allclose(value, expected, rtol=1e-10)

    def test_a_mixture_of_labels_costs_the_mixture_of_their_losses(self, case):
        logits, (first, second), mixture = soft_batch(3, 2)
        loss = case.build(PRIOR)
        mixed = 0.3 * loss(logits, first) + 0.7 * loss(logits, second)
        assert loss(logits, mixture).item() == pytest.approx(mixed.item(), rel=1e-13)

    def test_an_ignored_index_does_not_disturb_soft_labels(self, case):
        logits, _, mixture = soft_batch()
        assert torch.equal(
            case.build(PRIOR, ignore_index=255)(logits, mixture), case.build(PRIOR)(logits, mixture)
        )

    def test_soft_labels_do_not_change_the_dtype(self, case):
        logits, _, mixture = soft_batch()
        assert case.build(PRIOR)(logits.bfloat16(), mixture).dtype == torch.float32


@pytest.mark.parametrize(
    "case", [case for case in LOSSES if not case.soft_labels], ids=lambda case: case.name
)
def test_soft_labels_are_refused_where_no_formula_has_them(case):
    logits, _, mixture = soft_batch()
    with pytest.raises(TypeError, match=r"`labels` of \w+ to be class indices, but got dtype torch.float64"):
        case.build(PRIOR)(logits, mixture)


# Refusals


ROWS, LABELS = torch.zeros(4, 5), torch.zeros(4, dtype=torch.long)
MISFITS = {
    "integer logits": (ROWS.long(), LABELS, TypeError, "`logits` to be floating-point", "torch.int64"),
    "one-dimensional logits": (torch.zeros(5), LABELS, ValueError, "`logits` of shape [N, C]", "(5,)"),
    "scalar logits": (torch.tensor(0.0), LABELS, ValueError, "`logits` of shape [N, C]", "()"),
    "labels too short": (ROWS, LABELS[:3], ValueError, "`labels` of shape (4,)", "(3,)"),
    "labels that would broadcast": (ROWS, LABELS[:1], ValueError, "`labels` of shape (4,)", "(1,)"),
    "labels in a column": (ROWS, LABELS[:, None], ValueError, "`labels` of shape (4,)", "(4, 1)"),
    "a scalar label": (ROWS, LABELS[0], ValueError, "`labels` of shape (4,)", "()"),
    "classes last": (
        torch.zeros(4, 2, 5),
        torch.zeros(4, 2).long(),
        ValueError,
        "`labels` of shape (4, 5)",
        "(4, 2)",
    ),
    "boolean labels": (ROWS, LABELS.bool(), TypeError, "`labels` to be class indices", "torch.bool"),
    "complex labels": (ROWS, LABELS.cfloat(), TypeError, "`labels` to be class indices", "torch.complex64"),
    "float indices": (
        ROWS,
        LABELS.float(),
        ValueError,
        "soft `labels` of the shape of the logits, (4, 5)",
        "(4,)",
    ),
}


@each_module
@pytest.mark.parametrize(("logits", "labels", "error", "rule", "value"), MISFITS.values(), ids=MISFITS.keys())
def test_a_batch_that_does_not_fit_is_refused(case, logits, labels, error, rule, value):
    with pytest.raises(error, match=f"{re.escape(rule)}.*but got.*{re.escape(value)}"):
        case.build(PRIOR)(logits, labels)


@each_module
@pytest.mark.parametrize("reduction", ["avg", "", None])
def test_an_unknown_reduction_is_refused(case, reduction):
    with pytest.raises(ValueError, match=f"`reduction` to be .*, but got {reduction!r}"):
        case.call(*batch(), PRIOR, reduction=reduction)


@pytest.mark.parametrize(
    "loss",
    [
        lambda p: logit_adjusted_cross_entropy(ROWS, LABELS, p),
        lambda p: weighted_cross_entropy(ROWS, LABELS, p),
        lambda p: lade_loss(ROWS, LABELS, p, alpha=0.1, lam=0.1),
        lambda p: lader(ROWS, LABELS, p, lam=0.1),
    ],
    ids=["logit-adjusted", "weighted", "lade", "lader"],
)
@pytest.mark.parametrize("shape", [(1,), (), (4,), (6,), (1, 5), (4, 5)], ids=str)
def test_a_log_prior_of_another_shape_is_refused_and_never_broadcast(loss, shape):
    message = f"`log_prior` with one entry per class, (5,), but got shape {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        loss(torch.zeros(shape))


@of_a_prior
@pytest.mark.parametrize("num_classes", [2, 4, 6])
def test_logits_of_another_class_count_are_refused(case, num_classes):
    with pytest.raises(ValueError, match=rf"\({num_classes},\), but got shape \(5,\)"):
        case.build(PRIOR)(torch.zeros(1, num_classes), torch.tensor([0]))


SETTINGS_OUT_OF_RULE = [
    (
        LogitAdjustedLoss,
        logit_adjusted_cross_entropy,
        {},
        {"tau": math.inf},
        "`tau` to be finite, but got inf",
    ),
    (
        LogitAdjustedLoss,
        logit_adjusted_cross_entropy,
        {},
        {"tau": math.nan},
        "`tau` to be finite, but got nan",
    ),
    *(
        (
            LADELoss,
            lade_loss,
            {"alpha": 0.1, "lam": 0.1},
            {name: value},
            f"`{name}` to be finite and non-negative, but got {value}",
        )
        for name in ("alpha", "lam")
        for value in (-0.1, math.nan, math.inf)
    ),
    (
        LADELoss,
        lade_loss,
        {"alpha": 0.1, "lam": 0.1},
        {"variant": "official"},
        '`variant` to be one of "paper", "released", but got \'official\'',
    ),
    (
        WeightedCrossEntropyLoss,
        weighted_cross_entropy,
        {},
        {"normalization": "mean"},
        '`normalization` to be one of "population", "batch", but got \'mean\'',
    ),
    (
        LogitAdjustedLoss,
        logit_adjusted_cross_entropy,
        {},
        {"reduction": "average"},
        '`reduction` to be one of "mean", "sum", "none", but got \'average\'',
    ),
]


@pytest.mark.parametrize(("module", "function", "options", "wrong", "message"), SETTINGS_OUT_OF_RULE)
def test_a_setting_out_of_rule_is_refused_when_a_module_is_made_and_when_a_function_is_called(
    module, function, options, wrong, message
):
    with pytest.raises(ValueError, match=message):
        module(PRIOR, **options | wrong)
    with pytest.raises(ValueError, match=message):
        function(*batch(), LOG_PRIOR, **options | wrong)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan])
def test_a_label_smoothing_outside_its_range_is_refused(smoothing):
    message = rf"`label_smoothing` to be in \[0, 1\], but got {smoothing}"
    with pytest.raises(ValueError, match=message):
        CrossEntropyLoss(PRIOR, label_smoothing=smoothing)
    with pytest.raises(ValueError, match=message):
        cross_entropy(*batch(), label_smoothing=smoothing)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "`weights` with one entry per class, 5, but got 2"),
        ([1.0, 2.0, 0.0, 1.0, 1.0], "`weights` to be strictly positive, but it is zero for class 2"),
        ([1.0, 2.0, -3.0, 1.0, 1.0], "`weights` to be finite and non-negative, but got -3.0 for class 2"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        WeightedCrossEntropyLoss(PRIOR, weights=weights)


@pytest.mark.parametrize("shape", [(1,), (4,), (1, 5)], ids=str)
def test_weights_never_broadcast(shape):
    message = f"`weights` with one entry per class, (5,), but got shape {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        weighted_cross_entropy(ROWS, LABELS, LOG_PRIOR, weights=torch.ones(shape))


# Limit cases

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def assert_same(loss, other, *, rtol=1e-13):
    logits, labels = batch(3, 2, ignored=2)
    np.testing.assert_allclose(loss(logits, labels), other(logits, labels), rtol=rtol, atol=1e-14)


@REDUCTIONS
def test_cross_entropy_is_that_of_torch(reduction):
    assert_same(CrossEntropyLoss(PRIOR, reduction=reduction), nn.CrossEntropyLoss(reduction=reduction))


@REDUCTIONS
@pytest.mark.parametrize("prior", [PRIOR, Prior.uniform(5)], ids=["long", "flat"])
def test_strength_zero_is_cross_entropy(prior, reduction):
    assert_same(
        LogitAdjustedLoss(prior, tau=0.0, reduction=reduction), nn.CrossEntropyLoss(reduction=reduction)
    )


@REDUCTIONS
@pytest.mark.parametrize("tau", [-1.0, 0.5, 1.0, 3.0])
def test_under_a_uniform_prior_every_strength_is_cross_entropy(tau, reduction):
    flat = LogitAdjustedLoss(Prior.uniform(5), tau=tau, reduction=reduction)
    assert_same(flat, nn.CrossEntropyLoss(reduction=reduction))
    assert_same(BalancedSoftmaxLoss(Prior.uniform(5), reduction=reduction), flat)


@REDUCTIONS
def test_strength_one_is_balanced_softmax(reduction):
    assert_same(
        LogitAdjustedLoss(PRIOR, tau=1.0, reduction=reduction),
        BalancedSoftmaxLoss(PRIOR, reduction=reduction),
    )


@REDUCTIONS
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_lade_without_its_regulariser_is_balanced_softmax(variant, reduction):
    lade = LADELoss(PRIOR, alpha=0.0, lam=0.3, variant=variant, reduction=reduction)
    assert_same(lade, BalancedSoftmaxLoss(PRIOR, reduction=reduction))


@REDUCTIONS
@pytest.mark.parametrize("normalization", ["population", "batch"])
@pytest.mark.parametrize("weight", [1.0, 7.0])
def test_equal_weights_are_cross_entropy(weight, normalization, reduction):
    loss = WeightedCrossEntropyLoss(
        PRIOR, weights=[weight] * 5, normalization=normalization, reduction=reduction
    )
    assert_same(loss, nn.CrossEntropyLoss(reduction=reduction))


@pytest.mark.parametrize("weights", [None, rising(5), 100 * rising(5)], ids=["default", "rising", "scaled"])
def test_weights_normalised_by_the_batch_are_those_of_torch(weights):
    torch_weights = torch.tensor(1 / PRIOR.probs if weights is None else weights)
    loss = WeightedCrossEntropyLoss(PRIOR, weights=weights, normalization="batch")
    assert_same(loss, nn.CrossEntropyLoss(weight=torch_weights), rtol=1e-12)


@pytest.mark.parametrize("normalization", ["population", "batch"])
@REDUCTIONS
def test_the_scale_of_the_weights_is_of_no_account(normalization, reduction):
    options = {"normalization": normalization, "reduction": reduction}
    scaled = WeightedCrossEntropyLoss(PRIOR, weights=1e5 * rising(5), **options)
    assert_same(scaled, WeightedCrossEntropyLoss(PRIOR, weights=rising(5), **options))


def test_population_and_batch_weights_agree_on_a_batch_of_the_population_mix():
    labels = torch.arange(5).repeat_interleave(torch.tensor(COUNTS))
    logits, _ = batch(n=100)
    values = [
        WeightedCrossEntropyLoss(PRIOR, weights=rising(5), normalization=normalization)(logits, labels).item()
        for normalization in ("population", "batch")
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-13)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_reductions_of_lade_agree(variant):
    logits, labels = batch(3, 2, ignored=4)
    options = {"alpha": 0.7, "lam": 0.3, "variant": variant}
    mean, total, each = (
        LADELoss(PRIOR, **options, reduction=reduction)(logits, labels)
        for reduction in ("mean", "sum", "none")
    )
    counted = labels != -100
    assert each[~counted].abs().max() == 0
    assert total.item() == pytest.approx(each.sum().item(), rel=1e-13)
    assert mean.item() == pytest.approx(each[counted].mean().item(), rel=1e-13)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("lam", [0.0, 0.1, 2.0])
def test_lader_follows_its_formula(lam, variant):
    logits, labels = batch(ignored=2)
    expected = references.lader(logits.numpy(), labels.numpy(), PRIOR.probs, lam=lam, variant=variant)
    value = lader(logits, labels, LOG_PRIOR, lam=lam, variant=variant)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_lade_is_balanced_softmax_plus_alpha_times_lader():
    logits, labels = batch()
    parts = BalancedSoftmaxLoss(PRIOR)(logits, labels) + 0.7 * lader(logits, labels, LOG_PRIOR, lam=0.3)
    assert LADELoss(PRIOR, alpha=0.7, lam=0.3)(logits, labels).item() == pytest.approx(
        parts.item(), rel=1e-13
    )


def regularisers(prior, labels):
    logits, _ = batch(n=len(labels))
    values = [
        lader(logits, torch.tensor(labels), torch.tensor(prior.log_probs), lam=0.3, variant=variant).item()
        for variant in ("paper", "released")
    ]
    return pytest.approx(values[0], rel=1e-12), values[1]


def test_both_forms_of_lader_agree_on_a_uniform_prior_with_every_class_in_the_batch():
    paper, released = regularisers(Prior.uniform(5), [0, 1, 2, 3, 4, 0])
    assert released == paper


@pytest.mark.parametrize(
    ("prior", "labels"),
    [(Prior.uniform(5), [0, 1, 2, 3, 0]), (PRIOR, [0, 1, 2, 3, 4])],
    ids=["a class is absent", "the prior is skewed"],
)
def test_otherwise_the_two_forms_of_lader_differ(prior, labels):
    paper, released = regularisers(prior, labels)
    assert released != paper


@pytest.fixture(scope="module")
def population():
    """A table p(x|y) over 12 points and 4 classes, as weighted samples: the joint in multiples of 1/4000."""
    generator = np.random.default_rng(0)
    joint = generator.multinomial(4000, generator.dirichlet(np.full(48, 0.8))).reshape(12, 4)
    return joint + 1


def minimise(joint, objective):
    """The logits table that minimises a loss of the whole population, one sample for each (x, y) pair."""
    points, labels = np.nonzero(joint)
    repeats = torch.tensor(joint[points, labels])
    points = torch.tensor(points).repeat_interleave(repeats)
    labels = torch.tensor(labels).repeat_interleave(repeats)
    table = torch.zeros(12, 4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [table], max_iter=300, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def step():
        optimiser.zero_grad()
        value = objective(table[points], labels)
        value.backward()
        return value

    optimiser.step(step)
    return table.detach()


@by_theory
def test_the_minimiser_of_a_loss_carries_the_prior_that_it_names(case, population):
    source_mix = population.sum(axis=0) / population.sum()
    loss = case.build(Prior(source_mix))
    likelihood = population / population.sum(axis=0)
    expected = references.bayes_posterior(likelihood, loss.carried_prior.probs)
    np.testing.assert_allclose(minimise(population, loss).softmax(dim=1), expected, atol=2e-5)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_minimiser_of_lader_is_the_log_likelihood_ratio_of_its_variant(variant, population):
    """log C p_u(y|x) as printed in Eq. 8; log C p_s(y|x) in the released form."""
    source_mix = population.sum(axis=0) / population.sum()
    prior = Prior(source_mix)
    table = minimise(
        population, lambda f, y: lader(f, y, torch.tensor(prior.log_probs), lam=0.5, variant=variant)
    )
    mix = np.full(4, 0.25) if variant == "paper" else source_mix
    posterior = references.bayes_posterior(population / population.sum(axis=0), mix)
    np.testing.assert_allclose(table, np.log(4 * posterior), atol=2e-4)


@given(
    st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
    st.lists(st.lists(st.floats(-20, 20), min_size=3, max_size=3), min_size=1, max_size=6),
    st.data(),
)
def test_any_batch_follows_the_formula(masses, rows, data):
    prior = Prior(masses)
    logits = torch.tensor(rows, dtype=torch.float64)
    label = st.sampled_from([-100, 0, 1, 2])
    labels = torch.tensor(data.draw(st.lists(label, min_size=len(rows), max_size=len(rows))))
    for case in ONE_OF_EACH:
        expected = case.expect(logits, labels, prior)
        assert case.build(prior)(logits, labels).item() == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_what_stands_at_an_ignored_position_does_not_matter_to_lader(variant):
    logits, labels = batch(ignored=2)
    wild = logits.clone()
    wild[0], wild[1] = torch.nan, torch.inf
    wild.requires_grad_()
    value = lader(wild, labels, LOG_PRIOR, lam=0.5, variant=variant)
    assert value == lader(logits, labels, LOG_PRIOR, lam=0.5, variant=variant)
    value.backward()
    assert wild.grad.isfinite().all() and (wild.grad[:2] == 0).all()


def test_lader_counts_more_positions_than_float32_can():
    torch.manual_seed(0)
    labels = torch.zeros(2**24 + 2**20, dtype=torch.int8)
    labels[:7] = torch.tensor([1, 2, 3, 4, 1, 2, 3], dtype=torch.int8)
    logits = torch.full((len(labels), 5), 3.0)
    value = lader(logits, labels, LOG_PRIOR, lam=0.0)
    weights = torch.tensor(0.2 / PRIOR.probs)
    counts = torch.bincount(labels.int(), minlength=5).double()
    mean = (weights * counts).sum() / len(labels)
    assert value.item() == pytest.approx(mean.log().item(), rel=1e-4)
