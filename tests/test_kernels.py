"""The fast path gives what the definition gives, wherever it is taken, and stays out of the way elsewhere."""

import math
import threading
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import references
from priorshift import Prior, kernels
from priorshift.kernels import _cpu, _fused
from priorshift.losses import BalancedSoftmaxLoss, LADELoss, LogitAdjustedLoss, lade_loss, lader
from test_losses import COUNTS, LOG_PRIOR, batch

LOSSES = {
    "lade": partial(LADELoss, alpha=0.5, lam=0.3),
    "released lade": partial(LADELoss, alpha=0.5, lam=0.3, variant="released"),
    "logit-adjusted": partial(LogitAdjustedLoss, tau=1.5),
    "balanced softmax": BalancedSoftmaxLoss,
}
REFERENCES = {
    "lade": partial(references.lade, alpha=0.5, lam=0.3),
    "released lade": partial(references.lade, alpha=0.5, lam=0.3, variant="released"),
    "logit-adjusted": partial(references.logit_adjusted, tau=1.5),
    "balanced softmax": references.logit_adjusted,
}
each_loss = pytest.mark.parametrize("name", LOSSES)
each_lade = pytest.mark.parametrize("name", ["lade", "released lade"])
SINGLE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}
"""dtype → the relative error that its gradients may have."""


def made(name, num_classes=5, **options):
    return LOSSES[name](Prior(100 ** -np.linspace(0, 1, num_classes)), **options)


def sample(n=7, num_classes=5, dtype=torch.float32, **options):
    logits, labels = batch(n=n, num_classes=num_classes, **options)
    return logits.to(dtype), labels


def value_and_gradient(loss, logits, labels, weights=None):
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, labels)
    value.backward(weights if weights is None else weights.to(value.dtype))
    return value.detach(), leaf.grad


def assert_as_defined(loss, logits, labels, weights=None, rtol=3e-6):
    """The value and the gradient are those of the definition in float64."""
    assert kernels.support(logits, LOG_PRIOR)
    value, gradient = value_and_gradient(loss, logits, labels, weights)
    exact, exact_gradient = value_and_gradient(loss, logits.double(), labels, weights)
    torch.testing.assert_close(value, exact.float(), rtol=rtol, atol=1e-6)
    assert gradient.dtype == logits.dtype
    atol = rtol * exact_gradient.abs().max().item() + torch.finfo(logits.dtype).tiny * 2**-8
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=SINGLE[logits.dtype], atol=atol)


@pytest.fixture(autouse=True, params=["compiled", "one block"])
def path(request, monkeypatch):
    """By Numba; or by torch, in one block, in several of which the last is smaller, or row by row."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(_fused, "_numba", lambda: None)
    if request.param == "blocks":
        monkeypatch.setattr(_cpu, "MOST_ROWS", 3)
    elif request.param == "single rows":
        monkeypatch.setattr(_cpu, "BLOCK", 1)
    return request.param


each_path = pytest.mark.parametrize("path", ["compiled", "one block", "blocks", "single rows"], indirect=True)


# Values and gradients


@each_path
@each_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_form_of_a_loss_is_as_defined(name, reduction):
    for dtype, ignored, positions in product(SINGLE, (0, 2), ((), (3, 2))):
        logits, labels = batch(*positions, ignored=ignored)
        weights = torch.linspace(0.5, 2, labels.numel()).view(labels.shape) if reduction == "none" else None
        assert_as_defined(made(name, reduction=reduction), logits.to(dtype), labels, weights)


@each_path
@each_loss
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_value_follows_its_formula(name, reduction):
    logits, labels = sample(n=11, ignored=2)
    loss = made(name, reduction=reduction)
    expected = REFERENCES[name](
        logits.double().numpy(), labels.numpy(), loss.source.prior.probs, reduction=reduction
    )
    assert loss(logits, labels).item() == pytest.approx(expected, rel=2e-6)


@each_path
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_lader_alone_is_as_defined(variant):
    logits, labels = sample(ignored=1)
    assert_as_defined(
        lambda f, y: lader(f, y, LOG_PRIOR, lam=0.3, variant=variant), logits, labels, torch.tensor(2.0)
    )


@each_loss
@pytest.mark.parametrize(("n", "num_classes"), [(252, 507), (1, 1003), (5000, 2), (1, 2), (33, 20_001)])
def test_awkward_sizes_are_as_defined(name, n, num_classes):
    assert_as_defined(made(name, num_classes), *sample(n, num_classes))


@each_loss
def test_a_batch_larger_than_the_caches_is_as_defined(name):
    logits, labels = sample(n=64, num_classes=3 * _cpu.BLOCK // 64)
    # Torch sums the 49,152 exponentials of a row in float32, eight at a time on a CPU without AVX-512.
    rounding = logits.shape[1] / 8 * torch.finfo(torch.float32).eps / 64
    assert_as_defined(made(name, logits.shape[1]), logits, labels, rtol=max(3e-6, rounding))


@given(
    st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
    st.lists(st.lists(st.floats(-1000, 1000, width=32), min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from(sorted(LOSSES)),
    st.data(),
)
def test_any_batch_is_as_defined(masses, rows, name, data):
    labels = data.draw(st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=len(rows), max_size=len(rows)))
    loss, logits, labels = LOSSES[name](Prior(masses)), torch.tensor(rows), torch.tensor(labels)
    value, gradient = value_and_gradient(loss, logits, labels)
    exact, exact_gradient = value_and_gradient(loss, logits.double(), labels)
    torch.testing.assert_close(value, exact.float(), rtol=1e-5, atol=1e-4)
    # A probability less 1 is as exact as the 1.
    assert_scaled(gradient, exact_gradient, 1e-3, atol=2 * torch.finfo(torch.float32).eps)


def assert_scaled(gradient, exact, rtol, atol=1e-12):
    """Equal but for a share of the largest entry."""
    torch.testing.assert_close(gradient.double(), exact, rtol=0, atol=rtol * exact.abs().max().item() + atol)


# Extremes


@each_path
@each_loss
@pytest.mark.parametrize("spread", [40.0, 100.0, 1000.0])
def test_scores_too_far_apart_for_one_exponential_are_as_defined(name, spread):
    logits, labels = sample(n=9, seed=3)
    logits += spread * torch.linspace(-1, 1, 5) + spread * torch.linspace(-1, 1, 9)[:, None]
    value, gradient = value_and_gradient(made(name), logits, labels)
    exact, exact_gradient = value_and_gradient(made(name), logits.double(), labels)
    torch.testing.assert_close(value, exact.float(), rtol=1e-5, atol=0)
    assert_scaled(gradient, exact_gradient, 1e-6 * spread)


@each_path
@each_loss
@pytest.mark.parametrize("variant", ["a score", "a row but its label"])
def test_scores_of_minus_infinity_are_as_defined(name, variant):
    logits, labels = sample(n=6)
    if variant == "a score":
        logits[0, labels[0] - 1] = -math.inf
    else:
        logits[0, torch.arange(5) != labels[0]] = -math.inf
    assert_as_defined(made(name), logits, labels)


@each_path
@pytest.mark.parametrize("name", ["lade", "logit-adjusted", "balanced softmax"])
def test_a_class_that_is_switched_off_and_absent_changes_nothing(name):
    logits, labels = sample(n=6)
    labels = labels.clamp(max=3)
    low, off = logits.clone(), logits.clone()
    low[:, 4], off[:, 4] = -200, -math.inf
    value, gradient = value_and_gradient(made(name), off, labels)
    expected, expected_gradient = value_and_gradient(made(name), low, labels)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@each_path
@each_loss
def test_a_label_whose_score_is_minus_infinity_costs_infinity(name):
    logits, labels = sample()
    logits[2, labels[2]] = -math.inf
    assert made(name)(logits, labels) == math.inf


@each_path
@each_loss
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_a_number_shows_in_loss_and_gradient(name, poison):
    logits, labels = sample()
    logits[2, 3] = poison
    value, gradient = value_and_gradient(made(name), logits, labels)
    assert value.isnan() and gradient[2].isnan().all()


@each_path
@each_loss
@pytest.mark.parametrize("dtype", SINGLE)
def test_what_stands_at_an_ignored_row_does_not_matter(name, dtype):
    logits, labels = sample(ignored=3, dtype=dtype)
    wild = logits.clone()
    wild[0], wild[1], wild[2] = math.nan, math.inf, -math.inf
    loss = made(name)
    value, gradient = value_and_gradient(loss, wild, labels)
    expected, expected_gradient = value_and_gradient(loss, logits, labels)
    assert torch.equal(value, expected) and torch.equal(gradient, expected_gradient)
    assert (gradient[:3] == 0).all()


@each_loss
def test_a_batch_of_which_nothing_counts_has_loss_and_gradient_zero(name):
    for size in (0, 7):
        logits, labels = torch.randn(size, 5), torch.full((size,), -100)
        value, gradient = value_and_gradient(made(name), logits, labels)
        assert value == 0 and torch.equal(gradient, torch.zeros_like(logits))


@each_lade
def test_rows_are_added_up_in_more_than_single_precision(name):
    logits = torch.full((300_000, 3), 1.1)
    labels = torch.arange(300_000) % 3
    value = made(name, 3)(logits, labels)
    assert value.item() == pytest.approx(made(name, 3)(logits.double(), labels).item(), rel=1e-5)


# Tensors as they come


@each_loss
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.repeat(2, 1)[::2].T.contiguous().T,
        lambda x: torch.cat([x, x], 1)[:, 3 : 3 + x.shape[1]],
        lambda x: x[:1].expand(len(x), -1),
        lambda x: x[:, :1].expand(-1, x.shape[1]),
    ],
    ids=["columns first", "a slice", "one row for all", "one score for all"],
)
@each_path
def test_strides_do_not_matter(name, view):
    logits, labels = sample()
    scores = view(logits).requires_grad_()
    (gradient,) = torch.autograd.grad(made(name)(scores, labels), scores)
    exact = value_and_gradient(made(name), scores.double().contiguous(), labels)[1]
    assert_scaled(gradient, exact, 1e-6)


@each_loss
@pytest.mark.parametrize("dtype", SINGLE)
def test_nothing_is_written_into_what_a_loss_is_given(name, dtype):
    logits, labels = sample(ignored=2, dtype=dtype)
    loss = made(name)
    log_prior = loss.source(logits)
    given_tensors = logits, labels, log_prior
    before = [tensor.clone() for tensor in given_tensors]
    versions = [tensor._version for tensor in given_tensors]
    value_and_gradient(loss, logits, labels)
    loss(logits.requires_grad_(), labels).backward()
    assert [tensor._version for tensor in given_tensors] == versions
    assert all(torch.equal(*pair) for pair in zip(given_tensors, before, strict=True))


class Allocations(TorchDispatchMode):
    """Sizes in bytes of what operations allocate."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given_ones = {address(tensor) for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        made_ones = [tensor for tensor in tree_leaves(result) if torch.is_tensor(tensor)]
        self.sizes += [x.untyped_storage().nbytes() for x in made_ones if address(x) not in given_ones]
        return result


def address(tensor):
    return tensor.untyped_storage().data_ptr()


@each_loss
@pytest.mark.parametrize("dtype", SINGLE)
def test_the_gradient_alone_is_as_large_as_the_logits(name, dtype, monkeypatch):
    monkeypatch.setattr(_cpu, "BLOCK", 8 * 500)
    logits, labels = sample(n=200, num_classes=500, dtype=dtype)
    logits.requires_grad_()
    loss = made(name, 500)
    loss.source(logits)
    if numba := _fused._numba():
        monkeypatch.setattr(numba, "large_empty", torch.empty)
    with Allocations() as allocations:
        loss(logits, labels).backward()
    large = [size for size in allocations.sizes if size > 0.1 * logits.nbytes]
    assert large == [logits.nbytes]


@each_loss
def test_without_a_gradient_nothing_is_as_large_as_the_logits(name, monkeypatch):
    monkeypatch.setattr(_cpu, "BLOCK", 8 * 500)
    logits, labels = sample(n=200, num_classes=500)
    with Allocations() as allocations:
        made(name, 500)(logits, labels)
    assert max(allocations.sizes) < 0.1 * logits.nbytes


@each_loss
def test_the_same_batch_gives_the_same_bits(name):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        logits, labels = sample(n=64, num_classes=9_000)
        loss = made(name, 9_000)
        value, gradient = value_and_gradient(loss, logits, labels)
        for _ in range(3):
            again, gradient_again = value_and_gradient(loss, logits, labels)
            assert torch.equal(value, again) and torch.equal(gradient, gradient_again)
    finally:
        torch.set_num_threads(threads)


# Autograd


@each_path
@each_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_gradient_can_be_differentiated(name, reduction):
    def second(logits):
        logits = logits.clone().requires_grad_()
        value = made(name, reduction=reduction)(logits, labels).square().sum()
        (first,) = torch.autograd.grad(value, logits, create_graph=True)
        return torch.autograd.grad(first.square().sum(), logits)[0]

    logits, labels = sample(ignored=1)
    exact = second(logits.double())
    assert exact.abs().max() > 1e-3
    assert_scaled(second(logits), exact, 1e-5)


@each_path
@each_loss
def test_a_kept_graph_gives_its_gradient_again(name):
    logits, labels = sample()
    logits.requires_grad_()
    value = made(name)(logits, labels)
    value.backward(retain_graph=True)
    first = logits.grad.clone()
    value.backward(2 * torch.ones(()))
    torch.testing.assert_close(logits.grad, 3 * first)


@each_loss
def test_one_module_may_be_used_twice_in_a_graph_and_over_several_batches(name):
    loss = made(name)
    (first, y1), (second, y2) = sample(), sample(seed=1, n=4)
    leaf = torch.ones(5, requires_grad=True)
    (loss(first * leaf, y1) + 2 * loss(second * leaf, y2)).backward()
    together, leaf.grad = leaf.grad, None
    loss(first * leaf, y1).backward()
    (2 * loss(second * leaf, y2)).backward()
    torch.testing.assert_close(leaf.grad, together)


@each_loss
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoints_change_nothing(name, use_reentrant):
    loss, layer = made(name), nn.Linear(5, 5)
    inputs, labels = sample()

    def gradient(run):
        layer.zero_grad()
        run(inputs.requires_grad_()).backward()
        return layer.weight.grad

    def forward(x):
        return loss(layer(x), labels)

    expected = gradient(forward).clone()
    assert torch.equal(gradient(lambda x: checkpoint(forward, x, use_reentrant=use_reentrant)), expected)


@each_loss
@pytest.mark.parametrize("dtype", SINGLE)
def test_autocast_changes_no_bit(name, dtype):
    logits, labels = sample(dtype=dtype)
    expected = value_and_gradient(made(name), logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value_and_gradient(made(name), logits, labels)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@each_loss
def test_without_a_gradient_the_value_is_the_same(name):
    logits, labels = sample()
    expected = made(name)(logits.clone().requires_grad_(), labels)
    assert not made(name)(logits, labels).requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(made(name)(logits, labels), expected)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script. is deprecated:FutureWarning",  # torch's own
    "ignore:.*torch.jit.script. is deprecated:DeprecationWarning",  # of torch 2.11
)
@each_loss
def test_transforms_of_functions_work(name):
    logits, labels = sample()
    loss = made(name)
    exact, exact_gradient = value_and_gradient(loss, logits.double(), labels)
    found = torch.func.grad(loss)(logits, labels)
    assert_scaled(found, exact_gradient, 1e-6)
    stacked = torch.func.vmap(loss)(torch.stack([logits, logits + 1]), torch.stack([labels, labels]))
    torch.testing.assert_close(stacked[0], exact.float())
    direction = torch.ones_like(logits).cumsum(1)
    expected = (exact_gradient * direction).sum().float()
    for slope in (
        torch.func.jvp(lambda f: loss(f, labels), (logits,), (direction,))[1],
        forward_derivative(loss, logits, labels, direction),
    ):
        torch.testing.assert_close(slope.float(), expected, rtol=1e-5, atol=1e-6)


def forward_derivative(loss, logits, labels, direction):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(logits, direction)
        return torch.autograd.forward_ad.unpack_dual(loss(dual, labels)).tangent


@each_loss
def test_a_compiled_model_gives_the_same(name):
    logits, labels = sample(ignored=1)
    loss = made(name)
    expected, expected_gradient = value_and_gradient(loss, logits, labels)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value, gradient = value_and_gradient(compiled, logits, labels)
    torch._dynamo.reset()
    torch.testing.assert_close(value, expected)
    assert_scaled(gradient, expected_gradient.double(), 1e-6)


def test_a_prior_that_is_trained_gets_its_gradient():
    logits, labels = sample()
    log_prior = LOG_PRIOR.float().requires_grad_()
    assert not kernels.support(logits, log_prior)
    lade_loss(logits, labels, log_prior, alpha=0.5, lam=0.3).backward()
    assert log_prior.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_other_dtypes_go_by_the_definition(dtype):
    assert not kernels.support(torch.zeros(2, 5, dtype=dtype), LOG_PRIOR)


@each_loss
def test_a_label_out_of_range_is_refused(name):
    logits, labels = sample()
    for wrong in (5, -1):
        labels[3] = wrong
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            made(name)(logits, labels)


# By Numba


@pytest.fixture
def taken(monkeypatch):
    """Whether Numba took each batch."""
    numba, answers = pytest.importorskip("priorshift.kernels._numba"), []

    def forward(*args):
        answers.append(found := numba_forward(*args))
        return found

    numba_forward = numba.forward
    monkeypatch.setattr(numba, "forward", forward)
    return lambda: [found is not None for found in answers]


compiled_alone = pytest.mark.parametrize("path", ["compiled"], indirect=True)


@compiled_alone
@each_loss
def test_numba_takes_what_fits(name, taken):
    loss = made(name)
    value_and_gradient(loss, *sample(ignored=2))
    loss(*sample())
    assert taken() == [True, True]


@compiled_alone
@each_loss
def test_numba_leaves_what_does_not_fit(name, taken):
    loss, (logits, labels) = made(name), sample()
    loss(logits.T.contiguous().T, labels)
    loss(logits.half(), labels)
    loss(logits[:0], labels[:0])
    logits[0] += torch.tensor([0.0, 0, 0, 0, 200])
    logits[0, labels[0]] = math.nan
    loss(logits, labels)
    assert taken() == [False] * 4


@compiled_alone
@each_loss
def test_numba_leaves_large_batches_to_several_threads(name, taken, monkeypatch):
    numba = pytest.importorskip("priorshift.kernels._numba")
    loss, (logits, labels) = made(name), sample(n=200)
    for few, threads in ((2000, 1), (2000, 2), (2000, 4), (100, 1), (100, 2), (100, 4)):
        monkeypatch.setattr(numba, "FEW", few)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert_as_defined(loss, logits, labels)
    assert taken() == [True, True, True, True, True, False]


@compiled_alone
def test_its_exponential_is_right_to_a_rounding():
    numba = pytest.importorskip("priorshift.kernels._numba")
    x = np.concatenate([np.linspace(-87.3, 88, 400_001), [0, -0.0, 1e-30]]).astype(np.float32)
    found = np.array([numba._exp(value) for value in x[::37]], dtype=np.float64)
    np.testing.assert_allclose(found, np.exp(x[::37].astype(np.float64)), rtol=2e-7)
    assert math.isnan(numba._exp(np.float32(math.nan)))
    assert 0 < numba._exp(np.float32(-math.inf)) < 1.3e-38


@compiled_alone
def test_its_maximum_is_that_of_any_floats():
    largest = pytest.importorskip("priorshift.kernels._numba")._largest
    for row in ([-3.5, -0.0, -1e-40], [2.0, math.inf, 1.0], [-math.inf, -7.0], [-math.inf, -math.inf], [0.0]):
        assert largest(np.array(row, np.float32)) == max(np.float32(row))


@compiled_alone
@pytest.mark.parametrize("classes", [3, 10, 17, 100])
def test_where_arrays_lie_changes_no_bit(classes):
    numba = pytest.importorskip("priorshift.kernels._numba")
    generator, rows = np.random.default_rng(0), 64
    scores = generator.normal(size=(rows, classes)).astype(np.float32)
    masses, share = generator.uniform(0.1, 1, (2, classes)).astype(np.float32)
    log_prior, label = np.full(classes, -1.5, np.float32), np.zeros(rows, np.int64)

    def found(gap):
        """All that the sweep and the gradient write, where the prior lies close behind the exponentials."""
        memory = np.empty((rows + 1) * classes + gap, np.float32)
        kept, tilt = memory[: rows * classes].reshape(rows, classes), memory[rows * classes + gap :]
        tilt[:] = masses
        of_rows, sums = np.empty((4, rows), np.float32), np.empty(classes)
        numba._sweep(scores, label, -100, log_prior, np.float32(0), tilt, kept, *of_rows, sums, True)
        exponentials = kept.copy()
        by_loss, by_own = np.linspace(-1, 1, rows, dtype=np.float32), np.ones(classes, np.float32)
        numba._write(kept, label, -100, *of_rows[:3], tilt, by_own, share, by_loss, True)
        return b"".join(x.tobytes() for x in (exponentials, of_rows, sums, kept))

    assert len({found(gap) for gap in range(100)}) == 1


@compiled_alone
@pytest.mark.parametrize("error", [ImportError("Numba needs NumPy 2.0 or less"), ModuleNotFoundError()])
@each_loss
def test_without_numba_the_losses_are_the_same(name, error, monkeypatch):
    def no_module(name):
        raise error

    expected = value_and_gradient(made(name), *sample())
    monkeypatch.setattr(_fused, "_numba", _fused._numba.__wrapped__)
    monkeypatch.setattr(_fused, "import_module", no_module)
    found = value_and_gradient(made(name), *sample())
    for pair in zip(found, expected, strict=True):
        torch.testing.assert_close(*pair)


# Several ranks


class Ranks:
    """Two ranks as threads: what the losses need of a process group, and the messages that are sent."""

    def __init__(self, monkeypatch):
        self.rank = threading.local()
        self.barrier = threading.Barrier(2, timeout=20)
        self.slots = [None, None]
        self.sizes = [[], []]
        monkeypatch.setattr(torch.distributed, "all_reduce", self.all_reduce)

    def size(self):
        return 2

    def all_reduce(self, tensor, op=torch.distributed.ReduceOp.SUM, group=None):
        assert group is self
        self.sizes[self.rank.number].append(tensor.nbytes)
        self.slots[self.rank.number] = tensor.clone()
        self.barrier.wait()
        combine = torch.maximum if op == torch.distributed.ReduceOp.MAX else torch.add
        result = combine(*self.slots)
        self.barrier.wait()
        tensor.copy_(result)

    def run(self, work):
        """The results of `work(rank)` in a thread for each."""
        results = [None, None]

        def of_rank(number):
            self.rank.number = number
            try:
                results[number] = work(number)
            except BaseException:
                self.barrier.abort()
                raise

        threads = [threading.Thread(target=of_rank, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@each_loss
@pytest.mark.parametrize("split", [6, 3, 0], ids=["even", "uneven", "one rank without rows"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ranks_together_give_the_loss_and_the_gradient_of_one(monkeypatch, name, split, reduction):
    ranks, loss = Ranks(monkeypatch), made(name, reduction=reduction)
    shards = [slice(0, split), slice(split, 12)]
    for ignored in (0, 4, 12):
        logits, labels = sample(n=12, ignored=ignored)
        exact, exact_gradient = value_and_gradient(loss, logits.double(), labels)
        parts = [(logits[shard], labels[shard]) for shard in shards]
        results = ranks.run(partial(cost_of_rank, partial(loss, process_group=ranks), parts))
        share = 2 if reduction == "mean" else 1
        values, gradients = zip(*results, strict=True)
        torch.testing.assert_close(sum(values) / share, exact.float(), rtol=3e-6, atol=1e-6)
        assert_scaled(torch.cat(gradients) / share, exact_gradient, 3e-6)


def cost_of_rank(loss, parts, rank):
    return value_and_gradient(loss, *parts[rank])


@each_lade
def test_what_lade_sends_is_a_few_numbers_for_each_class_and_one_for_the_gradient(monkeypatch, name):
    logits, labels = sample(n=12)
    ranks = Ranks(monkeypatch)
    loss = partial(made(name), process_group=ranks)
    ranks.run(lambda rank: value_and_gradient(loss, logits[rank::2], labels[rank::2]))
    classes = len(COUNTS)
    assert ranks.sizes == [[4 * classes, 3 * 8 * classes, 4]] * 2
