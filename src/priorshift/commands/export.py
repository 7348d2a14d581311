"""Write a trained run as ONNX or as a program of `torch.export`, with the target prior as an input."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from priorshift.adjustment import fit_scaling
from priorshift.export import Scorer, calibrate, export_onnx, export_torch, fold, load_scorer
from priorshift.predictions import Predictions
from priorshift.priors import Prior
from priorshift.shift import target_prior


@dataclass(frozen=True)
class Arguments:
    """Which run, for which mix, and where to."""

    run: Positional[Path]
    """Run folder that `priorshift train` wrote."""
    output: Annotated[Path | None, arg(aliases=("-o",))] = None
    """File to write; by default model.onnx or model.pt2 in the run folder."""
    format: Literal["onnx", "torch-export"] = "onnx"
    """What it is written as."""
    target: str | None = None
    """Default of the input `log_target_prior` of ONNX: uniform, source, forward:RATIO, backward:RATIO,
    tweak:CLASS:MASS, or a JSON file with one mass per class; by default what the logits carry, which moves
    nothing."""
    fold: str | None = None
    """Put this target prior into the classifier's bias instead; then there is no such input."""
    validation: Path | None = None
    """Predictions of this run on labelled source samples held out of its training; a calibration fitted to
    them goes into the classifier."""
    calibration: Literal["ts", "bcts", "vs", "nbvs"] | None = None
    """Scaling fitted to the validation predictions; by default bcts where there are some."""


def run(arguments: Arguments) -> None:
    """Load, calibrate, fold and write."""
    if arguments.target is not None and (arguments.fold is not None or arguments.format != "onnx"):
        raise ValueError(
            "Expected `--target`, the default of an input, with `--format onnx` and without `--fold` only, "
            f"but got {arguments.target!r}."
        )
    scorer = load_scorer(arguments.run)
    if arguments.validation is not None:
        scorer = _calibrated(scorer, arguments.validation, arguments.calibration or "bcts")
    elif arguments.calibration is not None:
        raise ValueError(f"Expected `--validation` to fit the calibration {arguments.calibration} to.")
    prior_input = arguments.fold is None
    if arguments.fold is not None:
        scorer = fold(scorer, _target(arguments.fold, scorer))
    suffix = "onnx" if arguments.format == "onnx" else "pt2"
    path = arguments.output or arguments.run / f"model.{suffix}"
    if arguments.format == "onnx":
        target = None if arguments.target is None else _target(arguments.target, scorer)
        export_onnx(scorer, path, target=target, prior_input=prior_input)
    else:
        export_torch(scorer, path, prior_input=prior_input)
    print(f"{path}\n{_contract(scorer, prior_input)}")


def _calibrated(scorer: Scorer, path: Path, method: Literal["ts", "bcts", "vs", "nbvs"]) -> Scorer:
    validation, description = Predictions.load(path), scorer.description
    if validation.labels is None:
        raise ValueError(f"Expected `--validation` with labels, but {path} has none.")
    same_classes = validation.class_names == description.class_names
    if not (same_classes and validation.carried.matches(description.carried)):
        raise ValueError(
            f"Expected `--validation` of this run, but {path} is of other classes or another carried prior."
        )
    return calibrate(
        scorer,
        fit_scaling(validation.logits, validation.labels, method=method, carried=description.carried),
    )


def _target(spelling: str, scorer: Scorer) -> Prior:
    description = scorer.description
    try:
        return target_prior(spelling, description.train_counts, class_names=description.class_names)
    except ValueError as error:
        raise ValueError(f"Cannot read the target prior {spelling!r}. {error}") from error


def _contract(scorer: Scorer, prior_input: bool) -> str:
    """What to give the file, in a few lines."""
    description = scorer.description
    shape, preparation = ", ".join(map(str, description.input_shape)), description.preparation
    lines = [f"in: {description.input_name}, float32 [N, {shape}]"]
    if description.input_name == "images":
        before = ""
        if preparation.size:
            before = (
                f", resized to {preparation.resize or preparation.size} on the shorter side and cut to "
                f"{preparation.size} × {preparation.size}"
            )
        lines[0] += f" between 0 and 1{before}; the normalisation is inside"
    if prior_input:
        lines.append(f"in, optional: log_target_prior, float32 [{description.num_classes}]")
    lines.append(f"out: probabilities, and logits that carry {description.carried}")
    return "\n".join(lines)
