"""Estimate the class mix of files larger than memory in one pass, or merge the states of their shards."""

import glob
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from priorshift.commands._choices import CalibrationName, MaybePath

if TYPE_CHECKING:
    from priorshift.adjustment import Scaling
    from priorshift.predictions import Predictions
    from priorshift.priors import Prior
    from priorshift.streams import LogitsFile, StreamingPrior


@dataclass(frozen=True)
class Arguments:
    """Which files, how, and where to."""

    files: Positional[tuple[str, ...]]
    """Predictions files of one scorer, Parquet files of its logits, or patterns of either in quotes; or, to
    merge them, states that this command wrote."""
    validation: MaybePath = None
    """Predictions of the same scorer on labelled source samples held out of its training, to calibrate by."""
    calibration: CalibrationName | None = None
    """Scaling fitted to the validation predictions first; by default bcts where there are some."""
    carried: str | None = None
    """The prior that the logits carry, where the files do not hold it: `uniform`, or a JSON file with a
    number for each class. By default that of the validation predictions."""
    columns: tuple[str, ...] = ("logits",)
    """Of Parquet: a column of lists, or the beginning of columns NAME_0, NAME_1, …; or several, one per class
    in the order of the classes."""
    capacity: int | None = None
    """Samples to keep at most; by default as many as hold 2^24 numbers."""
    shard: str | None = None
    """Part of the work, as in 2/8: the second of eight. Merge the states afterwards."""
    jobs: int = 1
    """Processes to read with."""
    output: Annotated[MaybePath, arg(aliases=("-o",))] = None
    """File for the state; by default `mix.state`, or `mix-2-of-8.state` for a shard."""


def run(arguments: Arguments) -> None:
    """Estimate or merge, print and save."""
    from rich.console import Console

    from priorshift.commands._mix_table import mix_table
    from priorshift.streams import StreamingPrior

    paths = _matching(arguments.files)
    shard = _read_shard(arguments.shard)
    default = "mix.state" if arguments.shard is None else f"mix-{shard[0]}-of-{shard[1]}.state"
    output = arguments.output or Path(default)
    if output.resolve() in {path.resolve() for path in paths}:
        raise ValueError(
            f"Expected `--output` to be another file than those that are read, but got {output}."
        )
    are_states = [_is_state(path) for path in paths]
    class_names = None
    if all(are_states):
        _refuse_options(arguments)
        states = [StreamingPrior.load(path) for path in paths]
        state = states[0].merge(*states[1:])
    elif any(are_states):
        raise ValueError(
            f"Expected either predictions or states, but {paths[are_states.index(True)]} is a state and "
            f"{paths[are_states.index(False)]} is none: estimate first, then merge."
        )
    else:
        state, class_names = _estimate(arguments, paths, shard)
    state.save(output)
    estimate = state.estimate()
    scaling = estimate.scaling
    carried = estimate.carried if scaling is None else scaling.source or scaling.carried
    screen = Console()
    screen.print(mix_table(estimate, carried, class_names=class_names))
    for sentence in estimate.warnings:
        screen.print(f"warning: {sentence}", highlight=False, markup=False)
    screen.print(f"state: {output}", soft_wrap=True, highlight=False, markup=False)


def _estimate(
    arguments: Arguments, paths: list[Path], shard: tuple[int, int]
) -> tuple["StreamingPrior", tuple[str, ...] | None]:
    from priorshift.predictions import Predictions
    from priorshift.streams import describe_file, estimate_files

    columns = arguments.columns[0] if len(arguments.columns) == 1 else arguments.columns
    files = [describe_file(path, columns=columns) for path in paths]
    class_names = next((file.class_names for file in files if file.class_names is not None), None)
    validation = None
    if arguments.validation is not None:
        validation = Predictions.load(arguments.validation)
        _require_other_samples(validation, arguments.validation, files, class_names)
        class_names = class_names or validation.class_names
    carried = _read_carried(arguments.carried, files[0].num_classes, class_names)
    if carried is None:
        carried = next((file.carried for file in files if file.carried is not None), None)
    if carried is None and validation is not None:
        carried = validation.carried
    if carried is None:
        raise ValueError(
            f"Expected `--carried`, the prior that the logits carry: {paths[0]} does not say it."
        )
    state = estimate_files(
        paths,
        carried=carried,
        scaling=_fit(arguments, validation, carried),
        capacity=arguments.capacity,
        columns=columns,
        shard=shard,
        jobs=arguments.jobs,
    )
    return state, class_names


def _matching(files: tuple[str, ...]) -> list[Path]:
    """The files that are named, or that a pattern in quotes, which no shell has read, matches."""
    if not files:
        raise ValueError("Expected at least one predictions file or state.")
    paths = []
    for file in files:
        matching = [file] if Path(file).exists() or not glob.has_magic(file) else glob.glob(file)
        if not matching:
            raise FileNotFoundError(f"No file matches {file}.")
        paths += [Path(path) for path in matching]
    return sorted(paths)


def _read_shard(spelling: str | None) -> tuple[int, int]:
    if spelling is None:
        return 1, 1
    index, slash, count = spelling.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"Expected `--shard` to be i/n with 1 ≤ i ≤ n, such as 2/8, but got {spelling!r}.")
    return int(index), int(count)


def _is_state(path: Path) -> bool:
    from priorshift._files import kind_of

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return kind_of(path) == "stream"


def _refuse_options(arguments: Arguments) -> None:
    for field in fields(arguments):
        if field.name not in ("files", "output") and getattr(arguments, field.name) != field.default:
            raise ValueError(f"Expected no `--{field.name}` with states, which are only merged.")


def _read_carried(
    spelling: str | None, num_classes: int, class_names: tuple[str, ...] | None
) -> "Prior | None":
    from priorshift.shift import target_prior

    if spelling is None:
        return None
    if spelling != "uniform" and not Path(spelling).is_file():
        raise ValueError(f"Expected `--carried` to be `uniform` or a JSON file, but got {spelling!r}.")
    return target_prior(spelling, [1] * num_classes, class_names=class_names)


def _require_other_samples(
    validation: "Predictions", path: Path, files: list["LogitsFile"], class_names: tuple[str, ...] | None
) -> None:
    if None not in (validation.class_names, class_names) and validation.class_names != class_names:
        raise ValueError(f"Expected `--validation` with the classes of the files, but {path} has others.")
    if validation.num_classes != files[0].num_classes:
        raise ValueError(
            f"Expected `--validation` with {files[0].num_classes} classes, as the files have, but {path} has "
            f"{validation.num_classes}."
        )
    if validation.fingerprint and validation.fingerprint in {file.fingerprint for file in files}:
        raise ValueError(f"Expected `--validation` on other samples than the files, but {path} has the same.")


def _fit(arguments: Arguments, validation: "Predictions | None", carried: "Prior") -> "Scaling | None":
    from priorshift.adjustment import fit_scaling

    method = arguments.calibration or ("none" if validation is None else "bcts")
    if method == "none":
        return None
    if validation is None or validation.labels is None:
        raise ValueError(f"Expected `--validation` with labels to fit {method!r} to.")
    if not validation.carried.matches(carried):
        raise ValueError(
            f"Expected `--validation` of the same scorer, whose logits carry {carried}, but those of "
            f"{arguments.validation} carry {validation.carried}."
        )
    return fit_scaling(validation.logits, validation.labels, method=method, carried=carried)
