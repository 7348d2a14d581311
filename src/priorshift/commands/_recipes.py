"""Look up the config that a recipe names, and change the parts of it that the command line names."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from priorshift import recipes
from priorshift.recipes.methods import METHODS, with_method
from priorshift.training import Part, TrainConfig
from priorshift.training.config import Option

_OF_A_PART = re.compile(r"--(data|model|head|stages\.\d+\.(?:loss|head))\.(name|options)(?:=(.*))?")


def recipe_names() -> dict[str, str]:
    """Name on the command line → function in `priorshift.recipes`."""
    return {name.replace("_", "-"): name for name in recipes.__all__}


def first_word(
    argv: Sequence[str], verb: str, description: str | None, kinds: str = "a config.json"
) -> tuple[str, list[str]]:
    """The recipe that a command line begins with, and its other words; the help where that is asked for.

    Raises:
        ValueError: If none is named.
        SystemExit: After the help.
    """
    listed = f"RECIPE is one of {', '.join(recipe_names())}, or {kinds}."
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: priorshift {verb} RECIPE [OPTIONS]\n\n{description}\n{listed}")
        print(f"`--method NAME` is one of {', '.join(METHODS)}.")
        print(
            "`--data.options KEY VALUE ...` adds options to those of a part, here the data, or changes them."
        )
        print(f"`priorshift {verb} RECIPE --help` lists the fields of a recipe.")
        raise SystemExit(0)
    if not argv or argv[0].startswith("-"):
        raise ValueError(f"Expected a recipe: `priorshift {verb} RECIPE [OPTIONS]`. {listed}")
    return argv[0], list(argv[1:])


def config_of(recipe: str) -> tuple[TrainConfig, str]:
    """The config of a recipe or in a config.json, and a name for runs of it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such recipe, or the file holds no config.
    """
    known = recipe_names()
    if recipe in known:
        return getattr(recipes, known[recipe])(), recipe
    if (path := Path(recipe)).suffix == ".json":
        return TrainConfig.load(path), path.parent.name or "config"
    raise ValueError(f"There is no recipe {recipe!r}. RECIPE is one of {', '.join(known)}, or a config.json.")


def take_method(config: TrainConfig, name: str, words: Sequence[str]) -> tuple[TrainConfig, str, list[str]]:
    """Put the method that `--method` names into a config; its name then says so, and the word is gone.

    Raises:
        ValueError: If there is no such method, or two are named, or the config is none to put methods into.
    """
    # Left to the parser, `--method=crt` would only rename the recipe's own method.
    rest = [
        part for word in words for part in (word.split("=", 1) if word.startswith("--method=") else [word])
    ]
    if rest.count("--method") > 1:
        raise ValueError(f"Expected one `--method`, but got {rest.count('--method')}.")
    if "--method" not in rest[:-1]:
        return config, name, rest
    place = rest.index("--method")
    method = rest[place + 1]
    return with_method(config, method), f"{name}-{method}", rest[:place] + rest[place + 2 :]


def take_options(config: TrainConfig, words: Sequence[str]) -> tuple[TrainConfig, list[str]]:
    """Merge the KEY VALUE pairs that follow `--PART.options`, up to the next `--`, into that part's options.

    A part is `data`, `model`, `head`, `stages.N.loss` or `stages.N.head`. One that another name is given to
    begins without options, since those were the other one's. A value is true or false, a number where it
    looks like one, else text; the value of an option that is text stays text.

    Raises:
        ValueError: If a key has no value, or there is no such stage or part.
    """
    rest: list[str] = []
    options: list[tuple[str, str, list[str]]] = []
    for group in _groups(words):
        match = _OF_A_PART.fullmatch(group[0])
        if match is None:
            rest += group
            continue
        path, field, glued = match.groups()
        given = ([] if glued is None else [glued]) + group[1:]
        if field == "options":
            options.append((path, group[0], given))
        else:
            if given and given[0] != _part(config, path).name:
                config = _with_part(config, path, Part(name=given[0]))
            rest += group
    for path, word, given in options:
        if len(given) % 2 or not given:
            raise ValueError(
                f"Expected pairs of KEY and VALUE after `{word}`, but got {' '.join(given) or 'nothing'}."
            )
        part = _part(config, path)
        merged = dict(part.options)
        for key, text in zip(given[::2], given[1::2], strict=True):
            merged[key] = text if isinstance(merged.get(key), str) else _value(text)
        config = _with_part(config, path, replace(part, options=merged))
    return config, rest


def _groups(words: Sequence[str]) -> list[list[str]]:
    """Each `--word` with the words up to the next one."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(word)
    return groups


def _part(config: TrainConfig, path: str) -> Part:
    if not path.startswith("stages."):
        part: Part | None = getattr(config, path)
    else:
        _, number, name = path.split(".")
        if int(number) >= len(config.stages):
            raise ValueError(f"There is no stage {number}: there are {len(config.stages)}, counted from 0.")
        part = getattr(config.stages[int(number)], name)
    if part is None:
        raise ValueError(f"There is no `{path}` to change: that stage keeps the head as it is.")
    return part


def _with_part(config: TrainConfig, path: str, part: Part) -> TrainConfig:
    if not path.startswith("stages."):
        changed: dict[str, Any] = {path: part}
        return replace(config, **changed)
    _, number, name = path.split(".")
    stages = list(config.stages)
    changed = {name: part}
    stages[int(number)] = replace(stages[int(number)], **changed)
    return replace(config, stages=tuple(stages))


def _value(text: str) -> Option:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) and "_" not in text else text
