import pytest
import soundfile
import torch

from encoders.audio import CLIP_SAMPLES, JOIN_SILENCE_SAMPLES
from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.cli import main
from pipelines.manifest.corpora.voxceleb import VoxCelebConfig, prepare_voxceleb, read_voxceleb
from pipelines.manifest.tables import read_clips, read_examples
from tests.toy import tone

TRIALS = """\
1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav
0 id10270/x6uYqmx31kE/00001.wav id10300/ize_eiCFEg0/00003.wav
1 id10300/ize_eiCFEg0/00003.wav id10300/absent/00001.wav
"""
TEST = ["id10270/x6uYqmx31kE/00001.wav", "id10270/8jEAjG6SegY/00008.wav", "id10300/ize_eiCFEg0/00003.wav"]
TRAIN = [f"id1000{speaker}/video{video}/0000{n}.wav" for speaker in (1, 2, 3) for video in "ab" for n in (1, 2)]


def write_voxceleb(root, *, dev="wav", test="wav", seconds=1.0):
    for folder, recordings in ((dev, TRAIN), (test, TEST)):
        for number, recording in enumerate(recordings):
            path = root / folder / recording
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, tone(seconds + number / 10, seed=number), 16_000)
    (root / "veri_test2.txt").write_text(TRIALS)
    return root


def read(root, **keys):
    config = VoxCelebConfig(root=str(root), out="unused", **{"train_pairs": 40, **keys})
    return [(e.split, e.answer, [s.recording for s in e.segments]) for e in read_voxceleb(config)]


def test_trials_become_clips_of_two_recordings(tmp_path):
    root = write_voxceleb(tmp_path / "vox1", dev="dev/wav", test="test/wav")
    config = VoxCelebConfig(root=str(root), out=str(tmp_path / "m"), train_pairs=0, missing="keep")
    report = prepare_voxceleb(config)
    assert (report.clips, report.examples, report.unreadable) == (3, 3, 0)
    examples = list(read_examples(str(tmp_path / "m")))
    assert [(e.split, e.task, e.answer) for e in examples] == [
        ("test", "speaker_verification", answer) for answer in ("yes", "no", "yes")
    ]
    clips = list(read_clips(str(tmp_path / "m")))
    assert clips[0].recordings == [f"test/wav/{name}" for name in TEST[:2]]
    assert [clip.seconds for clip in clips] == [pytest.approx(1.0 + 0.1 + 1.1), pytest.approx(1.0 + 0.1 + 1.2), None]


def test_of_two_long_recordings_the_first_half_clips_are_heard(tmp_path):
    root = write_voxceleb(tmp_path, seconds=20.0)
    clip = next(read_voxceleb(VoxCelebConfig(root=str(root), out="unused", train_pairs=0)))
    assert [segment.duration_seconds for segment in clip.segments] == [14.95, 14.95]
    located = [
        type(s)(storage.join(str(root), s.recording), s.start_seconds, s.duration_seconds) for s in clip.segments
    ]
    wave = load_clip(located)
    half = (CLIP_SAMPLES - JOIN_SILENCE_SAMPLES) // 2
    assert len(wave) == CLIP_SAMPLES
    assert torch.equal(wave[:half], load_clip(located[:1])) and torch.equal(wave[-half:], load_clip(located[1:]))


def test_training_pairs_are_drawn_from_speakers_that_no_trial_names(tmp_path):
    root = write_voxceleb(tmp_path)
    pairs = [(answer, *names) for split, answer, names in read(root) if split == "train"]
    assert [answer for answer, _, _ in pairs] == ["yes", "no"] * 20
    assert {name.removeprefix("wav/") for _, *names in pairs for name in names} == set(TRAIN)
    for answer, first, second in pairs:
        assert (first.split("/")[1] == second.split("/")[1]) == (answer == "yes")
        assert first.split("/")[1:3] != second.split("/")[1:3]  # of another video, even where the speaker is the same


def test_a_speaker_of_one_video_is_compared_with_others_only(tmp_path):
    root = write_voxceleb(tmp_path)
    (root / "wav/id10003/videob").rename(tmp_path / "elsewhere")
    pairs = [(answer, *names) for _, answer, names in read(root)[:40]]
    assert {answer for answer, *names in pairs if "id10003" in "".join(names)} == {"no"}


def test_training_pairs_depend_on_the_seed_alone(tmp_path):
    root = write_voxceleb(tmp_path)
    assert read(root) == read(root)
    assert read(root, train_pairs=10)[:10] == read(root)[:10]
    assert read(root, seed=1) != read(root)
    assert read(root, train_pairs=2)[:2] == [
        ("train", "yes", ["wav/id10003/videob/00001.wav", "wav/id10003/videoa/00002.wav"]),
        ("train", "no", ["wav/id10002/videoa/00002.wav", "wav/id10003/videoa/00002.wav"]),
    ]


def test_what_is_wrong_is_named(tmp_path, capsys):
    root = write_voxceleb(tmp_path / "vox1")

    def error(*keys, at=root):
        assert main(["prepare", "voxceleb", f"root={at}", f"out={tmp_path}/m", *keys]) == 2
        return capsys.readouterr().err

    assert "no veri_test2.txt; expected the folder that holds the recordings" in error(at=root / "wav")
    assert "no veri_test.txt; expected" in error("trials=veri_test.txt")
    assert "train_pairs=-1: must be 0 or more" in error("train_pairs=-1")
    (root / "most.txt").write_text(TRIALS + f"0 {TRAIN[0]} {TRAIN[4]}\n")
    assert "1 speakers that most.txt does not name, 1 of them in two videos" in error("trials=most.txt")
    (root / "veri_test2.txt").write_text(TRIALS + "1 Eartha_Kitt/x6uYqmx31kE_0000001.wav\n")
    assert "veri_test2.txt:4: '1 Eartha_Kitt" in error()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/veri_test2.txt").write_text(TRIALS)
    assert "no speaker's folder id…, looked in wav/, dev/wav/, test/wav/, vox1_dev_wav/wav/" in error(
        at=tmp_path / "bare"
    )
