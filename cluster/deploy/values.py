"""What a cluster is made of: the keys of a values file."""

import re
from dataclasses import dataclass, field
from typing import Literal

from cluster.errors import ClusterError

DNS_NAME = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"
"""RFC 1123, and short enough for what KubeRay adds to it."""
WORD = r"[\w./:@+-]+"
"""What may stand in a line without quotes."""
LABEL = r"[\w./-]+=[\w.-]+"
MOST_WORKERS = 10_000
MOST_HOURS = 24 * 365


def require_match(pattern: str, what: str, **values: str) -> None:
    """Check texts against a pattern; empty ones pass.

    Raises:
        ClusterError: Naming the first key that does not match.
    """
    for key, value in values.items():
        if value and not re.fullmatch(pattern, value, re.ASCII):
            raise ClusterError(f"{key}={value!r}: must be {what}")


def require_between(low: float, high: float, **values: float) -> None:
    """Check numbers, both bounds included.

    Raises:
        ClusterError: Naming the first key that is outside.
    """
    for key, value in values.items():
        if not low <= value <= high:
            raise ClusterError(f"{key}={value}: must be between {low:g} and {high:g}")


@dataclass(frozen=True)
class HeadValues:
    cpus: int = 4
    """[count] CPUs; no work is placed on the head, which runs the job's driver."""
    memory_gib: int = 16
    """[GiB] Memory."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_between(1, 1_024, cpus=self.cpus)
        require_between(1, 65_536, memory_gib=self.memory_gib)


@dataclass(frozen=True)
class GroupValues:
    cpus: int = 8
    """[count] CPUs of each machine."""
    memory_gib: int = 32
    """[GiB] Memory of each machine."""
    gpus: int = 0
    """[count] GPUs of each machine."""
    min_machines: int = 0
    """[count] Machines that are always there; without autoscaling as many as there are."""
    max_machines: int = 0
    """[count] Most machines; 0: the group is left out."""
    spot: bool = False
    """[true/false] Machines that may be taken away; extraction and training go on without them."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_between(1, 1_024, cpus=self.cpus)
        require_between(1, 65_536, memory_gib=self.memory_gib)
        require_between(0, 64, gpus=self.gpus)
        require_between(0, MOST_WORKERS, max_machines=self.max_machines)
        require_between(0, self.max_machines, min_machines=self.min_machines)


@dataclass(frozen=True)
class GpuGroupValues(GroupValues):
    gpus: int = 1
    """[count] GPUs of each machine."""
    max_machines: int = 1
    """[count] Most machines; 0: the group is left out."""


@dataclass(frozen=True)
class KubernetesValues:
    namespace: str = "default"
    """[name] Namespace of everything that is made."""
    operator_namespace: str = "kuberay-operator"
    """[name] Namespace of the KubeRay operator: beside the cluster's own pods the only one that reaches them."""
    autoscaling: bool = True
    """[true/false] Machines come and go with the work."""
    queue: str = ""
    """[name] Kueue queue that admits the job; it wants a fixed number of machines, so autoscaling=false."""
    storage_secret: str = ""
    """[name] Secret whose keys become environment variables of all pods, such as AWS_ACCESS_KEY_ID."""
    volume_claim: str = ""
    """[name] Persistent volume claim that all pods mount at volume_path."""
    volume_path: str = "/data"
    """[path] Where they mount it."""
    spot_label: str = "karpenter.sh/capacity-type=spot"
    """[label] Nodes that spot machines are placed on, label=value; a taint of the same label is tolerated."""
    user: int = 1000
    """[id] User and group that all processes run as; never root."""
    retries: int = 3
    """[count] Clusters that are started anew for a job that failed; it continues where it stopped."""

    def __post_init__(self) -> None:
        """Check names."""
        names = {"namespace": self.namespace, "operator_namespace": self.operator_namespace, "queue": self.queue}
        names |= {"storage_secret": self.storage_secret, "volume_claim": self.volume_claim}
        require_match(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", "a Kubernetes name, a-z, 0-9 and -", **names)
        require_match(LABEL, "label=value", spot_label=self.spot_label)
        require_between(1, 2**31 - 1, user=self.user)
        require_between(0, 100, retries=self.retries)
        if not self.volume_path.startswith("/"):
            raise ClusterError(f"volume_path={self.volume_path!r}: must begin with /")

    def require_admitted(self) -> None:
        """Check that Kueue admits the job.

        Raises:
            ClusterError: If a queue is named and machines come and go.
        """
        if self.queue and self.autoscaling:
            raise ClusterError(
                f"kubernetes.queue={self.queue!r}: Kueue admits a fixed number of machines; give "
                "kubernetes.autoscaling=false"
            )


@dataclass(frozen=True)
class SlurmValues:
    nodes: int = 1
    """[count] Nodes, the head's among them."""
    cpus_per_node: int = 8
    """[count] CPUs of each."""
    gpus_per_node: int = 0
    """[count] GPUs of each."""
    hours: int = 24
    """[hours] Longest run; the same script continues what was not done."""
    partition: str = ""
    """[name] Partition; empty: Slurm's default."""
    account: str = ""
    """[name] Account; empty: Slurm's default."""
    environment: str = ".venv"
    """[path] Virtual environment that all nodes see, activated on each."""
    start_seconds: int = 300
    """[seconds] Longest time until all nodes have joined; then the job ends with 1."""

    def __post_init__(self) -> None:
        """Check ranges and words."""
        require_between(1, MOST_WORKERS, nodes=self.nodes)
        require_between(1, 1_024, cpus_per_node=self.cpus_per_node)
        require_between(0, 64, gpus_per_node=self.gpus_per_node)
        require_between(1, MOST_HOURS, hours=self.hours)
        require_between(10, 86_400, start_seconds=self.start_seconds)
        require_match(WORD, "one word", partition=self.partition, account=self.account)
        if not self.environment:
            raise ClusterError("environment='': must be the path of a virtual environment")


@dataclass(frozen=True)
class RayUpValues:
    provider: Literal["aws", "gcp", "local"] = "aws"
    """[name] Where machines come from; local: they are there, and are reached by ssh."""
    region: str = "us-east-1"
    """[name] Of aws or gcp."""
    zone: str = ""
    """[name] Zone in it; gcp needs one."""
    project: str = ""
    """[name] Project of gcp."""
    head_type: str = "m6i.xlarge"
    """[name] Type of the head's machine, which is never a spot machine."""
    cpu_type: str = "m6i.2xlarge"
    """[name] Type of the cpu machines."""
    gpu_type: str = "g6.2xlarge"
    """[name] Type of the gpu machines."""
    machine_image: str = ""
    """[name] Disk image of the machines; gcp needs one, aws has a default with GPU drivers."""
    disk_gib: int = 200
    """[GiB] Disk of each machine."""
    ssh_user: str = "ubuntu"
    """[name] Who logs in."""
    ssh_key: str = ""
    """[path] Private key; local needs one."""
    head_host: str = ""
    """[host] Head of local machines."""
    worker_hosts: list[str] = field(default_factory=list)
    """[hosts] Other local machines."""

    def __post_init__(self) -> None:
        """Check words, and what each provider needs."""
        words = {key: getattr(self, key) for key in ("region", "zone", "project", "head_type", "cpu_type", "gpu_type")}
        require_match(WORD, "one word", **words, machine_image=self.machine_image, ssh_user=self.ssh_user)
        require_between(20, 65_536, disk_gib=self.disk_gib)
        for host in [self.head_host, *self.worker_hosts]:
            require_match(WORD, "a host", worker_hosts=host)
        needed = {"aws": (), "gcp": ("zone", "project", "machine_image"), "local": ("ssh_key", "head_host")}
        for key in needed[self.provider]:
            if not getattr(self, key):
                raise ClusterError(f"{key}='': provider={self.provider} needs it")


@dataclass(frozen=True)
class DockerValues:
    base: str = "python:3.12-slim-bookworm"
    """[image] What the image is built on: Python 3.11 to 3.13 and nothing else; the packages bring CUDA themselves."""

    def __post_init__(self) -> None:
        """Check words."""
        if not self.base:
            raise ClusterError("base='': must name an image")
        require_match(WORD, "the name of an image", base=self.base)


@dataclass(frozen=True)
class DeployValues:
    name: str = "salmonn"
    """[name] Of the cluster and everything that belongs to it: a-z, 0-9 and -, 40 at most."""
    image: str = "salmonn:latest"
    """[image] Container image, as `salmonn deploy docker` describes it; give a tag or digest that does not move."""
    command: list[str] = field(default_factory=lambda: ["extract", "--help"])
    """[words] What the job runs: a verb and its keys, [extract,manifest=…,cache=…]."""
    head: HeadValues = field(default_factory=HeadValues)
    cpu_group: GroupValues = field(default_factory=GroupValues)
    gpu_group: GpuGroupValues = field(default_factory=GpuGroupValues)
    kubernetes: KubernetesValues = field(default_factory=KubernetesValues)
    slurm: SlurmValues = field(default_factory=SlurmValues)
    ray_up: RayUpValues = field(default_factory=RayUpValues)
    docker: DockerValues = field(default_factory=DockerValues)

    def __post_init__(self) -> None:
        """Check names and the command."""
        if not self.name or not self.image:
            raise ClusterError(f"name={self.name!r} image={self.image!r}: neither may be empty")
        require_match(DNS_NAME, "a short name of a-z, 0-9 and -, beginning with a letter", name=self.name)
        require_match(WORD, "the name of an image", image=self.image)
        if not self.command:
            raise ClusterError("command=[]: must be a verb and its keys")
        for word in self.command:
            if "\n" in word or "\r" in word or "\0" in word:
                raise ClusterError(f"command: {word!r} has a line break in it")

    @property
    def groups(self) -> dict[str, GroupValues]:
        """The groups of workers that are there, by their names."""
        named: dict[str, GroupValues] = {"cpu": self.cpu_group, "gpu": self.gpu_group}
        return {name: group for name, group in named.items() if group.max_machines}
