"""WavCaps, AudioCaps, Clotho and MusicCaps, each in its published layout.

Covers pipelines.manifest.corpora.audiocaps, pipelines.manifest.corpora.clotho, pipelines.manifest.corpora.musiccaps,
pipelines.manifest.corpora.recordings, pipelines.manifest.corpora.wavcaps.
"""

import json
import shutil

import pytest

from encoders.audio import Segment
from pipelines.cli import main
from pipelines.manifest.corpora.audiocaps import AudioCapsConfig, prepare_audiocaps, read_audiocaps
from pipelines.manifest.corpora.clotho import ClothoConfig, prepare_clotho, read_clotho
from pipelines.manifest.corpora.musiccaps import MusicCapsConfig, prepare_musiccaps, read_musiccaps
from pipelines.manifest.corpora.wavcaps import SOURCES, WavCapsConfig, prepare_wavcaps, read_wavcaps
from pipelines.manifest.corpus import Skipped
from pipelines.manifest.tables import read_clips
from tests import SHARED
from tests.pipelines.manifest.corpora.builders import recordings, texts, write_csv, write_sound

DATA = SHARED / "data"
WAVEFORMS = "mnt/fast/nobackup/scratch4weeks/xm00178/WavCaps/data/waveforms"


WAVCAPS = {
    "FreeSound": [
        ("180913", "A clock ticks.", 2.0),
        ("98", "Rain falls for long.", 180.1),
        ("77", "A cat is here.", 180),
    ],
    "BBC_Sound_Effects": [("NHU05093027", "Birds sing.", 1.5)],
    "SoundBible": [("2219", "An airplane is landing.", 14.1424375), ("2218", "", 1.0)],
    "AudioSet_SL": [("Yb0RFKhbpFJA.wav", "Wind blows.", 10.0), ("Y-0SdAVK79lg.wav", "A dog barks.", 10.0)],
}


def write_wavcaps(root, audio=""):
    for source, entries in WAVCAPS.items():
        data = [
            {"id": name, "caption": caption, "duration": seconds, "description": 'not "data": [ at all', "tags": ["a"]}
            for name, caption, seconds in entries
        ]
        file = root / "json_files" / source / SOURCES[source]
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"num_captions_per_audio": 1, "data": data}))
        for name, _, _ in entries:
            write_sound(root / audio / f"{source}_flac" / f"{name.removesuffix('.wav')}.flac")
    return root


def test_wavcaps_captions_short_sounds_of_every_source(tmp_path):
    root = write_wavcaps(tmp_path / "w", WAVEFORMS)
    config = WavCapsConfig(root=str(root), out=str(tmp_path / "m"))
    report = prepare_wavcaps(config)
    assert (report.clips, report.examples, report.unreadable) == (6, 6, 0)
    assert report.skipped == {"longer than 180 s": 1, "no caption": 1}
    assert texts(tmp_path / "m")[:2] == [
        ("train", "audiocaption", "A clock ticks."),
        ("train", "audiocaption", "A cat is here."),
    ]
    assert recordings(tmp_path / "m")[-2:] == [
        f"{WAVEFORMS}/AudioSet_SL_flac/Yb0RFKhbpFJA.flac",
        f"{WAVEFORMS}/AudioSet_SL_flac/Y-0SdAVK79lg.flac",
    ]


def test_wavcaps_keeps_three_minutes_where_asked_and_counts_what_is_cut_where_not(tmp_path, capsys):
    root = write_wavcaps(tmp_path / "w")
    write_sound(root / "FreeSound_flac" / "77.flac", 180.0)
    assert prepare_wavcaps(WavCapsConfig(root=str(root), out=str(tmp_path / "short"))).cut == 1
    assert "1 clip longer than 30 s: 0.042 h are not heard" in capsys.readouterr().out
    report = prepare_wavcaps(WavCapsConfig(root=str(root), out=str(tmp_path / "m"), max_clip_seconds=180.0))
    assert report.cut == 0 and "not heard" not in capsys.readouterr().out
    lengths = {clip.recordings[0]: clip.seconds for clip in read_clips(str(tmp_path / "m"))}
    assert lengths["FreeSound_flac/77.flac"] == 180.0


def test_wavcaps_leaves_out_what_the_blacklist_names(tmp_path):
    root = write_wavcaps(tmp_path)
    blacklist = {"AudioSet": ["Y-0SdAVK79lg.wav"], "FreeSound": ["180913.wav", "2219"]}
    (root / "black.json").write_text(json.dumps(blacklist))
    config = WavCapsConfig(root=str(root), out="m", blacklist=str(root / "black.json"), max_seconds=500)
    found = list(read_wavcaps(config))
    assert [e.recording for e in found if isinstance(e, Skipped) and e.reason == "on the blacklist"] == [
        "FreeSound_flac/180913.flac",
        "AudioSet_SL_flac/Y-0SdAVK79lg.flac",
    ]
    assert sum(not isinstance(e, Skipped) for e in found) == 5
    (root / "black.json").write_text("[]")
    with pytest.raises(ValueError, match=r"blacklist=.*black\.json: not lists of ids"):
        list(read_wavcaps(config))


@pytest.mark.parametrize("absent", ["json_files/SoundBible/sb_final.json", "FreeSound_flac"])
def test_wavcaps_names_what_its_root_lacks(tmp_path, absent, capsys):
    root = write_wavcaps(tmp_path / "w")
    (root / absent).rename(tmp_path / "elsewhere")
    assert main(["prepare", "wavcaps", f"root={root}", f"out={tmp_path}/m"]) == 2
    message = capsys.readouterr().err
    assert f"no {absent}" in message and "; expected json_files/" in message
    there = [source for source in SOURCES if source not in absent]
    assert f"; sources=[{','.join(there[:4])}] are there" in message
    assert prepare_wavcaps(WavCapsConfig(root=str(root), out=str(tmp_path / "m"), sources=["AudioSet_SL"])).clips == 2


def test_wavcaps_entry_without_a_caption_is_named(tmp_path):
    root = write_wavcaps(tmp_path)
    (root / "json_files/SoundBible/sb_final.json").write_text('{"data": [{"id": "1", "duration": 2.0}]}')
    with pytest.raises(ValueError, match=r"sb_final\.json: data\[0\]: needs an id, a caption.*found 'id', 'duration'"):
        list(read_wavcaps(WavCapsConfig(root=str(root), out="m", sources=["SoundBible"])))
    with pytest.raises(ValueError, match="sources: 'Freesound' is not in WavCaps; choose from FreeSound"):
        WavCapsConfig(root=str(root), out="m", sources=["Freesound"])


AUDIOCAPS = ["audiocap_id", "youtube_id", "start_time", "caption"]


def write_audiocaps(root, name="{split}/{youtube_id}.wav"):
    train = [
        ["91139", "r1nicOVtvkQ", "130", "A woman talks nearby as water pours"],
        ["58146", "-GBjjwyaqE", "20", "Clangs"],
    ]
    test = [[str(number), "vfY_TJq7n_U", "130", f'Ducks "quack", {number} times'] for number in range(5)]
    for split, rows in (("train", train), ("val", test[:1]), ("test", test)):
        write_csv(root / f"{split}.csv", AUDIOCAPS, *rows)
        for row in rows:
            fields = dict(zip(AUDIOCAPS, row, strict=True))
            write_sound(root / name.format(**fields, split=split))
    return root


def test_audiocaps_gives_every_caption_of_a_clip(tmp_path):
    root = write_audiocaps(tmp_path / "a")
    (root / "train" / "-GBjjwyaqE.wav").unlink()
    report = prepare_audiocaps(AudioCapsConfig(root=str(root), out=str(tmp_path / "m")))
    assert (report.clips, report.examples, report.skipped) == (3, 7, {"not there": 1})
    assert texts(tmp_path / "m")[:2] == [
        ("train", "audiocaption", "A woman talks nearby as water pours"),
        ("dev", "audiocaption", 'Ducks "quack", 0 times'),
    ]
    assert recordings(tmp_path / "m") == ["train/r1nicOVtvkQ.wav", "val/vfY_TJq7n_U.wav", "test/vfY_TJq7n_U.wav"]


def test_audiocaps_recordings_may_be_named_otherwise_and_captions_lie_elsewhere(tmp_path):
    name = "wavs/Y{youtube_id}_{start_time}.wav"
    root = write_audiocaps(tmp_path, name)
    (root / "dataset").mkdir()
    for split in ("train", "val", "test"):
        (root / f"{split}.csv").rename(root / "dataset" / f"{split}.csv")
    config = AudioCapsConfig(root=str(root), captions=str(root / "dataset"), out="m", recording=name, splits=["train"])
    assert [e.segments for e in read_audiocaps(config)] == [
        (Segment("wavs/Yr1nicOVtvkQ_130.wav"),),
        (Segment("wavs/Y-GBjjwyaqE_20.wav"),),
    ]


def test_audiocaps_at_a_wrong_root_says_what_is_missing(tmp_path):
    root = write_audiocaps(tmp_path / "a")
    with pytest.raises(ValueError, match=r"none of the first 3 .*clips/r1nicOVtvkQ\.wav: no such file; there is .*csv"):
        prepare_audiocaps(AudioCapsConfig(root=str(root), out=str(tmp_path / "m"), recording="clips/{youtube_id}.wav"))
    told = r"train\.csv:2: no column 'ytid', which recording=\{ytid\}\.wav names; found 'audiocap_id'"
    with pytest.raises(ValueError, match=told):
        list(read_audiocaps(AudioCapsConfig(root=str(root), out="m", recording="{ytid}.wav")))
    with pytest.raises(ValueError, match=r"recording=\{split: not a template"):
        list(read_audiocaps(AudioCapsConfig(root=str(root), out="m", recording="{split")))
    (root / "val.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no val\.csv; expected the captions"):
        prepare_audiocaps(AudioCapsConfig(root=str(root), out=str(tmp_path / "m")))
    (root / "train.csv").write_text(",".join(AUDIOCAPS) + "\n1,r1nicOVtvkQ\n")
    with pytest.raises(ValueError, match=r"train\.csv:2: does not have 4 cells"):
        list(read_audiocaps(AudioCapsConfig(root=str(root), out="m", splits=["train"])))


CLOTHO = ["file_name", *(f"caption_{number}" for number in range(1, 6))]


def write_clotho(root):
    for split, names in (
        ("development", ["Distorted AM Radio noise.wav", "a.wav"]),
        ("validation", ["b, c.wav"]),
        ("evaluation", ["d.wav"]),
    ):
        rows = [[name, *(f"{name[0]} is heard, {number}" for number in range(5))] for name in names]
        write_csv(root / f"clotho_captions_{split}.csv", CLOTHO, *rows)
        for name in names:
            write_sound(root / split / name, 1.5)
    return root


def test_clotho_gives_five_captions_a_clip(tmp_path):
    root = write_clotho(tmp_path / "c")
    report = prepare_clotho(ClothoConfig(root=str(root), out=str(tmp_path / "m")))
    assert (report.clips, report.examples, report.unreadable) == (4, 20, 0)
    assert recordings(tmp_path / "m")[:3:2] == ["development/Distorted AM Radio noise.wav", "validation/b, c.wav"]
    found = texts(tmp_path / "m")
    assert found[1] == ("train", "audiocaption", "D is heard, 1")
    assert [split for split, _, _ in found] == ["train"] * 10 + ["dev"] * 5 + ["test"] * 5


def test_clotho_at_a_wrong_root_says_what_is_missing(tmp_path):
    root = write_clotho(tmp_path)
    shutil.rmtree(root / "validation")
    expected = r"no validation or clotho_audio_validation/validation or .*; expected captions and recordings of all "
    with pytest.raises(FileNotFoundError, match=expected + r".*; splits=\[development,evaluation\] are there"):
        prepare_clotho(ClothoConfig(root=str(root), out=str(tmp_path / "m")))
    (root / "clotho_captions_evaluation.csv").write_text("file_name,caption_1\nd.wav,x\n")
    with pytest.raises(ValueError, match=r"clotho_captions_evaluation\.csv: no column 'caption_2'"):
        list(read_clotho(ClothoConfig(root=str(root), out="m", splits=["evaluation"])))


@pytest.mark.weights
def test_real_clotho_recordings_become_a_manifest(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "evaluation").symlink_to(DATA / "clotho" / "evaluation")
    shutil.copy(DATA / "clotho" / "clotho_captions.csv", tmp_path / "c" / "clotho_captions_evaluation.csv")
    config = ClothoConfig(root=str(tmp_path / "c"), out=str(tmp_path / "m"), splits=["evaluation"])
    report = prepare_clotho(config)
    assert (report.clips, report.examples, report.unreadable) == (4, 20, 0)
    assert report.hours * 60 == pytest.approx(1.7, abs=0.05)
    assert "A small dog with a flat face snoring and groaning" in [answer for _, _, answer in texts(tmp_path / "m")]


@pytest.mark.weights
def test_real_caption_files_are_read_whole(tmp_path):
    captions = DATA / "captions"
    shutil.copy(captions / "audiocaps_train.csv", tmp_path / "train.csv")
    shutil.copy(captions / "musiccaps_train.csv", tmp_path / "musiccaps-public.csv")
    entries = list(read_audiocaps(AudioCapsConfig(root=str(tmp_path), out="m", splits=["train"])))
    assert len(entries) == 49_838 and entries[0].answer == "A woman talks nearby as water pours"
    music = list(read_musiccaps(MusicCapsConfig(root=str(tmp_path), out="m")))
    assert len(music) == 2_663 and any(e.answer.startswith("This song features ") for e in music)


MUSICCAPS = (
    "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval"
)


def write_musiccaps(root, seconds=12.0):
    rows = [
        ["-0SdAVK79lg", "30", "40", "/m/0155w", "['guitar song', 'bass']", 'A "guitar",\nslow.', "1", "False", "False"],
        ["0i8u9k", "1", "11", "/m/0l14", "['harp']", "A harp.", "3", "True", "True"],
        ["gone", "5", "15", "", "[]", "Nothing.", "3", "False", "True"],
    ]
    write_csv(root / "musiccaps-public.csv", MUSICCAPS.split(","), *rows)
    for row in rows[:2]:
        write_sound(root / "audio" / f"{row[0]}.wav", seconds)
    return root


def test_musiccaps_reads_cut_recordings_and_whole_videos(tmp_path):
    root = write_musiccaps(tmp_path)
    report = prepare_musiccaps(MusicCapsConfig(root=str(root), out=str(tmp_path / "m")))
    assert (report.clips, report.examples, report.skipped) == (2, 2, {"not there": 1})
    assert texts(tmp_path / "m") == [
        ("train", "music_caption", 'A "guitar",\nslow.'),
        ("test", "music_caption", "A harp."),
    ]
    whole = list(read_musiccaps(MusicCapsConfig(root=str(root), out="m", whole_videos=True)))
    assert [e.segments for e in whole[:2]] == [
        (Segment("audio/-0SdAVK79lg.wav", 30, 10),),
        (Segment("audio/0i8u9k.wav", 1, 10),),
    ]


def test_musiccaps_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no musiccaps-public\.csv"):
        prepare_musiccaps(MusicCapsConfig(root=str(tmp_path), out=str(tmp_path / "m")))
    root = write_musiccaps(tmp_path)
    config = MusicCapsConfig(root=str(root), out=str(tmp_path / "m"), recording="[{ytid}]-[{start_s}-{end_s}].wav")
    with pytest.raises(ValueError, match=r"none of the first .*\[-0SdAVK79lg\]-\[30-40\]\.wav: no such file"):
        prepare_musiccaps(config)
    text = (root / "musiccaps-public.csv").read_text().replace("0i8u9k,1,11", "0i8u9k,11,1")
    (root / "musiccaps-public.csv").write_text(text)
    with pytest.raises(ValueError, match=r"musiccaps-public\.csv:4: start_s '11' to end_s '1' is no span"):
        list(read_musiccaps(MusicCapsConfig(root=str(root), out="m", whole_videos=True)))
