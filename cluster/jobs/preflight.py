"""Before a job starts: what every node of the cluster answers to a few questions about it.

The questions go to the cluster as a job of their own: from elsewhere only the head's job server can be reached.
"""

import json
import shlex
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config import RayConfig
from cluster.connection import cluster_device, connect
from cluster.errors import ClusterError
from cluster.failures import describe_error
from cluster.jobs.follow import follow
from cluster.jobs.node_report import NodeReport, deepest_place, look
from cluster.jobs.server import JobServer
from cluster.jobs.submission import Work, start
from cluster.room import actors_that_fit

PREFIX = "preflight-"
"""How ids of jobs that only look at the nodes begin."""
MARK = "preflight answers: "
NODE_SECONDS = 120.0
GIGABYTE = 1e9


@dataclass(frozen=True)
class Wanted:
    """What a job needs of the cluster."""

    checks: list[str]
    """Which questions are asked: paths, packages, room."""
    reads: list[str] = field(default_factory=list)
    """Local paths that every node must see alike."""
    writes: list[str] = field(default_factory=list)
    """Local paths that the head writes to, and of which every node must see what is written."""
    packages: list[str] = field(default_factory=list)
    """Packages that every node must have as the head has them."""
    actors: int = 0
    """Processes that work side by side; 0: none."""
    cpus: float = 0.0
    """[CPUs] Of each."""
    gpus: float = 0.0
    """[GPUs] Of each, where `device` says that it uses them."""
    device: str = "cpu"
    """cpu, cuda, or auto for cuda if the cluster has GPUs now."""


@dataclass(frozen=True)
class Answer:
    check: str
    is_good: bool
    text: str

    def __str__(self) -> str:
        return f"{self.check}: {'' if self.is_good else 'NOT READY: '}{self.text}"


def ask_cluster(server: JobServer, wanted: Wanted, folder: Path) -> list[Answer]:
    """Return the answers of a cluster to what a job wants; that there are any says that its job agent works.

    Raises:
        ClusterError: If the cluster gives none, with the last words of the job that asked.
    """
    script = "from cluster.jobs.preflight import main; main()"
    text = json.dumps(asdict(wanted))
    work = Work(f"{PREFIX}{uuid.uuid4().hex[:12]}", _command(script, text), folder)
    log: list[str] = []
    end = follow(server, start(server, work, 1), write=log.append)
    lines = "".join(log).splitlines()
    answers = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    if not answers:
        said = " | ".join(line for line in lines[-3:] if line.strip())
        raise ClusterError(f"{server.address}: the job that looks at the nodes {end.reason}: {said[:600]}")
    return [Answer("job agent", True, "takes jobs"), *(Answer(**answer) for answer in json.loads(answers[-1]))]


def _command(script: str, argument: str) -> str:
    return f"python -c {shlex.quote(script)} {shlex.quote(argument)}"


def main() -> None:
    """Answer, as a job of the cluster, the questions in the first argument."""
    connect(RayConfig())
    answers = answer(Wanted(**json.loads(sys.argv[1])))
    print(MARK + json.dumps([asdict(one) for one in answers]))


def answer(wanted: Wanted) -> list[Answer]:
    """Return what the nodes of the connected cluster answer."""
    with _marked(wanted.writes if "paths" in wanted.checks else ()) as marks:
        paths = [*wanted.reads, *wanted.writes, *(mark for mark in marks.values() if mark)]
        reports, failures = _reports(paths, wanted.packages)
        if failures:
            return [Answer("nodes", False, failure) for failure in failures]
        checks: dict[str, Callable[[], Answer]] = {
            "paths": lambda: _paths(wanted, reports, marks),
            "packages": lambda: _packages(reports),
            "room": lambda: _room(wanted, reports),
        }
        return [checks[check]() for check in wanted.checks]


@contextmanager
def _marked(writes: Sequence[str]) -> Iterator[dict[str, str]]:
    """Write a small file where each path lies or would lie; give its path, empty where none can be written."""
    marks = {}
    try:
        for path in writes:
            place = Path(deepest_place(path))
            mark = (place if place.is_dir() else place.parent) / f".seen-by-all-{uuid.uuid4().hex}"
            try:
                mark.touch()
                marks[path] = str(mark)
            except OSError:
                marks[path] = ""
        yield marks
    finally:
        for written in filter(None, marks.values()):
            Path(written).unlink(missing_ok=True)


def _reports(paths: Sequence[str], packages: Sequence[str]) -> tuple[dict[str, NodeReport], list[str]]:
    """Return each node's report, the head's first, and what went wrong on nodes that gave none."""
    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: _name(node) for node in ray.nodes() if node["Alive"]}
    pending = {
        node: ray.remote(look)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(paths, packages)
        for node in sorted(nodes, key=lambda node: (node != here, nodes[node]))
    }
    reports, failures = {}, []
    for node, reference in pending.items():
        try:
            reports[nodes[node]] = ray.get(reference, timeout=NODE_SECONDS)
        except RayError as error:
            failures.append(f"{nodes[node]} does not run a task: {describe_error(error)}")
    return reports, failures


def _nodes(reports: Mapping[str, NodeReport]) -> str:
    return "the only node" if len(reports) == 1 else f"{len(reports)} nodes"


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']}/{node['NodeID'][:8]}"


def _paths(wanted: Wanted, reports: Mapping[str, NodeReport], marks: Mapping[str, str]) -> Answer:
    faults = [f"the head cannot write to {path}" for path, mark in marks.items() if not mark]
    for path in dict.fromkeys([*wanted.reads, *wanted.writes]):
        places = {node: report.places[path] for node, report in reports.items()}
        deepest = max(places.values(), key=len, default=path)
        blind = [node for node, place in places.items() if place != deepest]
        if path in wanted.reads and deepest != path and not blind:
            faults.append(f"no node sees {path}")
        if not blind and (mark := marks.get(path)):
            blind = [node for node, report in reports.items() if report.places[mark] != mark]
        if blind:
            faults.append(f"{', '.join(blind)} does not see {path} as others do")
    count = len(dict.fromkeys([*wanted.reads, *wanted.writes]))
    return Answer("paths", not faults, "; ".join(faults) or f"{count} are the same on {_nodes(reports)}")


def _packages(reports: Mapping[str, NodeReport]) -> Answer:
    head = next(iter(reports.values())).versions
    faults = [f"the head lacks {name}" for name, version in head.items() if not version]
    for node, report in reports.items():
        others = [
            f"{name} {report.versions[name] or 'missing'} (head: {version})"
            for name, version in head.items()
            if version and report.versions[name] != version
        ]
        if others:
            faults.append(f"{node} has {', '.join(others)}")
    good = f"Python {head['Python']} and {len(head) - 1} packages are the same on {_nodes(reports)}"
    return Answer("packages", not faults, "; ".join(faults) or good)


def _room(wanted: Wanted, reports: Mapping[str, NodeReport]) -> Answer:
    free = {path: min(report.free_nbytes[path] for report in reports.values()) for path in wanted.writes}
    disk = [f"{nbytes / GIGABYTE:.0f} GB are free at {path}" for path, nbytes in free.items()]
    gpus = wanted.gpus if cluster_device(wanted.device) == "cuda" else 0.0
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = actors_that_fit(nodes, {"CPU": wanted.cpus, "GPU": gpus})
    fit = f"{fitting} workers of {wanted.cpus:g} CPU and {gpus:g} GPU fit, {wanted.actors} are asked for"
    return Answer("room", fitting >= wanted.actors, ", ".join([fit, *disk]))


def require_good(answers: Sequence[Answer]) -> None:
    """Check that no answer speaks against starting.

    Raises:
        ClusterError: Naming those that do.
    """
    bad = [one.check for one in answers if not one.is_good]
    if bad:
        raise ClusterError(
            f"the cluster is not ready for this job: see {', '.join(bad)} above; skip=[{','.join(bad)}] leaves that out"
        )
