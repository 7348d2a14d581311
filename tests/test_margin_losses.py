"""Limits, cases and refusals of the long-tail losses, and the binary margin family."""

import itertools
import math
import re
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import references
from priorshift import Prior
from priorshift.losses import (
    ClassBalancedFocalLoss,
    ClassBalancedLoss,
    EqualisedLoss,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedAdaptiveLoss,
    LogitAdjustedLoss,
    PairwiseMarginLoss,
    WeightedCrossEntropyLoss,
    binary_margin_inverse_link,
    binary_margin_link,
    binary_margin_loss,
    binary_margin_risk,
    binary_margin_threshold,
    class_balanced_cross_entropy,
    class_balanced_focal_loss,
    class_balanced_weights,
    equalised_loss,
    focal_loss,
    ldam_loss,
    logit_adjusted_adaptive_cross_entropy,
    pairwise_margin_loss,
)

COUNTS = [60, 25, 10, 4, 1]
PRIOR = Prior.from_counts(COUNTS)
LOG_PRIOR = torch.tensor(PRIOR.log_probs)
PI = torch.tensor(PRIOR.probs)
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def batch(*positions, n=7, num_classes=5, ignored=0):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, num_classes, *positions, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_classes, (n, *positions), generator=generator)
    labels.view(-1)[:ignored] = -100
    return logits, labels


def assert_same(loss, other, *, rtol=1e-13):
    logits, labels = batch(3, 2, ignored=2)
    np.testing.assert_allclose(loss(logits, labels), other(logits, labels), rtol=rtol, atol=1e-14)


def gradient(loss, logits, labels):
    leaf = logits.detach().clone().requires_grad_()
    loss(leaf, labels).sum().backward()
    return leaf.grad


# Focal loss


@REDUCTIONS
def test_focal_loss_of_strength_zero_is_cross_entropy(reduction):
    assert_same(FocalLoss(PRIOR, gamma=0.0, reduction=reduction), nn.CrossEntropyLoss(reduction=reduction))


@pytest.mark.parametrize("gamma", [0.01, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("gap", [-1e4, -30.0, 0.0, 15.0, 30.0, 700.0, 1e4])
def test_focal_loss_has_exact_value_and_finite_gradient_however_sure_the_scorer_is(gap, gamma):
    logits, label = torch.tensor([[gap, 0.0]], dtype=torch.float64), torch.tensor([0])
    with localcontext() as context:
        context.prec = 60
        odds = Decimal(gap).exp()
        expected = float(-((1 / (1 + odds)) ** Decimal(gamma)) * (odds / (1 + odds)).ln())
    assert focal_loss(logits, label, gamma=gamma).item() == pytest.approx(expected, rel=1e-11)
    slopes = gradient(lambda f, y: focal_loss(f, y, gamma=gamma), logits, label)
    assert slopes.isfinite().all()
    assert slopes[0, 0] <= 0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_second_derivatives_of_focal_loss_are_right(gamma):
    logits, labels = batch(n=2)
    assert torch.autograd.gradgradcheck(lambda f: focal_loss(f, labels, gamma=gamma), logits.requires_grad_())


@pytest.mark.parametrize("gamma", [-0.1, math.nan])
@pytest.mark.parametrize("loss", [FocalLoss, ClassBalancedFocalLoss])
def test_a_negative_gamma_is_refused(loss, gamma):
    with pytest.raises(ValueError, match=f"`gamma` to be finite and non-negative, but got {gamma}"):
        loss(PRIOR, gamma=gamma)(*batch())


# Class-balanced losses


@pytest.mark.parametrize("counts", [[5000, 50, 5, 1], [10**9, 1], [3, 3, 3]], ids=str)
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.9999, 1 - 1e-9, 1 - 2**-53, 1.0])
def test_class_balanced_weights_follow_their_formula_up_to_the_limits(counts, beta):
    expected = references.class_balanced_weights(counts, beta)
    weights = class_balanced_weights(counts, beta)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    assert weights.sum().item() == pytest.approx(len(counts))


def test_class_balanced_weights_go_from_equal_to_inverse_frequency():
    inverse = 1 / torch.tensor(COUNTS, dtype=torch.float64)
    assert torch.equal(class_balanced_weights(COUNTS, 0.0), torch.ones(5, dtype=torch.float64))
    np.testing.assert_allclose(class_balanced_weights(COUNTS, 1e-300), 1, rtol=1e-12)
    np.testing.assert_allclose(class_balanced_weights(COUNTS, 1.0), 5 * inverse / inverse.sum(), rtol=1e-14)
    np.testing.assert_allclose(
        class_balanced_weights(COUNTS, 1 - 2**-53), class_balanced_weights(COUNTS, 1.0), rtol=1e-13
    )


@REDUCTIONS
def test_class_balanced_cross_entropy_is_cross_entropy_at_beta_zero(reduction):
    assert_same(
        ClassBalancedLoss(PRIOR, beta=0.0, reduction=reduction), nn.CrossEntropyLoss(reduction=reduction)
    )


def test_class_balanced_cross_entropy_at_beta_one_is_the_balanced_loss_on_another_scale():
    logits, labels = batch()
    ratio = ClassBalancedLoss(PRIOR, beta=1.0, reduction="none")(logits, labels) / WeightedCrossEntropyLoss(
        PRIOR, reduction="none"
    )(logits, labels)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)


def test_class_balanced_focal_loss_at_strength_zero_is_weighted_sigmoid_cross_entropy():
    logits, labels = batch()
    sigmoid = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 5).double(), reduction="none")
    expected = class_balanced_weights(COUNTS, 0.9)[labels] * sigmoid.sum(1)
    value = ClassBalancedFocalLoss(PRIOR, beta=0.9, gamma=0.0, reduction="none")(logits, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_class_balanced_focal_loss_keeps_its_precision_for_sure_scorers():
    value = class_balanced_focal_loss(
        torch.tensor([[20.0, -20.0]]), torch.tensor([0]), torch.tensor([0.5, 0.5]).log(), num_samples=2
    )
    assert value.item() == pytest.approx(2 * math.exp(-60), rel=1e-5, abs=0)


WITH_COUNTS = pytest.mark.parametrize(
    "build",
    [
        ClassBalancedLoss,
        ClassBalancedFocalLoss,
        lambda source, **options: LDAMLoss(source, reweight_beta=0.99, **options),
    ],
    ids=["class-balanced", "class-balanced focal", "ldam"],
)


@WITH_COUNTS
def test_the_number_of_samples_comes_from_the_counts_of_the_source(build):
    assert_same(build(PRIOR), build(Prior(COUNTS), num_samples=100))


@WITH_COUNTS
def test_a_number_of_samples_overrides_the_counts(build):
    logits, labels = batch()
    assert build(PRIOR, num_samples=10_000)(logits, labels) != build(PRIOR)(logits, labels)


@WITH_COUNTS
def test_the_counts_of_a_checkpoint_are_used(build):
    logits, labels = batch()
    fresh = build(Prior.from_counts([1, 1, 1, 1, 1]))
    fresh.load_state_dict(build(PRIOR).state_dict())
    assert torch.equal(fresh(logits, labels), build(PRIOR)(logits, labels))


@WITH_COUNTS
def test_a_loss_that_reads_counts_compiles(build):
    logits, labels = batch(ignored=1)
    loss = build(PRIOR)
    value = torch.compile(loss, fullgraph=True, backend="eager")(logits, labels)
    torch._dynamo.reset()
    assert torch.equal(value, loss(logits, labels))


@WITH_COUNTS
def test_a_source_without_counts_is_refused_in_words(build):
    with pytest.raises(
        ValueError, match=r"`source` with counts, as `Prior.from_counts` gives it, or `num_sam"
    ):
        build(Prior(COUNTS))
    with pytest.raises(ValueError, match="`num_samples` to be finite and positive, but got 0"):
        build(PRIOR, num_samples=0)


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_a_beta_out_of_range_is_refused(beta):
    with pytest.raises(ValueError, match=rf"`beta` to be in \[0, 1\], but got {beta}"):
        class_balanced_weights(COUNTS, beta)


def test_weights_of_a_class_without_samples_are_refused():
    with pytest.raises(ValueError, match="`counts` is zero for class 1"):
        class_balanced_weights([5, 0, 2], 0.9)


# LDAM


def test_ldam_margins_fall_with_the_fourth_root_of_the_count():
    """16 to 1: the margins are m/2 and m, by hand."""
    cosines = torch.tensor([[0.6, 0.2], [0.6, 0.2]], dtype=torch.float64)
    value = ldam_loss(
        cosines,
        torch.tensor([0, 1]),
        torch.tensor([16 / 17, 1 / 17], dtype=torch.float64).log(),
        reduction="none",
    )
    expected = [
        math.log1p(math.exp(30 * (0.2 - (0.6 - 0.25)))),
        math.log1p(math.exp(30 * (0.6 - (0.2 - 0.5)))),
    ]
    np.testing.assert_allclose(value, expected, rtol=1e-12)


@REDUCTIONS
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_ldam_without_margin_is_cross_entropy_of_scaled_logits(scale, reduction):
    plain = nn.CrossEntropyLoss(reduction=reduction)
    assert_same(
        LDAMLoss(PRIOR, max_margin=0.0, scale=scale, reduction=reduction), lambda f, y: plain(scale * f, y)
    )


@pytest.mark.parametrize("normalization", ["population", "batch"])
def test_ldam_without_margin_but_with_weights_is_weighted_cross_entropy(normalization):
    weights = class_balanced_weights(COUNTS, 0.95)
    assert_same(
        LDAMLoss(PRIOR, max_margin=0.0, scale=1.0, reweight_beta=0.95, normalization=normalization),
        WeightedCrossEntropyLoss(PRIOR, weights=weights, normalization=normalization),
        rtol=1e-12,
    )


@REDUCTIONS
def test_ldam_without_scale_and_with_a_free_largest_margin_is_the_adaptive_loss(reduction):
    """Menon et al., Eq. 5, whose margins are not scaled to a largest one."""
    assert_same(
        LDAMLoss(PRIOR, max_margin=float(PI[-1]) ** -0.25, scale=1.0, reduction=reduction),
        LogitAdjustedAdaptiveLoss(PRIOR, tau=0.0, reduction=reduction),
        rtol=1e-12,
    )


def test_inverse_frequency_weights_of_ldam_need_no_counts():
    logits, labels = batch()
    value = LDAMLoss(Prior(COUNTS), reweight_beta=1.0)(logits, labels)
    assert value == LDAMLoss(PRIOR, reweight_beta=1.0)(logits, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_margin": -0.5}, "`max_margin` to be finite and non-negative, but got -0.5"),
        ({"scale": 0.0}, "`scale` to be finite and positive, but got 0.0"),
        ({"normalization": "mean"}, '`normalization` to be one of "population", "batch", but got \'mean\''),
    ],
)
def test_options_of_ldam_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LDAMLoss(PRIOR, **options)(*batch())


# Equalised loss


@REDUCTIONS
@pytest.mark.parametrize("drop_probability", [0.3, 0.9])
def test_the_random_equalised_loss_follows_its_formula_for_the_numbers_drawn(drop_probability, reduction):
    logits, labels = batch(ignored=1)
    options = {"threshold": 0.2, "drop_probability": drop_probability, "reduction": reduction}
    draws = torch.rand(logits.shape, generator=torch.Generator().manual_seed(3))
    expected = references.equalised(
        logits.numpy(), labels.numpy(), PI.numpy(), draws=draws.numpy(), **options
    )
    value = equalised_loss(logits, labels, LOG_PRIOR, generator=torch.Generator().manual_seed(3), **options)
    np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_the_random_equalised_loss_is_reproducible_from_the_seed_of_torch():
    logits, labels = batch(n=50)
    loss = EqualisedLoss(PRIOR, threshold=0.2, drop_probability=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, other = loss(logits, labels), loss(logits, labels)
        torch.manual_seed(1)
        assert torch.equal(loss(logits, labels), first)
    assert other != first


@pytest.mark.parametrize("drop_probability", [0.0, 1.0])
def test_the_equalised_loss_draws_nothing_where_nothing_is_random(drop_probability):
    before = torch.get_rng_state()
    EqualisedLoss(PRIOR, threshold=0.2, drop_probability=drop_probability)(*batch())
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_of_the_random_equalised_loss_are_those_of_its_value():
    logits, labels = batch(n=3)

    def loss(f):
        generator = torch.Generator().manual_seed(0)
        return equalised_loss(f, labels, LOG_PRIOR, threshold=0.2, generator=generator)

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@REDUCTIONS
@pytest.mark.parametrize(
    "options", [{"threshold": 0.01}, {"threshold": 0.2, "drop_probability": 0.0}], ids=["no rare", "no drop"]
)
def test_the_equalised_loss_that_leaves_nothing_out_is_cross_entropy(options, reduction):
    assert_same(
        EqualisedLoss(PRIOR, **options, reduction=reduction), nn.CrossEntropyLoss(reduction=reduction)
    )
    assert EqualisedLoss(PRIOR, **options).carried_by == "theory"
    assert EqualisedLoss(PRIOR, **options).carried_prior == PRIOR


def test_at_drop_probability_one_a_rare_logit_only_ever_gains_by_growing():
    logits, labels = batch(n=200)
    loss = EqualisedLoss(PRIOR, threshold=0.05, drop_probability=1.0)
    slopes = gradient(loss, logits, labels)
    assert (slopes[:, 3:] <= 0).all()
    assert (slopes[:, 3:].sum(0) < 0).all()
    assert (slopes[:, :3] > 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "`threshold` to be finite and positive, but got 0.0"),
        (
            {"threshold": 0.1, "drop_probability": 1.5},
            "`drop_probability` to be in \\[0, 1\\], but got 1.5",
        ),
    ],
)
def test_options_of_the_equalised_loss_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EqualisedLoss(PRIOR, **options)(*batch())


@pytest.mark.parametrize(
    "loss",
    [
        lambda p: class_balanced_cross_entropy(*batch(), p, num_samples=10),
        lambda p: class_balanced_focal_loss(*batch(), p, num_samples=10),
        lambda p: ldam_loss(*batch(), p),
        lambda p: equalised_loss(*batch(), p, threshold=0.1),
        lambda p: logit_adjusted_adaptive_cross_entropy(*batch(), p),
    ],
    ids=["class-balanced", "class-balanced focal", "ldam", "equalised", "adaptive"],
)
@pytest.mark.parametrize("shape", [(1,), (), (4,), (1, 5)], ids=str)
def test_a_log_prior_of_another_shape_is_refused_and_never_broadcast(loss, shape):
    message = f"`log_prior` with one entry per class, (5,), but got shape {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        loss(torch.zeros(shape))


# Pairwise margins


def vectors(seed=1, num_classes=5):
    generator = torch.Generator().manual_seed(seed)
    positive, negative = 2 * torch.randn(2, num_classes, generator=generator, dtype=torch.float64)
    return {
        "weights": 0.5 + torch.rand(num_classes, generator=generator, dtype=torch.float64),
        "positive": positive,
        "negative": negative,
    }


@REDUCTIONS
@pytest.mark.parametrize("given", list(itertools.product([False, True], repeat=3)), ids=str)
def test_the_pairwise_loss_follows_its_formula_with_the_matrix_written_out(given, reduction):
    logits, labels = batch(ignored=2)
    chosen = {name: vector for (name, vector), keep in zip(vectors().items(), given, strict=True) if keep}
    full = {name: chosen.get(name, torch.full((5,), float(name == "weights"))) for name in vectors()}
    expected = references.pairwise_margin(
        logits.numpy(),
        labels.numpy(),
        lambda y: float(full["weights"][y]),
        lambda y, rival: float(full["positive"][y] + full["negative"][rival]),
        reduction=reduction,
    )
    value = pairwise_margin_loss(logits, labels, **chosen, reduction=reduction)
    np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_gradients_of_the_pairwise_loss_are_those_of_its_value():
    logits, labels = batch(2, n=3, ignored=1)
    assert torch.autograd.gradcheck(
        lambda f: pairwise_margin_loss(f, labels, **vectors()), logits.requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_pairwise_loss_computes_half_precision_in_float32(dtype):
    logits, labels = batch()
    rounded = logits.to(dtype)
    value = pairwise_margin_loss(rounded, labels, **vectors())
    exact = pairwise_margin_loss(rounded.double(), labels, **vectors())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=2e-6)


def test_the_matrix_of_margins_is_never_built():
    """A C x C matrix of a million classes would need 4 TB."""
    num_classes = 1_000_000
    margins = torch.linspace(-1, 1, num_classes)
    logits, labels = torch.zeros(1, num_classes), torch.tensor([3])
    value = pairwise_margin_loss(logits, labels, positive=margins, negative=margins)
    expected = math.log1p(float((margins.double() + margins[3].double()).exp().sum()))
    assert value.item() == pytest.approx(expected, rel=1e-5)


@REDUCTIONS
def test_the_published_losses_are_cases_of_the_pairwise_loss(reduction):
    log_prior, tau = LOG_PRIOR, 1.7

    def pairwise(**chosen):
        return lambda f, y: pairwise_margin_loss(f, y, **chosen, reduction=reduction)

    assert_same(pairwise(), nn.CrossEntropyLoss(reduction=reduction))
    assert_same(
        pairwise(weights=1 / (5 * PI)), WeightedCrossEntropyLoss(PRIOR, reduction=reduction), rtol=1e-12
    )
    assert_same(pairwise(positive=PI**-0.25), LogitAdjustedAdaptiveLoss(PRIOR, tau=0.0, reduction=reduction))
    assert_same(pairwise(negative=log_prior), PairwiseMarginLoss(PRIOR, tau1=0.0, reduction=reduction))
    for loss in (LogitAdjustedLoss, LogitAdjustedAdaptiveLoss):
        options = {"margin": 0.0} if loss is LogitAdjustedAdaptiveLoss else {}
        assert_same(
            pairwise(positive=-tau * log_prior, negative=tau * log_prior),
            loss(PRIOR, tau=tau, reduction=reduction, **options),
            rtol=1e-12,
        )


def test_a_fixed_equalised_margin_is_the_equalised_loss_with_its_expected_weights():
    """Menon et al., Eq. 6 with F = 1 - gamma below the threshold, against w_c = 1 - gamma by hand."""
    logits, labels = batch()
    log_f = math.log(1 - 0.9) * (PI < 0.2).double()
    value = pairwise_margin_loss(logits, labels, negative=log_f, reduction="none")
    for i, label in enumerate(labels):
        w = [0.1 if PI[c] < 0.2 and c != label else 1.0 for c in range(5)]
        total = math.fsum(weight * math.exp(score) for weight, score in zip(w, logits[i], strict=True))
        assert value[i].item() == pytest.approx(math.log(total) - logits[i, label].item(), rel=1e-12)


def test_the_adaptive_margin_of_a_uniform_prior_is_the_same_for_all_classes():
    logits, labels = batch()
    value = logit_adjusted_adaptive_cross_entropy(
        logits, labels, torch.full((5,), 0.2, dtype=torch.float64).log()
    )
    same = pairwise_margin_loss(logits, labels, positive=torch.full((5,), 5**0.25, dtype=torch.float64))
    assert value.item() == pytest.approx(same.item(), rel=1e-13)


@pytest.mark.parametrize("name", ["weights", "positive", "negative"])
@pytest.mark.parametrize("shape", [(1,), (4,), (1, 5), ()], ids=str)
def test_vectors_of_another_shape_are_refused_and_never_broadcast(name, shape):
    message = f"`{name}` with one entry per class, (5,), but got shape {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        pairwise_margin_loss(*batch(), **{name: torch.ones(shape)})


@pytest.mark.parametrize("name", ["tau1", "tau2"])
def test_a_strength_that_is_not_finite_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` to be finite, but got inf"):
        PairwiseMarginLoss(PRIOR, **{name: math.inf})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": math.nan}, "`tau` to be finite, but got nan"),
        ({"margin": -1.0}, "`margin` to be finite and non-negative, but got -1.0"),
    ],
)
def test_options_of_the_adaptive_loss_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LogitAdjustedAdaptiveLoss(PRIOR, **options)(*batch())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "`weights` with one entry per class, 5, but got 2"),
        ([1.0, 2.0, 0.0, 1.0, 1.0], "`weights` to be strictly positive, but it is zero for class 2"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        PairwiseMarginLoss(PRIOR, weights=weights)


# Binary margins

FAMILY = [
    {"weights": weights, "margins": margins, "temperature": temperature}
    for weights in [(1.0, 1.0), (5.0, 1.25), (0.3, 2.0)]
    for margins in [(0.0, 0.0), (1.0, 0.25), (1.4, -1.4), (-0.7, 2.0)]
    for temperature in [0.5, 1.0, 8.0]
]
over_family = pytest.mark.parametrize("member", FAMILY, ids=lambda member: str(list(member.values())))


def binary_batch():
    scores = torch.linspace(-4, 4, 9, dtype=torch.float64)
    return scores, torch.tensor([0, 1, 1, 0, 1, 0, 1, 0, 1])


@over_family
@REDUCTIONS
def test_the_binary_loss_follows_its_formula(member, reduction):
    scores, labels = binary_batch()
    labels[0] = -100
    rows = zip(scores.tolist(), labels.tolist(), strict=True)
    each = [0.0 if y == -100 else references.binary_margin(f, y, **member) for f, y in rows]
    expected = {"mean": sum(each) / 8, "sum": sum(each), "none": each}[reduction]
    value = binary_margin_loss(scores, labels, **member, reduction=reduction)
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-15)


@over_family
def test_gradients_of_the_binary_loss_are_those_of_its_value(member):
    scores, labels = binary_batch()
    assert torch.autograd.gradcheck(
        lambda f: binary_margin_loss(f, labels, **member), scores.requires_grad_()
    )


@pytest.mark.parametrize("member", [m for m in FAMILY if m["temperature"] == 1.0], ids=str)
def test_at_temperature_one_it_is_the_pairwise_loss_of_two_classes(member):
    scores, labels = binary_batch()
    logits = torch.stack([-0.3 * scores, 0.7 * scores], dim=1)
    minus_first = {
        name: torch.tensor(member[name][::-1], dtype=torch.float64) for name in ("weights", "margins")
    }
    value = binary_margin_loss(scores, labels, **member, reduction="none")
    pairwise = pairwise_margin_loss(
        logits, labels, weights=minus_first["weights"], positive=minus_first["margins"], reduction="none"
    )
    np.testing.assert_allclose(value, pairwise, rtol=1e-12)


def test_without_weights_and_margins_it_is_the_logistic_loss():
    scores, labels = binary_batch()
    expected = F.binary_cross_entropy_with_logits(scores, labels.double())
    assert binary_margin_loss(scores, labels).item() == pytest.approx(expected.item(), rel=1e-13)


@pytest.mark.parametrize("temperature", [10.0, 1e3, 1e6])
def test_a_large_temperature_gives_weighted_hinge_losses(temperature):
    scores, labels = binary_batch()
    value = binary_margin_loss(
        scores, labels, weights=(5.0, 1.25), margins=(1.0, 0.25), temperature=temperature, reduction="none"
    )
    hinge = torch.where(labels == 1, 5 * (1 - scores).relu(), 1.25 * (0.25 + scores).relu())
    assert (value - hinge).abs().max() <= 5 * math.log(2) / temperature * (1 + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_binary_loss_computes_half_precision_in_float32(dtype):
    scores, labels = binary_batch()
    for member in FAMILY:
        value = binary_margin_loss(scores.to(dtype), labels, **member)
        exact = binary_margin_loss(scores.to(dtype).double(), labels, **member)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.item(), rel=2e-6)


def test_the_binary_loss_takes_any_shape_huge_scores_and_empty_batches():
    scores = torch.tensor([[[1e4, -1e4]]], dtype=torch.float64)
    value = binary_margin_loss(scores, torch.tensor([[[0, 1]]]), temperature=8.0, reduction="none")
    assert value.tolist() == [[[1e4, 1e4]]]
    assert binary_margin_loss(torch.zeros(0), torch.zeros(0, dtype=torch.long)) == 0
    assert binary_margin_loss(torch.tensor(0.0), torch.tensor(1)).item() == pytest.approx(math.log(2))


def quadratic_link(p, *, weights, margins, temperature):
    """The positive root of g^2 + (c - a b q) g - a q, in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        plus, minus = (Decimal(temperature) * Decimal(margin) for margin in margins)
        a = Decimal(weights[0]) / Decimal(weights[1]) * (plus - minus).exp()
        b, c, q = minus.exp(), plus.exp(), Decimal(p) / (1 - Decimal(p))
        linear = a * b * q - c
        root = (linear + (linear**2 + 4 * a * q).sqrt()) / 2
        return float(root.ln() / Decimal(temperature))


@over_family
def test_the_link_is_the_root_of_its_quadratic(member):
    probs = [1e-12, 1e-6, 0.01, 0.2, 0.5, 0.8, 0.99, 1 - 1e-9]
    expected = [quadratic_link(p, **member) for p in probs]
    link = binary_margin_link(torch.tensor(probs, dtype=torch.float64), **member)
    np.testing.assert_allclose(link, expected, rtol=1e-10, atol=1e-10)


@over_family
def test_the_link_leads_from_minus_to_plus_infinity_and_back(member):
    probs = torch.tensor([0.0, 1e-9, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    scores = binary_margin_link(probs, **member)
    assert scores[0] == -math.inf and scores[-1] == math.inf
    assert (scores.diff() > 0).all()
    back = binary_margin_inverse_link(scores[1:-1], **member)
    np.testing.assert_allclose(back, probs[1:-1], rtol=1e-9)


def test_the_link_does_not_overflow_at_a_large_temperature():
    member = {"weights": (5.0, 1.25), "margins": (1.0, 1.0), "temperature": 1e5}
    for dtype in (torch.float32, torch.float64):
        link = binary_margin_link(torch.tensor([1e-3, 0.5], dtype=dtype), **member)
        np.testing.assert_allclose(link, [-1, 1], atol=1e-4)


def test_the_link_without_weights_and_margins_is_the_logit():
    probs = torch.tensor([0.1, 0.5, 0.7], dtype=torch.float64)
    np.testing.assert_allclose(binary_margin_link(probs), probs.logit(), rtol=1e-13, atol=1e-15)


@over_family
def test_the_threshold_is_where_the_link_is_zero(member):
    threshold = binary_margin_threshold(**member)
    assert binary_margin_link(torch.tensor(threshold, dtype=torch.float64), **member).item() == pytest.approx(
        0, abs=1e-12
    )


@over_family
def test_the_risk_is_the_smallest_expected_loss(member):
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    losses = [binary_margin_loss(grid, torch.full(grid.shape, y), **member, reduction="none") for y in (1, 0)]
    for p in (0.05, 0.3, 0.8):
        smallest = (p * losses[0] + (1 - p) * losses[1]).min().item()
        risk = binary_margin_risk(torch.tensor(p, dtype=torch.float64), **member).item()
        assert risk <= smallest * (1 + 1e-12)
        assert risk == pytest.approx(smallest, rel=1e-5)


@over_family
def test_the_risk_is_concave_and_zero_at_both_ends(member):
    risk = binary_margin_risk(torch.linspace(0, 1, 101, dtype=torch.float64), **member)
    assert (risk.diff().diff() <= 1e-12).all()
    assert risk[[0, -1]].tolist() == [0, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("margin", [-2.0, 0.7])
def test_opposite_margins_leave_the_risk_of_the_logistic_loss(margin, temperature):
    probs = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    moved = binary_margin_risk(probs, margins=(margin, -margin), temperature=temperature)
    entropy = -(probs * probs.log() + (1 - probs) * (1 - probs).log()) / temperature
    np.testing.assert_allclose(moved, entropy, rtol=1e-12)


def test_the_risk_of_the_weighted_loss_tends_to_the_tent_of_the_balanced_error():
    pi = 0.2
    probs = torch.linspace(0, 1, 21, dtype=torch.float64)
    tent = torch.where(probs < pi, (1 - pi) * probs, pi * (1 - probs))
    risk = binary_margin_risk(probs, weights=(1 / pi, 1 / (1 - pi)), margins=(1.0, 1.0), temperature=1e4)
    np.testing.assert_allclose(risk, 2 * tent / (pi * (1 - pi)), atol=2e-3)


@given(
    st.floats(0.01, 0.99),
    st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
    st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    st.floats(0.2, 5),
)
def test_any_link_has_its_inverse(p, weights, margins, temperature):
    member = {"weights": weights, "margins": margins, "temperature": temperature}
    score = binary_margin_link(torch.tensor(p, dtype=torch.float64), **member)
    assert binary_margin_inverse_link(score, **member).item() == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (ROW := torch.zeros(3), torch.zeros(2).long()),
            ValueError,
            r"`labels` of the shape .* \(3,\), but got \(2,\)",
        ),
        ((ROW, ROW), TypeError, "`labels` to be 0 or 1 as whole numbers, but got dtype torch.float32"),
        ((ROW.long(), ROW.long()), TypeError, "`scores` to be floating-point, but got dtype torch.int64"),
    ],
)
def test_binary_batches_that_do_not_fit_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        binary_margin_loss(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (1.0, 0.0)}, r"`weights` to be finite and positive, but got 0.0"),
        ({"temperature": 0.0}, "`temperature` to be finite and positive, but got 0.0"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [
        lambda **options: binary_margin_loss(*binary_batch(), **options),
        lambda **options: binary_margin_link(torch.tensor([0.5]), **options),
        lambda **options: binary_margin_inverse_link(torch.tensor([0.5]), **options),
        lambda **options: binary_margin_risk(torch.tensor([0.5]), **options),
        binary_margin_threshold,
    ],
    ids=["loss", "link", "inverse link", "risk", "threshold"],
)
def test_a_family_out_of_range_is_refused(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(**options)


def test_the_gradient_of_the_link_and_the_risk_is_finite_at_even_odds():
    for temperature in (1.0, 8.0, 1000.0):
        probs = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
        binary_margin_link(probs, temperature=temperature).sum().backward()
        assert probs.grad.isfinite().all()
        probs.grad = None
        binary_margin_risk(probs, temperature=temperature).sum().backward()
        assert probs.grad.isfinite().all()
    even = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    binary_margin_link(even).sum().backward()
    assert even.grad.item() == pytest.approx(4.0)


def test_ldam_without_margin_and_scale_says_that_it_is_weighted_cross_entropy():
    plain = LDAMLoss(PRIOR, max_margin=0.0, scale=1.0)
    np.testing.assert_allclose(plain.carried_prior.probs, PRIOR.probs, rtol=1e-14)
    assert plain.carried_by == "theory"
    weighted = LDAMLoss(PRIOR, max_margin=0.0, scale=1.0, reweight_beta=1.0)
    np.testing.assert_allclose(weighted.carried_prior.probs, Prior.uniform(PRIOR.num_classes).probs)
    assert weighted.carried_by == "theory"
    assert LDAMLoss(PRIOR, max_margin=0.0).carried_by == "convention"


def test_ldam_keeps_the_dtype_of_its_logits_whatever_the_prior_has():
    logits, labels = batch()
    for normalization in ("population", "batch"):
        value = ldam_loss(logits.float(), labels, LOG_PRIOR, normalization=normalization)
        assert value.dtype == torch.float32


def test_class_balanced_weights_survive_a_half_precision_prior():
    logits, labels = batch()
    half = LOG_PRIOR.half()
    value = class_balanced_cross_entropy(logits.float(), labels, half, num_samples=1e5, beta=0.9999)
    exact = class_balanced_cross_entropy(logits, labels, LOG_PRIOR, num_samples=1e5, beta=0.9999)
    assert value.item() == pytest.approx(exact.item(), rel=1e-2)
