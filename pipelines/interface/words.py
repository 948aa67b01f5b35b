"""Numbers and commands in sentences."""

import shlex


def counted(number: int, thing: str) -> str:
    """Return a number and what it counts, `1 worker` or `1,000 workers`; a thing of several words ends in the noun."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def command(*words: str, **keys: str) -> str:
    """Return a command of ours as a shell takes it; a name in capitals is for the user to replace."""
    return shlex.join(["salmonn", *words, *(f"{key}={value}" for key, value in keys.items())])
