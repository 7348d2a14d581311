import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import references
from priorshift import Prior, adjust, logit_adjust
from priorshift.adjustment import TAUS, tune_tau

CARRIED, TARGET = [0.7, 0.2, 0.1], [0.1, 0.3, 0.6]
SHAPES = [(3,), (4, 3), (2, 3, 5), (2, 3, 4, 5)]
OPERATIONS = {
    "adjust": lambda logits: adjust(logits, carried=CARRIED, target=TARGET),
    "adjust to a zero": lambda logits: adjust(logits, carried=CARRIED, target=[0.5, 0.0, 0.5]),
    "logit_adjust": lambda logits: logit_adjust(logits, CARRIED, tau=1.3),
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())


def scores(*shape):
    return np.random.default_rng(0).normal(scale=3, size=shape)


@st.composite
def logits_and_two_priors(draw):
    num_classes = draw(st.integers(2, 12))
    mass = st.lists(st.floats(1e-4, 1.0), min_size=num_classes, max_size=num_classes)
    logits = st.lists(st.floats(-50, 50), min_size=num_classes, max_size=num_classes)
    return np.array([draw(logits), draw(logits)]), Prior(draw(mass)), Prior(draw(mass))


@every_operation
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numpy_and_torch_give_the_same_numbers(operation, shape, dtype):
    array = scores(*shape).astype(dtype)
    from_array, from_tensor = operation(array), operation(torch.from_numpy(array))
    assert isinstance(from_array, np.ndarray)
    assert isinstance(from_tensor, torch.Tensor)
    assert from_array.shape == from_tensor.shape == shape
    np.testing.assert_array_equal(from_array, from_tensor.numpy())


@every_operation
@pytest.mark.parametrize(
    ("given_dtype", "returned"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_tensors_come_back_at_least_in_float32(operation, given_dtype, returned):
    assert operation(torch.zeros(4, 3, dtype=given_dtype)).dtype == returned


@every_operation
@pytest.mark.parametrize(("given_dtype", "returned"), [("f2", "f4"), ("f4", "f4"), ("f8", "f8")])
def test_arrays_come_back_at_least_in_float32(operation, given_dtype, returned):
    assert operation(np.zeros((4, 3), given_dtype)).dtype == returned


def read_only(array):
    array.flags.writeable = False
    return array


@every_operation
@pytest.mark.parametrize(
    "view",
    [
        np.asfortranarray,
        lambda x: x[::-1],
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x[:0],
        lambda x: read_only(x.copy()),
        lambda x: x.astype(">f4"),
    ],
    ids=[
        "columns first",
        "reversed",
        "every second class",
        "no rows",
        "read-only",
        "big-endian",
    ],
)
def test_arrays_of_any_layout_give_the_same_numbers(operation, view, recwarn):
    array = view(scores(5, 3).astype(np.float32))
    found = operation(array)
    np.testing.assert_array_equal(found, operation(np.array(array, np.float32, order="C")))
    assert not recwarn.list


@every_operation
@pytest.mark.parametrize("convert", [np.array, torch.tensor])
def test_the_input_is_never_modified(operation, convert):
    logits = convert(scores(4, 3))
    before = scores(4, 3)
    moved = operation(logits)
    moved[:] = 0.0
    np.testing.assert_array_equal(logits, before)


@every_operation
def test_every_position_of_a_map_is_moved_like_a_row(operation):
    logits = scores(2, 3, 4, 5)
    moved = operation(logits)
    for i, j, k in np.ndindex(2, 4, 5):
        np.testing.assert_array_equal(moved[i, :, j, k], operation(logits[i, :, j, k]))


@every_operation
def test_gradients_pass_through_unchanged(operation):
    logits = torch.tensor(scores(4, 3), requires_grad=True)
    moved = operation(logits)
    moved[moved.isfinite()].sum().backward()
    assert torch.equal(logits.grad, moved.isfinite().double())


def test_adjust_follows_the_formula():
    logits = scores(6, 3)
    expected = references.adjust(logits, CARRIED, TARGET)
    np.testing.assert_allclose(
        adjust(logits, carried=CARRIED, target=TARGET), expected, rtol=1e-14, atol=1e-14
    )


@given(logits_and_two_priors())
def test_moving_there_and_back_is_the_identity(case):
    logits, a, b = case
    there_and_back = adjust(adjust(logits, carried=a, target=b), carried=b, target=a)
    np.testing.assert_allclose(there_and_back, logits, rtol=1e-12, atol=1e-13)


@given(logits_and_two_priors())
def test_moving_to_the_carried_prior_returns_the_logits(case):
    logits, a, _ = case
    np.testing.assert_array_equal(adjust(logits, carried=a, target=a), logits)


@given(logits_and_two_priors())
def test_an_intermediate_stop_changes_nothing(case):
    logits, a, b = case
    stop = Prior.uniform(a.num_classes)
    by_way = adjust(adjust(logits, carried=a, target=stop), carried=stop, target=b)
    np.testing.assert_allclose(by_way, adjust(logits, carried=a, target=b), rtol=1e-12, atol=1e-12)


@given(logits_and_two_priors())
def test_permuting_the_classes_permutes_the_result(case):
    logits, a, b = case
    order = np.random.default_rng(0).permutation(a.num_classes)
    permuted = adjust(logits[:, order], carried=a.probs[order], target=b.probs[order])
    np.testing.assert_allclose(
        permuted, adjust(logits, carried=a, target=b)[:, order], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("seed", range(5))
def test_source_posteriors_become_target_posteriors(seed):
    """LADE, Theorem 1: p(x|y) is a table, both posteriors are Bayes' rule on it."""
    generator = np.random.default_rng(seed)
    likelihood = generator.dirichlet(np.ones(9), size=4).T
    source, target = generator.dirichlet(np.ones(4)), generator.dirichlet(np.ones(4))
    constants = generator.normal(scale=20, size=(9, 1))
    logits = np.log(references.bayes_posterior(likelihood, source)) + constants

    moved = adjust(logits, carried=source, target=target)

    offsets = moved - np.log(references.bayes_posterior(likelihood, target))
    np.testing.assert_allclose(offsets, np.broadcast_to(offsets[:, :1], (9, 4)), rtol=0, atol=1e-12)
    assert np.ptp(offsets[:, 0]) > 1


def test_a_class_absent_from_the_source_posterior_of_a_sample_stays_absent():
    moved = adjust(torch.tensor([[0.0, -math.inf, 1.0]]), carried=CARRIED, target=TARGET)
    assert moved.softmax(dim=1)[0, 1].item() == 0.0


@pytest.mark.parametrize("extreme", [0.0, 1e4, -1e4, math.inf, -math.inf])
@pytest.mark.parametrize("convert", [np.array, torch.tensor])
def test_a_target_of_zero_mass_gets_probability_exactly_zero(extreme, convert):
    logits = convert([[1.0, extreme, 2.0]])
    moved = torch.as_tensor(adjust(logits, carried=CARRIED, target=[0.5, 0.0, 0.5]))
    probs = moved.softmax(dim=1)
    assert probs[0, 1].item() == 0.0
    assert probs[0].isfinite().all()
    assert probs[0].sum().item() == pytest.approx(1)


def test_a_target_of_a_single_class_has_probability_one():
    moved = adjust(torch.tensor([[-1e4, 1e4, 0.0]]), carried=CARRIED, target=[1.0, 0.0, 0.0])
    assert moved.softmax(dim=1).tolist() == [[1.0, 0.0, 0.0]]


def test_a_carried_prior_is_normalised_before_it_is_subtracted():
    logits = scores(4, 3)
    np.testing.assert_allclose(
        adjust(logits, carried=[700, 200, 100], target=torch.tensor([1, 3, 6])),
        adjust(logits, carried=CARRIED, target=TARGET),
        rtol=1e-14,
    )


@pytest.mark.parametrize("tau", [-0.5, 0.0, 0.5, 1.0, 1.7])
def test_logit_adjust_subtracts_tau_log_prior(tau):
    logits = scores(6, 3)
    expected = [[f - tau * math.log(p) for f, p in zip(row, CARRIED, strict=True)] for row in logits]
    np.testing.assert_allclose(logit_adjust(logits, CARRIED, tau), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("convert", [np.array, torch.tensor])
def test_tau_zero_returns_the_logits(convert):
    logits = convert(scores(6, 3))
    np.testing.assert_array_equal(logit_adjust(logits, CARRIED, tau=0.0), scores(6, 3))


def test_tau_one_is_adjust_to_the_uniform_prior():
    logits = torch.tensor(scores(6, 3))
    adjusted = adjust(logits, carried=CARRIED, target=Prior.uniform(3)).softmax(dim=1)
    np.testing.assert_allclose(logit_adjust(logits, CARRIED).softmax(dim=1), adjusted, rtol=1e-13)


@given(logits_and_two_priors(), st.floats(-2, 2))
def test_logit_adjust_is_adjust_to_the_tempered_prior(case, tau):
    logits, prior, _ = case
    moved = adjust(logits, carried=prior, target=prior.tempered(1 - tau))
    offsets = logit_adjust(logits, prior, tau) - moved
    np.testing.assert_allclose(offsets, np.broadcast_to(offsets[:, :1], offsets.shape), rtol=0, atol=1e-11)


LOGITS = np.zeros((4, 3))
REFUSALS = {
    "carried zero": (
        lambda: adjust(LOGITS, carried=[1, 0, 2], target=TARGET),
        ValueError,
        "`carried` to be strictly positive",
        "class 1",
    ),
    "prior zero": (
        lambda: logit_adjust(LOGITS, [0, 0, 1]),
        ValueError,
        "`prior` to be strictly positive",
        "classes 0, 1",
    ),
    "carried short": (
        lambda: adjust(LOGITS, carried=[1, 2], target=TARGET),
        ValueError,
        "`carried` with one entry per class, 3",
        "got 2",
    ),
    "target long": (
        lambda: adjust(LOGITS, carried=CARRIED, target=Prior.uniform(4)),
        ValueError,
        "`target` with one entry per class, 3",
        "got 4",
    ),
    "prior long": (
        lambda: logit_adjust(LOGITS, Prior.uniform(4)),
        ValueError,
        "`prior` with one entry per class, 3",
        "got 4",
    ),
    "transposed": (
        lambda: adjust(LOGITS.T, carried=CARRIED, target=TARGET),
        ValueError,
        "one entry per class, 4",
        "got 3",
    ),
    "target of one": (
        lambda: adjust(LOGITS, carried=CARRIED, target=[1.0]),
        ValueError,
        "`target` with one entry per class",
        "(1,)",
    ),
    "negative target": (
        lambda: adjust(LOGITS, carried=CARRIED, target=[1, -2, 1]),
        ValueError,
        "`target` to be finite and non-negative",
        "-2.0",
    ),
    "integer array": (
        lambda: adjust(np.zeros((4, 3), int), carried=CARRIED, target=TARGET),
        TypeError,
        "`logits` to be floating",
        "int64",
    ),
    "integer tensor": (
        lambda: logit_adjust(torch.zeros(4, 3).int(), CARRIED),
        TypeError,
        "`logits` to be floating",
        "int32",
    ),
    "complex array": (
        lambda: logit_adjust(np.zeros((4, 3), complex), CARRIED),
        TypeError,
        "`logits` to be floating",
        "complex128",
    ),
    "list": (
        lambda: adjust([[0.0, 0.0, 0.0]], carried=CARRIED, target=TARGET),
        TypeError,
        "`logits` to be a torch tensor",
        "list",
    ),
    "scalar": (
        lambda: logit_adjust(torch.tensor(0.0), CARRIED),
        ValueError,
        "`logits` of shape [C], [N, C]",
        "scalar",
    ),
    "infinite tau": (
        lambda: logit_adjust(LOGITS, CARRIED, tau=math.inf),
        ValueError,
        "`tau` to be finite",
        "inf",
    ),
    "nan tau": (lambda: logit_adjust(LOGITS, CARRIED, tau=math.nan), ValueError, "`tau` to be finite", "nan"),
}


@pytest.mark.parametrize(("call", "error", "rule", "value"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_names_the_argument_the_rule_and_the_value(call, error, rule, value):
    with pytest.raises(error, match=f"{re.escape(rule)}.*{re.escape(value)}"):
        call()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0], r"one entry per row of logits, \(5,\), but got shape \(1,\)"),
        ([0, 1, 0, 1, 5], "`labels` between 0 and 1, but got 5"),
        ([], "candidate in `taus` and one sample in `labels`"),
    ],
)
def test_a_strength_cannot_be_chosen_on_labels_that_do_not_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        tune_tau(torch.zeros(5, 2), torch.tensor(labels, dtype=torch.int64), [0.9, 0.1])


def test_the_chosen_strength_is_the_first_of_the_lowest_balanced_error():
    torch.manual_seed(0)
    labels = torch.tensor([0] * 60 + [1] * 8)
    logits = torch.randn(68, 2) + torch.tensor([1.5, 0.0]) + 1.5 * torch.eye(2)[labels]
    errors = []
    for tau in TAUS:
        right = (logits - tau * torch.tensor([0.9, 0.1]).log()).argmax(1) == labels
        errors.append(1 - (right[:60].double().mean() + right[60:].double().mean()).item() / 2)
    best = min(range(len(TAUS)), key=lambda index: (round(errors[index], 9), index))
    assert 0 < best < len(TAUS) - 1
    assert tune_tau(logits, labels, [0.9, 0.1]) == TAUS[best]
