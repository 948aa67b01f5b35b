"""The README's own commands, on a folder of recordings and a table, as typed."""

import re
import shlex

import pytest

from pipelines.cli import main
from pipelines.verbs import VERBS
from tests import ROOT
from tests.pipelines.builders import README
from tests.toy import write_tone_corpus

DOCS = sorted((ROOT / "docs").glob("*.md"))
TYPED = [shlex.split(line) for line in re.findall(r"^salmonn [^…\n]*$", README, re.MULTILINE)]
COMMANDS = [words for words in TYPED if words[1] != "serve"]
"""Those that end by themselves; tests of the server start one."""


def test_readme_shows_the_whole_path():
    verbs = ["prepare", "manifest", "extract", "train", "evaluate", "ask"]
    assert [words[1] for words in COMMANDS] == verbs


def test_docs_and_the_command_line_name_the_same_verbs():
    verbs = (ROOT / "docs" / "verbs.md").read_text()
    assert re.findall(r"^\| `([a-z -]+)` \|", verbs, re.MULTILINE) == list(VERBS)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in DOCS)])
def test_pages_name_only_what_is_there(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    files = re.findall(r"`((?:pipelines|encoders|qformer|llm|cluster|tests|benchmarks)/[\w/.]*)`", text)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    missing += [file for file in files if not (ROOT / file).exists()]
    assert not missing


@pytest.mark.ray
def test_readme_commands_run_as_written(tmp_path, monkeypatch, capsys, ray_session):
    monkeypatch.chdir(tmp_path)
    write_tone_corpus(tmp_path / "sounds", num_clips=8)
    rows = [f"tone-{n}.wav,{'high' if n % 2 else 'low'},audiocaption,{'test' if n > 5 else 'train'}" for n in range(8)]
    (tmp_path / "sounds" / "table.csv").write_text("\n".join(["path,text,task,split", *rows]))
    for wav in (tmp_path / "sounds" / "audio").iterdir():
        wav.rename(tmp_path / "sounds" / wav.name)
    for words in COMMANDS:
        shorter = ["steps=3"] if words[1] == "train" else []
        typed = [word.replace("dog.wav", "tone-0.wav") for word in words[1:]]
        assert main([*typed, *shorter]) == 0, capsys.readouterr()
    assert (tmp_path / "data" / "run" / "evaluation" / "test" / "report.md").exists()
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["cache", "manifest", "run"]
