"""One module for each verb of the command line: its `Arguments` and `run`."""
