"""CIFAR's own files, which are pickles, read without running anything that they may hold."""

import codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}
"""What the pickle of a NumPy array of numbers asks for, by the names of NumPy 1 and 2."""


def read_cifar_pickle(
    file: Path, label_key: str
) -> tuple[UInt8[Tensor, "samples 3 32 32"], Int[Tensor, " samples"]]:
    """Images and labels of one of CIFAR's files, in the order that they have there.

    Args:
        file: Such as `cifar-100-python/train` or `cifar-10-batches-py/data_batch_1`.
        label_key: `fine_labels` in CIFAR-100's files, `labels` in CIFAR-10's.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything else than CIFAR's images and labels. Nothing of it has then been run.
    """
    if not file.is_file():
        raise FileNotFoundError(f"Expected one of CIFAR's files, but there is no file {file}.")
    content = _load(file)
    keys = {_text(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    pixels, labels = keys.get("data"), keys.get(label_key)
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape[1:] != (3072,)
        or not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(isinstance(label, int) for label in labels)
    ):
        raise ValueError(
            f"Expected CIFAR's images as `data`, [N, 3072] uint8, and their `{label_key}` in {file}, "
            f"but it has {', '.join(sorted(keys)) or 'neither'}."
        )
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()), torch.tensor(labels, dtype=torch.int64)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles text, numbers, lists, dicts and NumPy arrays of numbers, and refuses to look up all else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise ValueError(f"it asks for `{module}.{name}`, which is no part of an array")
        return _ADMITTED[module, name]


def _load(file: Path) -> object:
    with file.open("rb") as stream:
        try:
            return _ArraysOnly(stream, encoding="bytes").load()
        except Exception as error:  # a broken pickle raises whatever its reader stumbles over
            raise ValueError(
                f"Expected one of CIFAR's files, but {file} was not read: {error or type(error).__name__}."
            ) from error


def _text(key: object) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)
