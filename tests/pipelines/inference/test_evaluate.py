"""Covers pipelines.interface.devices, pipelines.inference.answering, pipelines.inference.answers,
pipelines.inference.answer_table, pipelines.inference.worker, pipelines.inference.hearing, pipelines.inference.actor,
pipelines.inference.report, pipelines.inference.units.
"""

import dataclasses
import json
import random
import shutil
from html import escape
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from llm.answering import Answering
from pipelines.cli import main
from pipelines.errors import UserError
from pipelines.inference import answering
from pipelines.inference.answers import SILENCE, AnswerStore, DecodeSettings, open_answers
from pipelines.inference.config import EvaluateConfig
from pipelines.inference.evaluate import evaluate
from pipelines.inference.scoring.texts import normalise
from pipelines.inference.units import AnswerConfig, AnswerUnit
from pipelines.inference.worker import AnswerWorker
from pipelines.runs.spec import RunSpec, identified
from tests.pipelines.builders import fill, make_worker, stores_of

pytestmark = pytest.mark.usefixtures("without_java")
SHORT = ["num_beams=2", "max_new_tokens=5", "workers=1"]


@pytest.fixture
def words(run, corpus) -> list[str]:
    return ["evaluate", f"run={run}", f"manifest={corpus[0]}", f"cache={corpus[1]}", *SHORT]


def config_of(words, **keys) -> EvaluateConfig:
    given = dict(word.split("=") for word in words[1:4])
    return EvaluateConfig(**given, num_beams=2, max_new_tokens=5, workers=1, **keys)


def report_of(run, splits="test") -> dict[str, bytes]:
    folder = Path(run) / "evaluation" / splits
    return {name: (folder / name).read_bytes() for name in ("report.md", "scores.json")}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_evaluation_writes_answers_and_scores_once(words, run, capsys, monkeypatch):
    scores = evaluate(config_of(words))
    lines = pq.read_table(f"{run}/evaluation/test/answers.parquet").to_pylist()
    assert len(lines) == 3 and {reference for line in lines for reference in line["references"]} == {"high"}
    assert scores[0].value("accuracy") == sum(normalise(line["answer"]) == "high" for line in lines) / 3
    report = json.loads(report_of(run)["scores.json"])
    ours = [row for row in report["paper"] if row["items"]]
    assert report["step"] == 6 and [(row["task"], row["items"]) for row in ours] == [("audiocaption", 3)]
    page = report_of(run)["report.md"].decode()
    assert page.index("| 1 | asr | LibriSpeech clean | wer | % | — | — | 2.1 |") > page.index("## All scores")
    assert "audiocaption" in capsys.readouterr().out
    shown = Path(run) / "evaluation" / "test" / "page"
    assert shown.joinpath("index.html").read_text().count("<audio ") == len([*shown.joinpath("audio").iterdir()]) == 3
    assert main(["runs", "report", f"run={run}"]) == 0
    about_run = Path(run, "report.html").read_text()
    assert "Evaluation on test" in about_run and 'href="evaluation/test/page/index.html"' in about_run
    assert f"<td>{scores[0].value('accuracy'):.3f}</td>" in about_run
    assert all(f"<td>{escape(line['answer'])}</td>" in about_run for line in lines)
    before = report_of(run)
    monkeypatch.setattr(answering, "run_units", lambda *_, **__: pytest.fail("answered again"))
    assert main(words) == 0 and report_of(run) == before
    assert main([*words, "tasks=[audiocaption]", "batch_examples=1", "page_examples=0"]) == 0  # the same answers serve
    assert not shown.joinpath("index.html").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_after_a_kill_only_the_rest_is_answered_and_the_report_is_the_same(words, run, corpus):
    every = [*words, "splits=[]", "batch_examples=1", "workers=2"]
    assert main(every) == 0
    before = report_of(run, "all")
    (store,) = stores_of(run)
    units = sorted(store.glob("*.parquet"))
    kept = {path: path.read_bytes() for path in units[::3]}
    for path in set(units) - kept.keys():
        path.unlink()
    lost = 12 - sum(pq.read_metadata(path).num_rows for path in kept)
    assert main(every) == 0
    assert report_of(run, "all") == before
    assert {path: path.read_bytes() for path in kept} == kept
    assert sum(pq.read_metadata(path).num_rows for path in set(store.glob("*.parquet")) - kept.keys()) == lost


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_was_heard_is_checked_with_silence_and_with_another_clip(words, run):
    assert main([*words, "splits=[]", "check_heard=true"]) == 0
    rows = pq.read_table(f"{run}/evaluation/all/answers.parquet").to_pylist()
    assert len({row["answer_to_silence"] for row in rows}) == 1  # there is one question
    by_clip = {row["clip_id"]: row["answer"] for row in rows}
    assert sorted(row["answer_to_other"] for row in rows) == sorted(by_clip.values())
    assert len(AnswerStore(next(stores_of(run)).as_posix()).read()) == 13  # 12 clips and silence
    tasks = json.loads(report_of(run, "all")["scores.json"])["tasks"]
    assert all(sum(task[heard]["examples"] for task in tasks) == 12 for heard in ("own", "silence", "other"))
    assert "| silence | other clip |" in report_of(run, "all")["report.md"].decode()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_units_that_fail_are_named_and_what_is_answered_stays(words, run, corpus, tmp_path, capsys):
    cache = shutil.copytree(corpus[1], tmp_path / "c")
    shard = next(cache.glob("shards/*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    damaged = [word if not word.startswith("cache=") else f"cache={cache}" for word in words]
    assert main([*damaged, "splits=[]", "batch_examples=1", "limits.max_tries=1"]) == 1
    error = capsys.readouterr().err
    assert "of questions failed" in error and shard.name in error
    lines = [json.loads(line) for path in Path(run).glob("answers/jobs/*/*.jsonl") for line in path.open()]
    done, failed = ([line for line in lines if ("error" in line) == is_failed] for is_failed in (False, True))
    assert done and all(line["answers"] > 0 and line["node"] and line["seconds"] > 0 for line in done)
    assert failed and all(shard.name in line["error"] and line["attempt"] == 1 for line in failed)
    assert {line["store"] for line in done} == {
        path.name for path in Path(run).glob("answers/*") if path.name != "jobs"
    }
    assert main([*words, "splits=[]", "batch_examples=1"]) == 0


def test_a_unit_that_was_kept_is_not_answered_again(run, corpus, tmp_path, monkeypatch):
    worker = worker_of(run, corpus, tmp_path, num_beams=1, batch=4)
    clip = pq.read_table(f"{corpus[0]}/clips.parquet")["clip_id"][0].as_py()
    unit = AnswerUnit("a", 0, (clip,), ("What?",))
    first = worker.run(unit)
    before = (tmp_path / "a.parquet").stat().st_mtime_ns
    monkeypatch.setattr(worker, "answers", lambda _: pytest.fail("answered again"))
    again = worker.run(unit)
    assert (again.answers, again.tokens) == (first.answers, first.tokens) == (1, again.tokens)
    assert (tmp_path / "a.parquet").stat().st_mtime_ns == before


class TestModel:
    def test_other_llm_weights_under_the_same_path_are_refused(self, words, run, capsys):
        path = Path(run) / "llm" / "model.safetensors"
        weights = load_file(path)
        weights["lm_head.weight"] = -weights["lm_head.weight"]
        save_file(weights, path, metadata={"format": "pt"})
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "is another LLM than" in error and "other weights" in error and error.count("\n") == 1

    def test_other_weights_in_run_are_other_answers(self, run):
        spec, settings = identified(RunSpec.read(run), run), decoding(1)
        stores = [open_answers(run, 6, spec, one) for one in (settings, dataclasses.replace(settings, num_beams=2))]
        path = Path(run) / "checkpoints" / "000006" / "aligner.safetensors"
        weights = load_file(path)
        save_file({name: tensor + 1 for name, tensor in weights.items()}, path)
        stores.append(open_answers(run, 6, spec, settings))
        other = dataclasses.replace(spec, llm_identity={**spec.llm_identity, "weights": "other"})
        stores.append(open_answers(run, 6, other, settings))
        assert len({store.uri for store in stores}) == 4
        assert open_answers(run, 6, other, settings) == stores[-1]


@pytest.mark.parametrize("num_beams", [1, 4])
def test_answers_do_not_depend_on_batch_order_and_neighbours(run, corpus, tmp_path, num_beams):
    chance = random.Random(num_beams)
    clips = pq.read_table(f"{corpus[0]}/clips.parquet")["clip_id"].to_pylist()
    asked = [(clip, f"{word} is heard?") for clip in clips for word in ("What", "Who, and why, and where")]
    found = []
    for batch in (1, 5, 24):
        chance.shuffle(asked)
        store = tmp_path / str(batch)
        worker = worker_of(run, corpus, store, num_beams=num_beams, batch=batch)
        make_sharp(worker._model)
        for number, first in enumerate(range(0, len(asked), batch)):
            part = asked[first : first + batch]
            worker.run(AnswerUnit(str(number), 0, tuple(c for c, _ in part), tuple(q for _, q in part)))
        rows = AnswerStore(str(store)).read().to_pylist()
        found.append({(row["clip_id"], row["question"]): (row["answer"], row["tokens"]) for row in rows})
    assert found[0] == found[1] == found[2] and len(found[0]) == 24
    assert len(set(found[0].values())) > 3


def test_the_first_batch_of_a_unit_begins_whole_and_the_rest_in_groups(run, corpus, tmp_path, monkeypatch):
    worker, sizes = worker_of(run, corpus, tmp_path, num_beams=1, batch=8), []
    clips = pq.read_table(f"{corpus[0]}/clips.parquet")["clip_id"].to_pylist()
    join = Answering.join
    monkeypatch.setattr(
        Answering, "join", lambda self, group, *a, **k: sizes.append(len(group)) or join(self, group, *a, **k)
    )
    for count in (3, 12, 11):
        assert len(worker.answers(AnswerUnit("a", 0, tuple(clips[:count]), ("What?",) * count))) == count
    assert sizes == [3, 8, 2, 2, 8, 2, 1]


def test_where_float64_decides_clips_of_an_int8_cache_are_read_as_they_are(run, corpus, tmp_path):
    fill(tmp_path / "c", corpus[0], make_worker(tmp_path / "c", codec="int8"))
    clips = pq.read_table(f"{corpus[0]}/clips.parquet")["clip_id"].to_pylist()[:5]
    clips.append(SILENCE)
    found = []
    for batch in (1, 4):
        worker = worker_of(run, (corpus[0], str(tmp_path / "c")), tmp_path / "a", num_beams=1, batch=batch)
        make_sharp(worker._model)
        with torch.no_grad():  # each two tokens are equally likely: every step is float64's to decide
            head = worker._model.llm.get_output_embeddings().weight
            head[1::2] = head[: len(head) - len(head) % 2 : 2]
        rows = worker.answers(AnswerUnit("a", 0, tuple(clips), ("What is heard?",) * len(clips)))
        found.append([(row["answer"], row["tokens"]) for row in rows])
    assert found[0] == found[1] and len(set(found[0])) > 1


def worker_of(run, corpus, store, *, num_beams, batch) -> AnswerWorker:
    return AnswerWorker(
        AnswerConfig(
            run=run,
            step=6,
            spec=identified(RunSpec.read(run), run),
            cache=corpus[1],
            stores=(str(store),),
            settings=(decoding(num_beams),),
            whisper="",
            beats="",
            device="cpu",
            threads=1,
            batch_examples=batch,
        )
    )


def decoding(num_beams) -> DecodeSettings:
    return DecodeSettings(num_beams=num_beams, max_new_tokens=8, lora_scaling=1.0)


def end_early(model) -> None:
    """Let the answers of an untrained model end after different numbers of tokens."""
    head, eos = model.llm.get_output_embeddings().weight, model.tokenizer.eos_token_id
    with torch.no_grad():
        head[eos] *= 2


def make_sharp(model) -> None:
    """Let an untrained model say different things about different clips."""
    with torch.no_grad():
        model.aligner.projection.weight.mul_(30)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_questions_take_the_places_of_answers_that_have_ended(run, corpus, tmp_path, num_beams, monkeypatch):
    clips = pq.read_table(f"{corpus[0]}/clips.parquet")["clip_id"].to_pylist()
    asked = [(clip, f"{word} is heard?") for clip in clips for word in ("What", "Who, and why, and where")]
    unit = AnswerUnit("all", 0, tuple(c for c, _ in asked), tuple(q for _, q in asked))
    joined: list[tuple[int, int]] = []

    class Watched(Answering):
        def join(self, questions, batch, *arguments, **keys):
            joined.append((len(self), len(questions)))
            return super().join(questions, batch, *arguments, **keys)

    monkeypatch.setattr("pipelines.inference.worker.Answering", Watched)
    found = {}
    for batch in (1, 5, 8):
        joined.clear()
        worker = worker_of(run, corpus, tmp_path / str(batch), num_beams=num_beams, batch=batch)
        make_sharp(worker._model)
        end_early(worker._model)
        found[batch] = worker.answers(unit)
        assert all(there + new <= batch for there, new in joined) and worker.answered == 0
        assert [(row["clip_id"], row["question"]) for row in found[batch]] == asked
    assert joined[0] == (0, 8) and (6, 2) in joined[1:]  # a later group waits for two answers, not for all
    texts = {batch: [(row["answer"], row["tokens"]) for row in rows] for batch, rows in found.items()}
    assert texts[1] == texts[5] == texts[8]
    assert len({tokens for _, tokens in texts[1]}) >= 3


def test_where_memory_is_short_the_key_that_needs_less_is_named(run, corpus, tmp_path, monkeypatch):
    worker = worker_of(run, corpus, tmp_path, num_beams=1, batch=4)

    def allocate(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(worker._model, "embed_prompts", allocate)  # as a GPU with too little memory does
    clips = pq.read_table(f"{corpus[0]}/clips.parquet")["clip_id"].to_pylist()[:1]
    with pytest.raises(
        MemoryError, match=r"memory for batch_examples=4; a smaller one needs less \(CUDA out of memory"
    ):
        worker.run(AnswerUnit("a", 0, tuple(clips), ("What is heard?",)))


def test_a_clip_that_cannot_be_read_ends_its_unit_and_no_other(run, corpus, tmp_path):
    shutil.copytree(corpus[1], tmp_path / "c")
    worker = worker_of(run, (corpus[0], str(tmp_path / "c")), tmp_path / "store", num_beams=1, batch=4)
    clips = pq.read_table(f"{corpus[0]}/clips.parquet")["clip_id"].to_pylist()
    position = int(worker._cache.positions([clips[-1]])[0])
    shard = tmp_path / "c" / "shards" / worker._cache.shard(position)
    places = worker._cache.places("speech", [position], None)
    content = bytearray(shard.read_bytes())
    content[int(places.values[0])] ^= 1
    shard.write_bytes(content)
    questions = ("What is heard?",) * len(clips)
    with pytest.raises(UserError, match=rf"speech of clip {clips[-1]} is damaged"):
        worker.answers(AnswerUnit("all", 0, tuple(clips), questions))
    assert len(worker.answers(AnswerUnit("whole", 0, tuple(clips[:-1]), questions[:-1]))) == len(clips) - 1
