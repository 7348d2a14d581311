"""A batch spread over processes costs what it costs in one: its loss, its gradients, its messages."""

from datetime import timedelta
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from priorshift.losses import binary_margin_loss, lader
from priorshift.models.heads import MetaEmbeddingHead
from test_losses import LOSSES, PRIOR, batch, over

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="this build of torch has no gloo",
    ),
]

REDUCTIONS = ("mean", "sum", "none")
SIZES = {2: {"even": [6, 6], "uneven": [3, 9], "gaps": [0, 12]}}
SIZES[4] = {"even": [3, 3, 3, 3], "uneven": [1, 6, 2, 3], "gaps": [5, 0, 7, 0]}


NOTHING_COUNTS = ("everything ignored", "everything ignored or empty", "no sample at all")


@cache
def shards(world):
    """Situation → the batch of each rank, as pairs of logits and labels."""
    logits, labels = batch(n=12)
    maps, map_labels = batch(3, 2, n=12, ignored=10)
    classes = torch.nn.functional.one_hot(labels, 5).double()
    even, uneven, gaps = SIZES[world].values()
    on_one_rank = torch.cat([torch.arange(5)[rank::world].repeat(12)[:n] for rank, n in enumerate(uneven)])
    ignored_first = torch.where(torch.arange(12) < uneven[0], -100, labels)
    nothing = torch.full_like(labels, -100)
    situations = {
        "even shards": (logits, labels, even),
        "uneven shards": (logits, labels, uneven),
        "empty shards": (logits, labels, gaps),
        "each class on one rank": (logits, on_one_rank, uneven),
        "classes absent from all ranks": (logits, labels % 2, uneven),
        "everything ignored on one rank": (logits, ignored_first, uneven),
        "everything ignored": (logits, nothing, uneven),
        "everything ignored or empty": (logits, nothing, gaps),
        "no sample at all": (logits[:0], labels[:0], [0] * world),
        "one sample": (logits[:1], labels[:1], [0] * (world - 1) + [1]),
        "maps": (maps, map_labels, uneven),
        "huge logits": (logits + 1e4 * logits.sign(), labels, uneven),
        "soft labels": (logits, 0.3 * classes + 0.7 * classes.roll(1, 0), uneven),
    }
    return {
        name: list(zip(x.split(sizes), y.split(sizes), strict=True))
        for name, (x, y, sizes) in situations.items()
    }


def binary_loss(logits, labels, **options):
    return binary_margin_loss(logits[:, 0], labels.clamp(max=1), margins=(0.5, 0.0), **options)


SUBJECTS = {
    **{
        (case.name, reduction): case.build(PRIOR, reduction=reduction)
        for case in LOSSES
        for reduction in REDUCTIONS
    },
    **{("binary margin", reduction): partial(binary_loss, reduction=reduction) for reduction in REDUCTIONS},
    **{
        (f"lader {variant}", "mean"): partial(
            lader, log_prior=torch.tensor(PRIOR.log_probs), lam=0.5, variant=variant
        )
        for variant in ("paper", "released")
    },
}
"""(name, reduction) → a function of logits, labels and process group."""
TAKE_SOFT_LABELS = {case.name for case in LOSSES if case.soft_labels}


def situations_of(subject, world):
    """The shards that a subject takes; of the sums and the single losses a few will do."""
    name, reduction = subject
    return {
        situation: parts
        for situation, parts in shards(world).items()
        if (situation != "soft labels" or name in TAKE_SOFT_LABELS)
        and (reduction == "mean" or situation in ("uneven shards", "empty shards", "maps", *NOTHING_COUNTS))
    }


def cost(loss, logits, labels, process_group=None, first=0):
    """A loss and its gradient; single losses are added up, each with a weight by its position."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, labels, process_group=process_group)
    weights = 1.0 + first + torch.arange(value.numel()) if value.ndim else torch.ones(1)
    (value * weights.view(value.shape)).sum().backward()
    return value.detach(), leaf.grad


def regulariser(features, labels, process_group=None):
    """The value of a head's regulariser, and its gradients by the features and the memory."""
    for margin in (10.0, 30.0):
        head = MetaEmbeddingHead(5, 5, strength=1.0, margin=margin).double()
        head.memory.data.copy_(torch.linspace(-1, 1, 25).view(5, 5))
        leaf = features.clone().requires_grad_()
        value = head.regulariser(leaf, labels, process_group=process_group)
        value.backward()
        yield value.detach(), leaf.grad, head.memory.grad


def linear():
    model = nn.Linear(5, 5).double()
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 25).view(5, 5))
        model.bias.zero_()
    return model


def step(model, loss, inputs, labels, process_group=None):
    model.zero_grad()
    loss(model(inputs), labels, process_group=process_group).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


class Messages:
    """Counts the numbers that each all-reduce carries."""

    def __init__(self):
        self.sizes = []
        self.send = torch.distributed.all_reduce
        torch.distributed.all_reduce = self

    def __call__(self, tensor, *args, **options):
        self.sizes.append(tensor.numel())
        return self.send(tensor, *args, **options)

    def taken(self):
        sizes, self.sizes = self.sizes, []
        return sizes


def run_rank(rank, world, folder):
    """Everything that one rank of a group computes, saved as `<rank>.pt`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    group = torch.distributed.group.WORLD
    messages = Messages()
    alone, costs, sizes, trained = {}, {}, {}, {}
    if rank == 0:
        alone = {key: loss(*shards(world)["uneven shards"][0]) for key, loss in SUBJECTS.items()}
    assert messages.taken() == []
    for subject, loss in SUBJECTS.items():
        for situation, parts in situations_of(subject, world).items():
            before = sum(labels.numel() for _, labels in parts[:rank])
            costs[*subject, situation] = cost(loss, *parts[rank], group, before)
            sizes[*subject, situation] = messages.taken()
    heads = {
        situation: list(regulariser(*parts[rank], group))
        for situation, parts in shards(world).items()
        if situation in HEAD_SITUATIONS
    }
    model = DistributedDataParallel(linear()) if world == 2 else None
    for case in LOSSES if model else ():
        for situation in ("uneven shards", "empty shards"):
            loss = SUBJECTS[case.name, "mean"]
            trained[case.name, situation] = step(model, loss, *shards(world)[situation][rank], group)
    saved = {"alone": alone, "costs": costs, "sizes": sizes, "heads": heads, "trained": trained}
    torch.save(saved, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


HEAD_SITUATIONS = (
    "even shards",
    "uneven shards",
    "empty shards",
    "each class on one rank",
    "classes absent from all ranks",
    "no sample at all",
    "one sample",
)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Number of ranks → what each of them computed, in one start of that many processes."""

    @cache
    def computed(world):
        folder = tmp_path_factory.mktemp("ranks")
        torch.multiprocessing.spawn(run_rank, (world, folder), nprocs=world)
        return [torch.load(folder / f"{rank}.pt") for rank in range(world)]

    return computed


@pytest.fixture(params=[2, pytest.param(4, marks=pytest.mark.slow)], ids=lambda world: f"{world} ranks")
def ranks(request, group):
    return group(request.param)


def close(value, expected, what):
    np.testing.assert_allclose(value, expected, rtol=1e-11, atol=1e-11, err_msg=what)


def whole(parts):
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


every_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=" ".join)


@every_subject
def test_ranks_together_give_the_loss_and_the_gradients_of_one_process(ranks, subject):
    reduction = subject[1]
    together = {"mean": lambda values: sum(values) / len(values), "sum": sum, "none": torch.cat}[reduction]
    share = len(ranks) if reduction == "mean" else 1
    for situation, parts in situations_of(subject, len(ranks)).items():
        values, gradients = zip(*(rank["costs"][*subject, situation] for rank in ranks), strict=True)
        expected_value, expected_gradient = cost(SUBJECTS[subject], *whole(parts))
        close(together(values), expected_value, situation)
        close(torch.cat(gradients) / share, expected_gradient, situation)


@every_subject
def test_where_no_label_counts_every_rank_has_loss_and_gradient_zero(ranks, subject):
    for situation in NOTHING_COUNTS:
        for rank in ranks:
            for tensor in rank["costs"][*subject, situation]:
                assert torch.equal(tensor, torch.zeros_like(tensor)), situation


@over(LOSSES)
def test_means_over_the_own_shard_would_be_wrong(case):
    """So that the comparison above can fail."""
    parts = shards(2)["uneven shards"]
    loss = SUBJECTS[case.name, "mean"]
    values, gradients = zip(*(cost(loss, *part) for part in parts), strict=True)
    expected_value, expected_gradient = cost(loss, *whole(parts))
    assert abs(sum(values) / 2 - expected_value) > 1e-3
    assert (torch.cat(gradients) / 2 - expected_gradient).abs().max() > 1e-3


@over(LOSSES)
def test_data_parallel_training_gets_the_gradients_of_one_process(group, case):
    for situation in ("uneven shards", "empty shards"):
        expected = step(linear(), SUBJECTS[case.name, "mean"], *whole(shards(2)[situation]))
        for rank in group(2):
            for gradient, true_gradient in zip(rank["trained"][case.name, situation], expected, strict=True):
                close(gradient, true_gradient, situation)


@every_subject
def test_without_a_group_one_rank_evaluates_alone(ranks, subject):
    expected = SUBJECTS[subject](*shards(len(ranks))["uneven shards"][0])
    assert torch.equal(ranks[0]["alone"][subject], expected)


@every_subject
def test_a_loss_sends_one_number_and_lade_a_few_for_each_class(ranks, subject):
    name, reduction = subject
    expected = [1] if reduction == "mean" else []
    if "lade" in name:
        expected = [5, 3 * 5, 3 * 5]
    for rank in ranks:
        for situation in situations_of(subject, len(ranks)):
            assert rank["sizes"][*subject, situation] == expected


@pytest.mark.parametrize("situation", HEAD_SITUATIONS)
def test_the_regulariser_of_a_head_is_that_of_the_whole_batch(ranks, situation):
    expected = list(regulariser(*whole(shards(len(ranks))[situation])))
    for index, (value, by_features, by_memory) in enumerate(expected):
        values, *gradients = zip(*(rank["heads"][situation][index] for rank in ranks), strict=True)
        close(sum(values) / len(ranks), value, "value")
        close(torch.cat(gradients[0]) / len(ranks), by_features, "features")
        close(sum(gradients[1]) / len(ranks), by_memory, "memory")
