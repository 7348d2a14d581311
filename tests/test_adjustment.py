import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

import references
from kinds import column_names, every_kind_of, every_named_kind, exact, kinds_of
from priorshift import Prior, adjust, adjust_probs, logit_adjust
from priorshift.adjustment import TAUS, adjust_sigmoid, best_tau, tune_tau

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


# Every kind of array and table


@every_operation
@every_kind_of("scores")
def test_logits_of_every_kind_come_back_in_kind(operation, kind):
    logits = exact(scores(6, 3))
    given = kind(logits)
    found = operation(given)
    kind.require_same(found, given)
    np.testing.assert_allclose(kind.numbers(found), operation(logits), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(kind.numbers(given), logits)


@every_kind_of("scores")
def test_log_odds_of_every_kind_come_back_in_kind(kind):
    logits = exact(scores(6, 3))
    given = kind(logits)
    found = adjust_sigmoid(given, carried=CARRIED, target=[0.0, 0.3, 1.0])
    kind.require_same(found, given)
    expected = adjust_sigmoid(logits, carried=CARRIED, target=[0.0, 0.3, 1.0])
    np.testing.assert_allclose(kind.numbers(found), expected, rtol=1e-6)


@every_kind_of("scores")
@pytest.mark.parametrize("target", [TARGET, [0.5, 0.0, 0.5]])
def test_probabilities_of_every_kind_come_back_in_kind(kind, target):
    probs = np.array([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0], [0.0, 0.0, 1.0], [0.125, 0.0, 0.875]])
    given = kind(probs)
    found = adjust_probs(given, carried=CARRIED, target=target)
    kind.require_same(found, given)
    expected = probs * target / CARRIED
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(kind.numbers(found), expected, rtol=1e-5)
    np.testing.assert_array_equal(kind.numbers(given), probs)


@every_kind_of("vector")
def test_the_probability_of_the_positive_class_comes_back_in_kind(kind):
    probs = np.array([0.5, 0.0, 1.0, 0.125])
    given = kind(probs)
    found = adjust_probs(given, carried=0.25, target=0.0625)
    kind.require_same(found, given)
    np.testing.assert_allclose(kind.numbers(found), [1 / 6, 0, 1, 1 / 36], rtol=1e-6)


@every_kind_of("vector")
def test_priors_of_every_kind_are_read(kind):
    logits, weights = scores(4, 3), np.array([0.5, 0.25, 0.25])
    found = adjust(logits, carried=kind(weights), target=kind(weights[::-1].copy()))
    np.testing.assert_array_equal(found, adjust(logits, carried=weights, target=weights[::-1]))
    np.testing.assert_array_equal(logit_adjust(logits, kind(weights)), logit_adjust(logits, weights))
    odds = adjust_sigmoid(logits, carried=kind(weights), target=0.5)
    np.testing.assert_array_equal(odds, adjust_sigmoid(logits, carried=weights, target=0.5))


@every_kind_of("labels")
def test_a_strength_is_chosen_on_labels_of_every_kind(kind):
    logits = np.array([[2.0, 0.0], [2.0, 1.0], [1.0, 0.5], [3.0, 0.0]])
    assert tune_tau(logits, kind(np.array([0, 0, 1, 0])), [0.9, 0.1]) == 0.3


@every_kind_of("scores")
def test_a_strength_is_chosen_on_scores_of_every_kind(kind):
    logits = np.array([[2.0, 0.0], [2.0, 1.0], [1.0, 0.5], [3.0, 0.0]])
    assert tune_tau(kind(logits), [0, 0, 1, 0], [0.9, 0.1]) == 0.3
    offset = np.log([0.9, 0.1])
    assert best_tau(lambda tau: kind(exact(logits - tau * offset)), [0, 0, 1, 0]) == 0.3


@every_named_kind
@pytest.mark.parametrize("function", [adjust, adjust_probs])
@pytest.mark.parametrize("table", [kind for kind in kinds_of("scores") if kind.table], ids=lambda k: k.name)
def test_priors_are_matched_to_the_columns_by_name(kind, function, table):
    values = np.array([[0.5, 0.25, 0.25], [0.0, 0.25, 0.75]]) - (function is adjust)
    names = column_names(3)
    found = function(table(values), carried=kind(CARRIED, names), target=kind(TARGET, names))
    expected = function(values, carried=CARRIED, target=TARGET)
    np.testing.assert_allclose(table.numbers(found), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="`target` to name the same classes"):
        function(table(values), carried=CARRIED, target=kind(TARGET, ["class 0", "class 1", "klass 2"]))


@every_named_kind
def test_priors_are_matched_to_each_other_by_name(kind):
    logits, carried = scores(4, 3), Prior(CARRIED, names=["cat", "dog", "owl"])
    found = adjust(logits, carried=carried, target=kind(TARGET, ["cat", "dog", "owl"]))
    np.testing.assert_array_equal(found, adjust(logits, carried=CARRIED, target=TARGET))


@every_named_kind
def test_rates_are_matched_to_the_columns_by_name(kind):
    pd = pytest.importorskip("pandas")
    if not isinstance(made := kind(CARRIED, ["rain", "snow", "wind"]), dict | pd.Series):
        pytest.skip("rates by name are a mapping or a Series")
    table = pd.DataFrame(scores(4, 3), columns=["rain", "snow", "wind"])
    found = adjust_sigmoid(table, carried=made, target=0.5)
    np.testing.assert_array_equal(found, adjust_sigmoid(table.to_numpy(), carried=CARRIED, target=0.5))


# Torch beyond plain tensors

TORCH_OPERATIONS = {
    **OPERATIONS,
    "adjust_sigmoid": lambda logits: adjust_sigmoid(logits, carried=CARRIED, target=[0.0, 0.5, 0.3]),
    "adjust_probs": lambda logits: adjust_probs(logits.softmax(-1), carried=CARRIED, target=TARGET),
}
every_torch_operation = pytest.mark.parametrize(
    "operation", TORCH_OPERATIONS.values(), ids=TORCH_OPERATIONS.keys()
)


@every_torch_operation
def test_vmap_and_jacobians_see_through(operation):
    logits = torch.tensor(scores(4, 3))
    mapped = torch.vmap(lambda row: operation(row[None])[0])(logits)
    torch.testing.assert_close(mapped, operation(logits))
    jacobian = torch.func.jacrev(lambda row: operation(row[None])[0])(logits[0])
    numeric = torch.autograd.functional.jacobian(lambda row: operation(row[None])[0], logits[0])
    torch.testing.assert_close(jacobian, numeric)


@every_torch_operation
def test_a_compiler_sees_through(operation):
    logits = torch.tensor(scores(4, 3))
    compiled = torch.compile(lambda x: operation(x) * 2, backend="eager")
    torch.testing.assert_close(compiled(logits), operation(logits) * 2)


@pytest.mark.parametrize("target", [TARGET, [0.5, 0.0, 0.5], [1e-30, 0.5, 0.5]])
def test_gradients_of_probabilities_are_those_of_the_logits(target):
    logits = torch.tensor(scores(4, 3), requires_grad=True)
    through_probs = adjust_probs(logits.softmax(1), carried=CARRIED, target=target)
    through_logits = adjust(logits, carried=CARRIED, target=target).softmax(1)
    for column in range(3):
        one, other = (
            torch.autograd.grad(found[:, column].sum(), logits, retain_graph=True)[0]
            for found in (through_probs, through_logits)
        )
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


# Probabilities


@given(logits_and_two_priors())
def test_adjusted_probabilities_are_the_softmax_of_adjusted_logits(case):
    logits, a, b = case
    found = adjust_probs(softmax(logits, axis=1), carried=a, target=b)
    expected = softmax(adjust(logits - logits.min() - 100, carried=a, target=b), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


@given(logits_and_two_priors())
def test_probabilities_there_and_back_are_the_same(case):
    logits, a, b = case
    probs = softmax(logits, axis=1)
    there = adjust_probs(probs, carried=a, target=b)
    np.testing.assert_allclose(adjust_probs(there, carried=b, target=a), probs, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("target", [[1e-300, 0.5, 0.5], [0.0, 0.5, 0.5], [0.5, 1e-12, 0.5]])
@pytest.mark.parametrize("convert", [np.array, torch.tensor])
def test_tiny_probabilities_of_classes_that_the_target_leaves_are_not_lost(target, convert):
    tiny = np.array([[1.0, 3e-30, 1e-30]])
    prior = Prior.from_log_probs([-800.0, *np.log(target[1:])]) if target[0] == 1e-300 else Prior(target)
    found = np.asarray(adjust_probs(convert(tiny), carried=CARRIED, target=prior))
    logs = np.log(tiny) - np.log(CARRIED) + prior.log_probs
    np.testing.assert_allclose(found, softmax(logs, axis=1), rtol=1e-10)


def test_zeros_stay_zero_and_every_row_sums_to_one():
    probs = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.999, 0.0005, 0.0]])
    for target in (TARGET, [0.4, 0.6, 0.0]):
        found = adjust_probs(probs, carried=CARRIED, target=target)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-14)
        assert (found[probs == 0] == 0).all()


def test_one_sample_and_maps_of_probabilities_are_moved_like_rows():
    probs = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 4, 5))
    moved = adjust_probs(np.moveaxis(probs, -1, 1), carried=CARRIED, target=TARGET)
    assert moved.shape == (2, 3, 4, 5)
    for i, j, k in np.ndindex(2, 4, 5):
        one = adjust_probs(probs[i, j, k], carried=CARRIED, target=TARGET)
        np.testing.assert_allclose(moved[i, :, j, k], one, rtol=1e-14)


@given(st.floats(0, 1), st.floats(1e-6, 1 - 1e-6), st.floats(1e-6, 1 - 1e-6))
def test_a_positive_rate_is_the_two_class_case(prob, carried, target):
    both = adjust_probs(
        np.array([[1 - prob, prob]]), carried=[1 - carried, carried], target=[1 - target, target]
    )
    one = adjust_probs(np.array([prob]), carried=carried, target=target)
    np.testing.assert_allclose(one, both[:, 1], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("target", "expected"), [(0.0, [0.0, 0.0]), (1.0, [1.0, 1.0])])
def test_rates_of_zero_and_one_are_certain(target, expected):
    assert adjust_probs([0.3, 0.9], carried=0.2, target=target).tolist() == expected
    column = adjust_probs([[0.3], [0.9]], carried=0.2, target=np.float64(target))
    assert column.tolist() == [[value] for value in expected]


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


LOGITS, PROBS = np.zeros((4, 3)), np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])
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
        "`logits` to be real numbers",
        "complex128",
    ),
    "list of whole numbers": (
        lambda: adjust([[0, 0, 0]], carried=CARRIED, target=TARGET),
        TypeError,
        "`logits` to be floating",
        "int64",
    ),
    "text": (
        lambda: adjust("logits", carried=CARRIED, target=TARGET),
        TypeError,
        "`logits` to be real numbers",
        "'logits'",
    ),
    "probabilities": (
        lambda: adjust(PROBS, carried=CARRIED, target=TARGET),
        ValueError,
        "`logits` to be logits or log-probabilities",
        "`adjust_probs`",
    ),
    "probabilities of a tensor": (
        lambda: logit_adjust(torch.tensor(PROBS), CARRIED),
        ValueError,
        "`logits` to be logits or log-probabilities",
        "`adjust_probs`",
    ),
    "probabilities of one sample": (
        lambda: adjust(PROBS[0], carried=CARRIED, target=TARGET),
        ValueError,
        "`logits` to be logits or log-probabilities",
        "`adjust_probs`",
    ),
    "one-hot labels": (
        lambda: adjust(np.eye(3), carried=CARRIED, target=TARGET),
        ValueError,
        "`logits` to be logits or log-probabilities",
        "sums to 1",
    ),
    "probabilities of a map": (
        lambda: adjust(PROBS.T[None], carried=CARRIED, target=TARGET),
        ValueError,
        "`logits` to be logits or log-probabilities",
        "sums to 1",
    ),
    "logits as probabilities": (
        lambda: adjust_probs(scores(4, 3), carried=CARRIED, target=TARGET),
        ValueError,
        "`probs` between 0 and 1 with rows that sum to 1",
        "softmax",
    ),
    "log-probabilities as probabilities": (
        lambda: adjust_probs(torch.tensor(PROBS).log(), carried=CARRIED, target=TARGET),
        ValueError,
        "`probs` between 0 and 1",
        "`exp`",
    ),
    "percentages": (
        lambda: adjust_probs(100 * PROBS, carried=CARRIED, target=TARGET),
        ValueError,
        "`probs` between 0 and 1",
        "divide by 100",
    ),
    "missing probabilities": (
        lambda: adjust_probs(np.full((2, 3), np.nan), carried=CARRIED, target=TARGET),
        ValueError,
        "`probs` between 0 and 1",
        "nan",
    ),
    "a sample that the target rules out": (
        lambda: adjust_probs([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]], carried=CARRIED, target=[0.5, 0.0, 0.5]),
        ValueError,
        "`target` to leave every sample a possible class",
        "row 1 of `probs`",
    ),
    "a positive where there are none": (
        lambda: adjust_probs([0.2, 1.0], carried=0.5, target=0.0),
        ValueError,
        "`target` to leave every sample a possible class",
        "row 1 of `probs`",
    ),
    "logits of positives": (
        lambda: adjust_probs([0.2, -1.5], carried=0.5, target=0.1),
        ValueError,
        "`probs` between 0 and 1",
        "-1.5 for sample 1",
    ),
    "rates for two classes": (
        lambda: adjust_probs([[0.2, 0.8]], carried=0.5, target=0.1),
        ValueError,
        "`carried` and `target` with one entry per class, 2",
        "[N] or [N, 1]",
    ),
    "a rate and a prior": (
        lambda: adjust_probs([[0.2, 0.8]], carried=0.5, target=[0.1, 0.9]),
        ValueError,
        "`carried` with one entry per class",
        "()",
    ),
    "a carried rate of zero": (
        lambda: adjust_probs([0.2, 0.8], carried=0.0, target=0.1),
        ValueError,
        "`carried` above 0 and below 1",
        "got 0",
    ),
    "other names": (
        lambda: adjust(
            LOGITS, carried=Prior(CARRIED, names=list("abc")), target=Prior(TARGET, names=list("abd"))
        ),
        ValueError,
        "`target` to name the same classes",
        "'d'",
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
    with pytest.raises(error, match=f"(?s){re.escape(rule)}.*{re.escape(value)}"):
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
