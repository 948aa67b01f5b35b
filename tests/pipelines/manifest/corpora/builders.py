"""Miniatures of corpora: tables, sounds, and what a manifest of them holds."""

import csv

import soundfile

from pipelines.manifest.tables import read_clips, read_examples
from tests.toy import tone


def write_sound(path, seconds=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds), 16_000)


def write_csv(path, header, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def texts(manifest):
    return [(e.split, e.task, e.answer) for e in read_examples(str(manifest))]


def recordings(manifest):
    return [clip.recordings[0] for clip in read_clips(str(manifest))]
