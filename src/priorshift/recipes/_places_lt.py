"""Places-LT: 62,500 training images of 365 classes, at most 4,980 and at least 5 of each.

Settings are those of LADE's Table 7 and supplement 6.2, with the released code's strength of the colour
jitter, which the paper does not state. The `released` twins train as the authors' code does when it is run by
its README's command, but from torchvision's weights of ImageNet where the code has Caffe's, and report the
last epoch where the code goes back to the best one on its validation images.

The scores are published ones, on the uniform test set; not yet reproduced here.
"""

from dataclasses import replace

from priorshift.recipes._settings import IMAGENET, data, lade, released_lade
from priorshift.training.config import Augmentation, Optimizer, Part, Stage, TrainConfig

PAPER = Optimizer(
    lr=0.05, backbone_lr=0.001, schedule="multistep", milestones=(10, 20), decay=0.1, weight_decay=5e-4
)
RELEASED = replace(PAPER, milestones=(10, 20, 30), per_epoch=True, lead=1)


def places_lt_softmax() -> TrainConfig:
    """Plain cross-entropy. Published: LADE, Table 3, Softmax, All, 31.5 %.

    Compensated to uniform: PC Softmax, 38.7 %. How the released code differs: `places_lt_released_softmax`.
    """
    return _softmax(PAPER, Augmentation(crop="random", flip=True, jitter=0.4), drop_last=False)


def places_lt_lade() -> TrainConfig:
    """LADE. Published: LADE, Table 3, LADE, All, 38.8 %.

    How the released code differs: `places_lt_released_lade`.
    """
    return lade(places_lt_softmax(), alpha=0.005, lam=0.1)


def places_lt_released_softmax() -> TrainConfig:
    """Plain cross-entropy as the code trains. Published: LADE, Table 3, Softmax, All, 31.5 %.

    Compensated to uniform: PC Softmax, 38.7 %. Differs from the paper: crops of random area and aspect;
    learning rates that decay one epoch early, at the start of epochs 10, 20 and 30; the last partial batch of
    an epoch is dropped. The code begins from Caffe's weights, this recipe from torchvision's.
    """
    return _softmax(RELEASED, Augmentation(crop="random-resized", flip=True, jitter=0.4), drop_last=True)


def places_lt_released_lade() -> TrainConfig:
    """LADE as the code trains. Published: LADE, Table 3, LADE, All, 38.8 %.

    Differs from the paper as `places_lt_released_softmax` does, and in the regulariser: the weight stands on
    the class of the column instead of the label of the sample, and absent classes count.
    """
    return released_lade(places_lt_released_softmax(), alpha=0.005, lam=0.1)


def _softmax(optimizer: Optimizer, augmentation: Augmentation, *, drop_last: bool) -> TrainConfig:
    return TrainConfig(
        method="Softmax",
        data=data("places-lt"),
        model=Part(
            name="timm", options={"architecture": "resnet152.tv_in1k", "pretrained": True, "weights": ""}
        ),
        stages=(Stage(loss=Part(name="cross-entropy"), epochs=30, optimizer=optimizer),),
        batch_size=128,
        drop_last=drop_last,
        preparation=IMAGENET,
        augmentation=augmentation,
    )
