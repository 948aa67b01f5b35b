"""Errors about the language model that a user can correct."""


class LLMError(ValueError):
    """A language model, an adapter or a prompt that does not fit."""
