"""Exit codes, version, completion, and who is refused at the door.

Covers cluster.errors, encoders.errors, llm.errors, pipelines.errors, pipelines.interface.completion, pipelines.verbs,
qformer.errors.
"""

import os
import pty
import shlex
import signal
import subprocess
import sys

import pytest

from cluster.errors import UnreachableError
from encoders.audio import AudioError
from llm.errors import LLMError
from pipelines.cli import main
from pipelines.errors import ExistsError, JobIncompleteError, MissingError, UserError
from pipelines.interface.config import load_config
from pipelines.interface.help import describe_keys
from pipelines.verbs import VERBS
from qformer.errors import AlignerError
from tests import ROOT
from tests.toy import write_tone_corpus


def raise_from_a_verb(monkeypatch, error: BaseException) -> None:
    """Make `salmonn manifest info` raise an error where it works."""

    def fail(config):
        raise error

    monkeypatch.setattr("pipelines.manifest.tools.info.manifest_info", fail)


@pytest.mark.parametrize(
    "error",
    [
        UserError("rank=0: must be 1 or more"),
        MissingError("m: no manifest there"),
        ExistsError("out: is there already"),
        UnreachableError("1.2.3.4:5: does not answer"),
        LLMError("no tokenizer here"),
        AlignerError("dropout 2"),
        AudioError("a.wav", "decode", "ends too early"),
        PermissionError(13, "Permission denied", "/nobody/s"),
    ],
)
def test_what_a_user_can_correct_is_one_line_and_exit_code_2(error, monkeypatch, capsys):
    raise_from_a_verb(monkeypatch, error)
    assert main(["manifest", "info", "manifest=m"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("salmonn: ") and told.count("\n") == 1


@pytest.mark.parametrize("error", [JobIncompleteError("2 shards are missing"), OSError(28, "No space left on device")])
def test_unfinished_work_is_one_line_and_exit_code_1(error, monkeypatch, capsys):
    raise_from_a_verb(monkeypatch, error)
    assert main(["manifest", "info", "manifest=m"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("math domain error"), TypeError("None"), KeyError("x"), AssertionError()])
def test_a_bug_shows_its_traceback_says_what_to_send_and_ends_with_70(error, monkeypatch, capsys):
    raise_from_a_verb(monkeypatch, error)
    assert main(["manifest", "info", "manifest=my data"]) == 70
    told = capsys.readouterr().err
    assert told.startswith("Traceback") and type(error).__name__ in told
    assert "a bug in salmonn 0.1.0" in told and "the file that `salmonn report-bug` writes" in told
    assert told.rstrip().endswith("salmonn manifest info 'manifest=my data'")


def test_a_bug_names_the_command_that_reports_it_with_its_cache(corpus, monkeypatch, capsys):
    def fail(config):
        raise AssertionError

    monkeypatch.setattr("pipelines.cache.tools.info.cache_info", fail)
    assert main(["cache", "info", f"cache={corpus[1]}"]) == 70
    assert f"`salmonn report-bug cache={corpus[1]}`" in capsys.readouterr().err


def test_debug_shows_where_a_users_error_comes_from(monkeypatch):
    raise_from_a_verb(monkeypatch, UserError("x"))
    with pytest.raises(UserError, match="x"):
        main(["manifest", "info", "manifest=m", "--debug"])


def test_version_is_that_of_the_project(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "salmonn 0.1.0\n"
    assert 'version = "0.1.0"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["ma"], ["manifest"]),
        (["cache", "e"], ["export"]),
        (["cache", "export", "cl"], ["clips="]),
        (["train", "tiny", "optim.warmup_"], ["optim.warmup_lr=", "optim.warmup_steps="]),
        (["nothing", ""], []),
    ],
)
def test_completion_offers_verbs_then_keys(typed, offered, capsys):
    assert main(["complete", *typed]) == 0
    assert capsys.readouterr().out.split() == offered


def test_completion_offers_every_verb(capsys):
    assert main(["complete", ""]) == 0
    assert set(capsys.readouterr().out.split()) == {name.split()[0] for name in VERBS}


def test_bash_takes_the_completion():
    script = subprocess.run(
        [sys.executable, "-m", "pipelines", "completion"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    done = subprocess.run(["bash", "-c", f"{script}\ncomplete -p salmonn"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "complete -o default -F _salmonn salmonn")


NEEDED = {
    **{
        name: ["out=my m", "root=r", "table=t.csv", "annotation=a.json", "audio_root=a"]
        for name in VERBS
        if name.startswith("prepare ")
    },
    "plan extract": ["manifest=m", "whisper=tiny", "beats=tiny"],
    "extract": ["manifest=m", "cache=my c", "whisper=w", "beats=none"],
    "train": ["manifest=m", "cache=c", "run=my r", "llm=tiny"],
    "sweep": ["manifest=m", "cache=c", "sweep=s", "llm=tiny", "grid.seed=[1,2]"],
    "evaluate": ["run=my r", "manifest=m", "cache=c"],
    "import-official": ["ckpt=c", "llm=l", "whisper=tiny", "beats=tiny", "out=o"],
}


@pytest.mark.parametrize(
    "name", [name for name in VERBS if hasattr(VERBS[name].load_config_type(), "next_step") and "submit" not in name]
)
def test_the_next_step_that_a_verb_names_is_a_command_with_all_its_keys(name):
    config_type = VERBS[name].load_config_type()
    if name == "plan train":
        return  # its next step is a sentence
    known = {key.name for key in describe_keys(config_type)}
    words = [
        word for word in NEEDED.get(name, []) if word.partition("=")[0].partition(".")[0] in known or "grid." in word
    ]
    missing = [key.name for key in describe_keys(config_type) if key.default == "needed"]
    words += [f"{key}=x" for key in missing if not any(word.startswith(f"{key}=") for word in words)]
    salmonn, *step = shlex.split(load_config(config_type, words).next_step())
    verb = max((verb for verb in VERBS if " ".join(step).startswith(f"{verb} ")), key=len)
    assert salmonn == "salmonn" and load_config(VERBS[verb].load_config_type(), step[len(verb.split()) :])


def test_a_verb_says_what_comes_next_where_nothing_else_is_read(tmp_path, capsys):
    write_tone_corpus(tmp_path)
    words = [f"table={tmp_path}/table.jsonl", f"audio_root={tmp_path}/audio", f"out={tmp_path}/my m"]
    assert main(["prepare", "table", *words]) == 0
    told = capsys.readouterr()
    assert told.err.endswith(f"next: salmonn extract 'manifest={tmp_path}/my m' cache=CACHE whisper=tiny beats=tiny\n")
    assert "next:" not in told.out


def test_a_terminal_sees_at_once_which_verb_starts(tmp_path):
    corpus = write_tone_corpus(tmp_path)
    words = ["prepare", "table", f"table={corpus}/table.jsonl", f"audio_root={corpus}/audio", f"out={tmp_path}/m"]
    shown = bytearray()

    def read(descriptor: int) -> bytes:
        shown.extend(data := os.read(descriptor, 1024))
        return data

    program = f"import os; os.chdir({str(ROOT)!r}); from pipelines.cli import main; raise SystemExit(main({words!r}))"
    assert pty.spawn([sys.executable, "-c", program], read) == 0
    text = shown.decode()
    assert text.index("prepare table: starting") < text.index("12 clips") < text.index("next: salmonn extract")


def test_a_package_of_the_same_name_from_elsewhere_is_refused(tmp_path):
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "__init__.py").touch()
    program = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; import pipelines.cli"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: package 'llm' comes from {tmp_path.resolve()} but 'pipelines' from {ROOT}")


@pytest.mark.parametrize("words", [["cache", "=", "/nowhere"], ["cache", "=/nowhere"], ["=/nowhere"]])
def test_a_blank_beside_the_equals_sign_is_named(words, capsys):
    assert main(["cache", "info", *words]) == 2
    assert "no blank may stand beside =, as in key=value" in capsys.readouterr().err


@pytest.mark.parametrize("code", [signal.SIGTERM, 1])
def test_a_job_that_is_stopped_says_so_whatever_code_a_library_makes_of_it(monkeypatch, capsys, code):
    def wait(config):
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit:  # as ray.wait does, with 1
            raise SystemExit(code) from None

    monkeypatch.setattr("pipelines.manifest.tools.info.manifest_info", wait)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["manifest", "info", "manifest=m"]) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "stopped" in capsys.readouterr().err
