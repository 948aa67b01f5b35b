import re

import pytest
import yaml

from cluster.deploy.values import DeployValues
from pipelines.cli import main
from pipelines.interface.config import load_config
from pipelines.interface.help import describe_keys
from pipelines.operations.deploy import read_values, values_file

FILES = {
    "kuberay": {"raycluster.yaml", "rayjob.yaml"},
    "slurm": {"job.sbatch"},
    "ray-up": {"cluster.yaml"},
    "docker": {"Dockerfile", "Dockerfile.dockerignore"},
}


@pytest.fixture
def values(tmp_path):
    def write(text):
        (tmp_path / "values.yaml").write_text(text)
        return str(tmp_path / "values.yaml")

    return write


@pytest.mark.parametrize("target", FILES)
def test_a_target_writes_its_files_and_names_them(target, values, tmp_path, capsys):
    path = values("name: big\ncommand: [extract, 'manifest=/d/ü m', 'cache=007', whisper=tiny, beats=tiny]\n")
    assert main(["deploy", target, f"values={path}", f"out={tmp_path}/out"]) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES[target]
    assert set(capsys.readouterr().out.split()) == {f"{tmp_path}/out/{name}" for name in FILES[target]}


def test_every_key_has_unit_and_meaning_and_stands_in_the_file_that_is_written(tmp_path, capsys):
    assert all(key.unit and key.meaning for key in describe_keys(DeployValues))
    assert main(["deploy", "values", f"out={tmp_path}/v.yaml"]) == 0
    assert read_values(f"{tmp_path}/v.yaml") == DeployValues()
    text = (tmp_path / "v.yaml").read_text()
    assert text == values_file() and text.count("# [") == len(describe_keys(DeployValues))
    (tmp_path / "v.yaml").write_text("name: mine\n")
    assert main(["deploy", "values", f"out={tmp_path}/v.yaml"]) == 2
    assert yaml.safe_load((tmp_path / "v.yaml").read_text()) == {"name": "mine"}
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nam: x", "unknown key nam; did you mean name"),
        ("gpu_group: {max_machine: 3}", "unknown key gpu_group.max_machine; did you mean gpu_group.max_machines"),
        ("xyzzy: 3", "unknown key xyzzy; salmonn deploy values writes them all"),
        ("gpu_group: {max_machines: many}", "gpu_group.max_machines=many: must be a whole number"),
        ("ray_up: {provider: azure}", "ray_up.provider=azure: must be one of aws, gcp, local"),
        ("gpu_group: {max_machines: 1e99}", "gpu_group.max_machines"),
        ("name: Größe", "name='Größe': must be a short name"),
        ("kubernetes: {queue: team}", "queue='team': Kueue admits a fixed number"),
        ("command: [extrac, cache=/d/c]", "command: extrac: unknown verb; did you mean extract"),
        ("command: [extract, cache=/d/c, manifst=/d/m]", "command: unknown key manifst; did you mean manifest"),
        ("command: [extract, cache=/d/c]", "command: manifest=… is needed"),
        (
            "command: [train, tiny, manifest=/d/m, cache=/d/c, run=/d/r, steps=many]",
            "steps=many: must be a whole number",
        ),
        ("command: [train, tinny, manifest=/d/m]", "command: tinny: neither key=value of a known key"),
        ("command: [submit, train]", "command: submit train: .*=… is needed|command: .* is needed"),
        ("- 1", "holds no keys"),
        ("name: [", "not YAML"),
    ],
)
def test_a_wrong_value_is_named_with_its_file_and_nothing_is_written(text, message, values, tmp_path, capsys):
    path = values(text)
    assert main(["deploy", "kuberay", f"values={path}", f"out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"salmonn: {path}: ") and re.search(message, error) and error.count(path) == 1
    assert not (tmp_path / "out").exists()


def test_what_only_kubernetes_refuses_is_no_matter_elsewhere(values, tmp_path, capsys):
    path = values("kubernetes: {queue: team}")
    assert main(["deploy", "slurm", f"values={path}", f"out={tmp_path}/out"]) == 0
    assert f"{path}: command is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "[train, /only/on/the/cluster.yaml, steps=many]",
        "[train, stage1, manifest=/d/m, cache=/d/c, run=/d/r, llm=/d/llm]",
        "[train, --help]",
        "[sweep, tiny, llm=tiny, manifest=/d/m, cache=/d/c, sweep=/d/s, 'grid={optim.lr: [1e-4, 3e-4]}']",
    ],
)
def test_a_command_that_may_run_on_the_cluster_is_taken(command, values):
    read_values(values(f"command: {command}\n"))


def test_values_that_are_not_there_are_named(tmp_path, capsys):
    assert main(["deploy", "slurm", f"values={tmp_path}/none.yaml", f"out={tmp_path}/out"]) == 2
    assert "none.yaml: no such file; salmonn deploy values out=… writes one" in capsys.readouterr().err


def test_texts_of_a_values_file_stay_texts(values):
    loaded = read_values(values("command: [manifest, info, 007.yaml, no.yaml, 'manifest=x: y']\nimage: 1.10\n"))
    assert loaded.command == ["manifest", "info", "007.yaml", "no.yaml", "manifest=x: y"]
    assert loaded.image == "1.10"
    assert load_config(DeployValues, []).command == ["extract", "--help"]
