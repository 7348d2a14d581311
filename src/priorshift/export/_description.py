"""What whoever serves a scorer has to know of it, as JSON that travels with it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from priorshift.data import Preparation
from priorshift.priors import Prior

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Description:
    """The classes of a scorer, the priors that it knows, and the inputs that it expects.

    Args:
        class_names: One name per class.
        carried: The prior that its logits carry, `[C]`; it gets the names of the classes.
        carried_by: Whether that holds by "theory" or only by "convention".
        train_counts: Number of training samples of each class, whose shares are the source prior.
        input_shape: Of one input: channels, height and width of an image, or the number of features.
        preparation: What is done to an image. Size and resize come before the scorer, mean and standard
            deviation are inside it.
        white: The pixel value of the data that stands for 1.
        method: Published name of the method.
        facts: What else is true of it: text, numbers, lists of them.
    """

    class_names: tuple[str, ...]
    carried: Prior
    carried_by: Literal["theory", "convention"]
    train_counts: tuple[int, ...]
    input_shape: tuple[int, ...]
    preparation: Preparation = field(default_factory=Preparation)
    white: int = 255
    method: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("carried", "train_counts"):
            if len(getattr(self, name)) != self.num_classes:
                raise ValueError(
                    f"Expected `{name}` with one entry per class, {self.num_classes}, "
                    f"but got {len(getattr(self, name))}."
                )
        object.__setattr__(self, "carried", self.carried.named(self.class_names))

    @property
    def num_classes(self) -> int:
        """The number of classes, $C$."""
        return len(self.class_names)

    @property
    def source(self) -> Prior:
        """The class mix of the training data."""
        return Prior.from_counts(self.train_counts, names=self.class_names)

    @property
    def input_name(self) -> str:
        """`images` or `features`."""
        return "images" if len(self.input_shape) == 3 else "features"

    def to_json(self) -> dict[str, Any]:
        """JSON types, which `from_json` reads; `source` and `input_name` are told for other readers."""
        return {
            "schema_version": SCHEMA_VERSION,
            **asdict(self),
            "carried": self.carried.probs.tolist(),
            "source": self.source.probs.tolist(),
            "input_name": self.input_name,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Description":
        """Read what `to_json` gave.

        Raises:
            KeyError, TypeError: If something is missing, or is of another kind.
            ValueError: If the parts do not fit together, or a newer version wrote them.
        """
        if content["schema_version"] > SCHEMA_VERSION:
            raise ValueError(
                f"it was written by a newer priorshift (schema {content['schema_version']}, this one reads "
                f"up to {SCHEMA_VERSION}). Upgrade priorshift to read it."
            )
        preparation = content["preparation"]
        return cls(
            class_names=tuple(map(str, content["class_names"])),
            carried=Prior(content["carried"]),
            carried_by=content["carried_by"],
            train_counts=tuple(map(int, content["train_counts"])),
            input_shape=tuple(map(int, content["input_shape"])),
            preparation=Preparation(
                size=int(preparation["size"]),
                resize=int(preparation["resize"]),
                mean=tuple(map(float, preparation["mean"])),
                std=tuple(map(float, preparation["std"])),
            ),
            white=int(content["white"]),
            method=str(content["method"]),
            facts=dict(content["facts"]),
        )
