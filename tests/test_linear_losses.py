"""A loss fused with its classifier is the loss of the classifier's logits, in less memory."""

import inspect
import re
import subprocess
import sys
from datetime import timedelta
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import references
from priorshift import Prior
from priorshift.losses import lade_loss, linear_lade, linear_logit_adjusted, logit_adjusted_cross_entropy
from priorshift.losses._linear import _classes_of_rank, _log_sums

N, C, D = 11, 13, 4
PRIOR = Prior.from_counts(torch.arange(1, C + 1) ** 2)
LOG_PRIOR = torch.tensor(PRIOR.log_probs)
CHUNKS = [1, 5, C, 1000, None]

LOSSES = {
    f"lade {variant} lam={lam}": (
        partial(linear_lade, alpha=0.7, lam=lam, variant=variant),
        partial(lade_loss, alpha=0.7, lam=lam, variant=variant),
        partial(references.lade, alpha=0.7, lam=lam, variant=variant),
    )
    for variant in ("paper", "released")
    for lam in (0.0, 0.5)
} | {
    f"logit-adjusted tau={tau}": (
        partial(linear_logit_adjusted, tau=tau),
        partial(logit_adjusted_cross_entropy, tau=tau),
        partial(references.logit_adjusted, tau=tau),
    )
    for tau in (0.0, 0.5, 1.0)
}
"""Name → fused with the classifier, of its logits, in NumPy."""

every_loss = pytest.mark.parametrize(("fused", "plain", "reference"), LOSSES.values(), ids=LOSSES)
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def batch(n=N, num_classes=C, scale=1.0, ignored=2, seed=0, dtype=torch.float64):
    """Features, weight, bias, and labels of which some classes have none and the first few are ignored."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, D), (num_classes, D), (num_classes,))
    tensors = [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    labels = torch.randint(max(num_classes // 2, 1), (n,), generator=generator)
    labels[:ignored] = -100
    return *(tensor.to(dtype) for tensor in tensors), labels


def on_logits(plain):
    def loss(features, weight, labels, log_prior, *, bias=None, **options):
        return plain(F.linear(features, weight, bias), labels, log_prior, **options)

    return loss


def cost(loss, features, weight, bias, labels, prior=PRIOR, **options):
    """A loss and its gradients by features, weight and bias; single losses count by their position."""
    leaves = [tensor.clone().requires_grad_() for tensor in (features, weight, bias)]
    value = loss(leaves[0], leaves[1], labels, torch.tensor(prior.log_probs), bias=leaves[2], **options)
    weights = torch.arange(1.0, 1 + value.numel()).view(value.shape)
    (value * weights).sum().backward()
    return value.detach(), *(leaf.grad for leaf in leaves)


def assert_close(found, expected, tolerance=1e-10):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.double(), other.double(), rtol=tolerance, atol=tolerance)


# Values and gradients


@every_loss
@REDUCTIONS
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_value_and_gradients_are_those_of_the_logits(fused, plain, reference, chunk_size, reduction):
    features, weight, bias, labels = batch()
    found = cost(fused, features, weight, bias, labels, chunk_size=chunk_size, reduction=reduction)
    assert_close(found, cost(on_logits(plain), features, weight, bias, labels, reduction=reduction))
    logits = (features @ weight.T + bias).numpy()
    expected = reference(logits, labels.numpy(), PRIOR.probs, reduction=reduction)
    np.testing.assert_allclose(found[0], expected, rtol=1e-10, atol=1e-10)


@every_loss
def test_a_classifier_may_have_no_bias(fused, plain, reference):
    features, weight, _, labels = batch()
    value = fused(features, weight, labels, LOG_PRIOR, chunk_size=5)
    expected = plain(features @ weight.T, labels, LOG_PRIOR)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


@every_loss
def test_gradients_are_those_of_the_value(fused, plain, reference):
    *tensors, labels = batch(n=4, num_classes=5, ignored=1)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    prior = Prior.from_counts([5, 4, 3, 2, 1])

    def loss(features, weight, bias):
        return fused(features, weight, labels, torch.tensor(prior.log_probs), bias=bias, chunk_size=2)

    assert torch.autograd.gradcheck(loss, tensors)


@every_loss
@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(fused, plain, reference, trained):
    *tensors, labels = batch()
    expected = cost(fused, *tensors, labels)[1:]
    leaves = [tensor.clone().requires_grad_(index in trained) for index, tensor in enumerate(tensors)]
    fused(leaves[0], leaves[1], labels, LOG_PRIOR, bias=leaves[2], chunk_size=5).backward()
    for index, leaf in enumerate(leaves):
        if index in trained:
            np.testing.assert_allclose(leaf.grad, expected[index], rtol=1e-12, atol=1e-14)
        else:
            assert leaf.grad is None


@given(
    st.integers(1, 6), st.integers(2, 7), st.integers(1, 8), st.integers(0, 1000), st.sampled_from([1, 30])
)
def test_any_batch_in_any_chunks_costs_what_its_logits_cost(n, num_classes, chunk_size, seed, scale):
    features, weight, bias, labels = batch(n, num_classes, scale, ignored=n // 3, seed=seed)
    prior = Prior(torch.rand(num_classes, generator=torch.Generator().manual_seed(seed)).add(1e-3))
    for variant in ("paper", "released"):
        options = {"alpha": 0.3, "lam": 0.2, "variant": variant}
        found = cost(linear_lade, features, weight, bias, labels, prior, chunk_size=chunk_size, **options)
        expected = cost(on_logits(lade_loss), features, weight, bias, labels, prior, **options)
        assert_close(found, expected, 1e-9)


@pytest.mark.parametrize("ignore_index", [-1, 0, 255])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_index_of_any_integer_dtype_may_be_the_ignored_one(ignore_index, dtype):
    if ignore_index < 0 and dtype == torch.uint8:
        pytest.skip("unsigned")
    features, weight, bias, labels = batch()
    options = {"bias": bias, "alpha": 0.7, "lam": 0.3}
    expected = linear_lade(features[3:], weight, labels[3:] + 1, LOG_PRIOR, **options)
    labels = (labels + 1).masked_fill(torch.arange(N) < 3, ignore_index).to(dtype)
    value = linear_lade(features, weight, labels, LOG_PRIOR, ignore_index=ignore_index, **options)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


# Extremes


@every_loss
def test_ignored_rows_may_hold_anything(fused, plain, reference):
    features, weight, bias, labels = batch()
    expected = cost(fused, features, weight, bias, labels)
    features[0], features[1] = torch.nan, torch.inf
    found = cost(fused, features, weight, bias, labels, chunk_size=5)
    assert_close(found, expected)
    assert (found[1][:2] == 0).all()


@every_loss
@pytest.mark.parametrize("n", [0, 3])
def test_where_no_row_counts_loss_and_gradients_are_zero(fused, plain, reference, n):
    for reduction in ("mean", "sum"):
        for tensor in cost(fused, *batch(n, ignored=n), reduction=reduction):
            assert torch.equal(tensor, torch.zeros_like(tensor))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_and_rows_of_very_different_scale_do_not_underflow(fused, plain, reference, dtype):
    features, weight, bias, labels = batch()
    bias[:4] -= 2000.0
    features[5] *= 300.0
    found = cost(fused, *(x.to(dtype) for x in (features, weight, bias)), labels, chunk_size=5)
    expected = cost(on_logits(plain), features, weight, bias, labels)
    assert_close(found, expected, 1e-10 if dtype == torch.float64 else 2e-3)


def test_a_class_that_is_ruled_out_has_no_part():
    features, weight, bias, labels = batch()
    bias[C - 1] = -torch.inf
    found = cost(linear_lade, features, weight, bias, labels, alpha=0.7, lam=0.3, chunk_size=5)
    low = bias.clamp(min=-5000)
    expected = cost(on_logits(lade_loss), features, weight, low, labels, alpha=0.7, lam=0.3)
    assert_close(found, expected)


@every_loss
def test_a_label_that_is_no_class_is_refused(fused, plain, reference):
    for label in (C, -1):
        features, weight, bias, labels = batch()
        labels[4] = label
        with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds|DATA bounds)"):
            fused(features, weight, labels, LOG_PRIOR, bias=bias)


# Precision


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_taken_in_float32(fused, plain, reference, dtype):
    """Thousands of exponentials that half a precision would lose."""
    prior = Prior.from_counts(torch.arange(4000) + 1)
    features, weight, bias, labels = batch(n=6, num_classes=4000, scale=0.5, dtype=dtype)
    value, *gradients = cost(fused, features, weight, bias, labels, prior, chunk_size=700)
    assert value.dtype == torch.float32
    assert [gradient.dtype for gradient in gradients] == [dtype] * 3
    wide = cost(on_logits(plain), features.double(), weight.double(), bias.double(), labels, prior)
    rounding = torch.finfo(dtype).eps
    assert value.item() == pytest.approx(wide[0].item(), rel=2 * rounding)
    for gradient, expected in zip(gradients, wide[1:], strict=True):
        assert (gradient - expected).norm() < 8 * rounding * expected.norm()


@every_loss
def test_autocast_does_what_it_does_to_a_linear_layer(fused, plain, reference):
    *tensors, labels = batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, *gradients = cost(fused, *tensors, labels, chunk_size=5)
        expected, *expected_gradients = cost(on_logits(plain), *tensors, labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - other).norm() < 0.02 * other.norm()


@every_loss
def test_float64_stays_float64_under_autocast(fused, plain, reference):
    *tensors, labels = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cost(fused, *tensors, labels)
    assert_close(found, cost(fused, *tensors, labels), 0)


# In other surroundings


@pytest.mark.parametrize("fused", [partial(linear_lade, alpha=0.7, lam=0.5), linear_logit_adjusted])
def test_a_compiled_model_has_the_same_loss_and_gradients(fused):
    features, weight, bias, labels = batch()
    model = nn.Linear(D, C, dtype=torch.float64)
    model.weight.data, model.bias.data = weight, bias

    def loss(features, labels):
        return fused(features, model.weight, labels, LOG_PRIOR, bias=model.bias, chunk_size=5)

    value = torch.compile(loss, fullgraph=True, backend="eager")(features, labels)
    value.backward()
    torch._dynamo.reset()
    expected = cost(fused, features, weight, bias, labels)
    assert_close((value.detach(), model.weight.grad, model.bias.grad), (expected[0], *expected[2:]))


def test_the_operator_is_what_it_tells_the_compiler():
    features, weight, bias, labels = batch(ignored=0)
    tensors = [tensor.requires_grad_() for tensor in (features, weight, bias)]
    for log_weight in (torch.zeros(N, dtype=torch.float64), None):
        torch.library.opcheck(
            _log_sums,
            (*tensors, labels, LOG_PRIOR, log_weight, 5),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )


def test_a_second_derivative_is_refused():
    features, weight, _, labels = batch()
    features.requires_grad_()
    value = linear_lade(features, weight, labels, LOG_PRIOR, alpha=0.1, lam=0.1)
    (gradient,) = torch.autograd.grad(value, features, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_hundred_thousand_classes_take_little_memory():
    def peak(make_logits):
        code = f"""
import torch
from priorshift.losses import lade_loss, linear_lade
torch.set_num_threads(1)
features = torch.randn(512, 16, requires_grad=True)
weight = torch.randn(200_000, 16, requires_grad=True)
labels = torch.arange(512)
log_prior = torch.full((200_000,), -12.2)
linear_lade(features, weight[:4000], labels, log_prior[:4000], alpha=0.1, lam=0.1).backward()
def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
before = status("VmRSS")
if {make_logits}:
    lade_loss(features @ weight.T, labels, log_prior, alpha=0.1, lam=0.1).backward()
else:
    linear_lade(features, weight, labels, log_prior, alpha=0.1, lam=0.1).backward()
print(status("VmHWM") - before)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return int(done.stdout) * 1024

    logits = 512 * 200_000 * 4
    assert peak(make_logits=True) > logits
    assert peak(make_logits=False) < 0.2 * logits


# Refusals

FEATURES, WEIGHT, LABELS = torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(4, dtype=torch.long)
MISFITS = {
    "integer features": ({"features": FEATURES.long()}, TypeError, "`features` to be floating-point"),
    "features of positions": ({"features": torch.zeros(4, 3, 2)}, ValueError, "`features` of shape [N, D]"),
    "another width": ({"weight": torch.zeros(5, 2)}, ValueError, "`weight` of shape (5, 3)"),
    "a class too few": ({"weight": torch.zeros(4, 3)}, ValueError, "`weight` of shape (5, 3)"),
    "a short bias": ({"bias": torch.zeros(4)}, ValueError, "`bias` of shape (5,)"),
    "a bias that would broadcast": ({"bias": torch.zeros(1)}, ValueError, "`bias` of shape (5,)"),
    "labels too short": ({"labels": LABELS[:3]}, ValueError, "`labels` of shape (4,)"),
    "soft labels": ({"labels": torch.zeros(4, 5)}, TypeError, "`labels` to be class indices"),
    "boolean labels": ({"labels": LABELS.bool()}, TypeError, "`labels` to be class indices"),
    "a matrix of log-priors": ({"log_prior": torch.zeros(5, 1)}, ValueError, "`log_prior` with one entry"),
    "mixed dtypes": ({"weight": WEIGHT.double()}, TypeError, "`features`, `weight` and `bias` of one dtype"),
    "no chunk": ({"chunk_size": 0}, ValueError, "`chunk_size` to be positive"),
    "unknown reduction": ({"reduction": "avg"}, ValueError, "`reduction` to be one of"),
}


@pytest.mark.parametrize("loss", [partial(linear_lade, alpha=0.1, lam=0.1), linear_logit_adjusted])
@pytest.mark.parametrize(("wrong", "error", "rule"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_refused(loss, wrong, error, rule):
    right = {"features": FEATURES, "weight": WEIGHT, "labels": LABELS, "log_prior": torch.zeros(5)}
    with pytest.raises(error, match=f"{re.escape(rule)}.*but got"):
        loss(**right | wrong)


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        *((linear_lade, {"alpha": 0.1, "lam": 0.1} | {name: -0.1}) for name in ("alpha", "lam")),
        (linear_lade, {"alpha": 0.1, "lam": 0.1, "variant": "official"}),
        (linear_logit_adjusted, {"tau": float("nan")}),
    ],
)
def test_a_setting_out_of_rule_is_refused(loss, wrong):
    with pytest.raises(ValueError, match=r"Expected `(alpha|lam|variant|tau)` to be .*, but got"):
        loss(FEATURES, WEIGHT, LABELS, torch.zeros(5), **wrong)


def test_the_options_of_a_fused_loss_include_those_of_the_plain_one():
    for fused, plain, _ in LOSSES.values():
        options = inspect.signature(plain.func).parameters
        fused_options = inspect.signature(fused.func).parameters
        for name in options.keys() - {"logits"}:
            assert fused_options[name].default == options[name].default, name


# Spread over ranks


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_hold_the_rows_that_tensor_split_gives_them(ranks):
    class Group:
        def __init__(self, rank):
            self.rank, self.size = lambda: rank, lambda: ranks

    log_prior = torch.arange(10.0)
    found = [log_prior[_classes_of_rank(log_prior, Group(rank))] for rank in range(ranks)]
    for part, expected in zip(found, log_prior.tensor_split(ranks), strict=True):
        assert torch.equal(part, expected)
    with pytest.raises(ValueError, match=f"at least one class per rank, {ranks}, but got 0"):
        _classes_of_rank(log_prior[:0], Group(0))


LAYOUTS = {
    "classes over four ranks": ([[0], [1], [2], [3]], [[0, 1, 2, 3]]),
    "classes over two ranks, the batch over two": ([[0, 2], [1, 3]], [[0, 1], [2, 3]]),
    "the batch over four ranks": ([[0, 1, 2, 3]], [[0], [1], [2], [3]]),
}
"""Layout → the ranks that share a batch's columns, and those that share its classes."""


def share_of(layout, rank):
    """Which part of the batch and of the classes a rank has, and of how many."""
    data_groups, class_groups = LAYOUTS[layout]
    data = next(group for group in data_groups if rank in group)
    classes = next(group for group in class_groups if rank in group)
    return data.index(rank), len(data), classes.index(rank), len(classes)


PARTS = {
    False: {1: [N], 2: [4, N - 4], 4: [1, 5, 2, N - 8]},
    True: {1: [N], 2: [N, 0], 4: [0, N, 0, 0]},
}
"""Whether some are empty → number of ranks → how many rows of the batch each of them has."""


def run_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4, timeout=timedelta(seconds=60)
    )
    send, sizes, results = torch.distributed.all_reduce, [], {}

    def all_reduce(tensor, *args, **options):
        sizes.append(tensor.numel())
        return send(tensor, *args, **options)

    torch.distributed.all_reduce = all_reduce
    for layout, groups in LAYOUTS.items():
        made = [[(ranks, torch.distributed.new_group(ranks)) for ranks in kind] for kind in groups]
        data_group, class_group = (next(g for ranks, g in kind if rank in ranks) for kind in made)
        data_rank, data_ranks, class_rank, class_ranks = share_of(layout, rank)
        options = {"chunk_size": 2, "process_group": data_group, "class_group": class_group}
        for empty in (False, True):
            features, weight, bias, labels = batch()
            parts = PARTS[empty][data_ranks]
            own = (
                features.split(parts)[data_rank],
                weight.tensor_split(class_ranks)[class_rank],
                bias.tensor_split(class_ranks)[class_rank],
                labels.split(parts)[data_rank],
            )
            for name, (fused, _, _) in LOSSES.items():
                for reduction in ("mean", "sum"):
                    sizes.clear()
                    found = cost(fused, *own, reduction=reduction, **options)
                    results[layout, empty, name, reduction] = (found, list(sizes))
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of four processes computed."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_rank, (folder,), nprocs=4)
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("empty", [False, True], ids=["uneven batches", "empty batches"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LOSSES)
def test_ranks_together_give_what_one_process_gives(ranks, name, layout, empty, reduction):
    _, data_ranks, _, class_ranks = share_of(layout, 0)
    expected = cost(LOSSES[name][0], *batch(), reduction=reduction)
    share = data_ranks if reduction == "mean" else 1
    found = {share_of(layout, rank)[::2]: ranks[rank][layout, empty, name, reduction][0] for rank in range(4)}
    for class_rank in range(class_ranks):
        values, by_features, by_weight, by_bias = zip(
            *(found[data_rank, class_rank] for data_rank in range(data_ranks)), strict=True
        )
        together = (sum(values), torch.cat(by_features), sum(by_weight), sum(by_bias))
        of_rank = [tensor.tensor_split(class_ranks)[class_rank] for tensor in expected[2:]]
        assert_close([tensor / share for tensor in together], [*expected[:2], *of_rank])


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_only_statistics_of_rows_and_the_gradient_of_features_travel_between_classes(ranks, reduction):
    for rank, results in enumerate(ranks):
        of_loss = {name: results["classes over four ranks", False, name, reduction][1] for name in LOSSES}
        count = [1] if reduction == "mean" else []
        assert of_loss["logit-adjusted tau=1.0"] == [N, 2 * N, *count, N * D]
        own_rows = len(torch.arange(C).tensor_split(4)[rank])
        within_the_process_group = [1, own_rows, 2 * own_rows, 2 * own_rows, 1, 1]
        between_classes = [N, 2 * N, 1, N * D]
        assert sorted(of_loss["lade paper lam=0.5"]) == sorted(between_classes + within_the_process_group)
