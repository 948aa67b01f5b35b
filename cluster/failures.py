"""What a Ray error says, in one line."""

from ray.exceptions import RayActorError, RayError, RayTaskError

MESSAGE_CHARACTERS = 400


def describe_error(error: RayError) -> str:
    """Return what went wrong, in one line: the exception itself, without Ray's header and the traceback."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        text = f"{type(error.cause).__name__}: {error.cause}"
    elif isinstance(error, RayActorError) and error.actor_init_failed:
        lines = str(error).splitlines()
        source = [number for number, line in enumerate(lines) if line.startswith("    ")]
        text = "\n".join(lines[source[-1] + 1 :] if source else lines)
    else:
        lines = [line for line in str(error).splitlines() if not line.startswith("\t")]  # class, ids, namespace
        text = "\n".join(lines).split("Some common causes")[0]
    return " ".join(text.split())[:MESSAGE_CHARACTERS]
