"""Any network of timm."""

import difflib
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class Timm(nn.Module):
    """A network of timm by its name, without its classifier.

    The attributes `mean`, `std` and `input_size` (channels, height, width) say how timm prepares the images
    that the weights were made with.

    Args:
        in_channels: Channels of the images.
        architecture: A name that timm knows, such as `resnet50` or `resnet50.a1_in1k`; `hf-hub:owner/name`
            for one described on the Hugging Face hub, `local-dir:path` in a folder.
        pretrained: Whether to take the weights that timm has for that name, downloaded where needed and
            summed over the channels where `in_channels` is 1.
        weights: File with weights instead, as safetensors or a checkpoint of tensors; "" for none. Its
            classifier is left out, everything else has to fit. Of a checkpoint with averaged weights, those
            are taken.

    Raises:
        ValueError: If there is no such architecture, the file cannot be read safely or does not fit, or both
            `pretrained` and `weights` are given.
        FileNotFoundError: If there is no file `weights`.

    Example:
        >>> import torch
        >>> backbone = Timm(3, architecture="test_resnet")
        >>> backbone(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 96])
        >>> backbone.mean, backbone.input_size
        ((0.5, 0.5, 0.5), (3, 160, 160))
    """

    def __init__(
        self, in_channels: int, *, architecture: str, pretrained: bool = False, weights: str = ""
    ) -> None:
        import timm

        super().__init__()
        if pretrained and weights:
            raise ValueError(f"Expected either `pretrained` or `weights`, but got both, {weights!r}.")
        _require_known(architecture)
        try:
            network: Any = timm.create_model(
                architecture, pretrained=pretrained, num_classes=0, in_chans=in_channels
            )
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"The weights of {architecture} cannot be had from timm's hub ({reason}); `weights` takes a "
                "file instead, with `pretrained` false."
            ) from error
        if weights:
            _load(network, Path(weights), architecture)
        settings = network.pretrained_cfg
        self.mean: tuple[float, ...] = tuple(settings["mean"])
        self.std: tuple[float, ...] = tuple(settings["std"])
        self.input_size: tuple[int, ...] = tuple(settings["input_size"])
        # What comes out without a classifier; timm's `num_features` is what its last stage has.
        self.num_features: int = network.head_hidden_size
        self.network = network

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Features of a batch of images."""
        features: Tensor = self.network(images)
        return features


def _require_known(architecture: str) -> None:
    import timm

    if architecture.startswith(("hf-hub:", "local-dir:")):
        return
    name, dot, _ = architecture.partition(".")
    if timm.is_model_pretrained(architecture) if dot else timm.is_model(name):
        return
    known = timm.list_models(f"{name}.*", pretrained=True) if timm.is_model(name) else timm.list_models()
    near = difflib.get_close_matches(architecture, known) or known[:3]
    raise ValueError(
        "Expected `architecture` to be a name that timm knows, `hf-hub:owner/name` or `local-dir:path`, "
        f"but got {architecture!r}; timm has {', '.join(near)}."
    )


def _load(network: Any, weights: Path, architecture: str) -> None:
    """Load a file into a network without classifier."""
    from timm.models import load_state_dict

    if not weights.is_file():
        raise FileNotFoundError(f"Expected `weights` to be a file, but there is none at {weights}.")
    try:
        given = load_state_dict(str(weights), weights_only=True)
    except Exception as error:
        raise ValueError(
            f"Expected `weights` to be safetensors or a checkpoint of tensors, but {weights} cannot be read "
            f"safely: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    classifier = network.pretrained_cfg.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else classifier
    heads = {name.partition(".")[0] for name in names}
    own = network.state_dict()
    fitting = {
        name: tensor for name, tensor in given.items() if name in own or name.partition(".")[0] not in heads
    }
    for name, tensor in fitting.items():
        shape = tuple(getattr(tensor, "shape", ()))
        if name in own and (not isinstance(tensor, Tensor) or shape != own[name].shape):
            raise ValueError(
                f"Expected `weights` of {architecture}, but in {weights} `{name}` has shape {shape} "
                f"instead of {tuple(own[name].shape)}."
            )
    missing, unexpected = network.load_state_dict(fitting, strict=False)
    if missing or unexpected:
        wrong = [f"lacks {_some(missing)}"] * bool(missing) + [f"has {_some(unexpected)}"] * bool(unexpected)
        raise ValueError(f"Expected `weights` of {architecture}, but {weights} {' and '.join(wrong)}.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"`{name}`" for name in names[:3]) + more
