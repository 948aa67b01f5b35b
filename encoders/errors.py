"""Errors about encoders and recordings that a user can correct."""


class EncoderError(ValueError):
    """Weights, a codec or a recording that an encoder cannot take."""
