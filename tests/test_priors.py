import copy
import pickle
import re
from collections import Counter

import numpy as np
import pandas
import polars
import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from priorshift import Prior
from priorshift.priors import as_prior, count_labels, name_classes

MASSES = st.lists(st.floats(0.001, 1000.0), min_size=2, max_size=40)


@pytest.mark.parametrize(
    "convert",
    [
        list,
        tuple,
        np.array,
        lambda p: np.array(p[::-1])[::-1],
        lambda p: np.array(p).astype(">f8").astype("f8"),
        lambda p: torch.tensor(p, dtype=torch.float64),
        lambda p: torch.tensor(p, dtype=torch.float64, requires_grad=True),
        lambda p: torch.tensor([p, p], dtype=torch.float64).t().contiguous().t()[0],
    ],
    ids=[
        "list",
        "tuple",
        "numpy",
        "reversed numpy",
        "copied numpy",
        "torch",
        "torch with grad",
        "strided torch",
    ],
)
def test_every_kind_of_argument_gives_the_same_float64_prior(convert):
    prior = Prior(convert([0.7, 0.2, 0.1]))
    assert prior.probs.dtype == np.float64
    assert prior.probs.tolist() == [0.7, 0.2, 0.1]


@pytest.mark.parametrize("array", [np.array([3, 1]), np.array([3, 1], np.uint8), torch.tensor([3, 1])])
def test_whole_numbers_are_divided_by_their_sum(array):
    assert Prior(array).probs.tolist() == [0.75, 0.25]


def test_a_float32_argument_is_normalised_in_float64():
    masses = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float32)
    expected = masses.double().numpy() / masses.double().numpy().sum()
    assert np.array_equal(Prior(masses).probs, expected)
    assert np.array_equal(Prior(masses.numpy()).probs, expected)


def test_a_read_only_array_is_accepted_without_a_warning():
    masses = np.array([3.0, 1.0])
    masses.flags.writeable = False
    assert Prior(masses).probs.tolist() == [0.75, 0.25]


@given(MASSES, st.floats(1e-6, 1e6))
def test_any_multiple_of_a_distribution_is_that_distribution(masses, scale):
    expected = np.array(masses) / np.sum(masses)
    np.testing.assert_allclose(Prior(np.array(masses) * scale).probs, expected, rtol=1e-13)


@given(MASSES)
def test_the_probabilities_of_a_prior_give_the_same_prior_bit_for_bit(masses):
    prior = Prior(masses)
    again = Prior(prior.probs)
    assert again == prior
    assert np.array_equal(again.log_probs, prior.log_probs)


@given(MASSES)
def test_probabilities_sum_to_one_and_log_probs_are_their_logarithms(masses):
    prior = Prior(masses)
    assert abs(prior.probs.sum() - 1) < 1e-14
    np.testing.assert_allclose(prior.log_probs, np.log(prior.probs), rtol=1e-15)


def test_a_class_of_zero_mass_has_log_probability_minus_infinity():
    assert Prior([1.0, 0.0]).log_probs.tolist() == [0.0, -float("inf")]


def test_a_prior_shares_no_memory_with_its_argument():
    for masses in (np.array([0.5, 0.5]), torch.tensor([0.5, 0.5], dtype=torch.float64)):
        prior = Prior(masses)
        masses[0] = 9.0
        assert prior.probs.tolist() == [0.5, 0.5]


def test_what_a_prior_returns_cannot_be_written_to():
    for prior in (Prior.from_counts([3, 1]), pickle.loads(pickle.dumps(Prior.from_counts([3, 1])))):
        for array in (prior.probs, prior.log_probs, prior.counts):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 9
        assert prior.probs.tolist() == [0.75, 0.25]
        assert prior.counts.tolist() == [3, 1]


@pytest.mark.parametrize("attribute", ["probs", "log_probs", "counts", "num_classes", "names"])
def test_attributes_cannot_be_set(attribute):
    with pytest.raises(AttributeError):
        setattr(Prior([0.5, 0.5]), attribute, [1.0, 1.0])


def test_uniform_gives_every_class_the_same_mass():
    assert Prior.uniform(5).probs.tolist() == [0.2] * 5
    assert Prior.uniform(5).counts is None


def test_length_is_the_number_of_classes():
    assert len(Prior.uniform(7)) == Prior.uniform(7).num_classes == 7


def test_from_counts_keeps_the_counts():
    prior = Prior.from_counts(np.array([6, 3, 1]))
    assert prior.counts.dtype == np.int64
    assert prior.counts.tolist() == [6, 3, 1]
    assert prior.probs.tolist() == [0.6, 0.3, 0.1]


def test_from_counts_is_exact_beyond_the_integers_of_float32():
    low, high = 2**24 + 1, 2**26 + 1
    assert Prior.from_counts([low, high]).probs[0] == low / (low + high)


@pytest.mark.parametrize("smoothing", [0.1, 1.0, 1, 7.5])
def test_smoothing_adds_pseudo_counts_and_keeps_the_true_counts(smoothing):
    counts = np.array([6, 3, 0])
    prior = Prior.from_counts(counts, smoothing=smoothing)
    np.testing.assert_allclose(prior.probs, (counts + smoothing) / (9 + 3 * smoothing), rtol=1e-15)
    assert prior.counts.tolist() == [6, 3, 0]


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 0, 0],
        np.array([0, 1, 0, 0])[::-1],
        np.array([0, 1, 0, 0], np.uint8),
        torch.tensor([[0, 1], [0, 0]], dtype=torch.int16),
    ],
)
def test_from_labels_counts_them(labels):
    prior = Prior.from_labels(labels, num_classes=2)
    assert prior.counts.tolist() == [3, 1]
    assert prior.probs.tolist() == [0.75, 0.25]


def test_from_labels_smooths_an_absent_class_when_asked():
    assert Prior.from_labels([0, 0, 1], 3, smoothing=1.0).probs.tolist() == [0.5, 2 / 6, 1 / 6]


def test_no_labels_count_zero_for_every_class():
    assert count_labels([], 3).tolist() == [0, 0, 0]


@given(MASSES, st.floats(-3.0, 3.0))
def test_tempering_raises_to_a_power_and_normalises(masses, exponent):
    powered = (np.array(masses) / np.sum(masses)) ** exponent
    np.testing.assert_allclose(Prior(masses).tempered(exponent).probs, powered / powered.sum(), rtol=1e-12)


@given(MASSES)
def test_tempering_by_one_leaves_a_prior_and_by_zero_gives_the_uniform_one(masses):
    prior = Prior(masses)
    np.testing.assert_allclose(prior.tempered(1).probs, prior.probs, rtol=1e-13)
    assert prior.tempered(0) == Prior.uniform(len(masses))


def test_a_class_of_zero_mass_stays_absent_under_a_positive_exponent():
    assert Prior([0.9, 0.1, 0.0]).tempered(0.5).probs.tolist() == pytest.approx([0.75, 0.25, 0.0], rel=1e-15)


@pytest.mark.parametrize("exponent", [0, 0.0, -0.5])
def test_an_absent_class_has_no_power_of_zero_or_less(exponent):
    with pytest.raises(ValueError, match="strictly positive, but it is zero for class 1"):
        Prior([1.0, 0.0]).tempered(exponent)


def test_equality_is_that_of_the_probabilities():
    assert Prior([3, 1]) == Prior.from_counts([6, 2])
    assert Prior([3, 1]) != Prior([1, 3])
    assert Prior.uniform(2) != Prior.uniform(3)
    assert Prior([3, 1]) != [0.75, 0.25]


def test_equal_priors_hash_alike_and_key_a_dictionary():
    assert {Prior([3, 1]): "skewed"}[Prior.from_counts([6, 2])] == "skewed"
    assert len({Prior.uniform(2), Prior([1, 1]), Prior([1, 2])}) == 2


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_every_bit(protocol):
    prior = Prior.from_counts([7, 2, 0], smoothing=0.3)
    again = pickle.loads(pickle.dumps(prior, protocol))
    assert again == prior
    assert np.array_equal(again.log_probs, prior.log_probs)
    assert np.array_equal(again.counts, prior.counts)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copying_keeps_every_bit(duplicate):
    prior = Prior.from_counts([7, 2, 1])
    again = duplicate(prior)
    assert again == prior
    assert np.array_equal(again.log_probs, prior.log_probs)
    assert np.array_equal(again.counts, prior.counts)


def test_repr_is_short_and_shows_names():
    assert repr(Prior([0.75, 0.25])) == "Prior([0.75, 0.25])"
    assert repr(Prior.uniform(8)) == f"Prior([{', '.join(['0.125'] * 6)}, …, 8 classes])"
    assert repr(Prior({"cat": 3, "dog": 1})) == "Prior({'cat': 0.75, 'dog': 0.25})"
    assert repr(Prior({f"c{index}": 1 for index in range(8)})).endswith("'c5': 0.125, …, 8 classes})")


def test_as_prior_passes_a_prior_through_and_reads_anything_else():
    prior = Prior([3, 1])
    assert as_prior(prior, "target") is prior
    assert as_prior([3, 1], "target", 2) == prior


def test_require_positive_returns_the_prior_itself():
    prior = Prior([3, 1])
    assert prior.require_positive("carried") is prior


def test_class_names_stop_after_ten():
    assert name_classes([2]) == "class 2"
    assert name_classes([0, 3]) == "classes 0, 3"
    assert name_classes(range(12)) == "classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


REFUSALS = {
    "strings": (lambda: Prior(["a", "b"]), TypeError, "Expected `probs` to be real numbers", "['a', 'b']"),
    "nothing": (lambda: Prior(None), TypeError, "Expected `probs` to be real numbers", "None"),
    "ragged": (
        lambda: Prior([[1.0], [1.0, 2.0]]),
        TypeError,
        "Expected `probs` to be real numbers",
        "[[1.0]",
    ),
    "complex": (lambda: Prior([1j, 2.0]), TypeError, "Expected `probs` to be real numbers", "[1j, 2.0]"),
    "complex tensor": (lambda: Prior(torch.tensor([1j, 2])), TypeError, "`probs` to be real numbers", "1.j"),
    "matrix": (lambda: Prior([[0.5, 0.5]]), ValueError, "`probs` with one entry per class", "(1, 2)"),
    "scalar": (lambda: Prior(0.5), ValueError, "`probs` with one entry per class, at least two", "shape ()"),
    "one class": (lambda: Prior([1.0]), ValueError, "`probs` with one entry per class, at least two", "(1,)"),
    "empty": (lambda: Prior([]), ValueError, "`probs` with one entry per class, at least two", "(0,)"),
    "negative": (
        lambda: Prior([0.5, -0.5]),
        ValueError,
        "`probs` to be finite and non-negative",
        "-0.5 for class 1",
    ),
    "nan": (
        lambda: Prior([float("nan"), 1]),
        ValueError,
        "`probs` to be finite and non-neg",
        "nan for class 0",
    ),
    "infinite": (lambda: Prior([1, 1, float("inf")]), ValueError, "`probs` to be finite", "inf for class 2"),
    "all zero": (lambda: Prior([0.0, 0.0]), ValueError, "`probs` to have a positive finite sum", "sums to 0"),
    "overflow": (
        lambda: Prior([1e308, 1e308]),
        ValueError,
        "`probs` to have a positive finite sum",
        "to inf",
    ),
    "counts of another length": (
        lambda: Prior([0.5, 0.5], counts=[1, 2, 3]),
        ValueError,
        "`counts` with one entry per class, (2,)",
        "(3,)",
    ),
    "one uniform class": (lambda: Prior.uniform(1), ValueError, "`num_classes` to be at least 2", "got 1"),
    "absent class": (
        lambda: Prior.from_counts([6, 0, 0]),
        ValueError,
        "every class to have training samples, but `counts` is zero for classes 1, 2",
        "Pass `smoothing=1.0`",
    ),
    "negative count": (
        lambda: Prior.from_counts([6, -1]),
        ValueError,
        "`counts` to be finite and non-n",
        "-1.0 for class 1",
    ),
    "fractional count": (
        lambda: Prior.from_counts([6, 1.5]),
        ValueError,
        "`counts` to hold whole numbers",
        "1.5 for class 1",
    ),
    "counts of nothing": (
        lambda: Prior.from_counts([0, 0], smoothing=1),
        ValueError,
        "`counts` to have a positive",
        "to 0",
    ),
    "zero smoothing": (
        lambda: Prior.from_counts([6, 1], smoothing=0),
        ValueError,
        "`smoothing` to be a positive finite",
        "got 0",
    ),
    "negative smoothing": (
        lambda: Prior.from_counts([6, 1], smoothing=-1.0),
        ValueError,
        "`smoothing` to be a positive",
        "-1.0",
    ),
    "infinite smoothing": (
        lambda: Prior.from_counts([6, 1], smoothing=float("inf")),
        ValueError,
        "`smoothing` to be",
        "inf",
    ),
    "nan smoothing": (
        lambda: Prior.from_counts([6, 1], smoothing=float("nan")),
        ValueError,
        "`smoothing` to be",
        "nan",
    ),
    "label too large": (
        lambda: Prior.from_labels([0, 3, 1, 5], 3),
        ValueError,
        "`labels` between 0 and 2, but got 3",
        "(2 of 4 labels",
    ),
    "label negative": (
        lambda: Prior.from_labels([0, -1], 2),
        ValueError,
        "`labels` between 0 and 1",
        "got -1",
    ),
    "label fractional": (
        lambda: Prior.from_labels([0.5, 1.0], 2),
        TypeError,
        "`labels` to be class indices",
        "float64",
    ),
    "label boolean": (
        lambda: Prior.from_labels([True, False], 2),
        TypeError,
        "`labels` to be class indices",
        "bool",
    ),
    "labels of one class": (
        lambda: Prior.from_labels([0], 1),
        ValueError,
        "`num_classes` to be at least 2",
        "got 1",
    ),
    "label absent": (
        lambda: Prior.from_labels([0, 0], 2),
        ValueError,
        "`counts` is zero for class 1",
        "`smoothing=1.0`",
    ),
    "infinite exponent": (
        lambda: Prior.uniform(2).tempered(float("inf")),
        ValueError,
        "`exponent` to be finite",
        "inf",
    ),
    "nan exponent": (
        lambda: Prior.uniform(2).tempered(float("nan")),
        ValueError,
        "`exponent` to be finite",
        "nan",
    ),
    "zero mass": (
        lambda: Prior([1, 0, 2, 0]).require_positive("carried"),
        ValueError,
        "`carried` to be strictly pos",
        "classes 1, 3",
    ),
    "prior of another length": (
        lambda: as_prior(Prior.uniform(3), "target", 2),
        ValueError,
        "`target` with one entry per class, 2",
        "got 3",
    ),
    "no prior": (
        lambda: as_prior("long-tailed", "target"),
        TypeError,
        "`target` to be real numbers",
        "'long-tailed'",
    ),
    "negative target": (
        lambda: as_prior([2, -1], "target"),
        ValueError,
        "`target` to be finite and non-negative",
        "-1.0",
    ),
}


@pytest.mark.parametrize(("call", "error", "rule", "value"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_names_the_argument_the_rule_and_the_value(call, error, rule, value):
    with pytest.raises(error, match=f"(?s){re.escape(rule)}.*{re.escape(value)}") as refusal:
        call()
    assert type(refusal.value) is error


def test_log_probabilities_that_underflow_keep_their_logarithm():
    prior = Prior.from_log_probs([0.0, -2000.0])
    assert prior.probs.tolist() == [1.0, 0.0]
    assert prior.log_probs.tolist() == [0.0, -2000.0]
    assert prior.require_positive("prior") is prior
    assert Prior([1 - 1e-12, 1e-12]).tempered(30.0).require_positive("prior").log_probs[1] < -800
    assert Prior.from_log_probs([0.0, float("-inf")]).probs.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("logs", [[0.0, float("nan")], [0.0, float("inf")], [float("-inf")] * 2])
def test_log_probabilities_that_are_none_are_refused(logs):
    with pytest.raises(ValueError, match="`log_probs` to be finite or −inf, and finite for some class"):
        Prior.from_log_probs(logs)


# Composing with NumPy


def test_a_prior_is_an_array_of_its_probabilities():
    prior = Prior([0.7, 0.2, 0.1])
    assert np.asarray(prior).dtype == np.float64 and np.asarray(prior) is prior.probs
    assert np.asarray(prior, dtype=np.float32).dtype == np.float32
    np.testing.assert_array_equal(np.stack([prior, prior]), [[0.7, 0.2, 0.1]] * 2)
    np.testing.assert_allclose(np.eye(3) @ prior, [0.7, 0.2, 0.1])
    assert np.array(prior, copy=True).flags.writeable
    with pytest.raises(ValueError, match="copy"):
        np.array(prior, dtype=np.float32, copy=False)


def test_a_prior_is_a_sequence_of_numbers():
    prior = Prior([0.7, 0.2, 0.1])
    assert list(prior) == [0.7, 0.2, 0.1] and len(prior) == 3
    assert prior[0] == 0.7 and prior[-1] == 0.1 and type(prior[0]) is float
    assert prior[1:].tolist() == [0.2, 0.1] and prior[[2, 0]].tolist() == [0.1, 0.7]
    with pytest.raises(IndexError):
        prior[3]


def test_a_prior_is_indexed_by_name():
    prior = Prior({"cat": 3, "dog": 1})
    assert prior["dog"] == 0.25
    assert prior.to_dict() == {"cat": 0.75, "dog": 0.25}
    assert Prior([3, 1]).to_dict() == {0: 0.75, 1: 0.25}
    with pytest.raises(KeyError, match="There is no class 'owl'"):
        prior["owl"]


# Matched by name, never by order


COUNTS = {"owl": 5, "cat": 80, "dog": 15}
NAMED = {
    "dict": lambda: COUNTS,
    "Counter": lambda: Counter(COUNTS),
    "pandas Series": lambda: pandas.Series(COUNTS),
    "pandas value_counts": lambda: pandas.Series(["owl"] * 5 + ["dog"] * 15 + ["cat"] * 80).value_counts(),
    "pandas table": lambda: pandas.DataFrame({"class": list(COUNTS), "count": list(COUNTS.values())}),
    "polars value_counts": lambda: polars.Series(
        "y", ["owl"] * 5 + ["dog"] * 15 + ["cat"] * 80
    ).value_counts(),
    "pyarrow table": lambda: pyarrow.table({"class": list(COUNTS), "count": list(COUNTS.values())}),
}
LABELS = {
    "list": list,
    "array": np.array,
    "objects": lambda labels: np.array(labels, dtype=object),
    "pandas": pandas.Series,
    "pandas categories": lambda labels: pandas.Series(labels, dtype="category"),
    "polars": lambda labels: polars.Series("y", labels),
    "pyarrow": pyarrow.array,
}


@pytest.mark.parametrize("make", NAMED.values(), ids=NAMED.keys())
@pytest.mark.parametrize("read", [Prior, Prior.from_counts], ids=["Prior", "from_counts"])
def test_names_are_read_from_every_kind_that_has_them(read, make):
    prior = read(make())
    assert prior.to_dict() == pytest.approx({"owl": 0.05, "cat": 0.8, "dog": 0.15}, rel=1e-15)
    assert read(make(), names=("cat", "dog", "owl")).probs.tolist() == [0.8, 0.15, 0.05]
    aligned = as_prior(make(), "carried", 3, names=("dog", "owl", "cat"))
    assert aligned.names == ("dog", "owl", "cat") and aligned.probs.tolist() == [0.15, 0.05, 0.8]


@pytest.mark.parametrize("make", NAMED.values(), ids=NAMED.keys())
def test_names_that_differ_are_refused_and_listed(make):
    for names in (("cat", "dog", "elk"), ("cat", "dog"), ("cat", "dog", "elk", "owl")):
        with pytest.raises(ValueError, match="`target` to name the same classes, but missing are") as refusal:
            as_prior(make(), "target", len(names), names=names)
        assert ("'elk'" in str(refusal.value)) == ("elk" in names)


@pytest.mark.parametrize("make", LABELS.values(), ids=LABELS.keys())
def test_labels_that_are_names_say_the_classes(make):
    labels = make(["dog", "cat", "cat", "cat"])
    assert Prior.from_labels(labels).to_dict() == {"cat": 0.75, "dog": 0.25}
    assert Prior.from_labels(labels, 2) == Prior.from_labels(labels)
    assert Prior.from_labels(labels, names=("dog", "cat")).to_dict() == {"dog": 0.25, "cat": 0.75}
    assert Prior.from_labels(labels, names=("cat", "dog", "owl"), smoothing=1)["owl"] == 1 / 7
    with pytest.raises(ValueError, match="`labels` of classes 'cat', 'owl', but got 'dog'"):
        Prior.from_labels(labels, names=("cat", "owl"))
    with pytest.raises(ValueError, match="one name per class, 3, but got 2"):
        Prior.from_labels(labels, 3)


def test_an_absent_category_counts():
    labels = pandas.Series(pandas.Categorical(["b", "a", "b"], categories=["b", "a", "c"]))
    assert Prior.from_labels(labels, smoothing=1).to_dict() == {"b": 3 / 6, "a": 2 / 6, "c": 1 / 6}


def test_labels_that_are_indices_do_not_say_the_number_of_classes():
    with pytest.raises(ValueError, match="Expected `num_classes`"):
        Prior.from_labels([0, 1, 1])
    assert Prior.from_labels([0, 1, 1], names=("a", "b")).to_dict() == {"a": 1 / 3, "b": 2 / 3}


@pytest.mark.parametrize(
    "make",
    [
        lambda y: y.value_counts(),
        lambda y: y.value_counts().to_dict(),
        lambda y: Counter(y.tolist()),
        lambda y: polars.from_pandas(y.to_frame("y"))["y"].value_counts(),
        lambda y: y.value_counts().reset_index(),
    ],
    ids=["Series", "dict", "Counter", "polars", "table"],
)
def test_an_index_of_numbers_in_any_order_is_put_in_class_order(make):
    y = pandas.Series([2] * 5000 + [0] * 400 + [1] * 20)
    expected = np.array([400, 20, 5000]) / 5420
    assert Prior.from_counts(make(y)).probs.tolist() == expected.tolist()
    assert Prior.from_counts(make(y)).names is None
    assert as_prior(make(y), "carried", 3).probs.tolist() == expected.tolist()
    assert as_prior(make(y), "carried", 3, names=("0", "1", "2")).probs.tolist() == expected.tolist()


def test_classes_numbered_from_one_are_names():
    prior = Prior({1: 0.5, 3: 0.2, 2: 0.3})
    assert prior.to_dict() == {"1": 0.5, "3": 0.2, "2": 0.3}
    assert as_prior(prior, "target", names=("1", "2", "3")).probs.tolist() == [0.5, 0.3, 0.2]


def test_naming_a_prior_sorts_it_or_gives_it_names():
    prior = Prior.from_counts({"cat": 3, "dog": 1})
    assert prior.named(("dog", "cat")).counts.tolist() == [1, 3]
    assert prior.named(("cat", "dog")) is prior and prior.named(None) is prior
    assert Prior([3, 1]).named(("a", "b")).to_dict() == {"a": 0.75, "b": 0.25}
    assert prior != Prior([3, 1]) and prior == Prior({"cat": 3, "dog": 1})
    assert prior.matches(prior.named(("dog", "cat"))) and not prior.matches(Prior({"dog": 3, "cat": 1}))
    assert not prior.matches(Prior({"cat": 3, "owl": 1}))
    with pytest.raises(ValueError, match="missing are 'owl' and unknown are 'dog'"):
        prior.named(("cat", "owl"))


def test_a_name_twice_is_refused():
    with pytest.raises(ValueError, match="name each class once, but got 'a' again"):
        Prior([1, 2, 3], names=("a", "b", "a"))
    with pytest.raises(ValueError, match="name each class once, but got 'a' again"):
        Prior(pandas.Series([1, 2, 3], index=["a", "b", "a"]))


def test_priors_that_match_are_the_same_in_rare_classes_too():
    assert not Prior.from_log_probs([0, -800]).matches(Prior.from_log_probs([0, -801]))
    assert Prior([1, 0]).matches(Prior([2, 0])) and not Prior([1, 0]).matches(Prior([1, 1e-9]))
