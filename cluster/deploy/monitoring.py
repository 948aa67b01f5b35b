"""Files for Prometheus and Grafana: what is scraped, when somebody is called, what is drawn."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from cluster.deploy.dashboard import dashboard
from cluster.deploy.render import environment
from cluster.errors import ClusterError

DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"
SCRAPE, ALERTS, DASHBOARD = "prometheus.yaml", "alerts.yaml", "dashboard.json"


@dataclass(frozen=True)
class MonitoringSettings:
    discovery: str = DISCOVERY
    """[path] File in which Ray's head names the metrics pages of all nodes, where Prometheus runs."""
    stalled_minutes: int = 30
    """[minutes] Time without a shard, a step or an answer after which a job has stalled; longer than a shard takes."""
    reject_fraction: float = 0.02
    """[fraction] Share of a job's clips that may be rejected before somebody is called."""
    retries: int = 10
    """[count] Shards that may be tried once more in half an hour before somebody is called."""
    disk_fraction: float = 0.9
    """[fraction] Share of a disk that may be full before somebody is called."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if PurePosixPath(self.discovery).suffix not in (".json", ".yml", ".yaml"):
            raise ClusterError(f"discovery={self.discovery}: must end in .json, or Prometheus does not read it")
        if self.stalled_minutes < 1:
            raise ClusterError(f"stalled_minutes={self.stalled_minutes}: must be 1 or more")
        if self.retries < 0:
            raise ClusterError(f"retries={self.retries}: must be 0 or more")
        for key in ("reject_fraction", "disk_fraction"):
            if not 0 <= getattr(self, key) <= 1:
                raise ClusterError(f"{key}={getattr(self, key)}: must be from 0 to 1")


def monitoring_files(settings: MonitoringSettings) -> dict[str, str]:
    """Return the files by their names: Prometheus' config and rules, and a dashboard for Grafana."""
    templates = environment()
    files = {name: templates.get_template(f"{name}.j2").render(settings=settings) for name in (SCRAPE, ALERTS)}
    return {**files, DASHBOARD: dashboard()}
