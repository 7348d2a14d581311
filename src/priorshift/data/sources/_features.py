"""Features that `priorshift features` saved."""

from pathlib import Path

from priorshift.data._feature_file import load_features
from priorshift.data._splits import Splits


def features(*, file: str = "features.safetensors") -> Splits:
    """The features of three splits of images, for the backbone `identity` and any head.

    Args:
        file: The file that `priorshift features` or `priorshift.data.save_features` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    return load_features(Path(file))
