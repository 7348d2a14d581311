"""Types of options that several verbs share; the choices come from the tables of methods."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Optional, TypeAlias

from priorshift.adjustment import CALIBRATIONS, ScalingMethod
from priorshift.estimation import METHODS

MaybePath: TypeAlias = Optional[Path]  # noqa: UP045 (tyro imports typeguard, and with it asyncio, for `Path | None`)
"""A file that may be left out."""

if TYPE_CHECKING:
    MethodName: TypeAlias = str
    CalibrationName: TypeAlias = ScalingMethod | Literal["none"]
else:
    MethodName = Literal[tuple(METHODS)]
    CalibrationName = Literal[("none", *CALIBRATIONS)]
