from .outcome import Outcome as Outcome
from .targets import TARGETS as TARGETS
from .targets import Settings as Settings
from .targets import Target as Target

__all__: list[str]
