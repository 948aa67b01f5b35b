"""Files of one target, filled in from the values."""

import json
import shlex
from importlib.metadata import version
from typing import Any, Literal

import jinja2

from cluster.deploy.values import DeployValues

Target = Literal["kuberay", "slurm", "ray-up", "docker"]
FILES: dict[Target, dict[str, str]] = {
    "kuberay": {"raycluster.yaml": "raycluster.yaml.j2", "rayjob.yaml": "rayjob.yaml.j2"},
    "slurm": {"job.sbatch": "job.sbatch.j2"},
    "ray-up": {"cluster.yaml": "ray-up-{provider}.yaml.j2"},
    "docker": {"Dockerfile": "Dockerfile.j2", "Dockerfile.dockerignore": "dockerignore.j2"},
}
"""Target -> file -> template."""


def render(target: Target, values: DeployValues) -> dict[str, str]:
    """Return the files of a target by their names.

    Raises:
        ClusterError: If values do not go together for this target.
    """
    if target == "kuberay":
        values.kubernetes.require_admitted()
    found = environment()
    templates = {name: template.format(provider=values.ray_up.provider) for name, template in FILES[target].items()}
    return {
        name: found.get_template(template).render(values=values, ray_version=version("ray"))
        for name, template in templates.items()
    }


def environment() -> jinja2.Environment:
    """Return what renders the templates.

    Every text reaches YAML as a JSON string and a shell in quotes of its own, so that no value can end up as syntax.
    """
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("cluster"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"yaml": _yaml, "sh": shlex.quote, "words": shlex.join}
    return made


def _yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
