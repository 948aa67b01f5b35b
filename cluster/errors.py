"""Errors about Ray and machines that a user can correct."""


class ClusterError(ValueError):
    """The cluster does not answer, has no room, or was asked for something impossible."""


class UnreachableError(ClusterError, ConnectionError):
    """The cluster cannot be reached, or what answers is none."""
