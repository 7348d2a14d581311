"""The user's own images, and features that a frozen backbone made of them."""

from priorshift.recipes._settings import IMAGENET
from priorshift.training.config import Augmentation, Optimizer, Part, Stage, TrainConfig


def images_softmax() -> TrainConfig:
    """Fine-tune a ResNet-50 of ImageNet on your own images with plain cross-entropy.

    For your own data: a folder `images` with one folder per class, unless `--data.options.root PLACE` names
    another place. The settings are customary ones for fine-tuning, to be adapted by the validation split; no
    published score.
    """
    return TrainConfig(
        method="Softmax",
        data=Part(
            name="images",
            options={"root": "images", "test": "", "held_out": 0.1, "test_share": 0.2, "label_column": ""},
        ),
        model=Part(
            name="timm", options={"architecture": "resnet50.a1_in1k", "pretrained": True, "weights": ""}
        ),
        stages=(
            Stage(
                loss=Part(name="cross-entropy"),
                epochs=30,
                optimizer=Optimizer(lr=0.01, nesterov=True, weight_decay=1e-4, warmup_epochs=1),
            ),
        ),
        batch_size=64,
        preparation=IMAGENET,
        augmentation=Augmentation(crop="random-resized", flip=True),
    )


def features_softmax() -> TrainConfig:
    """Train a linear head on features that `priorshift features` saved, with plain cross-entropy.

    For your own data: a file `features.safetensors` unless `--data.options.file PLACE` names another. No
    published score.
    """
    return TrainConfig(
        method="Softmax",
        data=Part(name="features", options={"file": "features.safetensors"}),
        model=Part(name="identity"),
        stages=(Stage(loss=Part(name="cross-entropy"), epochs=30, optimizer=Optimizer(lr=0.1)),),
        batch_size=512,
    )
