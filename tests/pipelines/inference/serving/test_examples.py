import io
import shutil
import urllib.request
from pathlib import Path

import pyarrow as pa
import pytest
import soundfile

from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.inference.serving.examples import Examples
from pipelines.manifest.tables import EXAMPLE_SCHEMA, EXAMPLES, read_clips
from tests.pipelines.inference.serving.builders import Server


@pytest.fixture
def examples(corpus) -> Examples:
    return Examples(*corpus, count=4)


def test_held_out_examples_come_first_each_clip_once(examples, corpus):
    clips = {clip.clip_id: clip for clip in read_clips(corpus[0])}
    assert [clips[one.clip_id].split for one in examples.offered] == ["test", "test", "test", "train"]
    assert len({one.clip_id for one in examples.offered}) == 4
    first = examples.offered[0]
    assert first.recordings == clips[first.clip_id].recordings and first.reference in ("high", "low")
    assert first.question == "Describe what can be heard." and first.seconds == clips[first.clip_id].seconds


def test_each_task_is_offered_although_one_comes_first(corpus, tmp_path):
    table = storage.select_parquet(f"{corpus[0]}/{EXAMPLES}", EXAMPLE_SCHEMA.names)
    rows = table.to_pylist()
    tasks = ["asr"] * (len(rows) - 2) + ["audiocaption", "phone_recognition"]
    table = table.set_column(table.schema.get_field_index("task"), "task", pa.array(tasks))
    shutil.copytree(corpus[0], tmp_path / "m")
    storage.write_table(f"{tmp_path}/m/{EXAMPLES}", table)
    offered = Examples(str(tmp_path / "m"), corpus[1], count=4).offered
    splits = {row["clip_id"]: row["split"] for row in rows}
    held_out = [one.task for one in offered if splits[one.clip_id] == "test"]
    assert len({one.clip_id for one in offered}) == 4 and len(held_out) == 3
    for is_test in (True, False):
        there = {task for row, task in zip(rows, tasks, strict=True) if (row["split"] == "test") == is_test}
        shown = [one.task for one in offered if (splits[one.clip_id] == "test") == is_test]
        assert set(shown) <= there and len(set(shown)) == min(len(there), len(shown))


def test_each_task_is_offered_although_all_are_about_the_same_clips(corpus, tmp_path):
    table = storage.select_parquet(f"{corpus[0]}/{EXAMPLES}", EXAMPLE_SCHEMA.names)
    tasks = ["asr", "audiocaption", "phone_recognition"]
    rows = [
        {**row, "task": task, "example_id": f"{row['example_id']}-{task}"}
        for row in table.to_pylist()
        for task in tasks
    ]
    shutil.copytree(corpus[0], tmp_path / "m")
    storage.write_table(f"{tmp_path}/m/{EXAMPLES}", pa.Table.from_pylist(rows, table.schema))
    offered = Examples(str(tmp_path / "m"), corpus[1], count=3).offered
    assert len({one.clip_id for one in offered}) == 3 and {one.task for one in offered} == set(tasks)


def test_what_is_offered_is_heard_and_nothing_else(examples, corpus):
    (first, *_), clips = examples.offered, list(read_clips(corpus[0]))
    (clip,) = (clip for clip in clips if clip.clip_id == first.clip_id)
    samples, rate = soundfile.read(io.BytesIO(examples.sound(first.clip_id, examples.cache.recipe)), dtype="float32")
    assert rate == 16_000 and abs(samples - load_clip(clip.located()).numpy()).max() < 1e-4
    hidden = next(clip.clip_id for clip in clips if clip.clip_id not in {one.clip_id for one in examples.offered})
    for ask in (examples.features, lambda clip_id: examples.sound(clip_id, examples.cache.recipe)):
        with pytest.raises(KeyError):
            ask(hidden)


def test_an_examples_answer_comes_from_the_cache(server: Server, alone, examples, monkeypatch, corpus):
    encoded = []
    listener = server.app.listeners["unbroken"]
    monkeypatch.setitem(vars(listener), "_hear", encoded.append)
    first = examples.offered[0]
    parts = [{"type": "input_clip", "input_clip": {"clip_id": first.clip_id}}, {"type": "text", "text": first.question}]
    response = server.client().chat.completions.create(model="unbroken", messages=[{"role": "user", "content": parts}])
    recording = Path(corpus[0]).parent / "audio" / first.recordings[0]
    expected = alone["unbroken"].answer(recording, first.question, max_new_tokens=40)
    assert response.choices[0].message.content == expected.text and not encoded
    assert response.model_extra["heard"]["given_seconds"] == first.seconds


def test_sounds_of_examples_are_given_and_no_others(server: Server):
    listed = server.app.examples.listing()
    assert len(listed) == 4
    url = f"{server.address}/v1/examples/{listed[0]['clip_id']}"
    with urllib.request.urlopen(urllib.request.Request(url, headers=server.headers)) as response:
        assert response.headers["Content-Type"] == "audio/flac" and response.read(4) == b"fLaC"
    for name in ("absent", "..%2F..%2Fetc%2Fpasswd"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(
                urllib.request.Request(f"{server.address}/v1/examples/{name}", headers=server.headers)
            )
