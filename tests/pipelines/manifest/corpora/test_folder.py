import pytest

from pipelines.cli import main
from pipelines.manifest.tables import read_examples
from tests.pipelines.manifest.corpora.builders import recordings, texts, write_sound


@pytest.fixture
def sounds(tmp_path):
    for name in ("train/dog/1.wav", "train/dog/2.WAV", "test/rain/a.b.flac", "test/rain/.hidden.wav", ".git/x.wav"):
        write_sound(tmp_path / "sounds" / name)
    (tmp_path / "sounds" / "train" / "notes.txt").write_text("no sound")
    return tmp_path / "sounds"


def test_folders_names_are_the_answers(sounds, tmp_path):
    assert main(["prepare", "folder", f"root={sounds}", f"out={tmp_path}/m", "split={top}"]) == 0
    assert recordings(tmp_path / "m") == ["test/rain/a.b.flac", "train/dog/1.wav", "train/dog/2.WAV"]
    assert texts(tmp_path / "m") == [
        ("test", "audiocaption", "rain"),
        ("train", "audiocaption", "dog"),
        ("train", "audiocaption", "dog"),
    ]


def test_a_question_and_names_of_ones_own(sounds, tmp_path):
    words = [f"root={sounds}/test", f"out={tmp_path}/m", "task=which", "question=Which one?", "answer=it is {name}"]
    assert main(["prepare", "folder", *words]) == 0
    (example,) = read_examples(str(tmp_path / "m"))
    assert (example.question, example.answer, example.task) == ("Which one?", "it is a.b", "which")


def test_one_text_answers_all_that_lie_in_no_folder(sounds, tmp_path):
    assert main(["prepare", "folder", f"root={sounds}/train/dog", f"out={tmp_path}/m", "answer=a dog"]) == 0
    assert texts(tmp_path / "m") == [("train", "audiocaption", "a dog")] * 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["root=absent"], "root=absent: no such folder"),
        (["root={sounds}/.git/none"], "no such folder"),
        (["root={sounds}/train/dog"], "1.wav: lies in no folder below root, so answer={folder} is empty"),
        (["answer={dog}"], "answer={dog}: not a template of {folder}, {top}, {name}"),
        (["split={top"], "split={top: not a template"),
        (["task=unheard"], "task=unheard: "),
    ],
)
def test_wrong_keys_give_one_line(sounds, tmp_path, keys, message, capsys):
    words = [f"root={sounds}", f"out={tmp_path}/m", *(key.replace("{sounds}", str(sounds)) for key in keys)]
    assert main(["prepare", "folder", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_a_folder_without_recordings_is_refused(sounds, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["prepare", "folder", f"root={tmp_path}/empty", f"out={tmp_path}/m"]) == 2
    assert "no recording below it (.wav, .flac, .ogg" in capsys.readouterr().err
