"""Errors about the aligner that a user can correct."""


class AlignerError(ValueError):
    """Sizes or weights that no aligner can have."""
