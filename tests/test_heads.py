"""Each head by its distinguishing step, against numbers worked out by hand or in plain NumPy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from priorshift.models import Classifier, heads
from priorshift.models.backbones import SmallCNN
from priorshift.models.backbones._modulated_attention import ModulatedAttention
from priorshift.models.heads import (
    BilateralHead,
    CausalNormHead,
    CosineHead,
    Features,
    LearnableScaleHead,
    LinearHead,
    MetaEmbeddingHead,
    NearestClassMeanHead,
    PriorNormHead,
    Start,
    TauNormHead,
)
from priorshift.priors import Prior
from priorshift.training.bilateral import bilateral_loss, mixing_weight, require_branches

D, C, N = 4, 3, 12
WITH_BEGIN = [LearnableScaleHead, TauNormHead, PriorNormHead, NearestClassMeanHead, MetaEmbeddingHead]
CONVENTIONAL = [*WITH_BEGIN, CausalNormHead, BilateralHead]
ALL = [LinearHead, CosineHead, *WITH_BEGIN, CausalNormHead, BilateralHead]


def linear(weight, bias=None):
    weight = torch.tensor(weight)
    head = LinearHead(weight.shape[1], weight.shape[0])
    bias = torch.zeros(len(weight)) if bias is None else torch.tensor(bias)
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


def features_of(generator, count=N):
    features = torch.randn(count, D, generator=generator) + 0.3
    return Features(features, torch.arange(count) % C)


def random_start(previous=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    source = Prior([0.6, 0.3, 0.1])
    if previous is None:
        previous = LinearHead(D, C)
        with torch.no_grad():
            for parameter in previous.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    train, validation = features_of(generator), features_of(generator)
    return Start(previous=previous, train=train, validation=validation, source=source, carried=source)


def start_of(previous, *, train=None, validation=None, source=None):
    """A start where only what is given matters."""
    num_classes, num_features = previous.weight.shape
    none = Features(torch.zeros(0, num_features), torch.zeros(0, dtype=torch.int64))
    source = source or Prior.uniform(num_classes)
    return Start(
        previous=previous,
        train=train or none,
        validation=validation or none,
        source=source,
        carried=source,
    )


def begun(kind, **options):
    torch.manual_seed(0)
    head = kind(D, C, **options)
    if kind is CausalNormHead:
        start = replace(random_start(), previous=CausalNormHead(D, C, **options))
        start.previous(torch.randn(6, D))
        head.begin(start)
    elif hasattr(head, "begin"):
        head.begin(random_start())
    return head


def close(tensor, expected, tolerance=1e-5):
    np.testing.assert_allclose(tensor.detach().numpy(), np.array(expected), rtol=tolerance, atol=tolerance)


# What holds for every head


def test_every_head_is_tested_here():
    assert {kind.__name__ for kind in ALL} == {name for name in heads.__all__ if name.endswith("Head")}


@pytest.mark.parametrize("kind", ALL)
def test_a_fresh_head_gets_its_state_back_without_begin(kind):
    head = begun(kind)
    features = torch.randn(5, D)
    torch.manual_seed(1)
    other = kind(D, C)
    other.load_state_dict(head.state_dict())
    assert head.eval()(features).shape == (5, C)
    assert torch.equal(head(features), other.eval()(features))


@pytest.mark.parametrize("kind", ALL)
def test_what_a_head_trains_gets_gradients_and_so_do_the_features(kind):
    head = begun(kind)
    features = torch.randn(8, D, requires_grad=True)
    labels = torch.arange(8) % C
    loss = F.cross_entropy(head(features), labels)
    if hasattr(head, "regulariser"):
        loss = loss + head.regulariser(features, labels)
    loss.backward()
    assert features.grad.abs().sum() > 0
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", [TauNormHead, PriorNormHead, NearestClassMeanHead])
def test_a_head_that_is_made_has_nothing_to_train(kind):
    assert not list(begun(kind).parameters())


@pytest.mark.parametrize("kind", ALL)
def test_uniform_is_said_by_the_heads_without_theory_and_by_no_other(kind):
    assert hasattr(kind, "conventional_prior") == (kind in CONVENTIONAL)
    if kind in CONVENTIONAL:
        assert kind.conventional_prior(Prior([0.6, 0.3, 0.1])) == Prior.uniform(3)


@pytest.mark.parametrize("kind", [kind for kind in WITH_BEGIN if kind is not MetaEmbeddingHead])
def test_begin_leaves_nothing_of_how_the_head_was_initialised(kind):
    first = begun(kind)
    torch.manual_seed(7)
    second = kind(D, C)
    second.begin(random_start())
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())


@pytest.mark.parametrize("kind", [LearnableScaleHead, TauNormHead, PriorNormHead, MetaEmbeddingHead])
def test_what_takes_over_a_linear_head_refuses_another(kind):
    with pytest.raises(ValueError, match=r"to be `linear`, .* but got CosineHead"):
        kind(D, C).begin(random_start(previous=CosineHead(D, C)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TauNormHead(D, C, tau=-1.0), "`tau` to be finite and non-negative, but got -1.0"),
        (lambda: PriorNormHead(D, C, tau=math.inf), "`tau` to be finite and non-negative, but got inf"),
        (lambda: NearestClassMeanHead(D, C, metric="l1"), "`metric` to be .* but got 'l1'"),
        (lambda: CausalNormHead(D, C, num_heads=3), "`num_heads` to divide the 4 features, but got 3"),
        (lambda: CausalNormHead(D, C, num_heads=0), "`num_heads` to divide the 4 features, but got 0"),
        (lambda: CausalNormHead(D, C, scale=0.0), "`scale` to be positive, but got 0.0"),
        (lambda: CausalNormHead(D, C, gamma=-0.1), "`gamma` to be non-negative, but got -0.1"),
        (lambda: CausalNormHead(D, C, alpha=math.nan), "`alpha` to be non-negative, but got nan"),
        (lambda: CausalNormHead(D, C, momentum=1.0), r"`momentum` to be in \[0, 1\), but got 1.0"),
        (lambda: MetaEmbeddingHead(D, C, scale=-1.0), "`scale` to be positive, but got -1.0"),
        (lambda: MetaEmbeddingHead(D, C, reach=0.0), "`reach` to be positive, but got 0.0"),
        (lambda: MetaEmbeddingHead(D, C, strength=-1.0), "`strength` to be non-negative, but got -1.0"),
        (lambda: MetaEmbeddingHead(D, C, margin=-1.0), "`margin` to be non-negative, but got -1.0"),
        (lambda: BilateralHead(5, C), "`num_features` to be even, .* but got 5"),
        (lambda: CosineHead(D, C, scale=0.0), "`scale` to be positive, but got 0.0"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(build, message):
    with pytest.raises(ValueError, match=f"Expected {message}"):
        build()


# LWS


def test_learnable_scale_multiplies_the_whole_logit():
    head = LearnableScaleHead(2, 2)
    head.begin(start_of(linear([[1.0, 2.0], [3.0, -1.0]], [0.5, 1.0])))
    features = torch.tensor([[1.0, 1.0]])
    close(head(features), [[3.5, 3.0]])
    with torch.no_grad():
        head.scale.copy_(torch.tensor([2.0, -1.0]))
    close(head(features), [[7.0, -3.0]])


def test_learnable_scale_trains_the_scales_and_leaves_the_weights():
    previous = linear([[1.0, 2.0], [3.0, -1.0]], [0.5, 1.0])
    head = LearnableScaleHead(2, 2)
    head.begin(start_of(previous))
    assert [name for name, _ in head.named_parameters()] == ["scale"]
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, weight_decay=0.1)
    F.cross_entropy(head(torch.tensor([[1.0, 1.0]])), torch.tensor([1])).backward()
    # d loss / d s_y = (p_y − [y = 1]) · logit_y, with logits 3.5 and 3.
    p = 1 / (1 + math.exp(3.0 - 3.5))
    close(head.scale.grad, [3.5 * p, 3.0 * ((1 - p) - 1)])
    optimizer.step()
    assert torch.equal(head.weight, previous.weight) and torch.equal(head.bias, previous.bias)
    assert not torch.equal(head.scale, torch.ones(2))


def test_learnable_scale_keeps_a_copy_of_the_head_before():
    previous = linear([[1.0, 2.0], [3.0, -1.0]])
    head = LearnableScaleHead(2, 2)
    head.begin(start_of(previous))
    with torch.no_grad():
        previous.weight.zero_()
    close(head.weight, [[1.0, 2.0], [3.0, -1.0]])


# Weight normalisation


WEIGHT, BIAS = [[3.0, 4.0], [0.0, 2.0], [0.5, 0.0]], [1.0, 2.0, 4.0]


def test_tau_norm_of_0_is_the_head_before_without_its_bias():
    head = TauNormHead(2, 3, tau=0.0)
    head.begin(start_of(linear(WEIGHT, BIAS)))
    close(head.weight, WEIGHT)
    close(head(torch.tensor([[1.0, 1.0]])), [[7.0, 2.0, 0.5]])


def test_tau_norm_of_1_gives_unit_weights_and_of_a_half_divides_by_the_root():
    head = TauNormHead(2, 3, tau=1.0)
    head.begin(start_of(linear(WEIGHT, BIAS)))
    close(head.weight, [[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])
    head = TauNormHead(2, 3, tau=0.5)
    head.begin(start_of(linear(WEIGHT)))
    close(head.weight[0], [3 / math.sqrt(5), 4 / math.sqrt(5)])
    assert head.chosen == {}


@pytest.mark.parametrize(
    ("tau", "scale_bias", "expected"),
    [
        (0.0, True, [7.0, 2.5]),
        (1.0, True, [7 * 1.25, 2.5 * 5]),
        (1.0, False, [6 * 1.25 + 1, 2 * 5 + 0.5]),
        (2.0, True, [7 * 1.5625, 2.5 * 25]),
    ],
)
def test_prior_norm_divides_by_the_class_mix(tau, scale_bias, expected):
    head = PriorNormHead(1, 2, tau=tau, scale_bias=scale_bias)
    head.begin(start_of(linear([[6.0], [2.0]], [1.0, 0.5]), source=Prior([0.8, 0.2])))
    close(head(torch.ones(1, 1)), [expected])
    assert head.chosen == {}


def numpy_choice(logits_at, labels):
    """The smallest τ of 0, 0.1, …, 2 with the best mean of the per-class accuracies, by loops."""
    best, best_tau = -1.0, None
    for step in range(21):
        predicted = logits_at(step / 10).argmax(axis=1)
        by_class = [np.mean(predicted[labels == c] == c) for c in range(C) if (labels == c).any()]
        if np.mean(by_class) > best + 1e-12:
            best, best_tau = np.mean(by_class), step / 10
    return best_tau


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", [TauNormHead, PriorNormHead])
def test_tau_is_what_does_best_on_the_validation_images(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    previous = linear((torch.randn(C, D, generator=generator) * torch.tensor([[3.0], [1.0], [0.3]])).tolist())
    validation = Features(
        torch.randn(40, D, generator=generator), torch.randint(0, C, (40,), generator=generator)
    )
    source = Prior([0.7, 0.2, 0.1])
    head = kind(D, C)
    head.begin(start_of(previous, validation=validation, source=source))

    weight, features = previous.weight.detach().double().numpy(), validation.features.double().numpy()
    divisor = np.linalg.norm(weight, axis=1) if kind is TauNormHead else source.probs
    tau = numpy_choice(lambda tau: features @ (weight / divisor[:, None] ** tau).T, validation.labels.numpy())
    assert head.chosen == {"tau": tau}
    close(head.weight, weight / divisor[:, None] ** tau)


@pytest.mark.parametrize("kind", [TauNormHead, PriorNormHead])
def test_the_smallest_exponent_that_rescues_the_rare_class_is_chosen(kind):
    # The second image is lost until 4^(1−τ) < 2.1, by norms 4 and 1 as by masses 0.8 and 0.2: from τ = 0.5.
    validation = Features(torch.tensor([[1.0, 0.1], [1.0, 2.1]]), torch.tensor([0, 1]))
    head = kind(2, 2)
    previous = linear([[4.0, 0.0], [0.0, 1.0]])
    head.begin(start_of(previous, validation=validation, source=Prior([0.8, 0.2])))
    assert head.chosen == {"tau": 0.5}
    assert head(validation.features).argmax(dim=1).tolist() == [0, 1]


@pytest.mark.parametrize("kind", [TauNormHead, PriorNormHead])
def test_of_equally_good_exponents_the_smallest_is_taken(kind):
    validation = Features(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    head = kind(2, 2)
    head.begin(start_of(linear([[5.0, 0.0], [0.0, 1.0]]), validation=validation, source=Prior([0.8, 0.2])))
    assert head.chosen == {"tau": 0.0}


@pytest.mark.parametrize("kind", [TauNormHead, PriorNormHead])
def test_tau_cannot_be_chosen_on_nothing(kind):
    with pytest.raises(ValueError, match="candidate in `taus` and one sample in `labels`"):
        kind(2, 2).begin(start_of(linear([[1.0, 0.0], [0.0, 1.0]])))


# Nearest class mean


def test_class_means_are_of_normalised_features():
    train = Features(
        torch.tensor([[3.0, 4.0], [0.0, 2.0], [10.0, 0.0], [5.0, 0.0]]), torch.tensor([0, 1, 1, 1])
    )
    start = start_of(linear([[1.0, 0.0], [0.0, 1.0]]), train=train)
    cosine, euclidean = NearestClassMeanHead(2, 2), NearestClassMeanHead(2, 2, metric="euclidean")
    for head in (cosine, euclidean):
        head.begin(start)
        close(head.means, [[0.6, 0.8], [2 / 3, 1 / 3]])
    query = torch.tensor([[0.0, 9.0]])
    close(cosine(query), [[0.8, (1 / 3) / (math.sqrt(5) / 3)]])
    close(euclidean(query), [[-(0.36 + 0.04), -(4 / 9 + 4 / 9)]])


# Causal Norm


def numpy_causal(x, w, average, *, num_heads, scale, gamma, alpha):
    logits = np.zeros((len(x), len(w)))
    size = x.shape[1] // num_heads
    for i in range(len(x)):
        for y in range(len(w)):
            for k in range(num_heads):
                part = slice(k * size, (k + 1) * size)
                xk, wk = x[i, part], w[y, part]
                effect = wk @ xk / ((np.linalg.norm(wk) + gamma) * np.linalg.norm(xk))
                if alpha:
                    d = average[part] / np.linalg.norm(average[part])
                    cosine = xk @ d / np.linalg.norm(xk)
                    effect -= alpha * cosine * (wk @ d) / (np.linalg.norm(wk) + gamma)
                logits[i, y] += scale / num_heads * effect
    return logits


def causal_by_hand(**options):
    head = CausalNormHead(2, 2, num_heads=1, scale=10.0, gamma=1.0, **options)
    head.load_state_dict(
        {"weight": torch.tensor([[4.0, 0.0], [0.0, 1.0]]), "moving_average": torch.tensor([0.0, 7.0])},
        strict=False,
    )
    return head


def test_causal_norm_by_hand():
    # x̂ = (.6, .8); w/(‖w‖+1) = (.8, 0) and (0, .5); d̂ = (0, 1), cos(x, d̂) = .8.
    features = torch.tensor([[3.0, 4.0]])
    close(causal_by_hand(alpha=0.5).train()(features), [[4.8, 4.0]])
    close(causal_by_hand(alpha=0.0).eval()(features), [[4.8, 4.0]])
    close(causal_by_hand(alpha=0.5).eval()(features), [[4.8, 4.0 - 10 * 0.5 * 0.8 * 0.5]])
    close(causal_by_hand(alpha=1.0).eval()(features), [[4.8, 0.0]])


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_causal_norm_with_several_heads_is_the_formula(num_heads):
    torch.manual_seed(0)
    head = CausalNormHead(8, C, num_heads=num_heads, scale=16.0, alpha=3.0)
    x, average = torch.randn(5, 8), torch.randn(8)
    options = {"num_heads": num_heads, "scale": 16.0, "gamma": 1 / 32}
    w = head.weight.detach().numpy()
    close(head.train()(x), numpy_causal(x.numpy(), w, None, alpha=0, **options))
    head.moving_average.copy_(average)
    close(head.eval()(x), numpy_causal(x.numpy(), w, average.numpy(), alpha=3.0, **options))


def test_the_strength_of_the_subtraction_is_chosen_on_validation_images_alone():
    previous = CausalNormHead(2, 2, num_heads=1)
    previous(torch.tensor([[1.0, 0.2]]))
    rare = Features(torch.tensor([[1.0, 0.3], [1.0, 0.0]]), torch.tensor([1, 0]))
    start = start_of(previous, validation=rare)
    with torch.no_grad():
        previous.weight.copy_(torch.eye(2))
    head = CausalNormHead(2, 2, num_heads=1)
    head.begin(start)
    accuracies = []
    for alpha in (step / 4 for step in range(13)):
        fixed = CausalNormHead(2, 2, num_heads=1, alpha=alpha)
        fixed.begin(start)
        assert fixed.chosen == {}
        accuracies.append((fixed.eval()(rare.features).argmax(1) == rare.labels).double().mean().item())
    assert max(accuracies) > accuracies[0]
    assert head.chosen == {"alpha": accuracies.index(max(accuracies)) / 4}
    assert torch.equal(head.weight, previous.weight)
    assert torch.equal(head.moving_average, previous.moving_average)


def test_causal_norm_takes_over_no_other_head():
    with pytest.raises(ValueError, match=r"before this one to be `causal-norm`.* but got LinearHead"):
        CausalNormHead(D, C).begin(random_start())


def test_the_moving_average_follows_the_batches_of_training_alone():
    head = CausalNormHead(2, 2, momentum=0.5)
    first, second = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[4.0, 0.0]])
    head.train()(first)
    close(head.moving_average, [2.0, 3.0])
    head.eval()(second)
    close(head.moving_average, [2.0, 3.0])
    head.train()(second)
    close(head.moving_average, [0.5 * 2 + 4, 0.5 * 3])
    assert not head.moving_average.requires_grad


def test_before_any_training_there_is_no_effect_to_subtract():
    head = CausalNormHead(D, C)
    features = torch.randn(3, D)
    before = head.eval()(features)
    assert torch.equal(before, head.train()(features))


# OLTR


def numpy_meta(x, state, *, reach):
    memory = state["memory"]
    meta = []
    for v in x:
        scores = state["hallucinator.weight"] @ v + state["hallucinator.bias"]
        attention = np.exp(scores - scores.max())
        attention /= attention.sum()
        recalled = sum(attention[c] * memory[c] for c in range(len(memory)))
        selector = np.tanh(state["selector.weight"] @ v + state["selector.bias"])
        nearest = min(np.linalg.norm(v - centroid) for centroid in memory)
        meta.append(reach / nearest * (v + selector * recalled))
    return np.stack(meta)


def test_the_memory_starts_with_class_means_and_the_attention_with_the_head_before():
    start = random_start()
    head = MetaEmbeddingHead(D, C)
    head.begin(start)
    means = [start.train.features[start.train.labels == c].mean(dim=0).tolist() for c in range(C)]
    close(head.memory, means)
    assert torch.equal(head.hallucinator.weight, start.previous.weight)
    assert torch.equal(head.hallucinator.bias, start.previous.bias)


def test_meta_embeddings_are_the_formula_and_their_classifier_too():
    head = begun(MetaEmbeddingHead, reach=2.0, scale=5.0)
    x = torch.randn(6, D)
    state = {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}
    meta = numpy_meta(x.double().numpy(), state, reach=2.0)
    close(head.embed(x), meta, 1e-4)
    unit = state["weight"] / np.linalg.norm(state["weight"], axis=1, keepdims=True)
    norms = np.linalg.norm(meta, axis=1, keepdims=True)
    close(head(x), 5.0 * norms / (1 + norms) * (meta / norms) @ unit.T, 1e-4)


def test_attention_recalls_the_centroid_it_is_sure_of():
    head = MetaEmbeddingHead(2, 2, reach=1.0)
    state = {
        "memory": torch.tensor([[0.0, 8.0], [6.0, 0.0]]),
        "hallucinator.weight": torch.zeros(2, 2),
        "hallucinator.bias": torch.tensor([-50.0, 50.0]),
        "selector.weight": torch.zeros(2, 2),
        "selector.bias": torch.tensor([50.0, 50.0]),
        "weight": torch.eye(2),
    }
    head.load_state_dict(state)
    # The nearest centroid of (3, 4) is 5 away, both are; all attention on (6, 0), selected wholly.
    close(head.embed(torch.tensor([[3.0, 4.0]])), [[9 / 5, 4 / 5]])
    head.load_state_dict(state | {"hallucinator.bias": torch.zeros(2)})
    close(head.embed(torch.tensor([[3.0, 4.0]])), [[6 / 5, 8 / 5]])
    head.load_state_dict(state | {"selector.bias": torch.zeros(2)})
    close(head.embed(torch.tensor([[3.0, 4.0]])), [[3 / 5, 4 / 5]])


def test_a_feature_on_a_centroid_is_reached_without_infinities():
    head = begun(MetaEmbeddingHead)
    features = head.memory.detach()[:2].clone().requires_grad_()
    logits = head(features)
    logits.sum().backward()
    assert logits.isfinite().all() and features.grad.isfinite().all()
    assert (logits.abs() <= 16).all()


def test_the_classification_loss_does_not_move_the_memory():
    head = begun(MetaEmbeddingHead)
    F.cross_entropy(head(torch.randn(4, D)), torch.tensor([0, 1, 2, 0])).backward()
    assert head.memory.grad is None


def memory_of(rows, **options):
    head = MetaEmbeddingHead(len(rows[0]), len(rows), **options)
    head.memory.data.copy_(torch.tensor(rows))
    return head


def test_discriminative_centroids_by_hand():
    head = memory_of([[0.0, 0.0], [2.0, 0.0]], strength=1.0, margin=10.0)
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 1.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 1])
    # Squared distances to their own centroid: 1, 4, 1; to the other: 1, 8, 5.
    loss = head.regulariser(features, labels)
    assert loss.item() == pytest.approx((1 + 4 + 1) / 6 + 0.01 * (10 - (1 + 8 + 5) / 6))
    loss.backward()
    repel = 0.01 / 6 * 2
    close(
        features.grad,
        [
            [1 / 3 - repel * (1 - 2), 0.0],
            [0.0 - repel * (0 - 2), 2 / 3 - repel * 2],
            [0.0 - repel * 2, 1 / 3 - repel * 1],
        ],
    )
    # Pull: Σ (M_c − v) / (1 + n_c) / N; push: the gradient of −0.01 Σ ‖v − M‖² / 6.
    close(
        head.memory.grad,
        [
            [-(1 + 0) / 3 / 3 - repel * (0 - 2), -(0 + 2) / 3 / 3 - repel * (0 - 1)],
            [0.0 - repel * ((2 - 1) + (2 - 0)), -1 / 2 / 3 - repel * (0 - 2)],
        ],
    )


def test_beyond_the_margin_nothing_is_pushed_and_strength_scales_the_rest():
    features, labels = torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([0, 1])
    far = memory_of([[0.0, 0.0], [2.0, 0.0]], strength=0.5, margin=1.0)
    # To the other centroid 1 and 5, over N·C = 4: 1.5 is beyond the margin.
    assert far.regulariser(features, labels).item() == pytest.approx(0.5 * (1 + 1) / 4)


def test_the_regulariser_pulls_the_memory_to_the_features_of_its_class():
    head = memory_of([[0.0, 0.0], [50.0, 0.0]], strength=1.0)
    features, labels = torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([0, 0])
    optimizer = torch.optim.SGD([head.memory], lr=1.0)
    for _ in range(60):
        optimizer.zero_grad()
        head.regulariser(features, labels).backward()
        optimizer.step()
    close(head.memory, [[2.0, 2.0], [50.0, 0.0]], 1e-4)


# BBN


def test_bilateral_logits_are_those_of_either_branch_or_of_both():
    head = BilateralHead(4, 2)
    weight = torch.tensor([[1.0, 0.0, 10.0, 0.0], [0.0, 1.0, 0.0, 10.0]])
    head.load_state_dict({"linear.weight": weight, "linear.bias": torch.tensor([0.5, 0.0])})
    features = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    close(head(features, alpha=1.0), [[2.5, 4.0]])
    close(head(features, alpha=0.0), [[60.5, 80.0]])
    close(head(features, alpha=0.5), [[31.5, 42.0]])
    close(head(features), F.linear(features, weight, torch.tensor([0.5, 0.0])).tolist())


def test_the_mixing_weight_falls_along_a_parabola():
    assert [mixing_weight(t / 4) for t in range(5)] == [1.0, 0.9375, 0.75, 0.4375, 0.0]


def two_branches():
    torch.manual_seed(0)
    backbone = SmallCNN(1, width=2, branches=2)
    return Classifier(backbone, BilateralHead(backbone.num_features, C)).eval()


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_bilateral_loss_by_hand(progress):
    model = two_branches()
    images = torch.rand(2, 5, 1, 8, 8)
    labels = torch.randint(0, C, (2, 5))
    loss = bilateral_loss(model, nn.CrossEntropyLoss(), list(images), list(labels), progress=progress)

    size = model.backbone.num_features // 2
    conventional = model.backbone(images[0])[:, :size].detach().double().numpy()
    rebalancing = model.backbone(images[1])[:, size:].detach().double().numpy()
    weight, bias = (parameter.detach().double().numpy() for parameter in model.head.parameters())
    alpha = 1 - progress**2
    logits = 2 * (alpha * conventional @ weight[:, :size].T + (1 - alpha) * rebalancing @ weight[:, size:].T)
    logits = logits + bias
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    parts = [-np.mean([log_probs[i, y] for i, y in enumerate(each.tolist())]) for each in labels]
    assert loss.item() == pytest.approx(alpha * parts[0] + (1 - alpha) * parts[1], rel=1e-5)


@pytest.mark.parametrize(("progress", "silent"), [(0.0, 1), (1.0, 0)])
def test_at_the_ends_of_the_schedule_one_branch_learns_nothing(progress, silent):
    model = two_branches()
    images, labels = torch.rand(2, 5, 1, 8, 8), torch.randint(0, C, (2, 5))
    bilateral_loss(model, nn.CrossEntropyLoss(), list(images), list(labels), progress=progress).backward()
    for branch, quiet in ((silent, True), (1 - silent, False)):
        gradients = [parameter.grad.abs().sum() for parameter in model.backbone.branches[branch].parameters()]
        assert (sum(gradients) == 0) == quiet


def test_bilateral_training_wants_two_branches_and_a_head_that_mixes():
    require_branches(two_branches())
    one = SmallCNN(1, width=2)
    with pytest.raises(ValueError, match="two branches"):
        require_branches(Classifier(one, BilateralHead(one.num_features, C)))
    two = SmallCNN(1, width=2, branches=2)
    with pytest.raises(ValueError, match="use `bilateral`"):
        require_branches(Classifier(two, LinearHead(two.num_features, C)))


# Modulated attention


def test_attention_starts_as_the_identity_and_learns():
    torch.manual_seed(0)
    plain = SmallCNN(1, width=2)
    attentive = SmallCNN(1, width=2, attention=True).eval()
    shared = {name: value for name, value in plain.state_dict().items() if name.startswith("shared")}
    attentive.load_state_dict(shared, strict=False)
    attentive.branches[0][0].load_state_dict(plain.branches[0][0].state_dict())
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(attentive(images), plain.eval()(images))
    attentive(images).square().sum().backward()
    assert attentive.branches[0][3].out.weight.grad.abs().sum() > 0


def test_modulated_attention_is_the_formula():
    torch.manual_seed(0)
    layer = ModulatedAttention(4)
    nn.init.normal_(layer.out.weight)
    maps = torch.randn(2, 4, 2, 3)

    def softmax(scores):
        powers = np.exp(scores - scores.max())
        return powers / powers.sum()

    def project(convolution, x):
        weight = convolution.weight.detach().numpy()[:, :, 0, 0]
        bias = 0 if convolution.bias is None else convolution.bias.detach().numpy()[:, None]
        return weight @ x + bias

    expected = []
    for x in maps.numpy().reshape(2, 4, 6):
        query, key, value = (project(each, x) for each in (layer.query, layer.key, layer.value))
        attended = np.stack([value @ softmax(query[:, place] @ key) for place in range(6)], axis=1)
        places = softmax(project(layer.spatial, x)[0])
        expected.append(x + places * project(layer.out, attended))
    close(layer(maps), np.stack(expected).reshape(2, 4, 2, 3))
