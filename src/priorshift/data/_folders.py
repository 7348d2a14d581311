"""Where known data sets lie unless one is told."""

import os
from pathlib import Path


def data_folder(name: str, root: str = "") -> Path:
    """The folder of a data set: `root`, or without it `$PRIORSHIFT_DATA/name`, else `data/name`.

    Args:
        name: What the data set's folder is called, `cifar100`.
        root: The folder itself; empty if not given.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if root:
        folder, advice = Path(root).expanduser(), "pass the folder of the data set as `root`"
    else:
        folder = Path(os.environ.get("PRIORSHIFT_DATA") or "data").expanduser() / name
        advice = f"pass it as `root`, or set PRIORSHIFT_DATA to the folder that `{name}` lies in"
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected {name} in {folder}, but there is no such folder: {advice}.")
    return folder.resolve()
