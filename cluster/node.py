"""Which node of the cluster a process runs on."""

import socket

import ray


def this_node() -> str:
    """Return a name that no other node has: the host's, and the beginning of Ray's id, as hosts may share a name."""
    return f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:8]}"
