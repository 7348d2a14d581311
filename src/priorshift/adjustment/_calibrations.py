"""The table of calibrations. It imports nothing, so that a command line can list them at once."""

from typing import Literal, TypeAlias

ScalingMethod: TypeAlias = Literal["ts", "bcts", "vs", "nbvs"]
"""Temperature, bias-corrected temperature, vector and no-bias vector scaling: see `fit_scaling`."""

CALIBRATIONS: dict[str, str] = {
    "ts": "temperature scaling",
    "bcts": "bias-corrected temperature scaling",
    "vs": "vector scaling",
    "nbvs": "no-bias vector scaling",
}
"""Name → title of each method of calibration."""
