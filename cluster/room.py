"""How many actors fit on the cluster's machines."""

from collections.abc import Iterable, Mapping

import ray

from cluster.errors import ClusterError

RAY_RESOURCE_GRAIN = 10_000  # Ray counts resources in ten-thousandths


def pool_size(
    requested: int, *, num_cpus_per_actor: float, num_gpus_per_actor: float = 0, own_cluster: bool = False
) -> int:
    """Return how many actors to ask for: `requested`, or for 0 as many as fit on the cluster's machines now.

    A cluster of this process's own does not grow: there it is never more than fit.

    Raises:
        ClusterError: If requested is negative, or is 0 and not one actor fits.
    """
    if requested < 0:
        raise ClusterError(f"{requested} actors: must be 0 or more")
    if requested and not own_cluster:
        return requested
    wanted = {"CPU": num_cpus_per_actor, "GPU": num_gpus_per_actor}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = actors_that_fit(nodes, wanted)
    if fitting == 0:
        held = ", ".join(f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes) or "none"
        raise ClusterError(
            f"an actor needs {num_cpus_per_actor:g} CPU and {num_gpus_per_actor:g} GPU on one machine; "
            f"the cluster's machines have: {held}"
        )
    return min(requested or fitting, fitting)


def actors_that_fit(nodes: Iterable[Mapping[str, float]], wanted: Mapping[str, float]) -> int:
    """Return how many actors fit on machines of these resources, each actor within one machine."""
    grains = {name: round(amount * RAY_RESOURCE_GRAIN) for name, amount in wanted.items() if amount > 0}
    if not grains:
        raise ValueError(f"{dict(wanted)}: an actor must need some CPU or GPU")
    return sum(
        min(round(node.get(name, 0) * RAY_RESOURCE_GRAIN) // grain for name, grain in grains.items()) for node in nodes
    )
