"""`salmonn deploy`: files that start a cluster, from one file of values."""

import sys
from collections.abc import Callable, Mapping

from cluster.deploy.monitoring import monitoring_files
from cluster.deploy.render import Target, render
from cluster.deploy.values import DeployValues
from cluster.errors import ClusterError
from pipelines import storage
from pipelines.errors import USER_ERRORS, UserError
from pipelines.interface.config import is_yaml, load_config
from pipelines.interface.help import describe_keys
from pipelines.operations.config import DeployConfig, DeployMonitoringConfig, DeployValuesConfig
from pipelines.verbs import HELP, VERBS, split_verb


def deploy_values(config: DeployValuesConfig) -> None:
    """Write a values file that holds every key with its default, unit and meaning.

    Raises:
        ExistsError: If a file is there already.
    """
    config.require_free()
    storage.write_bytes(config.out, values_file().encode())
    print(f"{config.out}: every key with its default; leave out what you do not change")


def values_file() -> str:
    """Return the text of a values file that says what each key means."""
    lines: list[str] = []
    section = ""
    for key in describe_keys(DeployValues):
        outer, _, name = key.name.rpartition(".")
        if outer != section:
            lines.append(f"{outer}:")
            section = outer
        indent = "  " if outer else ""
        lines += [f"{indent}# [{key.unit}] {key.meaning}", f"{indent}{name}: {_as_yaml(key.default)}"]
    return "\n".join(lines) + "\n"


def _as_yaml(default: str) -> str:
    return (
        default
        if default == "''" or default.startswith("[")
        else {"True": "true", "False": "false"}.get(default, default)
    )


def read_values(uri: str) -> DeployValues:
    """Return the values of a file.

    Raises:
        UserError: Naming the file, and the key or value that is wrong.
    """
    try:
        values = load_config(DeployValues, [uri])
    except USER_ERRORS as error:
        text = (
            str(error)
            .removeprefix(f"{uri}: ")
            .replace("--help lists the keys", "salmonn deploy values writes them all")
        )
        raise UserError(f"{uri}: {text}") from None
    try:
        _check_command(values.command)
    except USER_ERRORS as error:
        raise UserError(f"{uri}: command: {error}") from None
    return values


def _check_command(words: list[str]) -> None:
    """Refuse a command that the cluster's job would refuse, but for its paths, which are the cluster's.

    What a YAML file adds that is not here is known on the cluster alone, so that such a command's keys are not checked.
    """
    verb, keys = split_verb(words)
    is_elsewhere = any(is_yaml(word) and "=" not in word and not storage.file_exists(word) for word in keys)
    if not is_elsewhere and not HELP & set(keys):
        load_config(VERBS[verb].load_config_type(), keys)


def _deploy(target: Target) -> Callable[[DeployConfig], None]:
    def write(config: DeployConfig) -> None:
        values = read_values(config.values)
        try:
            files = render(target, values)
        except ClusterError as error:
            raise UserError(f"{config.values}: {error}") from None
        _write(config.out, files)
        if values.command == DeployValues().command:
            print(
                f"{config.values}: command is not set, so that the job prints a help; name what it runs",
                file=sys.stderr,
            )

    return write


def _write(out: str, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        uri = storage.join(out, name)
        storage.write_bytes(uri, text.encode())
        print(uri)


def deploy_monitoring(config: DeployMonitoringConfig) -> None:
    """Write Prometheus' config and alert rules, and a dashboard for Grafana."""
    _write(config.out, monitoring_files(config))


deploy_kuberay = _deploy("kuberay")
deploy_slurm = _deploy("slurm")
deploy_ray_up = _deploy("ray-up")
deploy_docker = _deploy("docker")
