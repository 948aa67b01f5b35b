"""How a verb ends other than well; `pipelines.cli` makes exit codes of it.

What is raised here on purpose is a sentence for the user. Whatever else passes through a verb is a bug.
"""

from cluster.errors import ClusterError
from encoders.errors import EncoderError
from llm.errors import LLMError
from qformer.errors import AlignerError


class UserError(ValueError):
    """Something that the user can correct; the message names the value and its place. Exit code 2."""


class MissingError(UserError, FileNotFoundError):
    """A file or folder that the user named is not there. Exit code 2."""


class ExistsError(UserError, FileExistsError):
    """A file or folder that would be written is there already. Exit code 2."""


class JobIncompleteError(Exception):
    """A job ended without finishing everything; the message lists what is missing. Exit code 1."""


def shorten(value: str, most: int = 120) -> str:
    """Return a text as an error shows it: on one line, a long one cut."""
    line = " ".join(value.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


USER_ERRORS = (UserError, ClusterError, EncoderError, LLMError, AlignerError)
"""What a user can correct, the errors of the packages below among them: those import nothing from here."""
