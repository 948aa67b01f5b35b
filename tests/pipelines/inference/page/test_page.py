"""Covers pipelines.inference.page.sound."""

import io
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.cache.recipe import Recipe
from pipelines.inference.answer_table import OWN, SILENCE, by_test_set
from pipelines.inference.answers import DecodeSettings
from pipelines.inference.page.page import write_evaluation_page
from pipelines.inference.report import EvaluationReport, TaskReport
from pipelines.inference.scoring.scores import score_task
from pipelines.interface.progress import Progress
from pipelines.manifest.tables import read_clips
from tests.pipelines.builders import prepare_tones

RECIPE = Recipe({}, "float16", "float32", "sdpa")

HOSTILE = "<script>alert(1)</script> & \"'"


@pytest.fixture
def manifest(tmp_path) -> str:
    return prepare_tones(tmp_path, num_clips=4)


def answers_of(clip_ids, **columns) -> pa.Table:
    count = len(clip_ids)
    table = {"clip_id": clip_ids, "task": ["gender_recognition"] * count, "corpus": ["tones"] * count}
    table |= {"split": ["test"] * count, "question": ["Who speaks?"] * count, "references": [["male"]] * count}
    table["recordings"] = [[f"{name}.wav"] for name in clip_ids]
    table |= {OWN: ["male"] * count, "tokens": [1] * count, "seconds": [0.1] * count}
    return pa.table(table | columns)


def write(out, answers, manifest, most=50) -> str:
    tasks = [score_task(part.task, part.heard(OWN), test_set=part.test_set) for part in by_test_set(answers)]
    report = EvaluationReport(
        run="runs/one",
        step=3,
        splits=("test",),
        settings=DecodeSettings(num_beams=1, max_new_tokens=4, lora_scaling=1.0),
        questions=answers.num_rows,
        examples=answers.num_rows,
        missing=0,
        tasks=tuple(TaskReport(own=task, silence=task, other=None) for task in tasks),
    )
    write_evaluation_page(str(out), report, answers, manifest=manifest, recipe=RECIPE, most=most, progress=Progress())
    return (Path(out) / "page" / "index.html").read_text()


class Elements(HTMLParser):
    """What a page's tags say: (tag, attributes)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_plays_what_the_encoders_hear(manifest, tmp_path):
    clips = [*read_clips(manifest)]
    page = Elements(write(tmp_path / "e", answers_of([clip.clip_id for clip in clips]), manifest))
    sources = [audio["src"] for audio in page.of("audio")]
    assert len(set(sources)) == len(clips)
    for clip, source in zip(clips, sources, strict=True):
        wave, rate_hz = sf.read(tmp_path / "e" / "page" / source, dtype="float32")
        heard = load_clip(clip.located()).numpy()
        assert rate_hz == 16_000 and len(wave) == len(heard) and np.abs(wave - heard).max() < 2**-15


def test_equal_answers_make_equal_pages(manifest, tmp_path):
    answers = answers_of([clip.clip_id for clip in read_clips(manifest)])

    def content(name):
        write(tmp_path / name, answers, manifest)
        files = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {path.relative_to(tmp_path / name): path.read_bytes() for path in files}

    assert content("a") == content("b") != {}


def test_the_runs_own_scores_stand_first_and_beside_them_why_some_have_no_value(manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # so that there is no Java
    clip_ids = [clip.clip_id for clip in read_clips(manifest)]
    page = unescape(write(tmp_path, answers_of(clip_ids, task=["audiocaption"] * len(clip_ids)), manifest))
    assert page.index("No meteor, spice, spider: needs a Java runtime") < page.index("Beside the paper")
    assert page.index(">Scores<") < page.index("No meteor")


def test_only_the_worst_are_shown_and_older_sounds_are_removed(manifest, tmp_path):
    clip_ids = [clip.clip_id for clip in read_clips(manifest)]
    answers = answers_of(clip_ids, **{OWN: ["male", "male", "female", "male"]})
    write(tmp_path, answers, manifest)
    assert len([*(tmp_path / "page" / "audio").iterdir()]) == 4
    page = write(tmp_path, answers, manifest, most=1)
    (sound,) = (tmp_path / "page" / "audio").iterdir()
    assert [audio["src"] for audio in Elements(page).of("audio")] == [f"audio/{sound.name}"]
    assert "Answer 1, accuracy 0.000" in page and "1 of 4 answers" in page


def test_recordings_that_cannot_be_read_now_are_named_in_their_rows(manifest, tmp_path):
    clips = [*read_clips(manifest)]
    Path(clips[0].located()[0].recording).unlink()
    Path(clips[1].located()[0].recording).write_bytes(b"no sound")
    page = write(tmp_path / "e", answers_of([*(clip.clip_id for clip in clips), "unknown"]), manifest)
    assert page.count("Cannot be heard: ") == 3 and page.count("<audio ") == 2
    assert f"{clips[0].located()[0].recording}: open:" in unescape(page)
    assert "the manifest has no such clip now" in page


def test_texts_are_texts_and_names_stay_in_the_folder(manifest, tmp_path):
    table = pq.read_table(f"{manifest}/clips.parquet")
    ids = ["../../../outside", *table["clip_id"].to_pylist()[1:]]
    storage.write_table(f"{manifest}/clips.parquet", table.set_column(0, "clip_id", pa.array(ids)))
    hostile = {name: [HOSTILE] * 4 for name in ("corpus", "question", OWN, SILENCE)}
    page = write(tmp_path / "e", answers_of(ids, references=[[HOSTILE]] * 4, **hostile), manifest)
    assert HOSTILE not in page and page.count("<script>") == 1
    sources = [audio["src"] for audio in Elements(page).of("audio")]
    assert len(sources) == 4 and all(re.fullmatch(r"audio/[0-9a-f]{16}\.flac", source) for source in sources)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio", "e", "m", "table.jsonl"]


def test_the_page_needs_nothing_from_elsewhere_and_names_its_parts(manifest, tmp_path):
    clip_ids = [clip.clip_id for clip in read_clips(manifest)]
    page = write(tmp_path, answers_of(clip_ids, **{SILENCE: ["female"] * 4}), manifest)
    elements = Elements(page)
    links = [value for _, found in elements.found for name, value in found.items() if name in ("src", "href")]
    ids = {found["id"] for _, found in elements.found if "id" in found}
    assert links and all(link.startswith(("audio/", "#")) for link in links) and "http" not in page
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    assert {found["aria-labelledby"] for _, found in elements.found if "aria-labelledby" in found} <= ids
    assert all(audio["aria-label"] and audio["preload"] == "none" for audio in elements.of("audio"))
    assert elements.of("form") == [{"id": "filter", "hidden": None, "aria-label": "Which answers are shown"}]
    assert "Answer to silence" in page and "Answer to another clip" not in page
    assert "right label" in page and "LibriSpeech clean" in page


def test_sounds_louder_than_full_scale_are_cut_not_wrapped(manifest, tmp_path):
    clip = next(iter(read_clips(manifest)))
    recording = clip.located()[0].recording
    loud = io.BytesIO()
    sf.write(loud, np.full(16_000, 1.5, np.float32), 16_000, format="WAV", subtype="FLOAT")
    Path(recording).write_bytes(loud.getvalue())
    page = write(tmp_path / "e", answers_of([clip.clip_id]), manifest)
    (source,) = [audio["src"] for audio in Elements(page).of("audio")]
    assert sf.read(tmp_path / "e" / "page" / source)[0].min() > 0.99
