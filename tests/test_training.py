"""Training: configs, schedules, the loop and what a run folder holds."""

import json
import math
import re
from dataclasses import FrozenInstanceError, asdict, fields, replace
from hashlib import blake2b

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from priorshift import Prior, recipes
from priorshift.adjustment import TAUS
from priorshift.data import ImageSet, sampled_order
from priorshift.data.sources import digits_lt
from priorshift.models import Classifier
from priorshift.models.backbones import SmallCNN
from priorshift.models.heads import BilateralHead, CosineHead, LinearHead, NearestClassMeanHead
from priorshift.recipes.methods import with_method
from priorshift.training import (
    Augmentation,
    NonFiniteLossError,
    Optimizer,
    Part,
    Run,
    Stage,
    TrainConfig,
    carried_prior,
    loop,
    objective,
    predict,
    run,
    train,
)
from priorshift.training.bilateral import bilateral_loss, mixing_weight
from priorshift.training.build import build_loss, build_model
from priorshift.training.config import SCHEMA_VERSION
from priorshift.training.plan import batches, plan
from priorshift.training.run import resolve_device
from priorshift.training.schedule import learning_rate
from priorshift.training.seeds import derived_seed

STEPS = 5
"""Steps of an epoch: 276 images in batches of 64."""
PLAIN = Part(name="cross-entropy")
SOURCE = Prior([100, 64, 41, 27, 17, 11, 7, 4, 3, 2])
DIGITS = tuple("0123456789")


def tiny_config(*losses, **changes):
    """Two epochs of a very small network, once for each loss."""
    stages = tuple(
        Stage(loss=Part(name=name), epochs=2, optimizer=Optimizer(lr=0.05) if index == 0 else None)
        for index, name in enumerate(losses or ("cross-entropy",))
    )
    parts = {
        "method": "Softmax",
        "data": Part(name="digits-lt"),
        "model": Part(name="small-cnn", options={"width": 4}),
        "stages": stages,
        "batch_size": 64,
        "augmentation": Augmentation(shift=1),
        "device": "cpu",
    }
    return TrainConfig(**(parts | changes))


def progress_of(run):
    facts = run.load_weights()[1]
    assert facts["schema_version"] == 1 and facts["environment"]["torch"] == torch.__version__
    return {name: facts[name] for name in ("stage", "epochs", "completed", "chosen")}


def stages_with(**changes):
    """Two epochs of cross-entropy, then two of a stage with these changes."""
    first = Stage(loss=PLAIN, epochs=2, optimizer=Optimizer(lr=0.05))
    return (first, Stage(**({"loss": PLAIN, "epochs": 2, "optimizer": Optimizer(lr=0.1)} | changes)))


TWO_BRANCHES = Part(name="small-cnn", options={"width": 4, "branches": 2})
CRT = stages_with(head=Part(name="linear"), trains="head", sampler="class-balanced")


def two_epochs(config):
    return replace(config, device="cpu", stages=tuple(replace(stage, epochs=2) for stage in config.stages))


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    return train(tiny_config(), tmp_path_factory.mktemp("runs") / "finished")


def lines(run):
    return [json.loads(line) for line in run.metrics_file.read_text(encoding="utf-8").splitlines()]


def same_weights(first, second):
    ours, theirs = load_file(first.weights_file), load_file(second.weights_file)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# Configs


@pytest.mark.parametrize("recipe", [name for name in recipes.__all__ if name.startswith("digits")])
def test_every_digits_recipe_takes_two_epochs(recipe, tmp_path):
    config = two_epochs(getattr(recipes, recipe)())
    run = train(config, tmp_path / "run")
    assert run.finished(config)
    assert lines(run)[1]["loss"] < lines(run)[0]["loss"]
    assert predict(run.folder).method == config.method


def test_a_config_with_every_field_changed_survives_json(tmp_path):
    config = TrainConfig(
        method="Größe 大",
        data=Part(name="digits-lt", options={"imbalance": 10.0, "profile": "step"}),
        model=Part(name="small-cnn", options={"width": 8}),
        stages=(
            Stage(
                loss=Part(name="cross-entropy"),
                epochs=3,
                optimizer=Optimizer(
                    lr=0.3,
                    momentum=0.5,
                    nesterov=True,
                    weight_decay=1e-3,
                    warmup_epochs=0.5,
                    schedule="multistep",
                    milestones=(1.0, 2.5),
                    decay=0.2,
                ),
            ),
            Stage(loss=Part(name="lade", options={"alpha": 0.1, "lam": 0.01}), epochs=1, optimizer=None),
            Stage(
                loss=Part(name="cross-entropy"),
                epochs=0,
                sampler="reversed",
                bilateral=True,
                head=Part(name="tau-norm", options={"tau": 0.5}),
                trains="head",
            ),
        ),
        head=Part(name="cosine", options={"scale": 8.0, "learned": True}),
        batch_size=32,
        augmentation=Augmentation(shift=2, flip=True),
        seed=7,
        device="cuda:1",
    )
    config.save(tmp_path / "config.json")
    loaded = TrainConfig.load(tmp_path / "config.json")
    assert loaded == config
    assert isinstance(loaded.stages, tuple) and isinstance(loaded.stages[0].optimizer.milestones, tuple)


def test_a_field_left_out_has_its_default(tmp_path):
    content = {"schema_version": 1, **asdict(tiny_config())}
    del content["seed"], content["augmentation"], content["stages"][0]["optimizer"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    loaded = TrainConfig.load(tmp_path / "config.json")
    assert (loaded.seed, loaded.augmentation) == (0, Augmentation())
    assert loaded.stages[0].optimizer == Optimizer()


def edited(change):
    content = {"schema_version": SCHEMA_VERSION, **asdict(tiny_config())}
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(sede=1), "config has no field 'sede'; it has method, data, model"),
        (lambda c: c["stages"][0].update(epoch=1), r"config.stages\[0\] has no field 'epoch'"),
        (lambda c: c["stages"][0]["optimizer"].update(rate=1), r"optimizer has no field 'rate'; it has lr"),
        (lambda c: c.pop("method"), "method"),
        (lambda c: c["data"].pop("name"), "name"),
        (lambda c: c.update(seed="1"), "`config.seed` to be of type int, but got '1'"),
        (lambda c: c.update(seed=True), "`config.seed` to be of type int, but got True"),
        (lambda c: c.update(seed=1.5), "`config.seed` to be of type int, but got 1.5"),
        (lambda c: c.update(method=None), "`config.method` to be of type str, but got None"),
        (lambda c: c.update(stages={}), "`config.stages` to be a list"),
        (lambda c: c.update(stages=[]), "`stages` to be not empty"),
        (lambda c: c.update(model="small-cnn"), "`config.model` to be an object, but got 'small-cnn'"),
        (lambda c: c["model"].update(options=[4]), "`config.model.options` to be an object of options"),
        (lambda c: c["model"]["options"].update(width=[4]), r"`config.model.options.width` to be a number"),
        (
            lambda c: c["stages"][0]["optimizer"].update(lr="fast"),
            "optimizer.lr` to be a number, but got 'fast'",
        ),
        (lambda c: c["stages"][0]["optimizer"].update(lr=True), "optimizer.lr` to be a number, but got True"),
        (lambda c: c["stages"][0]["optimizer"].update(lr=-1), "`lr` to be positive, but got -1"),
        (lambda c: c["stages"][0]["optimizer"].update(lr=math.nan), "`lr` to be positive, but got nan"),
        (
            lambda c: c["stages"][0]["optimizer"].update(schedule="linear"),
            "one of constant, cosine, multistep",
        ),
        (
            lambda c: c["stages"][0].update(epochs=0),
            "`epochs` to be positive .* without a new `head`, but got 0",
        ),
        (lambda c: c["stages"][0].update(epochs=-1), "`epochs` to be non-negative, but got -1"),
        (
            lambda c: c["stages"][0].update(sampler="hope"),
            "sampler` to be one of instance, .* but got 'hope'",
        ),
        (lambda c: c["stages"][0].update(trains="heads"), "trains` to be one of all, head, but got 'heads'"),
        (lambda c: c["stages"][0].update(bilateral=1), "bilateral` to be of type bool, but got 1"),
        (lambda c: c["stages"][0].update(head="cosine"), "head` to be an object, but got 'cosine'"),
        (lambda c: c["stages"][0].update(optimizer=None), "first of the `stages` to have an `optimizer`"),
        (lambda c: c.update(schema_version=SCHEMA_VERSION + 1), "newer priorshift .* Upgrade priorshift"),
        (lambda c: c.pop("schema_version"), "is no config of priorshift"),
        (lambda c: c.update(schema_version="1"), "is no config of priorshift"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_sentence(change, words, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(edited(change)))
    with pytest.raises(ValueError, match=words) as caught:
        TrainConfig.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe"])
def test_what_is_no_config_is_refused_by_name(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json (holds no JSON|is no config)"):
        TrainConfig.load(path)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TrainConfig.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Augmentation(shift=-1), "`shift` to be non-negative, but got -1"),
        (lambda: Optimizer(lr=0.0), "`lr` to be positive"),
        (lambda: Optimizer(algorithm="lion"), "`algorithm` to be one of sgd, adam"),
        (lambda: Optimizer(algorithm="adam", nesterov=True), "`nesterov` to be False with adam"),
        (lambda: Optimizer(momentum=1.0), r"`momentum` to be in \[0, 1\)"),
        (lambda: Optimizer(weight_decay=-1.0), "`weight_decay` to be non-negative"),
        (lambda: Optimizer(warmup_epochs=-1.0), "`warmup_epochs` to be non-negative"),
        (lambda: Optimizer(decay=0.0), "`decay` to be positive"),
        (lambda: Stage(loss=PLAIN, epochs=0), "`epochs` to be positive in a stage without a new `head`"),
        (lambda: Stage(loss=PLAIN, epochs=-1, head=Part(name="cosine")), "`epochs` to be non-negative"),
        (
            lambda: Stage(loss=PLAIN, epochs=1, optimizer=None, head=Part(name="linear")),
            "an `optimizer` in a",
        ),
        (lambda: Stage(loss=PLAIN, epochs=1, optimizer=None, trains="head"), "an `optimizer` in a stage"),
        (lambda: tiny_config(batch_size=0), "`batch_size` to be positive"),
        (lambda: tiny_config(seed=-1), "`seed` to be non-negative"),
        (lambda: tiny_config(stages=()), "`stages` to be not empty"),
    ],
)
def test_a_setting_out_of_range_is_refused_where_it_is_made(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_configs_are_frozen_and_made_by_keyword():
    for kind in (TrainConfig, Stage, Optimizer, Augmentation, Part):
        assert all(entry.kw_only for entry in fields(kind))
        with pytest.raises(FrozenInstanceError):
            setattr(tiny_config() if kind is TrainConfig else kind(**MINIMAL[kind]), fields(kind)[0].name, 1)


MINIMAL = {
    Stage: {"loss": Part(name="cross-entropy"), "epochs": 1},
    Optimizer: {},
    Augmentation: {},
    Part: {"name": "cross-entropy"},
}


# The schedule


def learning_rates(optimizer, *, epochs, steps_per_epoch=4):
    total = epochs * steps_per_epoch
    return [
        learning_rate(optimizer, step, steps_per_epoch=steps_per_epoch, total_steps=total)
        for step in range(total)
    ]


def torch_rates(make, *, steps, lr):
    """The rates that a scheduler of torch gives, step by step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_a_cosine_is_that_of_torch():
    ours = learning_rates(Optimizer(lr=0.3, schedule="cosine"), epochs=6)
    theirs = torch_rates(lambda sgd: torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 24), steps=24, lr=0.3)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_multistep_is_that_of_torch():
    optimizer = Optimizer(lr=0.3, schedule="multistep", milestones=(2.0, 3.5), decay=0.1)
    theirs = torch_rates(
        lambda sgd: torch.optim.lr_scheduler.MultiStepLR(sgd, [8, 14], 0.1), steps=24, lr=0.3
    )
    assert learning_rates(optimizer, epochs=6) == pytest.approx(theirs, rel=1e-12)


def test_constant_stays():
    assert learning_rates(Optimizer(lr=0.3, schedule="constant"), epochs=3) == [0.3] * 12


@pytest.mark.parametrize("schedule", ["constant", "cosine", "multistep"])
def test_a_warm_up_rises_in_equal_steps_to_the_base_rate_and_then_the_schedule_begins(schedule):
    optimizer = Optimizer(lr=0.8, schedule=schedule, warmup_epochs=1.0, milestones=(3.0,), decay=0.5)
    rates = learning_rates(optimizer, epochs=5)
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    rest = {
        "constant": [0.8] * 16,
        "cosine": [0.4 * (1 + math.cos(math.pi * step / 16)) for step in range(16)],
        "multistep": [0.8] * 8 + [0.4] * 8,
    }
    assert rates[4:] == pytest.approx(rest[schedule])


@given(
    st.sampled_from(["constant", "cosine", "multistep"]),
    st.floats(0, 4),
    st.integers(1, 6),
    st.integers(1, 7),
)
def test_the_rate_is_positive_and_never_above_the_base(schedule, warmup, epochs, steps_per_epoch):
    optimizer = Optimizer(lr=0.1, schedule=schedule, warmup_epochs=warmup, milestones=(1.0, 2.0))
    rates = learning_rates(optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)
    assert all(0 < rate <= 0.1 * (1 + 1e-12) for rate in rates)


@pytest.mark.parametrize("lead", [0, 1])
def test_a_schedule_that_moves_per_epoch_is_the_schedule_at_the_epoch_and_its_lead(lead):
    """The released LADE code steps its scheduler before each epoch: lead 1."""
    optimizer = Optimizer(
        lr=0.2,
        schedule="multistep",
        milestones=(12.0, 16.0),
        decay=0.01,
        warmup_epochs=5,
        warmup_from=1 / 3,
        per_epoch=True,
        lead=lead,
    )
    rates = learning_rates(optimizer, epochs=20, steps_per_epoch=3)
    for epoch in range(20):
        at = epoch + lead
        rise = (1 / 3) * (1 - at / 5) + at / 5 if at < 5 else 1
        decay = 0.01 ** ((at >= 12) + (at >= 16))
        assert rates[3 * epoch : 3 * epoch + 3] == pytest.approx([0.2 * rise * decay] * 3)


def test_a_cosine_that_leads_by_an_epoch_wastes_the_last_one():
    optimizer = Optimizer(lr=0.1, schedule="cosine", per_epoch=True, lead=1)
    rates = learning_rates(optimizer, epochs=4, steps_per_epoch=2)
    expected = [0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in (1, 2, 3, 4)]
    assert rates == pytest.approx([rate for rate in expected for _ in range(2)])
    assert rates[-1] == pytest.approx(0)


def test_a_warm_up_may_rise_from_a_share_of_the_base_rate():
    optimizer = Optimizer(lr=1.0, schedule="constant", warmup_epochs=1, warmup_from=0.5)
    assert learning_rates(optimizer, epochs=1) == pytest.approx([0.625, 0.75, 0.875, 1.0])


# The plan


def test_a_stage_without_optimizer_goes_on_with_the_schedule_before():
    first, second = Optimizer(lr=0.1), Optimizer(lr=0.01)
    loss = Part(name="cross-entropy")
    config = tiny_config(
        stages=(
            Stage(loss=loss, epochs=3, optimizer=first),
            Stage(loss=loss, epochs=2, optimizer=None),
            Stage(loss=loss, epochs=1, optimizer=None),
            Stage(loss=loss, epochs=4, optimizer=second),
        )
    )
    epochs = plan(config, 5 * config.batch_size)
    assert [epoch.number for epoch in epochs] == list(range(10))
    assert [epoch.stage for epoch in epochs] == [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]
    assert [epoch.fresh for epoch in epochs] == [True] + [False] * 5 + [True] + [False] * 3
    assert [epoch.settings for epoch in epochs] == [first] * 6 + [second] * 4
    assert [epoch.total_steps for epoch in epochs] == [30] * 6 + [20] * 4
    assert [step for epoch in epochs for step in epoch.scheduled] == [*range(30), *range(20)]


def test_one_stage_spans_itself():
    epochs = plan(tiny_config(), 5 * tiny_config().batch_size)
    assert [(epoch.scheduled, epoch.total_steps) for epoch in epochs] == [
        (range(0, 5), 10),
        (range(5, 10), 10),
    ]


def test_the_last_batch_of_an_epoch_is_smaller_or_left_out():
    data = ImageSet(torch.zeros(129, 1, 1, 1).byte(), torch.arange(129) % 10, tuple("0123456789"))
    for drop_last, sizes in ((False, [64, 64, 1]), (True, [64, 64])):
        config = tiny_config(drop_last=drop_last)
        epochs = plan(config, 129)
        assert [len(epoch.scheduled) for epoch in epochs] == [len(sizes)] * 2
        (stream,) = batches(config, epochs[1], data)
        assert [len(batch.rows) for batch in stream] == sizes
        assert len({row for batch in stream for row in batch.rows.tolist()}) == sum(sizes)


def test_an_epoch_without_a_full_batch_cannot_leave_out_the_rest():
    with pytest.raises(ValueError, match="`batch_size` to be at most the number of training images, 63"):
        plan(tiny_config(drop_last=True), 63)
    assert len(plan(tiny_config(), 63)[0].scheduled) == 1


def test_the_share_of_passed_epochs_is_counted_with_and_without_the_last():
    stage = Stage(loss=Part(name="cross-entropy"), epochs=4)
    epochs = plan(tiny_config(stages=(stage,)), 64)
    assert [epoch.passed for epoch in epochs] == [0, 0.25, 0.5, 0.75]
    assert [epoch.progress for epoch in epochs] == pytest.approx([0, 1 / 3, 2 / 3, 1])


# Seeds


def test_seeds_of_different_places_differ():
    places = [
        (seed, *where)
        for seed in range(20)
        for where in (
            [("weights",)]
            + [("head", stage) for stage in range(4)]
            + [("order", epoch, sampler) for epoch in range(20) for sampler in ("instance", "reversed")]
            + [
                ("augmentation", epoch, step, stream)
                for epoch in range(20)
                for step in range(20)
                for stream in range(2)
            ]
        )
    ]
    seeds = {derived_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(1, 23) != derived_seed(12, 3)
    assert derived_seed(0, "order", 1) != derived_seed(0, "order", "1")


def test_seeds_are_the_same_everywhere():
    assert derived_seed(0, "order", 1) == 7021862330116196507
    digest = blake2b(b"(3, 'weights')", digest_size=8).digest()
    assert derived_seed(3, "weights") == int.from_bytes(digest, "big") // 2


# Models


def test_the_small_network_gives_features_at_any_size():
    backbone = SmallCNN(3, width=4)
    assert backbone.num_features == 8
    assert backbone(torch.zeros(2, 3, 8, 8)).shape == (2, 8)
    assert backbone(torch.zeros(2, 3, 9, 5)).shape == (2, 8)
    assert backbone.eval()(torch.zeros(1, 3, 8, 8)).shape == (1, 8)


def test_branches_share_what_lies_before_them_and_stand_side_by_side():
    backbone = SmallCNN(1, width=4, branches=3).eval()
    images = torch.rand(2, 1, 8, 8)
    assert backbone.num_features == 24
    expected = [branch(backbone.shared(images)) for branch in backbone.branches]
    assert not torch.equal(expected[0], expected[1])
    assert torch.equal(backbone(images), torch.cat(expected, dim=1))


@pytest.mark.parametrize("option", ["width", "branches"])
def test_a_network_without_width_or_branches_is_refused(option):
    with pytest.raises(ValueError, match=f"`{option}` to be positive, but got 0"):
        SmallCNN(1, **{option: 0})


def test_a_classifier_is_its_head_on_its_backbone():
    backbone, head = SmallCNN(3, width=4).eval(), LinearHead(8, 7)
    images = torch.rand(2, 3, 8, 8)
    expected = backbone(images) @ head.weight.T + head.bias
    np.testing.assert_allclose(Classifier(backbone, head)(images).detach(), expected.detach(), rtol=1e-5)


def test_every_parameter_of_the_small_network_learns():
    model = Classifier(SmallCNN(1, width=4, branches=2), LinearHead(16, 3))
    torch.nn.functional.cross_entropy(model(torch.rand(6, 1, 8, 8)), torch.arange(6) % 3).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_initial_weights_depend_on_the_seed_alone():
    data = digits_lt().test
    first = build_model(tiny_config(seed=1), data).state_dict()
    torch.manual_seed(42)
    state = torch.get_rng_state()
    again = build_model(tiny_config(seed=1, method="other"), data).state_dict()
    other = build_model(tiny_config(seed=2), data).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("backbone.shared.0.weight", "head.weight"):
        assert not torch.equal(first[name], other[name])
    assert first["head.weight"].shape == (10, 8)


def test_another_head_leaves_the_initial_backbone_as_it_is():
    data = digits_lt().test
    first = build_model(tiny_config(), data).backbone.state_dict()
    other = build_model(tiny_config(head=Part(name="cosine")), data).backbone.state_dict()
    assert all(torch.equal(first[name], other[name]) for name in first)


# What a stage carries


@pytest.mark.parametrize(
    ("loss", "carried", "by"),
    [
        (Part(name="cross-entropy"), SOURCE, "theory"),
        (Part(name="balanced-softmax"), Prior.uniform(10), "theory"),
        (Part(name="logit-adjusted", options={"tau": 0.5}), SOURCE.tempered(0.5), "theory"),
        (Part(name="lade", options={"alpha": 0.1, "lam": 0.1}), Prior.uniform(10), "theory"),
        (
            Part(name="lade", options={"alpha": 0.1, "lam": 0.1, "variant": "released"}),
            Prior.uniform(10),
            "convention",
        ),
    ],
)
def test_a_stage_carries_what_its_loss_and_its_images_say(loss, carried, by):
    prior, right = carried_prior(tiny_config(stages=(Stage(loss=loss, epochs=1),)), 0, SOURCE)
    np.testing.assert_allclose(prior.probs, carried.probs, rtol=1e-12)
    assert right == by


def test_a_run_carries_what_its_last_stage_carries(tmp_path):
    deferred = train(tiny_config("cross-entropy", "balanced-softmax"), tmp_path / "deferred")
    assert predict(deferred.folder).carried == Prior.uniform(10, names=DIGITS)
    reverse = train(tiny_config("balanced-softmax", "cross-entropy"), tmp_path / "reverse")
    assert predict(reverse.folder).carried == SOURCE.named(DIGITS)


def test_a_run_stopped_in_its_first_stage_carries_what_that_stage_carries(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config("cross-entropy", "balanced-softmax"), tmp_path / "run", on_epoch=stop_after(1))
    assert predict(tmp_path / "run").carried == SOURCE.named(DIGITS)


@pytest.mark.parametrize(
    ("changes", "carried", "by"),
    [
        ({"sampler": "class-balanced"}, Prior.uniform(10), "theory"),
        ({"sampler": "square-root"}, SOURCE.tempered(0.5), "theory"),
        ({"sampler": "progressively-balanced"}, Prior.uniform(10), "convention"),
        ({"sampler": "reversed"}, SOURCE.tempered(-1.0), "theory"),
        (
            {"sampler": "square-root", "loss": Part(name="logit-adjusted", options={"tau": 0.5})},
            SOURCE.tempered(0.25),
            "theory",
        ),
        ({"sampler": "square-root", "loss": Part(name="balanced-softmax")}, Prior.uniform(10), "theory"),
        ({"head": Part(name="cosine")}, SOURCE, "theory"),
        ({"head": Part(name="nearest-class-mean"), "epochs": 0}, Prior.uniform(10), "convention"),
    ],
)
def test_a_second_stage_carries_what_its_own_sampler_loss_and_head_say(changes, carried, by):
    config = tiny_config(stages=stages_with(**changes))
    prior, right = carried_prior(config, 1, SOURCE)
    np.testing.assert_allclose(prior.probs, carried.probs, rtol=1e-12)
    assert right == by
    assert carried_prior(config, 0, SOURCE) == (SOURCE, "theory")


# The loop


def test_the_same_config_gives_the_same_weights_whatever_ran_before(tmp_path, finished_run):
    torch.manual_seed(77)
    state = torch.get_rng_state()
    again = train(tiny_config(), tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(again, finished_run)
    assert [line["loss"] for line in lines(again)] == [line["loss"] for line in lines(finished_run)]
    assert np.array_equal(predict(again.folder).logits, predict(finished_run.folder).logits)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"augmentation": Augmentation()},
        {"batch_size": 32},
        {"data": Part(name="digits-lt", options={"split_seed": 1})},
    ],
)
def test_another_config_gives_other_weights(tmp_path, finished_run, changes):
    assert not same_weights(train(tiny_config(**changes), tmp_path / "other"), finished_run)


def test_two_epochs_reach_the_losses_they_always_did(finished_run):
    assert [line["loss"] for line in lines(finished_run)] == pytest.approx([2.4303, 2.1924], rel=5e-4)


def test_training_follows_a_plain_loop_written_out(tmp_path):
    """Nesterov momentum and weight decay by hand (Sutskever et al. as torch has it), without augmentation."""
    optimizer = Optimizer(lr=0.2, momentum=0.8, nesterov=True, weight_decay=0.01, warmup_epochs=1.0)
    stage = Stage(loss=Part(name="cross-entropy"), epochs=2, optimizer=optimizer)
    config = tiny_config(stages=(stage,), augmentation=Augmentation())
    ours = load_file(train(config, tmp_path / "run").weights_file)

    data = digits_lt().train
    model = build_model(config, data)
    model.train()
    images, labels = data.images.float() / 16, data.labels
    velocity = [torch.zeros_like(parameter) for parameter in model.parameters()]
    rates = [0.04, 0.08, 0.12, 0.16, 0.2] + [0.1 * (1 + math.cos(math.pi * step / 5)) for step in range(5)]
    for epoch in range(2):
        generator = torch.Generator().manual_seed(derived_seed(0, "order", epoch, "instance"))
        order = torch.randperm(276, generator=generator)
        for step in range(STEPS):
            rows = order[64 * step : 64 * step + 64]
            logits = model(images[rows])
            loss = -logits.log_softmax(dim=1)[torch.arange(len(rows)), labels[rows]].mean()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient, speed in zip(model.parameters(), gradients, velocity, strict=True):
                    force = gradient + 0.01 * parameter
                    speed.mul_(0.8).add_(force)
                    parameter -= rates[STEPS * epoch + step] * (force + 0.8 * speed)
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(ours[name], tensor, rtol=2e-3, atol=2e-4)


def test_metrics_hold_one_line_for_each_epoch_and_on_epoch_hears_the_same(tmp_path):
    heard = []
    run = train(tiny_config("cross-entropy", "balanced-softmax"), tmp_path / "run", on_epoch=heard.append)
    assert lines(run) == heard
    keys = {"epoch", "epochs", "stage", "loss", "lr", "train_seconds", "validation_balanced_accuracy"}
    assert all(line.keys() == keys and line["train_seconds"] > 0 for line in heard)
    assert [(line["epoch"], line["epochs"], line["stage"]) for line in heard] == [
        (1, 4, 0),
        (2, 4, 0),
        (3, 4, 1),
        (4, 4, 1),
    ]
    last = [0.025 * (1 + math.cos(math.pi * (5 * epoch + 4) / 20)) for epoch in range(4)]
    assert [line["lr"] for line in heard] == pytest.approx(last)


def test_validation_accuracy_is_balanced_and_compensated(finished_run):
    validation = predict(finished_run.folder, "validation")
    compensated = validation.logits - SOURCE.log_probs
    right = compensated.argmax(axis=1) == validation.labels
    by_class = [right[validation.labels == label].mean().item() for label in range(10)]
    assert lines(finished_run)[-1]["validation_balanced_accuracy"] == pytest.approx(np.mean(by_class))


def test_training_learns(tmp_path):
    stage = Stage(loss=Part(name="balanced-softmax"), epochs=20, optimizer=Optimizer(lr=0.1))
    model = Part(name="small-cnn", options={"width": 16})
    run = train(tiny_config(stages=(stage,), model=model), tmp_path / "run")
    assert lines(run)[-1]["validation_balanced_accuracy"] > 0.6


# Stages


@pytest.fixture(scope="module")
def retrained_run(tmp_path_factory):
    return train(tiny_config(stages=CRT), tmp_path_factory.mktemp("runs") / "retrained")


def part_of(run, part):
    """The tensors of the backbone, or of the head, under their own names."""
    weights = load_file(run.weights_file)
    return {name.split(".", 1)[1]: tensor for name, tensor in weights.items() if name.startswith(part)}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_stage_that_trains_the_head_leaves_the_backbone_bit_for_bit(retrained_run, finished_run):
    before, after = part_of(finished_run, "backbone"), part_of(retrained_run, "backbone")
    assert sum("running" in name or "tracked" in name for name in before) == 9
    assert_same(before, after)


def test_a_stage_that_trains_all_moves_backbone_and_head(tmp_path, finished_run):
    run = train(tiny_config(stages=stages_with()), tmp_path / "run")
    for part in ("backbone", "head"):
        before, after = part_of(finished_run, part), part_of(run, part)
        assert all(not torch.equal(before[name], after[name]) for name in before)


def test_a_backbone_that_was_frozen_trains_again_in_the_stage_after(tmp_path, finished_run):
    config = tiny_config(stages=(*CRT, replace(stages_with()[1], epochs=1)))
    before, after = part_of(finished_run, "backbone"), part_of(train(config, tmp_path / "run"), "backbone")
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_retraining_the_head_follows_a_plain_loop_on_fixed_features(tmp_path, finished_run):
    """cRT by hand: a new linear layer, frozen features in evaluation mode, class-balanced batches."""
    optimizer = Optimizer(lr=0.3, momentum=0.8, weight_decay=0.01, schedule="constant")
    stages = (CRT[0], replace(CRT[1], optimizer=optimizer))
    config = tiny_config(stages=stages, augmentation=Augmentation())
    ours = part_of(train(config, tmp_path / "run"), "head")

    data = digits_lt().train
    backbone = SmallCNN(1, width=4)
    first = train(tiny_config(augmentation=Augmentation()), tmp_path / "first")
    backbone.load_state_dict(part_of(first, "backbone"))
    with torch.no_grad():
        features = backbone.eval()(data.images.float() / 16).double()
    head = build_model(config, data, 1).head.state_dict()
    assert not torch.equal(head["weight"], build_model(config, data, 0).head.weight)
    weight, bias = head["weight"].double(), head["bias"].double()
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for epoch in (2, 3):
        seed = derived_seed(0, "order", epoch, "class-balanced")
        order = sampled_order(data.labels, 10, "class-balanced", seed=seed)
        for step in range(STEPS):
            rows = order[64 * step : 64 * step + 64]
            probs = (features[rows] @ weight.T + bias).softmax(dim=1)
            error = (probs - torch.eye(10)[data.labels[rows]]) / len(rows)
            gradients = error.T @ features[rows], error.sum(dim=0)
            for parameter, gradient, speed in zip((weight, bias), gradients, velocity, strict=True):
                speed.mul_(0.8).add_(gradient + 0.01 * parameter)
                parameter -= 0.3 * speed
    np.testing.assert_allclose(ours["weight"], weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours["bias"], bias, rtol=1e-4, atol=1e-5)


def test_a_retrained_run_predicts_with_its_new_head_and_carries_the_uniform_mix(retrained_run):
    model = Classifier(SmallCNN(1, width=4), LinearHead(8, 10))
    model.load_state_dict(load_file(retrained_run.weights_file))
    predictions = predict(retrained_run.folder)
    with torch.no_grad():
        expected = model.eval()(digits_lt().test.images.float() / 16)
    np.testing.assert_allclose(predictions.logits, expected, rtol=1e-4, atol=1e-5)
    assert (predictions.carried, predictions.carried_by) == (Prior.uniform(10, names=DIGITS), "theory")
    assert [line["stage"] for line in lines(retrained_run)] == [0, 0, 1, 1]


def test_validation_accuracy_is_compensated_by_what_its_stage_carries(retrained_run):
    validation = predict(retrained_run.folder, "validation")
    right = validation.predicted == validation.labels
    assert lines(retrained_run)[-1]["validation_balanced_accuracy"] == pytest.approx(right.mean().item())


def test_a_head_of_another_kind_can_take_over(tmp_path, finished_run):
    config = tiny_config(stages=stages_with(head=Part(name="cosine", options={"scale": 8.0})))
    run = train(config, tmp_path / "run")
    assert part_of(run, "head").keys() == {"weight", "scale"}
    model = Classifier(SmallCNN(1, width=4), CosineHead(8, 10, scale=8.0))
    model.load_state_dict(load_file(run.weights_file))
    with torch.no_grad():
        expected = model.eval()(digits_lt().test.images.float() / 16)
    np.testing.assert_allclose(predict(run.folder).logits, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(predict(run.folder).logits).max() <= 8.0


def ldam(**options):
    return Part(name="ldam", options={"scale": 1.0, **options})


def test_a_stage_without_optimizer_goes_on_with_momentum_and_schedule_bit_for_bit(tmp_path):
    whole = (Stage(loss=ldam(), epochs=4, optimizer=Optimizer(lr=0.05)),)
    deferred = (
        replace(whole[0], epochs=2),
        Stage(loss=ldam(), epochs=2, optimizer=None),
    )
    fresh = (deferred[0], replace(deferred[1], optimizer=Optimizer(lr=0.05)))
    runs = [
        train(tiny_config(stages=stages), tmp_path / str(number))
        for number, stages in enumerate((whole, deferred, fresh))
    ]
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])
    assert [line["lr"] for line in lines(runs[0])] == [line["lr"] for line in lines(runs[1])]


def test_deferred_reweighting_begins_with_its_stage(tmp_path):
    stages = (
        Stage(loss=ldam(), epochs=2, optimizer=Optimizer(lr=0.05)),
        Stage(loss=ldam(reweight_beta=0.9999), epochs=2, optimizer=None),
    )
    plain = (stages[0], replace(stages[1], loss=ldam()))
    run = train(tiny_config(stages=stages), tmp_path / "deferred")
    other = train(tiny_config(stages=plain), tmp_path / "plain")
    losses, others = ([line["loss"] for line in lines(each)] for each in (run, other))
    assert losses[:2] == others[:2]
    assert all(abs(ours - theirs) > 1e-3 for ours, theirs in zip(losses[2:], others[2:], strict=True))
    predictions = predict(run.folder)
    assert (predictions.carried, predictions.carried_by) == (Prior.uniform(10, names=DIGITS), "convention")


def test_a_head_of_no_epochs_is_kept_as_it_is_made(tmp_path, finished_run):
    config = tiny_config(stages=stages_with(head=Part(name="learnable-scale"), epochs=0))
    run = train(config, tmp_path / "run")
    assert_same(part_of(run, "backbone"), part_of(finished_run, "backbone"))
    head, before = part_of(run, "head"), part_of(finished_run, "head")
    assert torch.equal(head.pop("scale"), torch.ones(10))
    assert_same(head, before)
    assert lines(run)[-1]["epoch"] == len(lines(run)) == 2
    assert progress_of(run) == {"stage": 1, "epochs": 2, "completed": True, "chosen": {}}
    assert predict(run.folder).facts["training"] == "completed"


def test_class_means_are_made_from_the_features_of_the_stage_before(tmp_path, finished_run):
    config = tiny_config(stages=stages_with(head=Part(name="nearest-class-mean"), epochs=0))
    run = train(config, tmp_path / "run")
    backbone = SmallCNN(1, width=4)
    backbone.load_state_dict(part_of(finished_run, "backbone"))
    splits = digits_lt()
    with torch.no_grad():
        features, others = (
            backbone.eval()(split.images.float() / 16).double().numpy()
            for split in (splits.train, splits.test)
        )
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([directions[splits.train.labels == label].mean(axis=0) for label in range(10)])
    cosines = others @ means.T / np.outer(np.linalg.norm(others, axis=1), np.linalg.norm(means, axis=1))
    predictions = predict(run.folder)
    np.testing.assert_allclose(predictions.logits, cosines, rtol=1e-4, atol=1e-5)
    assert (predictions.carried, predictions.carried_by) == (Prior.uniform(10, names=DIGITS), "convention")


def test_what_a_head_chose_is_kept_and_told(tmp_path):
    config = tiny_config(stages=stages_with(head=Part(name="tau-norm"), epochs=0))
    run = train(config, tmp_path / "run")
    chosen = run.load_weights()[1]["chosen"]
    assert chosen["tau"] in TAUS
    assert predict(run.folder).facts["chosen tau"] == chosen["tau"]


def test_a_second_stage_deals_from_its_sampler(tmp_path, monkeypatch):
    dealt = []

    def spy(stage, source):
        module = build_loss(stage, source)
        module.register_forward_pre_hook(lambda _, arguments: dealt.append((stage.sampler, arguments[1])))
        return module

    monkeypatch.setattr(loop, "build_loss", spy)
    train(tiny_config(stages=stages_with(sampler="reversed")), tmp_path / "run")
    for sampler, mix in (("instance", SOURCE), ("reversed", SOURCE.tempered(-1.0))):
        labels = torch.cat([batch for name, batch in dealt if name == sampler])
        assert len(labels) == 2 * 276
        shares, probs = torch.bincount(labels, minlength=10) / len(labels), torch.tensor(mix.probs)
        assert torch.all((shares - probs).abs() < 4.5 * (probs / len(labels)).sqrt())


# Two branches


def test_the_mixing_weight_falls_along_a_parabola():
    """Zhou et al., Eq. 6, over five epochs."""
    assert [mixing_weight(epoch / 4) for epoch in range(5)] == [1 - (epoch / 4) ** 2 for epoch in range(5)]


@pytest.mark.parametrize(("progress", "alpha"), [(0.0, 1.0), (0.5, 0.75), (1.0, 0.0)])
def test_a_bilateral_loss_is_that_of_mixed_logits_on_both_labels(progress, alpha):
    """Zhou et al., Eq. 1 to 4, with the released code's factor 2 and bias, image by image."""
    torch.manual_seed(0)
    model = Classifier(SmallCNN(1, width=2, branches=2), BilateralHead(8, 3)).double().eval()
    images = torch.rand(2, 5, 1, 8, 8, dtype=torch.float64)
    labels = torch.tensor([[0, 0, 1, 0, 2], [2, 1, 2, 2, 0]])
    weight, bias = (tensor.detach().numpy() for tensor in model.head.linear.parameters())
    losses = []
    for row in range(5):
        with torch.no_grad():
            features = [
                branch(model.backbone.shared(images[stream, row : row + 1]))[0].numpy()
                for stream, branch in enumerate(model.backbone.branches)
            ]
        mixed = alpha * weight[:, :4] @ features[0] + (1 - alpha) * weight[:, 4:] @ features[1]
        logits = 2 * mixed + bias
        log_probs = logits - np.log(np.exp(logits).sum())
        losses.append(-alpha * log_probs[labels[0, row]] - (1 - alpha) * log_probs[labels[1, row]])
    ours = bilateral_loss(model, torch.nn.CrossEntropyLoss(), list(images), list(labels), progress=progress)
    assert ours.item() == pytest.approx(np.mean(losses), rel=1e-12)


def test_bilateral_training_moves_from_the_first_branch_to_the_second(tmp_path, monkeypatch):
    seen = []

    def spy(model, loss_function, images, labels, *, progress):
        seen.append((progress, labels))
        return bilateral_loss(model, loss_function, images, labels, progress=progress)

    monkeypatch.setattr(objective, "bilateral_loss", spy)
    stage = Stage(loss=PLAIN, epochs=3, optimizer=Optimizer(lr=0.05), bilateral=True)
    config = tiny_config(stages=(stage,), model=TWO_BRANCHES, head=Part(name="bilateral"))
    run = train(config, tmp_path / "run")
    expected = [0.0] * STEPS + [1 / 3] * STEPS + [2 / 3] * STEPS
    assert [progress for progress, _ in seen] == pytest.approx(expected)
    streams = [torch.cat([labels[stream] for _, labels in seen]) for stream in (0, 1)]
    shares = [torch.bincount(stream, minlength=10) / len(stream) for stream in streams]
    np.testing.assert_allclose(shares[0], SOURCE.probs, rtol=1e-6)
    assert shares[1][0] < 0.05 and shares[1][9] > 0.2
    predictions = predict(run.folder)
    assert np.isfinite(predictions.logits).all()
    assert (predictions.carried, predictions.carried_by) == (Prior.uniform(10, names=DIGITS), "convention")


# What stops a run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": Part(name="nowhere")}, "no data 'nowhere'; there are cifar10-lt, .*digits-lt"),
        (
            {"data": Part(name="digits-lt", options={"size": 3})},
            "data 'digits-lt' has no option 'size'; it has",
        ),
        ({"data": Part(name="digits-lt", options={"max_count": 5000})}, "5000"),
        ({"model": Part(name="large-cnn")}, "no model 'large-cnn'; there are .*small-cnn"),
        ({"model": Part(name="small-cnn", options={"depth": 3})}, "no option 'depth'; it has .*width"),
        (
            {"model": Part(name="small-cnn", options={"width": "wide"})},
            "`width` of the model 'small-cnn' to be of type int",
        ),
        (
            {"stages": tiny_config("cross-entropy", "hope").stages},
            "no loss 'hope'; there are .*cross-entropy",
        ),
        ({"stages": tiny_config("cross-entropy", "lade").stages}, "loss 'lade' cannot be built: .*alpha"),
        ({"head": Part(name="hope")}, "no head 'hope'; there are .*cosine, .*linear"),
        (
            {"head": Part(name="cosine", options={"size": 1})},
            "head 'cosine' has no option 'size'; it has scale",
        ),
        ({"stages": stages_with(head=Part(name="hope"))}, "no head 'hope'; there are .*linear"),
        ({"stages": stages_with(head=Part(name="cosine", options={"scale": 0.0}))}, "`scale` to be positive"),
        ({"stages": stages_with(bilateral=True)}, "`model` of two branches for a bilateral stage"),
        (
            {"stages": stages_with(bilateral=True), "model": TWO_BRANCHES},
            "`head` of a bilateral stage to mix two branches",
        ),
        ({"device": "cuda:99"}, "`device` to be auto or one of this machine, but got 'cuda:99'"),
        ({"device": "toaster"}, "`device` .* but got 'toaster'"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_written(changes, words, tmp_path):
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "model.safetensors").write_bytes(b"precious")
    for folder in (tmp_path / "new", earlier):
        with pytest.raises(ValueError, match=words):
            train(tiny_config(**changes), folder)
    assert not (tmp_path / "new").exists()
    assert [file.name for file in earlier.iterdir()] == ["model.safetensors"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    stage = Stage(loss=Part(name="cross-entropy"), epochs=3, optimizer=Optimizer(lr=1e30))
    with pytest.raises(NonFiniteLossError, match=r"The loss was (nan|inf) at step \d+ \(epoch [123]\)"):
        train(tiny_config(stages=(stage,)), tmp_path / "run")
    assert not Run(tmp_path / "run").finished(tiny_config(stages=(stage,)))
    assert not Run(tmp_path / "run").weights_file.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_step_whose_loss_was_not_finite_is_named(tmp_path, monkeypatch, value):
    class BreaksAtStep(torch.nn.Module):
        calls = 0

        def forward(self, logits, labels):
            self.calls += 1
            return logits.mean() * 0 + (value if self.calls == 8 else 1.0)

    monkeypatch.setattr(loop, "build_loss", lambda stage, source: BreaksAtStep())
    with pytest.raises(NonFiniteLossError, match=rf"was {value} at step 7 \(epoch 2\)"):
        train(tiny_config(), tmp_path / "run")
    assert len(lines(Run(tmp_path / "run"))) == 1


def stop_after(epochs):
    def on_epoch(record):
        if record["epoch"] == epochs:
            raise KeyboardInterrupt

    return on_epoch


def test_an_interrupted_run_can_be_predicted_with_and_says_so(tmp_path, finished_run):
    config = tiny_config("cross-entropy", "cross-entropy")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", on_epoch=stop_after(3))
    run = Run(tmp_path / "run")
    assert not run.finished(config)
    assert run.config() == config
    assert len(lines(run)) == 3
    predictions = predict(run.folder)
    assert predictions.facts["training"] == "stopped in epoch 4"
    assert np.isfinite(predictions.logits).all()
    assert predict(finished_run.folder).facts["training"] == "completed"


def test_an_interrupt_in_the_middle_of_an_epoch_keeps_the_weights_of_that_moment(tmp_path, monkeypatch):
    def interrupting(settings, step, **options):
        if step == 7:
            raise KeyboardInterrupt
        return learning_rate(settings, step, **options)

    monkeypatch.setattr(loop, "learning_rate", interrupting)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), tmp_path / "run")
    weights, _ = Run(tmp_path / "run").load_weights()
    assert progress_of(Run(tmp_path / "run")) == {"stage": 0, "epochs": 1, "completed": False, "chosen": {}}
    assert weights["backbone.shared.1.num_batches_tracked"] == 7
    assert predict(tmp_path / "run").facts["training"] == "stopped in epoch 2"


def interrupting_at(call):
    """The learning rate, but Ctrl-C at this call."""
    calls = []

    def rate(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return learning_rate(*arguments, **options)

    return rate


@pytest.mark.parametrize("steps", [1, 3])
def test_an_interrupt_in_the_first_epoch_with_a_new_head_leaves_that_head(tmp_path, monkeypatch, steps):
    monkeypatch.setattr(loop, "learning_rate", interrupting_at(2 * (STEPS + 1) + steps))
    config = tiny_config(stages=stages_with(head=Part(name="cosine"), sampler="class-balanced"))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    weights, _ = Run(tmp_path / "run").load_weights()
    assert progress_of(Run(tmp_path / "run")) == {"stage": 1, "epochs": 2, "completed": False, "chosen": {}}
    assert "head.scale" in weights
    predictions = predict(tmp_path / "run")
    assert np.isfinite(predictions.logits).all()
    assert predictions.facts["training"] == "stopped in epoch 3"
    assert predictions.carried == Prior.uniform(10, names=DIGITS)


def test_an_interrupt_while_a_head_is_made_leaves_the_head_before(tmp_path, monkeypatch, finished_run):
    begin, calls = NearestClassMeanHead.begin, []

    def interrupt(head, start):
        calls.append(len(start.train.labels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        begin(head, start)

    monkeypatch.setattr(NearestClassMeanHead, "begin", interrupt)
    config = tiny_config(stages=stages_with(head=Part(name="nearest-class-mean"), epochs=0))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    assert calls == [10, 276]
    assert same_weights(Run(tmp_path / "run"), finished_run)
    predictions = predict(tmp_path / "run")
    assert predictions.carried == SOURCE.named(DIGITS)
    assert predictions.facts["training"].startswith("stopped")


def test_training_again_after_an_interrupt_gives_the_uninterrupted_run(tmp_path, finished_run):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), tmp_path / "run", on_epoch=stop_after(1))
    predict(tmp_path / "run").save(Run(tmp_path / "run").predictions_file("test"))
    again = train(tiny_config(), tmp_path / "run")
    assert same_weights(again, finished_run)
    assert len(lines(again)) == 2
    assert not again.predictions_file("test").exists()


# The run folder


def test_a_finished_run_is_finished_for_exactly_its_config(finished_run, tmp_path):
    assert finished_run.finished(tiny_config())
    for changes in ({"seed": 1}, {"method": "other"}, {"precision": "bfloat16"}, {"batch_size": 63}):
        assert not finished_run.finished(tiny_config(**changes))
    for changes in ({"device": "auto"}, {"workers": 0}):
        assert finished_run.finished(tiny_config(**changes))
    assert not Run(tmp_path / "nowhere").finished(tiny_config())


def copy_of(run, folder):
    folder.mkdir()
    for file in run.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return Run(folder)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_truncated_weights_are_not_a_finished_run(finished_run, tmp_path, share):
    run = copy_of(finished_run, tmp_path / "run")
    content = run.weights_file.read_bytes()
    assert run.finished(tiny_config())
    run.weights_file.write_bytes(content[: int(share * len(content))])
    assert not run.finished(tiny_config())
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        predict(run.folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_not_a_finished_run(finished_run, tmp_path, name):
    run = copy_of(finished_run, tmp_path / "run")
    (run.folder / name).unlink()
    assert not run.finished(tiny_config())
    with pytest.raises(FileNotFoundError, match=re.escape(str(run.folder))):
        predict(run.folder)


def test_a_truncated_config_is_not_a_finished_run(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path / "run")
    run.config_file.write_text(run.config_file.read_text()[:50])
    assert not run.finished(tiny_config())


def test_weights_of_another_program_are_refused(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path / "run")
    save_file(load_file(run.weights_file), run.weights_file)
    with pytest.raises(ValueError, match="no weights file"):
        run.load_weights()


def test_weights_that_do_not_fit_the_config_are_refused_by_name(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path / "run")
    tiny_config(model=Part(name="small-cnn", options={"width": 8})).save(run.config_file)
    with pytest.raises(ValueError, match=r"run/model\.safetensors does not fit .*run/config\.json"):
        predict(run.folder)


def test_a_run_predicts_on_whatever_device_there_is(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path / "run")
    tiny_config(device="cuda:99").save(run.config_file)
    assert np.array_equal(predict(run.folder, device="cpu").logits, predict(finished_run.folder).logits)
    with pytest.raises(ValueError, match=r"`device` .* but got 'toaster'"):
        predict(run.folder, device="toaster")


def test_predictions_state_the_truth_about_their_run(finished_run):
    splits = digits_lt()
    for split in ("train", "validation", "test"):
        predictions = predict(finished_run.folder, split)
        images = splits.named(split)
        assert np.array_equal(predictions.labels, images.labels)
        assert predictions.fingerprint == images.fingerprint
        assert predictions.train_counts.tolist() == splits.train.counts.tolist()
        assert predictions.class_names == DIGITS
        assert (predictions.method, predictions.carried_by) == ("Softmax", "theory")
        assert predictions.carried == SOURCE.named(DIGITS)
        facts = predictions.facts
        assert (facts["seed"], facts["split"]) == (0, split)
        assert facts["train_fingerprint"] == splits.train.fingerprint
        assert facts["torch"] == torch.__version__
        assert facts["device"].startswith("cpu")
        assert {"priorshift", "python"} <= facts.keys()


def test_predictions_are_the_logits_of_the_network_in_evaluation_mode(finished_run):
    images = digits_lt().test
    model = Classifier(SmallCNN(1, width=4), LinearHead(8, 10))
    model.load_state_dict(load_file(finished_run.weights_file))
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model(image[None].float() / 16) for image in images.images[:40]])
    np.testing.assert_allclose(predict(finished_run.folder).logits[:40], expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_split_is_refused(finished_run):
    with pytest.raises(ValueError, match="`split` to be one of"):
        predict(finished_run.folder, "dev")


# Devices


def test_a_device_is_found_automatically(tmp_path):
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    config = tiny_config(device="auto")
    assert train(config, tmp_path / "run").finished(config)
    assert isinstance(predict(tmp_path / "run").logits, np.ndarray)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_automatic_prefers_cuda_then_mps(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(run.torch, "zeros", lambda *arguments, **options: None)
    assert resolve_device("auto").type == expected


@pytest.mark.gpu
def test_a_gpu_trains_as_a_cpu_does(tmp_path, finished_run):
    on_gpu = train(tiny_config(device="cuda"), tmp_path / "run")
    for ours, theirs in zip(lines(on_gpu), lines(finished_run), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "hope"}, "`sampler` to be one of instance, .* but got 'hope'"),
        ({"trains": "heads"}, "`trains` to be one of all, head, but got 'heads'"),
    ],
)
def test_a_stage_of_an_unknown_kind_cannot_be_made(settings, message):
    with pytest.raises(ValueError, match=message):
        Stage(loss=Part(name="cross-entropy"), epochs=1, **settings)
    with pytest.raises(ValueError, match=r"`schedule` to be one of constant, .* but got 'linear'"):
        Optimizer(schedule="linear")


def test_the_optimizer_of_a_frozen_backbone_cannot_go_on_with_all_of_it():
    head_alone = Stage(loss=Part(name="cross-entropy"), epochs=1, trains="head", head=Part(name="linear"))
    going_on = Stage(loss=Part(name="cross-entropy"), epochs=1, optimizer=None)
    with pytest.raises(ValueError, match="after one that trains only the head, but got None"):
        tiny_config(stages=(head_alone, going_on))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"head": Part(name="cosine"), "stages": stages_with(head=Part(name="learnable-scale"))},
            "the head before this one to be `linear`.* but got CosineHead",
        ),
        (
            {"stages": stages_with(head=Part(name="nearest-class-mean"), trains="head")},
            "stage 1 to have something to train, but its head has no weights",
        ),
        ({"head": Part(name="tau-norm")}, "head 'tau-norm' is made from the one before it"),
    ],
)
def test_a_later_stage_that_cannot_begin_is_refused_before_the_first_step(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tiny_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_head_that_is_to_be_trained_needs_epochs(tmp_path):
    with pytest.raises(ValueError, match="`epochs` to be positive in stage 1: its head is to be trained"):
        train(tiny_config(stages=stages_with(head=Part(name="cosine"), epochs=0)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 0.0, "nesterov": True}, "`momentum` to be positive with nesterov, but got 0.0"),
        ({"warmup_epochs": math.inf}, "`warmup_epochs` to be finite, but got inf"),
        ({"milestones": (1.0, math.nan)}, "`milestones` to be finite"),
        ({"backbone_lr": 0.0}, "`backbone_lr` to be positive, but got 0.0"),
        ({"warmup_from": 1.5}, r"`warmup_from` to be in \[0, 1\], but got 1.5"),
        ({"lead": 1}, "`lead` to be 0 where the schedule moves per step, but got 1"),
    ],
)
def test_an_optimizer_that_torch_would_refuse_cannot_be_made(settings, message):
    with pytest.raises(ValueError, match=message):
        Optimizer(**settings)


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("out of memory")])
def test_whatever_stops_a_run_leaves_its_weights(error, tmp_path):
    def stop(record):
        if record["epoch"] == 2:
            raise error

    with pytest.raises(type(error)):
        train(tiny_config(), tmp_path / "run", on_epoch=stop)
    assert predict(tmp_path / "run").facts["training"] == "stopped in epoch 3"
    assert not Run(tmp_path / "run").finished(tiny_config())


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "truncated or no weights file"),
        ({"schema_version": 2}, "written by a newer priorshift .* Upgrade"),
        ({"schema_version": 1, "stage": "one"}, "unreadable header: stage is 'one'"),
    ],
)
def test_weights_with_an_unfit_header_are_refused_in_words(facts, message, tmp_path, finished_run):
    run = Run(tmp_path / "run")
    finished_run.config().save(run.config_file)
    weights, _ = finished_run.load_weights()
    save_file(weights, run.weights_file, metadata={"priorshift": json.dumps(facts)})
    with pytest.raises(ValueError, match=message):
        predict(run.folder)
    assert not run.finished(run.config())


@pytest.mark.parametrize("recipe", ["digits_lade", "digits_balanced_softmax"])
def test_a_method_goes_into_plain_recipes_alone(recipe):
    with pytest.raises(ValueError, match="a linear head to put 'softmax' into, but got one of"):
        with_method(getattr(recipes, recipe)(), "softmax")


def test_causal_norm_goes_on_with_the_same_options(tmp_path):
    config = with_method(two_epochs(recipes.digits_softmax()), "causal-norm")
    other = replace(config, head=Part(name="causal-norm", options={"num_heads": 4}))
    with pytest.raises(ValueError, match="`num_heads` to be that of the head before, 4, but got 2"):
        train(other, tmp_path / "run")
