"""Stopping between two steps when someone asks: Ctrl-C, or the signal by which clusters take a node back."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """For the block, the first SIGINT or SIGTERM is a request to stop; a second one does what it always did.

    Yields:
        A function that says whether a stop was requested. In a thread other than the main one, which gets no
        signals, it never is.
    """
    requested = False
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        before.clear()

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        restore()

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, request) for number in SIGNALS}
    try:
        yield lambda: requested
    finally:
        restore()
