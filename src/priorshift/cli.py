"""The command line: which verb, parse its arguments, one sentence for a user's mistake. Nothing else."""

import contextlib
import importlib
import io
import itertools
import sys
from collections.abc import Sequence

VERBS = {
    "quickstart": "train three methods on skewed digits, judge them on eleven class mixes",
    "train": "train a recipe into a run folder",
    "predict": "predict with a trained run and save the logits",
    "evaluate": "judge a predictions file on any class mix, with and without compensation",
    "adapt": "estimate the class mix of unlabelled predictions, and adapt them to it",
    "export": "write a trained run as ONNX, the target prior an input, for any server",
    "serve-example": "write an example service that adapts to its own unlabelled traffic",
    "estimate": "estimate the class mix of files larger than memory in one pass, by shards if need be",
    "features": "save the features that a frozen backbone makes of images, for heads to train on",
    "compare": "train every method on one data set and print one table",
    "report": "compare runs in one self-contained HTML page",
    "figure": "draw a figure of the papers from any runs",
    "reproduce": "run a published table or figure again: ours beside theirs, and a verdict",
}
"""Verb → what it does. Its module in `priorshift.commands`, `_` for `-`, holds `Arguments` and `run`."""

EXTRAS = {
    **dict.fromkeys(("torch", "filelock"), "torch"),
    **dict.fromkeys(("timm", "torchvision", "datasets", "PIL", "pyarrow"), "train"),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
    "sklearn": "sklearn",
    "distributed": "cluster",
}
"""Package → the extra that brings it, where `cli` does not."""

USER_MISTAKES = (ValueError, TypeError, OSError, ArithmeticError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from priorshift import __version__

        print(f"priorshift {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        return _mistake(f"There is no verb {verb!r}; there are {', '.join(VERBS)}.")
    try:
        return _run(verb, rest)
    except KeyboardInterrupt:
        print("priorshift: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if debug or error.name is None or error.name.startswith("priorshift"):
            raise
        package = error.name.partition(".")[0]
        return _mistake(
            f"`priorshift {verb}` needs {package}, which is not installed. In the folder of the source "
            f'run: pip install ".[{EXTRAS.get(package, "cli")}]"'
        )
    except USER_MISTAKES as error:
        if debug:
            raise
        return _mistake(str(error))


def entry_point() -> None:
    """What the console script calls."""
    sys.exit(main())


def _run(verb: str, rest: list[str]) -> int:
    module = importlib.import_module(f"priorshift.commands.{verb.replace('-', '_')}")
    import tyro

    complaint = io.StringIO()
    try:
        default, rest = module.defaults(rest) if hasattr(module, "defaults") else (None, rest)
        with contextlib.redirect_stderr(complaint):
            arguments = tyro.cli(
                module.Arguments,
                args=rest,
                prog=f"priorshift {verb}",
                description=module.__doc__,
                config=(tyro.conf.AvoidSubcommands,),
                **({} if default is None else {"default": default}),
            )
    except SystemExit as stop:
        if not stop.code:
            return 0
        return _mistake(f"{_first_paragraph(complaint.getvalue())}; see `priorshift {verb} --help`.")
    module.run(arguments)
    return 0


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()]
    return "\n".join(
        [
            "usage: priorshift VERB [OPTIONS]",
            "",
            "Train a classifier on one class mix, deploy it on any other.",
            "",
            *lines,
            "",
            "`priorshift VERB --help` lists the options of a verb; `--debug` shows tracebacks.",
        ]
    )


def _first_paragraph(box: str) -> str:
    """The message of tyro on a mistake, without the frame around it and the help below it."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()[1:]]
    # Where the output is not UTF-8 the frame is of blanks and hyphens, with a rule below the title as well.
    below_title = itertools.dropwhile(lambda line: not line.strip("─-"), lines)
    paragraph = itertools.takewhile(lambda line: line.strip("─-"), below_title)
    return " ".join(" ".join(paragraph).split()).rstrip(".")


def _mistake(sentence: str) -> int:
    print(f"priorshift: {' '.join(sentence.split())}", file=sys.stderr)
    return 2
