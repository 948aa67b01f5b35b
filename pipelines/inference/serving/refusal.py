"""How a request ends other than with an answer: as the OpenAI API tells it."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError


class RefusalError(Exception):
    """A request that is not answered."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        """Return the response's JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def refusal_of(error: ValidationError, known: Sequence[str]) -> RefusalError:
    """Return what is said of the first key that is wrong; `known` are the keys of the request."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return RefusalError(
            400, f"{place}: is not a key that is known here{hint}", code="unknown_parameter", param=place
        )
    if first["type"] == "missing":
        return RefusalError(400, f"{place}: is needed", code="missing_required_parameter", param=place)
    message = first["msg"].removeprefix("Value error, ")
    return RefusalError(400, f"{place}: {message}" if place else message, code="invalid_value", param=place or None)


def refused(message: str, param: str, code: str = "invalid_value") -> RefusalError:
    """Return the refusal of a value."""
    return RefusalError(400, message, code=code, param=param)
