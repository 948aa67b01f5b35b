"""Covers pipelines.manifest.emotions, pipelines.manifest.formats."""

import json

import pytest
import soundfile

from encoders.audio import Segment
from pipelines.cli import main
from pipelines.inference.scoring.labels import LABEL_WORDS, first_label
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped
from pipelines.manifest.emotions import SPELLINGS, emotion_label
from pipelines.manifest.formats import SAMPLED_PER_BATCH
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import read_reports, sum_of
from pipelines.manifest.tables import read_examples
from tests.toy import tone, write_tones


def write(tmp_path, examples, **keys):
    config = PrepareConfig(out=str(tmp_path / "m"), **keys)
    return write_manifest(examples, corpus="c", root=str(tmp_path / "audio"), config=config)


def example(recording, answer="x", task="asr"):
    return CorpusExample((Segment(recording),), "train", task, answer)


def test_an_emotion_has_one_spelling_whatever_the_corpus_calls_it(tmp_path, capsys):
    names = write_tones(tmp_path / "audio", [1.0] * 5)
    answers = ["ang", "Happiness", "neutral", "He sounds sad", "Anger."]
    report = write(
        tmp_path,
        [
            *(example(*pair, task="emotion_recognition") for pair in zip(names, answers, strict=True)),
            example(names[0], "Anger"),
        ],
    )
    told = [e.answer for e in read_examples(f"{tmp_path}/m") if e.task == "emotion_recognition"]
    assert told == ["angry", "happy", "neutral", "He sounds sad", "angry"]
    assert [e.answer for e in read_examples(f"{tmp_path}/m") if e.task == "asr"] == ["Anger"]
    assert report.respelt == {"ang → angry": 1, "Happiness → happy": 1, "Anger. → angry": 1}
    line = "emotions in one spelling: Anger. → angry (1), Happiness → happy (1), ang → angry (1)"
    assert line in capsys.readouterr().out
    assert main(["manifest", "info", f"manifest={tmp_path}/m"]) == 0
    assert line in capsys.readouterr().out


def test_spellings_belong_to_one_label_and_are_scored_as_it_is():
    words = [word for label, others in SPELLINGS.items() for word in (label, *others.split())]
    assert len(words) == len({*words})
    read = first_label(LABEL_WORDS["emotion_recognition"])
    for label, others in SPELLINGS.items():
        for word in others.split():
            assert emotion_label(word.upper()) == label
            if read(word) is not None:
                assert read(word) == read(label)


def test_a_report_tells_all_and_info_tells_the_same_of_all_prepares(tmp_path, capsys):
    write_tones(tmp_path / "audio", [1.0, 36.0])
    soundfile.write(tmp_path / "audio" / "stereo.flac", [[0.1, 0.2]] * 44_100, 44_100)
    (tmp_path / "audio" / "broken.wav").write_bytes(b"no sound" * 20)
    entries = [
        *map(example, ["tone-0.wav", "tone-1.wav", "stereo.flac", "broken.wav", "absent.wav", "tone-0.wav"]),
        Skipped("long.wav", "longer than 180 s"),
    ]
    write(tmp_path, entries)
    printed = capsys.readouterr().out.splitlines()[1:]
    named = [line for line in printed if line.startswith("    ")]
    assert len(named) == 3 and named[0] == "    long.wav (longer than 180 s)"
    assert "broken.wav" in named[1] and "absent.wav" in named[2]
    printed = [line for line in printed if line not in named]
    assert printed.pop(0) == "  by split: train 4"  # of this prepare alone, so that info does not tell it
    assert printed == [
        "  1 clip longer than 30 s: 0.002 h are not heard",
        "  1 repeated example left out",
        "  1 clip whose header cannot be read",
        "  skipped 1: longer than 180 s",
        "  skipped 1: not there",
        "  of 3 recordings at even distances: 1 channel at 16,000 Hz (2), 2 channels at 44,100 Hz (1)",
        f"  {tmp_path}/m/skipped-001-c.parquet lists them",
    ]
    assert main(["manifest", "info", f"manifest={tmp_path}/m"]) == 0
    assert set(printed[:-1]) < set(capsys.readouterr().out.splitlines())

    write(tmp_path, entries, append=True)
    capsys.readouterr()
    assert main(["manifest", "info", f"manifest={tmp_path}/m", "json=true"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prepared"]["duplicates"] == 6 and told["prepared"]["skipped"] == {
        "longer than 180 s": 2,
        "not there": 2,
    }
    assert told["unreported"] == 0


def test_prepares_without_a_report_are_said_and_a_damaged_one_is_named(tmp_path, capsys):
    write_tones(tmp_path / "audio", [1.0])
    write(tmp_path, [example("tone-0.wav")])
    report = tmp_path / "m" / "prepare-001-c.json"
    whole = report.read_text()
    report.unlink()
    capsys.readouterr()
    assert main(["manifest", "info", f"manifest={tmp_path}/m"]) == 0
    assert "1 prepares left no report: what they left out is not known" in capsys.readouterr().out
    for damaged in (whole[:40], "[]", "{}", '{"clips": 1}'):
        report.write_text(damaged)
        assert main(["manifest", "info", f"manifest={tmp_path}/m"]) == 2
        assert "prepare-001-c.json: damaged" in capsys.readouterr().err
    report.write_text(json.dumps({**json.loads(whole), "of a later version": 1}))
    assert sum_of(read_reports(f"{tmp_path}/m")[0]).clips == 1


@pytest.mark.parametrize("count", [1, SAMPLED_PER_BATCH, 3 * SAMPLED_PER_BATCH + 1])
def test_some_headers_are_looked_at_spread_over_a_batch(tmp_path, count):
    for number in range(count):
        (tmp_path / "audio").mkdir(exist_ok=True)
        rate_hz = 8_000 if number == count - 1 else 16_000
        soundfile.write(tmp_path / "audio" / f"{number:03}.wav", tone(0.1), rate_hz)
    report = write(tmp_path, [example(f"{number:03}.wav") for number in range(count)])
    assert sum(report.formats.values()) == min(count, -(-count // -(-count // SAMPLED_PER_BATCH)))
    assert report.formats["1 channel at 8,000 Hz"] == 1
