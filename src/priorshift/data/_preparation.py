"""What is done to an image before the network sees it: always, and at random in training."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Crop: TypeAlias = Literal["centre", "random", "random-resized"]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to every image, in training and at test time."""

    size: int = 0
    """Side of the square that the network sees; 0 keeps the images as they are, all of one size then."""
    resize: int = 0
    """Length to which the shorter side is scaled before the square is cut out of it; 0 is `size`."""
    mean: tuple[float, ...] = ()
    """Subtracted from each channel, whose values lie between 0 and 1; none subtracts nothing."""
    std: tuple[float, ...] = ()
    """Each channel is divided by it."""

    def __post_init__(self) -> None:
        _require(self.size >= 0, "size", "non-negative", self.size)
        _require(
            self.resize == 0 or self.resize >= self.size > 0, "resize", "0 or at least `size`", self.resize
        )
        _require(len(self.mean) == len(self.std), "std", "as long as `mean`", self.std)
        _require(all(value > 0 for value in self.std), "std", "positive", self.std)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done at random to the training images."""

    shift: int = 0
    """Shift by up to this many pixels in both directions, black coming in: for images in memory."""
    flip: bool = False
    """Mirror half of the images left to right."""
    crop: Crop = "centre"
    """Which square of a stored image: the centre; one at random of the scaled image; or one of random area
    (8 to 100 %) and aspect (3:4 to 4:3) of the image itself."""
    jitter: float = 0.0
    """Change brightness, contrast and saturation of a stored image each by up to this share."""

    def __post_init__(self) -> None:
        _require(self.shift >= 0, "shift", "non-negative", self.shift)
        _require(self.crop in get_args(Crop), "crop", f"one of {', '.join(get_args(Crop))}", self.crop)
        _require(0 <= self.jitter <= 1, "jitter", "in [0, 1]", self.jitter)


def _require(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"Expected `{name}` to be {rule}, but got {value!r}.")
