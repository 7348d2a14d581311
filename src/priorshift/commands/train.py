"""Train a recipe, or the config.json of an earlier run; every other option overrides one field of it.

`--method NAME` puts another method in place of a recipe's plain cross-entropy.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Suppress, arg

from priorshift import recipes
from priorshift.commands._progress import training_progress
from priorshift.recipes.methods import METHODS, with_method
from priorshift.training import Run, TrainConfig, train


@dataclass(frozen=True)
class Arguments:
    """What to train, and where to."""

    config: Annotated[TrainConfig, arg(name="")]
    recipe: Suppress[str]
    output: Path | None = None
    """Run folder; by default runs/RECIPE-seedSEED."""
    overwrite: bool = False
    """Replace another run in that folder."""


def defaults(argv: list[str]) -> tuple[Arguments, list[str]]:
    """Take the recipe and the method off the command line and look the config up.

    Raises:
        ValueError: If no recipe is named, or there is no recipe or no method of that name.
    """
    known = {name.replace("_", "-"): name for name in recipes.__all__}
    listed = f"RECIPE is one of {', '.join(known)}, or a config.json."
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: priorshift train RECIPE [OPTIONS]\n\n{__doc__}\n{listed}")
        print(f"`--method NAME` is one of {', '.join(METHODS)}.")
        print("`priorshift train RECIPE --help` lists the fields of a recipe.")
        raise SystemExit(0)
    if not argv or argv[0].startswith("-"):
        raise ValueError(f"Expected a recipe: `priorshift train RECIPE [OPTIONS]`. {listed}")
    recipe, *rest = argv
    # Left to the parser, `--method=crt` would only rename the recipe's own method.
    rest = [
        part for word in rest for part in (word.split("=", 1) if word.startswith("--method=") else [word])
    ]
    if rest.count("--method") > 1:
        raise ValueError(f"Expected one `--method`, but got {rest.count('--method')}.")
    if recipe in known:
        arguments = Arguments(config=getattr(recipes, known[recipe])(), recipe=recipe)
    elif (path := Path(recipe)).suffix == ".json":
        arguments = Arguments(config=TrainConfig.load(path), recipe=path.parent.name or "config")
    else:
        raise ValueError(f"There is no recipe {recipe!r}. {listed}")
    if "--method" not in rest[:-1]:
        return arguments, rest
    place = rest.index("--method")
    method = rest[place + 1]
    changed = replace(
        arguments, config=with_method(arguments.config, method), recipe=f"{arguments.recipe}-{method}"
    )
    return changed, rest[:place] + rest[place + 2 :]


def run(arguments: Arguments) -> None:
    """Train, unless the folder already holds exactly this run."""
    config, console = arguments.config, Console(stderr=True)
    folder = arguments.output or Path("runs") / f"{arguments.recipe}-seed{config.seed}"
    if Run(folder).finished(config):
        print(f"{folder} already holds this run, complete.")
        return
    if not arguments.overwrite and Run(folder).config_file.exists() and Run(folder).config() != config:
        raise ValueError(f"{folder} holds another run; choose another --output, or pass --overwrite.")
    with training_progress(console, 1) as progress:
        train(config, folder, on_epoch=lambda record: progress.epoch(config.method, record))
        progress.run_done(config.method, "trained")
    print(f"{folder}\nnext: priorshift predict {folder}")
