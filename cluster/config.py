"""The keys that say which Ray cluster is joined, or started."""

from dataclasses import dataclass

from cluster.errors import ClusterError


@dataclass(frozen=True)
class RayConfig:
    address: str = ""
    """[host:port] Running cluster to join; empty: RAY_ADDRESS where set (as in `ray job submit`), else a local one."""
    num_cpus: int = 0
    """[count] Logical CPUs of a local cluster; 0: as many as the machine has."""
    object_store_mib: int = 256
    """[MiB] Shared memory of a local cluster; features never pass through it."""
    log_to_driver: bool = False
    """[bool] Show what workers print; their logs are in Ray's session folder in any case."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.num_cpus < 0:
            raise ClusterError(f"num_cpus={self.num_cpus}: must be 0 or more")
        if self.object_store_mib < 80:
            raise ClusterError(f"object_store_mib={self.object_store_mib}: Ray needs 80 or more")
