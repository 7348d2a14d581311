"""What recipes of several data sets share: data options, large images, and the two papers' losses."""

from dataclasses import replace

from priorshift.training.config import Option, Part, Preparation, TrainConfig

IMAGENET = Preparation(size=224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""224 × 224 cut from the image scaled to 256, with the mean and deviation of ImageNet."""


def data(name: str, **options: Option) -> Part:
    """A data set where it is looked for by default, with nothing held out of its training images.

    Both are named because the command line changes only options that a recipe names.
    """
    return Part(name=name, options={**options, "root": "", "held_out": 0.0})


def lade(config: TrainConfig, *, alpha: float, lam: float) -> TrainConfig:
    """LADE as Eq. 15–20 print it, in place of the loss of a recipe of one stage."""
    return _with_loss(config, "LADE", Part(name="lade", options={"alpha": alpha, "lam": lam}))


def released_lade(config: TrainConfig, *, alpha: float, lam: float) -> TrainConfig:
    """LADE as the released code computes it: the class weight on the column, absent classes included."""
    loss = Part(name="lade", options={"alpha": alpha, "lam": lam, "variant": "released"})
    return _with_loss(config, "LADE (released)", loss)


def logit_adjusted(config: TrainConfig) -> TrainConfig:
    """The logit-adjusted loss at τ = 1, in place of the loss of a recipe of one stage."""
    return _with_loss(config, "Logit-adjusted loss", Part(name="logit-adjusted"))


def _with_loss(config: TrainConfig, method: str, loss: Part) -> TrainConfig:
    (stage,) = config.stages
    return replace(config, method=method, stages=(replace(stage, loss=loss),))
