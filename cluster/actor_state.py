"""What Ray's control store knows about an actor: `ray list actors` without the dashboard, which may be off."""

from typing import Any

import ray
from ray._private.state import actors


def has_begun(actor: Any) -> bool:
    """Say whether the actor's process runs, so its `__init__` has begun; before, it waits for room in the cluster."""
    record = actors(actor._actor_id.hex())
    return bool(record) and record["Address"]["Port"] != 0


def lost_its_node(actor: Any) -> bool:
    """Say whether the machine that the actor ran on has left the cluster."""
    record = actors(actor._actor_id.hex())
    if not record:
        return False
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return record["Address"]["NodeID"] not in alive
