"""One file with what a frozen backbone made of the images of all three splits, ready to train heads on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from priorshift._files import read_envelope, write_envelope
from priorshift.data._features import FeatureSet
from priorshift.data._splits import Splits

KIND = "features"
SCHEMA_VERSION = 2
_SPLITS = ("train", "validation", "test")


def save_features(splits: Splits, path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write one safetensors file, whole or not at all; everything but the arrays is JSON in its header.

    Args:
        splits: Features of the three splits; float32 in the file.
        path: The file.
        facts: What made them (data, backbone, preparation, versions, …): text, numbers, lists and objects of
            them.

    Raises:
        TypeError: If a split is of images.
        OSError: If the file cannot be written.
    """
    tensors, fingerprints = {}, {}
    for split in _SPLITS:
        data = splits.named(split)
        if not isinstance(data, FeatureSet):
            raise TypeError(f"Expected `splits` of features, but got {split}: {type(data).__name__}.")
        tensors[f"{split}.features"] = data.features.detach().to("cpu", torch.float32)
        tensors[f"{split}.labels"] = data.labels.to("cpu", torch.int64)
        fingerprints[split] = data.fingerprint
    header = {
        "class_names": splits.train.class_names,
        "fingerprints": fingerprints,
        "facts": dict(facts),
    }
    write_envelope(Path(path), KIND, SCHEMA_VERSION, header, tensors)


def load_features(path: str | Path) -> Splits:
    """Read a file that `save_features` wrote. Nothing in it is executed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, is no features file, contradicts itself, or was written by a
            newer version; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no features file {path}; `priorshift features RECIPE` writes one.")
    header, arrays = read_envelope(path, KIND, SCHEMA_VERSION)
    try:
        sets = {
            split: FeatureSet(
                features=torch.from_numpy(arrays[f"{split}.features"]),
                labels=torch.from_numpy(arrays[f"{split}.labels"]),
                class_names=tuple(header["class_names"]),
                fingerprint=header["fingerprints"][split],
            )
            for split in _SPLITS
        }
        widths = [data.channels for data in sets.values()]
        if len(set(widths)) > 1:
            raise ValueError(f"expected as many features in each split, but got {widths}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} contradicts itself: {error}") from error
    return Splits(**sets)
