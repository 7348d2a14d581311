"""Run a published experiment again: its figure, its numbers and a computed verdict.

priorshift reproduce TARGET [OPTIONS], where TARGET is one of:
"""

import importlib
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Suppress, arg

from priorshift.reproduce import TARGETS, Settings

_WIDTH = max(map(len, TARGETS))
__doc__ = "\n".join(
    [__doc__ or "", *(f"  {name:<{_WIDTH}}  {target.what}" for name, target in TARGETS.items())]
)


@dataclass(frozen=True)
class Arguments:
    """What to reproduce, and where to."""

    settings: Annotated[Settings, arg(name="")]
    target: Suppress[str]
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """Folder for the outcome; by default runs/reproduce/TARGET."""


def defaults(argv: list[str]) -> tuple[Arguments, list[str]]:
    """Take the target off the command line and look its settings up.

    Raises:
        ValueError: If no target is named or there is none of that name.
    """
    listed = f"TARGET is one of {', '.join(TARGETS)}."
    if argv and argv[0] in ("-h", "--help"):
        return Arguments(settings=Settings(), target=""), argv
    if not argv or argv[0].startswith("-"):
        raise ValueError(f"Expected a target: `priorshift reproduce TARGET [OPTIONS]`. {listed}")
    target, *rest = argv
    if target not in TARGETS:
        raise ValueError(f"There is no target {target!r}. {listed}")
    return Arguments(settings=_module(target).Settings(), target=target), rest


def run(arguments: Arguments) -> None:
    """Reproduce, save, say the verdict."""
    target, settings = arguments.target, arguments.settings
    folder = arguments.output or Path("runs/reproduce") / target
    started = time.perf_counter()
    outcome = _module(target).reproduce(settings)
    options = [f"--{field.name} {getattr(settings, field.name)}" for field in fields(settings)]
    outcome.save(folder, command=" ".join(["priorshift reproduce", target, *options]))
    print(f"{outcome.verdict}\n{folder}  ({time.perf_counter() - started:.1f} s)")


def _module(target: str) -> Any:
    return importlib.import_module(f"priorshift.reproduce.{TARGETS[target].module}")
