"""How a verb ends when not all of its work is done."""


class JobIncompleteError(Exception):
    """A job ended without finishing everything; the message lists what is missing. Exit code 1."""
