"""Set-up of worker processes; imports nothing that starts threads, so that it comes before what does."""

import os


def limit_threads(threads: int) -> None:
    """Let the libraries that this process has not loaded yet use so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
