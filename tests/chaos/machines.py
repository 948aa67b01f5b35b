"""A Ray cluster of several machines (raylets) on this one, which can be lost one by one."""

import random
import subprocess

from ray.cluster_utils import Cluster

HEAD = {"num_cpus": 0, "include_dashboard": False}


class Machines:
    """A head without room for work, and some machines with room for one or more pieces of it."""

    def __init__(self, count: int = 2, *, cpus: int = 1) -> None:
        self._cpus = cpus
        self.cluster = Cluster(initialize_head=True, head_node_args=HEAD)
        self.nodes = []
        for _ in range(count):
            self.start_one()

    def start_one(self, **settings) -> None:
        """Start a machine, with settings of `ray.cluster_utils.Cluster.add_node`."""
        node = self.cluster.add_node(num_cpus=self._cpus, object_store_memory=80 * 2**20, **settings)
        self.nodes.append(node)

    def lose(self, node) -> None:
        """Kill a machine's processes."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)  # SIGKILL

    def lose_one(self, rng: random.Random) -> None:
        """Kill a machine, and start another one."""
        self.lose(rng.choice(self.nodes))
        self.start_one()

    def pids(self, actor: str) -> list[int]:
        """Processes of the actors of a class, which are children of the machines' raylets."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self.nodes}
        listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in listing.splitlines()[1:]]
        return [int(pid) for pid, above, title in rows if title.startswith(f"ray::{actor}") and int(above) in raylets]
