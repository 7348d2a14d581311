"""Recipes: the settings that the papers and the released code state, and that each of them trains."""

import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch

from priorshift import recipes
from priorshift.data import FeatureSet, ImageSet, Splits, StoredImages
from priorshift.priors import Prior
from priorshift.recipes.methods import METHODS, OPEN_BACKBONES, with_method
from priorshift.shift import long_tail_counts
from priorshift.training import Optimizer, Part, Stage, TrainConfig, loop, train
from priorshift.training.build import build_loss, loss_names, model_names
from priorshift.training.plan import plan
from priorshift.training.schedule import learning_rate

DOCS = Path(__file__).parent.parent / "docs" / "recipes.md"

PUBLISHED = {
    "cifar100_lt100_softmax": "41.0",
    "cifar100_lt100_lade": "45.4",
    "cifar100_lt50_softmax": "45.5",
    "cifar100_lt50_lade": "50.5",
    "cifar100_lt10_softmax": "59.0",
    "cifar100_lt10_lade": "61.7",
    "places_lt_softmax": "31.5",
    "places_lt_lade": "38.8",
    "imagenet_lt_softmax": "48.2",
    "imagenet_lt_lade": "53.0",
    "imagenet_lt_90_softmax": "43.1",
    "imagenet_lt_90_lade": "51.9",
    "inaturalist18_softmax": "65.0",
    "inaturalist18_lade": "70.0",
    "menon_cifar10_lt_softmax": "27.16",
    "menon_cifar10_lt_logit_adjusted": "22.33",
    "menon_cifar100_lt_softmax": "61.64",
    "menon_cifar100_lt_logit_adjusted": "56.11",
    "menon_cifar10_lt_256_softmax": "27.16",
    "menon_cifar10_lt_256_logit_adjusted": "22.33",
    "menon_cifar100_lt_256_softmax": "61.64",
    "menon_cifar100_lt_256_logit_adjusted": "56.11",
    "menon_imagenet_lt_softmax": "53.11",
    "menon_imagenet_lt_logit_adjusted": "48.89",
    "menon_inaturalist18_softmax": "38.66",
    "menon_inaturalist18_logit_adjusted": "33.64",
}
"""Recipe → the cell of LADE's Tables 2 to 5, or of Menon et al.'s Table 2, that it is for."""
RELEASED = {
    name.replace("_softmax", "_released_softmax").replace("_lade", "_released_lade"): score
    for name, score in PUBLISHED.items()
    if not name.startswith(("menon_", "imagenet_lt"))
} | {"imagenet_lt_released_softmax": "43.1", "imagenet_lt_released_lade": "53.0"}
COMPENSATED = {
    "cifar100_lt100_softmax": "45.3",
    "cifar100_lt50_softmax": "49.5",
    "cifar100_lt10_softmax": "61.2",
    "places_lt_softmax": "38.7",
    "imagenet_lt_softmax": "52.8",
    "imagenet_lt_90_softmax": "48.9",
    "imagenet_lt_released_softmax": "48.9",
    "inaturalist18_softmax": "69.3",
    "menon_cifar10_lt_softmax": "22.60",
    "menon_cifar10_lt_256_softmax": "22.60",
    "menon_cifar100_lt_softmax": "58.24",
    "menon_cifar100_lt_256_softmax": "58.24",
    "menon_imagenet_lt_softmax": "49.66",
    "menon_inaturalist18_softmax": "33.98",
}
"""Softmax recipe → the cell of PC Softmax, or of logit adjustment post-hoc at τ = 1."""
OWN = {"images_softmax", "features_softmax"}
DIGITS = {"digits_softmax", "digits_balanced_softmax", "digits_lade"}
ALL = sorted(recipes.__all__)
PLAIN = [name for name in ALL if name.endswith("_softmax") and name != "digits_balanced_softmax"]
CIFAR = ["cifar100_lt100", "cifar100_lt50", "cifar100_lt10"]
TWINNED = [*CIFAR, "places_lt", "inaturalist18"]
METHODS_OF = {"softmax": "cross-entropy", "lade": "lade", "logit_adjusted": "logit-adjusted"}

NUM_CLASSES = 4
NUM_IMAGES = 9
BATCH = 4


def recipe(name):
    return getattr(recipes, name)()


def only_stage(config):
    (stage,) = config.stages
    return stage


def optimizer_of(name):
    return only_stage(recipe(name)).optimizer


def head_rates(config, num_images):
    """The learning rate of every step of a run, one list an epoch."""
    return [
        [
            learning_rate(
                epoch.settings,
                step,
                steps_per_epoch=len(epoch.scheduled),
                total_steps=epoch.total_steps,
            )
            for step in epoch.scheduled
        ]
        for epoch in plan(config, num_images)
    ]


def all_rates(config, num_images):
    return list(chain.from_iterable(head_rates(config, num_images)))


def released_rates(name, num_images):
    """One learning rate an epoch, after checking that it does not move within one."""
    epochs = head_rates(recipe(name), num_images)
    assert all(len(set(rates)) == 1 and len(rates) == num_images // 256 for rates in epochs)
    return [rates[0] for rates in epochs]


# All of them


def test_there_are_the_published_the_released_and_a_user_s_own():
    assert set(ALL) == PUBLISHED.keys() | RELEASED.keys() | OWN | DIGITS


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_survives_json(name, tmp_path):
    config = recipe(name)
    config.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json") == config


@pytest.mark.parametrize("name", ALL)
def test_the_parts_of_a_recipe_exist(name):
    config = recipe(name)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name.replace("_", "-"))
    assert config.model.name in model_names()
    assert only_stage(config).loss.name in loss_names()
    build_loss(only_stage(config), Prior([30, 20, 5]))


@pytest.mark.parametrize("name", [name for name in ALL if recipe(name).model.name == "timm"])
def test_timm_has_the_network_of_a_recipe(name):
    import timm

    options = recipe(name).model.options
    known = timm.is_model_pretrained if options.get("pretrained") else timm.is_model
    assert known(options["architecture"])


@pytest.mark.parametrize("name", ALL)
def test_a_header_names_what_it_is_for(name):
    header = " ".join(getattr(recipes, name).__doc__.split())
    if name in DIGITS:
        assert re.search(r"Expected: \d\d\.\d ± ", header)
    elif name in OWN:
        assert "For your own data" in header
    else:
        paper, score = re.search(
            r"Published: (LADE|Menon et al\.), Table \d, [^.%]*?(\d+\.\d+) %\.", header
        ).groups()
        assert score == (PUBLISHED | RELEASED)[name]
        assert paper == ("Menon et al." if name.startswith("menon_") else "LADE")
        assert re.search(r"Differs from the paper|released code", header)


@pytest.mark.parametrize(("name", "score"), list(COMPENSATED.items()))
def test_the_header_of_a_softmax_recipe_names_the_compensated_cell_too(name, score):
    header = " ".join(getattr(recipes, name).__doc__.split())
    assert re.search(rf"Compensated to uniform: .*?[ ,]{re.escape(score)} %", header)


@pytest.mark.parametrize(("name", "score"), list((PUBLISHED | RELEASED).items()))
def test_the_documentation_lists_each_with_its_cell(name, score):
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    (row,) = [line for line in rows if f"`{name.replace('_', '-')}`" in line.split("|")[1]]
    assert score in row


@pytest.mark.parametrize("name", sorted(OWN))
def test_the_documentation_tells_of_a_user_s_own_data(name):
    assert f"priorshift train {name.replace('_', '-')}" in DOCS.read_text(encoding="utf-8")


def test_no_recipe_loads_torch():
    code = (
        "import sys\nfrom priorshift import recipes\n"
        "made = [getattr(recipes, name)() for name in recipes.__all__]\n"
        "print(len(made), 'torch' in sys.modules, 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(ALL)), "False", "False"]


@pytest.mark.parametrize("name", [name for name in ALL if name not in DIGITS | {"features_softmax"}])
def test_where_the_images_lie_and_what_is_held_out_are_options_of_every_recipe(name):
    options = recipe(name).data.options
    assert isinstance(options["root"], str)
    assert options["held_out"] == (0.1 if name == "images_softmax" else 0.0)


@pytest.mark.parametrize("name", [name for name in ALL if name not in DIGITS])
def test_the_name_of_a_recipe_tells_its_loss(name):
    config = recipe(name)
    (loss,) = [loss for end, loss in METHODS_OF.items() if name.endswith(end)]
    assert only_stage(config).loss.name == loss
    assert (
        config.method
        == {
            "cross-entropy": "Softmax",
            "lade": "LADE (released)" if "released" in name else "LADE",
            "logit-adjusted": "Logit-adjusted loss",
        }[loss]
    )


# What the papers state


@pytest.mark.parametrize(
    ("setting", "lam", "alpha", "batch_size"),
    [
        ("cifar100_lt10", 0.01, 0.01, 256),
        ("cifar100_lt50", 0.01, 0.01, 256),
        ("cifar100_lt100", 0.01, 0.1, 256),
        ("places_lt", 0.1, 0.005, 128),
        ("imagenet_lt", 0.5, 0.05, 256),
        ("imagenet_lt_90", 0.5, 0.05, 256),
        ("inaturalist18", 0.5, 0.05, 256),
    ],
)
def test_lade_has_the_settings_of_its_table_7(setting, lam, alpha, batch_size):
    config = recipe(f"{setting}_lade")
    assert only_stage(config).loss.options == {"alpha": alpha, "lam": lam}
    assert config.batch_size == batch_size


@pytest.mark.parametrize("setting", [*TWINNED, "imagenet_lt", "imagenet_lt_90"])
def test_lade_trains_as_softmax_does(setting):
    softmax, lade = recipe(f"{setting}_softmax"), recipe(f"{setting}_lade")
    stage = replace(only_stage(lade), loss=Part(name="cross-entropy"))
    assert replace(lade, method="Softmax", stages=(stage,)) == softmax


@pytest.mark.parametrize(
    "setting",
    ["cifar10_lt", "cifar100_lt", "cifar10_lt_256", "cifar100_lt_256", "imagenet_lt", "inaturalist18"],
)
def test_the_logit_adjusted_loss_trains_as_erm_does(setting):
    erm, adjusted = recipe(f"menon_{setting}_softmax"), recipe(f"menon_{setting}_logit_adjusted")
    stage = replace(only_stage(adjusted), loss=Part(name="cross-entropy"))
    assert replace(adjusted, method="Softmax", stages=(stage,)) == erm


@pytest.mark.parametrize(
    ("name", "data", "model", "epochs", "batch_size", "weight_decay", "nesterov"),
    [
        ("cifar100_lt100_softmax", "cifar100-lt", "resnet32-bbn", 200, 256, 5e-4, False),
        ("cifar100_lt50_softmax", "cifar100-lt", "resnet32-bbn", 200, 256, 5e-4, False),
        ("cifar100_lt10_softmax", "cifar100-lt", "resnet32-bbn", 200, 256, 5e-4, False),
        ("places_lt_softmax", "places-lt", "resnet152.tv_in1k", 30, 128, 5e-4, False),
        ("imagenet_lt_softmax", "imagenet-lt", "resnext50_32x4d", 180, 256, 5e-4, False),
        ("imagenet_lt_90_softmax", "imagenet-lt", "resnext50_32x4d", 90, 256, 5e-4, False),
        ("inaturalist18_softmax", "inaturalist18", "resnet50", 200, 256, 5e-4, False),
        ("menon_cifar10_lt_softmax", "cifar10-lt", "resnet32", 1237, 128, 1e-4, False),
        ("menon_cifar100_lt_softmax", "cifar100-lt", "resnet32", 1412, 128, 1e-4, False),
        ("menon_cifar10_lt_256_softmax", "cifar10-lt", "resnet32", 256, 128, 1e-4, False),
        ("menon_cifar100_lt_256_softmax", "cifar100-lt", "resnet32", 256, 128, 1e-4, False),
        ("menon_imagenet_lt_softmax", "imagenet-lt", "resnet50", 90, 512, 5e-4, True),
        ("menon_inaturalist18_softmax", "inaturalist18", "resnet50", 90, 1024, 1e-4, False),
    ],
)
def test_a_recipe_has_what_its_paper_states(name, data, model, epochs, batch_size, weight_decay, nesterov):
    config, optimizer = recipe(name), optimizer_of(name)
    assert config.data.name == data
    assert config.model.options.get("architecture", config.model.name) == model
    assert config.model.options.get("pretrained", False) == (data == "places-lt")
    assert (only_stage(config).epochs, config.batch_size, config.drop_last) == (epochs, batch_size, False)
    assert (optimizer.momentum, optimizer.weight_decay, optimizer.nesterov) == (0.9, weight_decay, nesterov)
    assert (optimizer.backbone_lr, optimizer.per_epoch) == (0.001 if data == "places-lt" else None, False)
    assert config.head == Part(name="linear") and only_stage(config).sampler == "instance"


@pytest.mark.parametrize(
    ("setting", "imbalance"), [("cifar100_lt100", 100.0), ("cifar100_lt50", 50.0), ("cifar100_lt10", 10.0)]
)
def test_the_imbalance_is_in_the_name(setting, imbalance):
    for end in ("softmax", "lade", "released_softmax", "released_lade"):
        assert recipe(f"{setting}_{end}").data.options["imbalance"] == imbalance


@pytest.mark.parametrize("name", [name for name in ALL if "cifar" in name])
def test_cifar_images_are_shifted_by_4_and_mirrored(name):
    augmentation = recipe(name).augmentation
    assert (augmentation.shift, augmentation.flip) == (4, True)
    assert (augmentation.crop, augmentation.jitter) == ("centre", 0.0)


def test_large_images_are_cut_from_256_and_jittered_by_lade_and_cut_at_any_scale_by_menon():
    for setting in ("places_lt", "imagenet_lt", "imagenet_lt_90", "inaturalist18"):
        config = recipe(f"{setting}_softmax")
        assert (config.augmentation.crop, config.augmentation.flip) == ("random", True)
        assert config.augmentation.jitter == 0.4
        assert (config.preparation.size, config.preparation.resize) == (224, 256)
    for setting in ("imagenet_lt", "inaturalist18"):
        config = recipe(f"menon_{setting}_softmax")
        assert (config.augmentation.crop, config.augmentation.flip) == ("random-resized", True)
        assert config.augmentation.jitter == 0.0


def test_cifar_lade_warms_up_for_5_epochs_and_decays_after_120_and_160():
    epochs = head_rates(recipe("cifar100_lt100_lade"), 10_847)
    assert len(epochs) == 200 and all(len(rates) == 43 for rates in epochs)
    rates = list(chain.from_iterable(epochs))
    assert rates[0] == pytest.approx(0.2 / 215) and rates[107] == pytest.approx(0.2 * 108 / 215)
    assert set(rates[214 : 120 * 43]) == {0.2}
    assert rates[120 * 43 : 160 * 43] == pytest.approx([0.002] * (40 * 43))
    assert rates[160 * 43 :] == pytest.approx([0.00002] * (40 * 43))


def test_places_decays_every_10_epochs():
    epochs = head_rates(recipe("places_lt_lade"), 62_500)
    assert [rates[0] for rates in epochs] == pytest.approx([0.05] * 10 + [0.005] * 10 + [0.0005] * 10)
    assert [rates[0] for rates in epochs] == [rates[-1] for rates in epochs]


@pytest.mark.parametrize(
    ("name", "lr", "num_images", "steps"),
    [
        ("imagenet_lt_softmax", 0.05, 115_846, 453 * 180),
        ("imagenet_lt_90_softmax", 0.05, 115_846, 453 * 90),
        ("inaturalist18_softmax", 0.1, 437_513, 1_710 * 200),
    ],
)
def test_a_cosine_falls_from_the_full_rate_to_none(name, lr, num_images, steps):
    rates = all_rates(recipe(name), num_images)
    assert len(rates) == steps
    assert rates[0] == lr and rates[steps // 2] == pytest.approx(lr / 2) and 0 < rates[-1] < 1e-8 * lr


@pytest.mark.parametrize(
    ("name", "num_images", "batch_size"),
    [("menon_imagenet_lt_softmax", 115_846, 512), ("menon_inaturalist18_softmax", 437_513, 1024)],
)
def test_menon_warms_up_for_5_epochs_before_the_cosine(name, num_images, batch_size):
    rates = all_rates(recipe(name), num_images)
    warmup = 5 * math.ceil(num_images / batch_size)
    assert rates[0] == pytest.approx(0.4 / warmup)
    assert rates[warmup - 1] == rates[warmup] == 0.4 > rates[warmup + 1] > rates[-1] > 0


@pytest.mark.parametrize(("classes", "largest"), [(10, 5000), (100, 500)])
def test_menon_trains_cifar_for_120_000_steps(classes, largest):
    num_images = sum(long_tail_counts(classes, largest, 100.0))
    per_epoch = math.ceil(num_images / 128)
    rates = all_rates(recipe(f"menon_cifar{classes}_lt_softmax"), num_images)
    assert abs(len(rates) - 120_000) < per_epoch
    assert rates[:2000] == pytest.approx([0.1 * step / 2000 for step in range(1, 2001)])
    decays = [step for step in range(2000, len(rates)) if rates[step] < 0.5 * rates[step - 1]]
    assert decays == [60_000, 90_000, 110_000]
    assert rates[-1] == pytest.approx(1e-4)


@pytest.mark.parametrize("classes", [10, 100])
def test_menon_s_short_schedule_has_256_epochs(classes):
    epochs = head_rates(recipe(f"menon_cifar{classes}_lt_256_softmax"), 1280)
    first = [rates[0] for rates in epochs]
    assert len(epochs) == 256 and epochs[14][-1] == first[15] == 0.4
    assert first[:15] == pytest.approx([0.4 * (10 * epoch + 1) / 150 for epoch in range(15)])
    assert [at for at in range(16, 256) if first[at] < first[at - 1]] == [96, 192, 224]
    assert first[-1] == pytest.approx(4e-4)


# What the released code does


@pytest.mark.parametrize("setting", CIFAR)
@pytest.mark.parametrize("end", ["softmax", "lade"])
def test_the_released_cifar_rates_are_those_of_its_warm_up_multi_step(setting, end):
    # One third at epoch 0, the full rate at epoch 5, stepped before each epoch, so that the first is epoch 1.
    warmup = [0.2 * ((1 / 3) * (1 - epoch / 5) + epoch / 5) for epoch in range(1, 5)]
    expected = [*warmup, *[0.2] * 115, *[0.002] * 40, *[0.00002] * 41]
    assert released_rates(f"{setting}_released_{end}", 10_847) == pytest.approx(expected)


def test_the_released_places_rates_are_those_of_a_step_before_each_epoch():
    config = recipe("places_lt_released_lade")
    epochs = head_rates(config, 62_500)
    assert {len(rates) for rates in epochs} == {62_500 // 128}
    assert [set(rates) for rates in epochs] == [{rates[0]} for rates in epochs]
    expected = [0.05 * 0.1 ** (epoch // 10) for epoch in range(1, 31)]
    assert [rates[0] for rates in epochs] == pytest.approx(expected)
    assert only_stage(config).optimizer.backbone_lr == 0.001


@pytest.mark.parametrize(
    ("name", "lr", "epochs", "num_images"),
    [
        ("imagenet_lt_released_lade", 0.05, 180, 115_846),
        ("imagenet_lt_released_softmax", 0.2, 90, 115_846),
        ("inaturalist18_released_lade", 0.1, 200, 437_513),
        ("inaturalist18_released_softmax", 0.1, 200, 437_513),
    ],
)
def test_the_released_cosine_reaches_0_for_the_last_epoch(name, lr, epochs, num_images):
    expected = [0.5 * lr * (1 + math.cos(math.pi * epoch / epochs)) for epoch in range(1, epochs + 1)]
    rates = released_rates(name, num_images)
    assert rates == pytest.approx(expected, abs=1e-15) and rates[-1] == 0


@pytest.mark.parametrize("setting", [*TWINNED, "imagenet_lt"])
def test_the_released_regulariser_has_the_same_weights(setting):
    paper, released = only_stage(recipe(f"{setting}_lade")), only_stage(recipe(f"{setting}_released_lade"))
    assert released.loss.options == {**paper.loss.options, "variant": "released"}


@pytest.mark.parametrize("setting", [*TWINNED, "imagenet_lt"])
def test_a_released_loss_trains_as_the_released_softmax_does(setting):
    softmax, lade = recipe(f"{setting}_released_softmax"), recipe(f"{setting}_released_lade")
    lade = replace(
        lade, method="Softmax", stages=(replace(only_stage(lade), loss=Part(name="cross-entropy")),)
    )
    if setting == "imagenet_lt":
        stage = only_stage(lade)
        stage = replace(stage, epochs=90, optimizer=replace(stage.optimizer, lr=0.2))
        lade = replace(lade, stages=(stage,))
    assert lade == softmax


@pytest.mark.parametrize("setting", [*TWINNED, "imagenet_lt"])
def test_a_twin_differs_in_what_the_released_code_does_otherwise_and_in_nothing_else(setting):
    paper, released = recipe(f"{setting}_lade"), recipe(f"{setting}_released_lade")
    assert released.drop_last and only_stage(released).optimizer.per_epoch
    assert only_stage(released).optimizer.lead == 1
    if setting not in CIFAR:
        assert released.augmentation.crop == "random-resized"
    if setting == "inaturalist18":
        assert released.augmentation.jitter == 0.0
        assert released.preparation.mean == (0.466, 0.471, 0.380)
        assert released.preparation.std == (0.195, 0.194, 0.192)
        assert only_stage(released).optimizer.weight_decay == 1e-4
        released = replace(released, preparation=paper.preparation)
    else:
        assert released.augmentation.jitter == paper.augmentation.jitter
        assert only_stage(released).optimizer.weight_decay == only_stage(paper).optimizer.weight_decay
    stage = replace(only_stage(released), optimizer=only_stage(paper).optimizer, loss=only_stage(paper).loss)
    back = replace(released, method="LADE", drop_last=False, augmentation=paper.augmentation, stages=(stage,))
    assert back == paper


# Other methods in their place


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_every_softmax_recipe_or_says_why_not(method):
    for name in PLAIN:
        config = recipe(name)
        if method in ("bbn", "oltr") and config.model.name not in OPEN_BACKBONES:
            with pytest.raises(
                ValueError, match=f"{method}.* backbone.*, but '{config.model.name}' does not"
            ):
                with_method(config, method)
        else:
            changed = with_method(config, method)
            assert changed.data == config.data
            assert changed.stages[0].optimizer == only_stage(config).optimizer


@pytest.mark.parametrize("name", ["cifar100_lt100_lade", "menon_cifar10_lt_logit_adjusted"])
def test_other_recipes_take_no_method(name):
    with pytest.raises(ValueError, match="Expected a recipe of one stage of cross-entropy"):
        with_method(recipe(name), "crt")


@pytest.mark.parametrize("backbone", ["resnet32", "resnet32-bbn"])
def test_bbn_takes_the_resnet32_of_two_branches_and_oltr_attention_in_either(backbone):
    config = replace(recipe("cifar100_lt100_softmax"), model=Part(name=backbone))
    assert with_method(config, "bbn").model == Part(name="resnet32-bbn")
    assert with_method(config, "oltr").model == Part(name=backbone, options={"attention": True})


def test_the_methods_of_a_small_cnn_are_options_of_it():
    config = recipe("digits_softmax")
    assert with_method(config, "bbn").model == Part(name="small-cnn", options={"branches": 2})
    assert with_method(config, "oltr").model == Part(name="small-cnn", options={"attention": True})


def test_a_second_stage_decays_at_the_same_shares_of_its_epochs():
    config = with_method(recipe("cifar100_lt100_softmax"), "crt")
    first = [rates[0] for rates in head_rates(config, 10_847)]
    assert len(first) == 240
    assert first[200:] == pytest.approx([0.2] * 24 + [0.002] * 8 + [0.00002] * 8)
    oltr = with_method(recipe("cifar100_lt100_softmax"), "oltr")
    first = [rates[0] for rates in head_rates(oltr, 10_847)]
    assert first[200:] == pytest.approx([0.02] * 60 + [0.0002] * 20 + [0.000002] * 20)


def test_a_deferred_reweighting_goes_on_with_the_schedule():
    config = with_method(recipe("cifar100_lt100_softmax"), "ldam-drw")
    assert [stage.epochs for stage in config.stages] == [160, 40]
    assert head_rates(config, 10_847) == head_rates(recipe("cifar100_lt100_softmax"), 10_847)


def test_oltr_lowers_the_rate_of_the_backbone_too():
    config = recipe("cifar100_lt100_softmax")
    optimizer = Optimizer(lr=0.1, backbone_lr=0.01, warmup_epochs=2)
    plain = replace(config, stages=(Stage(loss=Part(name="cross-entropy"), epochs=4, optimizer=optimizer),))
    second = with_method(plain, "oltr").stages[1].optimizer
    assert (second.lr, second.backbone_lr, second.warmup_epochs) == pytest.approx((0.01, 0.001, 0.0))


# Through the training loop


def labels_and_names():
    return torch.arange(NUM_IMAGES) % NUM_CLASSES, tuple("abcd")


def in_memory():
    labels, names = labels_and_names()
    pixels = torch.randint(256, (NUM_IMAGES, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels.to(torch.uint8), labels, names)


def features():
    labels, names = labels_and_names()
    generator = torch.Generator().manual_seed(0)
    return FeatureSet(torch.rand(NUM_IMAGES, 5, generator=generator), labels, names, "made up")


class PictureFiles:
    """An image store of generated JPEG files of various sizes."""

    def __init__(self, folder):
        from PIL import Image

        generator = torch.Generator().manual_seed(0)
        self.paths = [folder / f"{number}.jpg" for number in range(NUM_IMAGES)]
        for number, path in enumerate(self.paths):
            pixels = torch.randint(256, (90 + number, 80, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(path)

    def name(self, row):
        return self.paths[row].name

    def encoded(self, row):
        return str(self.paths[row])


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    labels, names = labels_and_names()
    return StoredImages(
        PictureFiles(tmp_path_factory.mktemp("images")), torch.arange(NUM_IMAGES), labels, names
    )


def reduced(config):
    """Two epochs of small batches, a small network in place of a large one; all else as it is."""
    small = replace(
        config,
        stages=tuple(replace(stage, epochs=min(2, stage.epochs)) for stage in config.stages),
        batch_size=BATCH,
        workers=0,
        device="cpu",
    )
    if config.model.name != "timm":
        return small
    return replace(
        small,
        model=replace(config.model, options={"architecture": "test_resnet.r160_in1k", "pretrained": False}),
        preparation=replace(config.preparation, size=64, resize=72),
    )


def trained(config, data, folder, monkeypatch):
    """The metrics of a reduced run on generated data in place of the recipe's own."""
    monkeypatch.setattr(loop, "load_data", lambda part: Splits(train=data, validation=data, test=data))
    records = []
    run = train(reduced(config), folder, on_epoch=records.append)
    assert run.finished(reduced(config))
    return records


@pytest.mark.parametrize("name", [name for name in ALL if name not in DIGITS])
def test_a_recipe_trains(name, on_disk, tmp_path, monkeypatch):
    config = recipe(name)
    data = {"timm": on_disk, "identity": features()}.get(config.model.name) or in_memory()
    records = trained(config, data, tmp_path / "run", monkeypatch)
    assert len(records) == 2
    assert all(math.isfinite(record["loss"]) for record in records)
    assert records[0]["loss"] != records[1]["loss"]


@pytest.mark.parametrize("method", ["bbn", "oltr", "crt", "ldam-drw", "causal-norm"])
@pytest.mark.parametrize("name", ["cifar100_lt100_released_softmax", "menon_cifar100_lt_256_softmax"])
def test_a_method_trains_in_place_of_softmax(name, method, tmp_path, monkeypatch):
    config = with_method(recipe(name), method)
    records = trained(config, in_memory(), tmp_path / "run", monkeypatch)
    assert {record["stage"] for record in records} == {
        number for number, stage in enumerate(config.stages) if stage.epochs
    }


@pytest.mark.parametrize("method", ["crt", "cosine", "ncm", "balanced-softmax"])
def test_a_method_trains_on_stored_images(method, on_disk, tmp_path, monkeypatch):
    trained(with_method(recipe("places_lt_softmax"), method), on_disk, tmp_path / "run", monkeypatch)
