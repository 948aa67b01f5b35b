"""Covers pipelines.inference.engines.choice, pipelines.inference.engines.vllm_engine,
pipelines.inference.engines.vllm_program.
"""

import dataclasses
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipelines.cli import main
from pipelines.errors import UserError
from pipelines.inference.answers import AnswerStore, DecodeSettings, open_answers
from pipelines.inference.engines import vllm_program
from pipelines.inference.engines.choice import EngineGoneError, engine_name
from pipelines.inference.units import AnswerConfig, AnswerUnit
from pipelines.inference.worker import AnswerWorker
from pipelines.runs.spec import RunSpec, identified

MOST = 12


def command(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def stand_in(tmp_path) -> str:
    """A Python in which `import vllm` gives our own decoding behind vLLM's interface."""
    folder = Path(__file__).parent / "vllm_stand_in"
    return command(tmp_path, f'PYTHONPATH={shlex.quote(str(folder))} exec {sys.executable} "$@"')


@pytest.fixture(params=["stand-in", "real"])
def python(request, stand_in) -> str:
    if request.param == "stand-in":
        return stand_in
    if not (real := os.environ.get("VLLM_PYTHON")):
        pytest.skip("VLLM_PYTHON names no Python with vLLM")
    return real


def make_sharp(model) -> None:
    """Let an untrained model say different things about different clips."""
    with torch.no_grad():
        model.aligner.projection.weight.mul_(30)


def worker_of(run, corpus, store, *, python="", scaling=1.0, name=None) -> AnswerWorker:
    spec = identified(RunSpec.read(run), run)
    settings = DecodeSettings(
        num_beams=1, max_new_tokens=MOST, lora_scaling=scaling, engine=name or engine_name_of(python, spec)
    )
    return AnswerWorker(
        AnswerConfig(
            run=run,
            step=6,
            spec=spec,
            cache=corpus[1],
            stores=(str(store),),
            settings=(settings,),
            whisper="",
            beats="",
            device="cpu",
            threads=1,
            batch_examples=8,
            engine_python=python,
        )
    )


def engine_name_of(python, spec) -> str | None:
    return engine_name("vllm" if python else "own", python, spec.dtype)


def test_it_gives_the_answers_of_our_own_greedy_decoding(run, corpus, tmp_path, python):
    clips = pq.read_table(f"{corpus[0]}/clips.parquet")["clip_id"].to_pylist()
    asked = [(clip, f"{word} is heard?") for clip in clips for word in ("What", "Who, and why, and where")]
    unit = AnswerUnit("a", 0, tuple(clip for clip, _ in asked), tuple(question for _, question in asked))
    found = []
    for name, given in (("own", ""), ("vllm", python)):
        worker = worker_of(run, corpus, tmp_path / name, python=given, scaling=3.0)
        make_sharp(worker._model)
        worker.run(unit)
        rows = AnswerStore(str(tmp_path / name)).read().to_pylist()
        found.append([(row["clip_id"], row["question"], row["answer"], row["tokens"]) for row in rows])
        if worker._engine:
            worker._engine.close()
    assert found[0] == found[1] and len(found[0]) == 24
    assert len({answer for _, _, answer, _ in found[0]}) > 3


def test_its_answers_are_kept_apart_by_version(run):
    spec = identified(RunSpec.read(run), run)
    own = DecodeSettings(num_beams=1, max_new_tokens=MOST, lora_scaling=1.0)
    stores = {
        open_answers(run, 6, spec, dataclasses.replace(own, engine=engine)).uri
        for engine in (None, "vllm 0.32.0", "vllm 0.33.0")
    }
    assert len(stores) == 3


def test_another_version_on_the_machine_that_answers_is_refused(run, corpus, tmp_path, stand_in):
    with pytest.raises(UserError, match=r"vLLM 0\.32\.0 on this machine, vllm 0\.1 where the job was started"):
        worker_of(run, corpus, tmp_path, python=stand_in, name="vllm 0.1")


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("raise ValueError('no such architecture')", "ValueError: no such architecture"),
        ("raise SystemExit(3)", "code 3"),
    ],
)
def test_an_llm_that_it_cannot_load_is_told(run, corpus, tmp_path, fails, said):
    (tmp_path / "vllm.py").write_text(f"__version__ = '0.32.0'\n\ndef LLM(**_):\n    {fails}\n")
    broken = command(tmp_path, f'PYTHONPATH={shlex.quote(str(tmp_path))} exec {sys.executable} "$@"')
    with pytest.raises(UserError, match=f"engine=vllm cannot load the LLM: .*{said}"):
        worker_of(run, corpus, tmp_path, python=broken)


FAILS_ONCE = """
__version__ = "0.32.0"
from types import SimpleNamespace

def SamplingParams(**_): return None

class LLM:
    calls = 0
    def __init__(self, **_): pass
    def generate(self, prompts, settings, use_tqdm):
        self.calls += 1
        if self.calls == 1: raise ValueError("too long")
        if self.calls == 3: raise SystemExit(5)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[7])]) for _ in prompts]
"""


def test_a_batch_that_fails_costs_no_other_and_the_end_of_its_process_is_told_apart(run, corpus, tmp_path):
    (tmp_path / "vllm.py").write_text(FAILS_ONCE)
    worker = worker_of(
        run, corpus, tmp_path, python=command(tmp_path, f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    )
    clips = pq.read_table(f"{corpus[0]}/clips.parquet")["clip_id"].to_pylist()[:2]
    unit = AnswerUnit("a", 0, tuple(clips), ("What is heard?",) * 2)
    with pytest.raises(OSError, match="ValueError: too long") as raised:
        worker.answers(unit)
    assert not isinstance(raised.value, EngineGoneError)
    assert [row["tokens"] for row in worker.answers(unit)] == [1, 1]
    for _ in range(2):
        with pytest.raises(EngineGoneError, match="exit code 5"):
            worker.answers(unit)


def test_its_process_ends_with_the_one_that_asks(tmp_path):
    (tmp_path / "vllm.py").write_text(FAILS_ONCE)
    (tmp_path / "llm").mkdir()
    words = [sys.executable, vllm_program.__file__, str(tmp_path / "llm"), "float32", "8", "2"]
    start = (
        f"import subprocess, sys; print(subprocess.Popen({words!r}, stdin=subprocess.PIPE, stdout=2).pid, flush=True)"
    )
    start += "; sys.stdin.read()"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", start], stdin=-1, stdout=-1, stderr=-1, text=True, env=environment
    ) as above:
        pid = int(above.stdout.readline())
        while "loaded" not in above.stderr.readline():
            pass
        assert (tmp_path / "llm").exists()
        above.kill()
        for _ in range(300):
            if not Path(f"/proc/{pid}").exists() or "zombie" in Path(f"/proc/{pid}/status").read_text():
                break
            time.sleep(0.1)
        else:
            pytest.fail("it is still there")
    assert not (tmp_path / "llm").exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["engine=vllm"], "engine_python=… is needed"),
            (["engine=vllm", "engine_python=python"], "num_beams=4: engine=vllm decodes greedily"),
            (["engine_python=python"], "only engine=vllm runs in a Python of its own"),
            (["engine=vllm", "engine_python=/no/python", "num_beams=1"], "engine_python=/no/python: cannot be run"),
            (["engine=vllm", f"engine_python={sys.executable}", "num_beams=1"], "cannot import vLLM: ModuleNotFound"),
        ],
    )
    def test_what_it_cannot_do_is_named_before_anything_starts(self, run, corpus, capsys, words, said):
        assert main(["evaluate", f"run={run}", f"manifest={corpus[0]}", f"cache={corpus[1]}", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1

    @pytest.mark.parametrize("precision", ["int8", "int4"])
    def test_lora_is_not_merged_into_a_quantised_llm(self, precision):
        with pytest.raises(UserError, match=f"precision={precision}"):
            engine_name("vllm", sys.executable, precision)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session", "without_java")
def test_an_evaluation_names_the_engine(run, corpus, stand_in):
    words = ["evaluate", f"run={run}", f"manifest={corpus[0]}", f"cache={corpus[1]}", "max_new_tokens=5", "workers=1"]
    assert main([*words, "engine=vllm", f"engine_python={stand_in}", "num_beams=1", "page_examples=0"]) == 0
    assert "decoded by vllm 0.32.0." in Path(run, "evaluation/test/report.md").read_text()
