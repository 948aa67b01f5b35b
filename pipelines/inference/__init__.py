"""A run and a question in, answers out: recordings (`ask`), the held-out examples of a manifest (`evaluate`), requests.

`listening` is what all of them use, and `Listener` is for those outside: `from pipelines.inference import Listener`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.inference.listening.listener import Listener as Listener


def __getattr__(name: str) -> Any:
    """Import the listener, and PyTorch with it, only for those who ask for it."""
    if name == "Listener":
        from pipelines.inference.listening.listener import Listener

        return Listener
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
