"""Write a scorer as ONNX or as a program of `torch.export`, with the target prior as an input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import priorshift
from priorshift._files import written_whole
from priorshift._inputs import ArrayLike
from priorshift.export._scorer import Scorer
from priorshift.priors import Prior, as_prior

METADATA_KEY = "priorshift"
"""Under which ONNX keeps the description as JSON; in a `.pt2` it is the extra file `priorshift.json`."""
PRIOR_INPUT = "log_target_prior"
OUTPUTS = ("probabilities", "logits")


def export_onnx(
    scorer: Scorer,
    path: str | Path,
    *,
    target: Prior | ArrayLike | None = None,
    prior_input: bool = True,
) -> None:
    r"""Write a scorer as one ONNX file: inputs and a target prior in, probabilities and logits out.

    $$\text{probabilities} = \mathrm{softmax}(\text{logits} - \log q + \text{log\_target\_prior})$$

    The graph takes `images`, float32, `[N, channels, height, width]` between 0 and 1, or `features`, for
    any $N$; the normalisation is inside. `log_target_prior`, float32, `[C]`, up to a constant, $-\infty$ for
    a class that does not occur, is optional: its default is an initializer of the same name, which ONNX lets
    a caller override. The output `logits` carries $q$, whatever the target: what
    `priorshift.estimation.StreamingPrior` is updated with. The metadata `priorshift` is the description as
    JSON, with `target`, the default.

    Args:
        scorer: The scorer. One that `fold` made needs no `prior_input`.
        path: The file, written whole or not at all.
        target: The default of the target prior, `[C]`; None: the carried prior, so that the probabilities
            are the softmax of the logits.
        prior_input: Whether there is that input. Without it the probabilities are the softmax of the logits.

    Raises:
        ModuleNotFoundError: If onnx or onnxscript is not installed: `pip install "priorshift[export]"`.
        OSError: If the file cannot be written.
        ValueError: If `target` is not of $C$ classes or given without `prior_input`, the carried prior has a
            zero with it, or ONNX has no operator for something in the scorer.
    """
    import onnx
    import onnxscript  # noqa: F401  torch would name it late, in other words

    default = _default_target(scorer, target, prior_input)
    program = _program(scorer, prior_input)
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=_input_names(scorer, prior_input),
            output_names=OUTPUTS,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(
            f"The scorer cannot be exported to ONNX, but as `torch.export` it can: {reason}"
        ) from error
    assert converted is not None
    model: Any = converted.model_proto
    if prior_input:
        values = default.log_probs.astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, PRIOR_INPUT))
    model.producer_name, model.producer_version = "priorshift", priorshift.__version__
    onnx.helper.set_model_props(model, {METADATA_KEY: _metadata(scorer, default)})
    with written_whole(Path(path)) as temporary:
        onnx.save(model, temporary)


def export_torch(scorer: Scorer, path: str | Path, *, prior_input: bool = True) -> None:
    """Write a scorer as a program of `torch.export`, `.pt2`, that `torch.export.load(path).module()` runs.

    It takes the inputs and returns the outputs of `export_onnx`, for batches of any size, but knows no
    defaults: `log_target_prior` has to be given. The extra file `priorshift.json` is the description.

    Args:
        scorer: The scorer. One that `fold` made needs no `prior_input`.
        path: The file, written whole or not at all.
        prior_input: Whether there is an input for the target prior.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the carried prior has a zero with `prior_input`.
    """
    default = _default_target(scorer, None, prior_input)
    program = _program(scorer, prior_input)
    with written_whole(Path(path)) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file, extra_files={"priorshift.json": _metadata(scorer, default)})


class _Served(nn.Module):
    """What is served: probabilities under the target, and the logits as they carry their prior."""

    log_carried: Tensor

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer
        self.register_buffer("log_carried", torch.tensor(scorer.description.carried.log_probs).float())

    def forward(
        self,
        inputs: Float[Tensor, "batch *input"],
        log_target_prior: Float[Tensor, " classes"] | None = None,
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        logits = self.scorer(inputs)
        if log_target_prior is None:
            return logits.softmax(dim=1), logits
        return (logits + (log_target_prior - self.log_carried)).softmax(dim=1), logits


class _PlainDistances(TorchFunctionMode):
    """Distances by definition: ONNX has no `torch.cdist`, which computes by the size of a batch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.cdist:
            left, right = args
            return torch.linalg.vector_norm(left[:, None] - right, dim=2)
        return func(*args, **(kwargs or {}))


def _default_target(scorer: Scorer, target: Prior | ArrayLike | None, prior_input: bool) -> Prior:
    carried = scorer.description.carried
    if prior_input:
        carried.require_positive("carried")
    elif target is not None:
        raise ValueError("Expected no `target` without `prior_input`: `fold` the scorer to it first.")
    if target is None:
        return carried
    return as_prior(target, "target", carried.num_classes, names=scorer.description.class_names)


def _input_names(scorer: Scorer, prior_input: bool) -> list[str]:
    return [scorer.description.input_name, *[PRIOR_INPUT] * prior_input]


def _program(scorer: Scorer, prior_input: bool) -> torch.export.ExportedProgram:
    description = scorer.description
    # Two of them, since torch.export takes a batch of one for a constant.
    inputs = (torch.rand(2, *description.input_shape), *[torch.zeros(description.num_classes)] * prior_input)
    batch = torch.export.Dim("batch", min=1)
    shapes: tuple[dict[int, Any] | None, ...] = ({0: batch}, *[None] * prior_input)
    with _PlainDistances():
        return torch.export.export(_Served(scorer).eval(), inputs, dynamic_shapes=shapes)


def _metadata(scorer: Scorer, default: Prior) -> str:
    content = {
        **scorer.description.to_json(),
        "target": default.probs.tolist(),
        "normalisation": "inside: inputs are between 0 and 1",
        "versions": {"priorshift": priorshift.__version__, "torch": torch.__version__},
    }
    return json.dumps(content, ensure_ascii=False)
