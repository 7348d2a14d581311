"""One envelope for the files that users keep: kind, schema version and digest; written whole or not at all.

A file is plain safetensors: arrays, and a header as JSON under the key `priorshift`. Files of 0.1, which have
no kind and no digest, are read.
"""

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

KEY = "priorshift"
_KEYS_OF_01 = {"priorshift-features": "features", "priorshift-stream": "stream"}
_FIELDS_OF_01 = {"carried_by": "predictions", "position": "checkpoint", "stage": "weights"}
"""In headers of 0.1 the field that only files of one kind have."""
_LONGEST_NAME = 200


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a new temporary file beside `path`; on success it is flushed to disk and renamed to `path`.

    After a crash, a full disk or an interrupt, `path` holds what it held before. Any number of threads,
    processes and machines may write to one path: the last one wins. Parent folders are made.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:_LONGEST_NAME]}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # safetensors puts a file of its own there, for the owner alone
        temporary.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error}).") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_envelope(
    path: Path, kind: str, version: int, header: Mapping[str, Any], arrays: Mapping[str, Any]
) -> None:
    """Write arrays and a header as one safetensors file.

    Args:
        path: The file.
        kind: What it is, in one word: "predictions".
        version: Schema version of that kind.
        header: JSON types.
        arrays: Name → array of any kind.

    Raises:
        OSError: If the file cannot be written.
        TypeError: If something in the header is no JSON.
    """
    import numpy as np  # here, since configs, which are written whole too, do without
    from safetensors.numpy import save_file

    from priorshift._kinds import read_array

    contents = {name: np.ascontiguousarray(read_array(array, name)) for name, array in arrays.items()}
    facts = {"kind": kind, "schema_version": version, **header}
    facts["digest"] = _digest(facts, contents)
    text = json.dumps(facts, ensure_ascii=False)
    with written_whole(path) as temporary:
        save_file(contents, temporary, metadata={KEY: text})


def read_envelope(path: Path, kind: str, version: int) -> "tuple[Any, dict[str, npt.NDArray[Any]]]":
    """The header and the arrays of a file, checked against its digest.

    Raises:
        ValueError: If the file is truncated, of another kind, by a newer version, or not what was written.
    """
    with open_envelope(path, kind, version) as (header, file):
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "digest" in header and header["digest"] != _digest(header, arrays):
        raise ValueError(
            f"{path} contradicts itself: its content is not what was written (the digest differs)."
        )
    return header, arrays


@contextmanager
def open_envelope(path: Path, kind: str, version: int) -> Iterator[tuple[Any, "StoredArrays"]]:
    """The header of a file, and its arrays yet to be read, which no digest is compared with.

    Raises:
        ValueError: If the file is truncated, of another kind, or by a newer version.
    """
    try:
        with safe_open(path, framework="np") as file:
            yield _header(file.metadata() or {}, path, kind, version), StoredArrays(path, file)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no {kind} file ({error}).{_hint(path)}") from error


def kind_of(path: Path) -> str | None:
    """The kind of a file that priorshift wrote; None for any other file, and for one that is truncated."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        key = next(key for key in (KEY, *_KEYS_OF_01) if key in metadata)
        return _stated_kind(json.loads(metadata[key]), key)
    except (SafetensorError, StopIteration, json.JSONDecodeError, TypeError, AttributeError):
        return None


class StoredArrays:
    """The arrays of an open file, in NumPy; bfloat16, which NumPy lacks, becomes float32."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file

    def keys(self) -> list[str]:
        """Names of the arrays."""
        return list(self._file.keys())

    def get_tensor(self, name: str) -> "npt.NDArray[Any]":
        """A whole array."""
        found: npt.NDArray[Any] = self.get_slice(name)[:] if self._wide(name) else self._file.get_tensor(name)
        return found

    def get_slice(self, name: str) -> Any:
        """An array whose rows are read on demand: `get_slice(name)[first:last]`, `.get_shape()`."""
        return _Bfloat16(self._path, name) if self._wide(name) else self._file.get_slice(name)

    def _wide(self, name: str) -> bool:
        return str(self._file.get_slice(name).get_dtype()) == "BF16"


class _Bfloat16:
    """Rows of an array of bfloat16 as float32: the upper half of each number."""

    def __init__(self, path: Path, name: str) -> None:
        import numpy as np

        with path.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            entry = json.loads(content.read(length))[name]
        self._shape = entry["shape"]
        self._halves = np.memmap(
            path, np.uint16, "r", 8 + length + entry["data_offsets"][0], tuple(self._shape), order="C"
        )

    def get_shape(self) -> list[int]:
        """The shape."""
        return list(self._shape)

    def __getitem__(self, rows: Any) -> "npt.NDArray[np.float32]":
        wide: npt.NDArray[np.float32] = (self._halves[rows].astype("u4") << 16).view("f4")
        return wide


def _header(metadata: Mapping[str, str], path: Path, kind: str, version: int) -> Any:
    key = next((key for key in (KEY, *_KEYS_OF_01) if key in metadata), None)
    if key is None:
        raise ValueError(f"{path} is a safetensors file, but no {kind} file of priorshift.")
    try:
        header = json.loads(metadata[key])
        stated = header["schema_version"]
        newer = stated > version
        found = _stated_kind(header, key)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has an unreadable header ({error}).") from error
    if found not in (kind, None):
        raise ValueError(f"{path} is a {found} file of priorshift, not a {kind} file.{_remedy(found, kind)}")
    if newer:
        raise ValueError(
            f"{path} was written by a newer priorshift ({kind} schema {stated}, "
            f"this one reads up to {version}). Upgrade priorshift to read it."
        )
    return header


def _stated_kind(header: Mapping[str, Any], key: str) -> str | None:
    of_01 = (kind for field, kind in _FIELDS_OF_01.items() if field in header)
    return header.get("kind") or _KEYS_OF_01.get(key) or next(of_01, None)


def _remedy(found: str, kind: str) -> str:
    if kind == "predictions" and found in ("weights", "checkpoint"):
        return " `priorshift predict RUN` writes predictions."
    return ""


def _hint(path: Path) -> str:
    """What a file that is no safetensors probably is."""
    if path.suffix.lower() in (".csv", ".tsv", ".parquet", ".feather", ".arrow", ".xlsx"):
        return " To read a table use `Predictions.from_frame`."
    return ""


def _digest(header: Mapping[str, Any], arrays: "Mapping[str, npt.NDArray[Any]]") -> str:
    """SHA-256 over all that is used: the header without the digest, and names, types, shapes and bytes."""
    import numpy as np

    facts = {name: value for name, value in header.items() if name != "digest"}
    state = hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode())
    for name in sorted(arrays):
        array = arrays[name]
        state.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return state.hexdigest()
