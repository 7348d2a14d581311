"""Take images through a frozen backbone once, so that heads train on what comes out."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from priorshift.data import FeatureSet, Feed, Preparation, Splits, StoredImages, feed
from priorshift.training.run import resolve_device

WHOLE = Preparation()


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    splits: Splits,
    *,
    preparation: Preparation = WHOLE,
    device: str = "auto",
    batch_size: int = 256,
    workers: int = 4,
    on_batch: Callable[[str, int], None] = lambda split, images: None,
) -> Splits:
    """The features of all images, without augmentation, in the order of the images.

    Training a head on them is training it on the frozen backbone, minus the augmentation. The backbone moves
    to the device and ends in evaluation mode.

    Args:
        backbone: Any module that maps images, `[N, channels, height, width]`, to features, `[N, D]`.
        splits: The images.
        preparation: What is done to every image; that which the backbone was trained with.
        device: `auto` takes CUDA, then MPS, then the CPU; or a torch device such as `cuda:1`.
        batch_size: Images that go through the backbone at once.
        workers: Processes that read stored images; 0 reads them in this one.
        on_batch: Called after each batch with the name of its split and its number of images.

    Returns:
        Splits of `FeatureSet`, float32, on the CPU, with the fingerprints of the images.

    Raises:
        ValueError: If an image cannot be read, or the backbone does not take the images, gives something
            other than `[N, D]`, or gives features that are not finite.

    Example:
        >>> from priorshift.data.sources import digits_lt
        >>> features = extract_features(nn.Flatten(), digits_lt(), device="cpu").train
        >>> features.features.shape, features.counts.tolist()
        (torch.Size([276, 64]), [100, 64, 41, 27, 17, 11, 7, 4, 3, 2])
    """
    here = resolve_device(device)
    backbone.to(here).eval()
    images = {split: splits.named(split) for split in ("train", "validation", "test")}
    for data in images.values():
        if isinstance(data, StoredImages):
            data.check()
    width = _width(backbone, feed(splits.train, here, preparation=preparation))

    def extracted(split: str) -> FeatureSet:
        data = images[split]
        features, done = torch.empty(len(data), width), 0
        for inputs in feed(data, here, preparation=preparation, workers=workers).plain(batch_size):
            batch = backbone(inputs).to("cpu", torch.float32)
            _require_finite(batch, split, done)
            features[done : done + len(batch)] = batch
            done += len(batch)
            on_batch(split, len(batch))
        return FeatureSet(features, data.labels, data.class_names, data.fingerprint)

    return Splits(train=extracted("train"), validation=extracted("validation"), test=extracted("test"))


def _width(backbone: nn.Module, images: Feed) -> int:
    """The number of features that the backbone gives, tried on two images."""
    inputs = next(images.plain(2))
    try:
        features: object = backbone(inputs)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(
            f"The backbone does not take images of shape {tuple(inputs.shape[1:])}: {error}"
        ) from error
    if not isinstance(features, Tensor):
        raise ValueError(f"Expected `backbone` to give a tensor, but got {type(features).__name__}.")
    if features.ndim != 2 or len(features) != len(inputs):
        raise ValueError(
            f"Expected `backbone` to give features of shape ({len(inputs)}, D) for {len(inputs)} images, "
            f"but got {tuple(features.shape)}."
        )
    return features.shape[1]


def _require_finite(features: Float[Tensor, "batch features"], split: str, before: int) -> None:
    broken = torch.nonzero(~features.isfinite().all(dim=1)).flatten()
    if broken.numel():
        raise ValueError(
            "Expected `backbone` to give finite features, but got others "
            f"for image {before + int(broken[0])} of the {split} split."
        )
