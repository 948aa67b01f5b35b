"""Covers pipelines.interface.differences, pipelines.interface.help, pipelines.interface.terminal,
pipelines.interface.version, pipelines.interface.words.
"""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest

from pipelines import storage
from pipelines.cli import VERBS, main
from pipelines.interface.config import load_config, to_yaml
from pipelines.interface.differences import first_difference
from pipelines.interface.help import describe_keys
from pipelines.interface.words import counted
from pipelines.training.config import FREE_KEYS, TrainConfig
from tests import ROOT
from tests.s3_server import s3_server


@dataclass(frozen=True)
class Inner:
    rate: float = 3e-5
    """[1] A rate."""


@dataclass(frozen=True)
class Outer:
    name: str = "???"
    """[text] A text."""
    count: int = 2
    """[count] A number."""
    codec: Literal["a", "b"] = "a"
    """[name] A choice."""
    parts: list[str] = field(default_factory=list)
    """[names] A list."""
    inner: Inner = field(default_factory=Inner)


def test_defaults_yield_to_yaml_and_yaml_to_the_command_line(tmp_path):
    (tmp_path / "c.yaml").write_text("name: yaml\ncount: 3\ninner:\n  rate: 1e-4\n")
    config = load_config(Outer, [str(tmp_path / "c.yaml"), "count=4", "parts=[x,y]"])
    assert config == Outer("yaml", 4, "a", ["x", "y"], Inner(1e-4))


def test_yaml_may_have_an_equals_sign_in_its_path_or_lie_in_an_object_store(tmp_path, monkeypatch):
    (tmp_path / "lr=3").mkdir()
    (tmp_path / "lr=3" / "c.yaml").write_text("name: yaml\n")
    monkeypatch.chdir(tmp_path)
    for argument in ("lr=3/c.yaml", f"{tmp_path}/lr=3/c.yaml"):
        assert load_config(Outer, [argument]).name == "yaml"
    assert load_config(Outer, ["name=lr=3/c.yaml"]).name == "lr=3/c.yaml"
    with s3_server("bucket") as server:
        uri = server.uri("bucket/c.yaml")
        storage.write_bytes(uri, b"name: remote\n")
        assert "=" in uri and load_config(Outer, [uri]).name == "remote"


def test_resolved_config_loads_back(tmp_path):
    config = load_config(Outer, ["name=n", "inner.rate=0.5"])
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load_config(Outer, [str(tmp_path / "c.yaml")]) == config


@pytest.mark.parametrize("text", ["what? a: b, [c] {d} #e", "1e5", "null", "a=b", "${x}", ""])
def test_texts_are_taken_as_they_stand(text):
    assert load_config(Outer, [f"name={text}"]).name == text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nam=x", "unknown key nam; did you mean name"),
        ("inner.rat=1", r"unknown key inner\.rat; did you mean inner\.rate"),
        ("count=many", "^count=many: must be a whole number$"),
        ("codec=c", "codec=c: must be one of a, b$"),
        ("inner=3", r"inner=3: inner has several keys.*inner\.\w+="),
        ("missing.yaml", "missing.yaml.*neither"),
        ("nam=x.yaml", "nam=x.yaml.*neither"),
        ("inner.rat=x.yaml", "unknown key inner.rat"),
        ("--count=3", "--count=3: keys are written without dashes, count=3"),
        ("--inner.new-rate", "without dashes, inner.new_rate=…"),
        ("parts=[1", r"parts=\[1: not YAML"),
    ],
)
def test_wrong_arguments_are_named(argument, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_config(Outer, ["name=x", argument])


def test_a_value_behind_a_key_with_dashes_is_taken_for_its_value():
    with pytest.raises(ValueError, match=r"--count: keys are written without dashes, count=3$"):
        load_config(Outer, ["name=x", "--count", "3"])


@pytest.mark.parametrize("content", [b"a: [1", b"count: 1\ncount: 2\n", b"\xff\xfe", b"- 1\n"])
def test_faulty_yaml_is_named(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.yaml"):
        load_config(Outer, [str(tmp_path / "c.yaml"), "name=x"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("inner: 3\n", r"c\.yaml: inner has several keys; give them below it, such as rate: …$"),
        ("inner:\n", r"c\.yaml: inner has several keys"),
        ("inner: {rate: fast}\n", r"c\.yaml: inner\.rate=fast: must be a number$"),
        ("count: [1]\n", r"c\.yaml: count: must be a whole number$"),
        ("parts: abc\n", r"c\.yaml: parts=abc: must be a list, \[one,two\]$"),
        ("nam: x\n", r"c\.yaml: unknown key nam; did you mean name\?$"),
        ("parts: [1\nname: x\n", r"c\.yaml: not YAML \([^<>]*, line 1, column 8[^<>]*, line 2, column \d[^<>]*\)$"),
    ],
)
def test_wrong_values_in_a_file_are_named_without_names_of_classes(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_config(Outer, [str(tmp_path / "c.yaml"), "name=x"])


@pytest.mark.parametrize("name", VERBS)
def test_a_bare_word_is_shown_with_the_key_that_it_is_meant_for(name, capsys):
    assert main([*name.split(), "some/path"]) == 2
    (key,) = re.findall(r"did you mean ([\w.]+)=\[?some/path\]?\?\n$", capsys.readouterr().err)
    assert key in {key.name for key in describe_keys(VERBS[name].load_config_type())}


@pytest.mark.parametrize("words", [["runs", "--help"], ["help", "runs"]])
def test_verbs_of_a_group_are_listed(words, capsys):
    assert main(words) == 0
    shown = re.findall(r"^  (\w+) (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert {" ".join(verb) for verb in shown} == {name for name in VERBS if name.startswith("runs ")}


def test_one_is_singular():
    assert [counted(number, "worker") for number in (0, 1, 2, 1000)] == [
        "0 workers",
        "1 worker",
        "2 workers",
        "1,000 workers",
    ]


def test_a_list_of_one_needs_no_brackets():
    assert load_config(Outer, ["name=x", "parts=a"]).parts == ["a"]
    assert load_config(Outer, ["name=x", "parts=a,b"]).parts == ["a", "b"]


def test_missing_key_says_what_it_means():
    with pytest.raises(ValueError, match="name=… is needed: A text"):
        load_config(Outer, [])


def test_keys_are_listed_with_type_unit_default_and_meaning():
    keys = {key.name: key for key in describe_keys(Outer)}
    assert (keys["name"].default, keys["name"].unit, keys["name"].meaning) == ("needed", "text", "A text.")
    assert (keys["inner.rate"].type, keys["inner.rate"].default) == ("float", "3e-05")
    assert keys["codec"].type == "a|b"


@pytest.mark.parametrize("name", VERBS)
def test_every_key_of_every_verb_is_documented_with_its_unit(name):
    config_type, function = VERBS[name].load_config_type(), VERBS[name].load_function()
    assert callable(function)
    for key in describe_keys(config_type):
        assert key.unit and key.meaning, f"{name}: {key.name} has no [unit] and meaning under it"


@pytest.mark.parametrize("name", VERBS)
def test_help_lists_every_key(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    for key in describe_keys(VERBS[name].load_config_type()):
        assert re.search(rf"^{re.escape(key.name)}\b", shown, re.MULTILINE), key.name


def test_help_marks_the_keys_that_may_change_when_a_run_continues(capsys):
    assert main(["train", "--help"]) == 0
    marks = dict(re.findall(r"^([\w.]+)([*+]?)  ", capsys.readouterr().out, re.MULTILINE))
    assert {key.partition(".")[0] for key, mark in marks.items() if mark == "*"} == FREE_KEYS
    assert [key for key, mark in marks.items() if mark == "+"] == ["steps"]
    assert marks["seed"] == marks["optim.lr"] == "" and marks["read.threads"] == "*"
    assert main(["cache", "ls", "--help"]) == 0
    assert "*" not in capsys.readouterr().out


@pytest.mark.parametrize("path", TrainConfig.SHIPPED.values(), ids=lambda path: path.stem)
def test_every_shipped_config_loads(path):
    needed = ["manifest=m", "cache=c", "run=r", "llm=l"]
    assert load_config(VERBS["train"].load_config_type(), [path.stem, *needed])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "frobnicate: unknown verb; salmonn alone lists them"),
        (["trian"], r"trian: unknown verb; did you mean train\?"),
        (["manifst", "info"], r"unknown verb; did you mean manifest info( or .*)?\?"),
        (
            ["prepare", "tabel"],
            r"^salmonn: prepare tabel: unknown verb; did you mean prepare table\? salmonn prepare --help lists them$",
        ),
        (["manifest", "info", "data/m"], r"data/m: neither .*; did you mean manifest=data/m\?"),
        (["prepare"], "prepare needs one of: annotations, .*, table"),
        (["cache", "inof"], r"^salmonn: cache inof: unknown verb; did you mean cache info\?"),
        (["prepar"], r"^salmonn: prepar: unknown verb; did you mean prepare\? salmonn alone lists them$"),
        (["prepare", "xylophone"], "^salmonn: prepare xylophone: unknown verb; salmonn prepare --help lists them$"),
        (["prepare", "table", "a.csv"], r"did you mean table=a\.csv\?"),
        (["prepare", "table", "table=a.csv", "data/m"], r"did you mean out=data/m\?"),
        (["train", "tiny", "manifest=m", "cache=c", "llm=tiny", "r"], r"did you mean run=r\?"),
        (["train", "tinny"], r"tinny: neither .*, nor a shipped config .*; did you mean tiny\?"),
        (["plan", "extract", "data/m"], r"did you mean manifest=data/m\?"),
        (["runs", "compare", "a", "b"], r"did you mean runs=\[a,b\]\?"),
        (["cache", "merge", "a", "b"], r"did you mean caches=\[a,b\]\?"),
        (["extract", "manifst=x"], "unknown key manifst.*manifest"),
        (["extract"], "manifest=… is needed"),
    ],
)
def test_newcomers_mistakes_give_one_line_and_exit_code_2(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)


def test_first_difference_names_key_and_values():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b is 2 there and 1 here"
    assert first_difference({"a": 1}, {"a": 1}) is None


@pytest.mark.parametrize("words", [["help"], ["cache", "ls", "--help"]])
def test_exit_code_tells_that_nobody_reads_the_output(words):
    command = [sys.executable, "-m", "pipelines", *words]
    root = ROOT
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("words", "is_continued"),
    [(["train", "tiny"], True), (["cache", "merge"], True), (["evaluate"], True), (["ask"], False), ([], False)],
)
def test_interruption_says_what_the_same_command_would_do(words, is_continued, monkeypatch, capsys):
    def interrupt(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.cli._run", interrupt)
    assert main(words) == 130
    assert ("the same command continues" in capsys.readouterr().err) == is_continued
