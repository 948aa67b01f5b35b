import pytest
import soundfile

from pipelines.cli import main
from pipelines.manifest.corpora.librimix import LibriMixConfig, prepare_librimix
from pipelines.manifest.tables import read_clips, read_examples
from tests.toy import tone

HERE = "/home/someone/LibriMix/Libri2Mix"
TEXTS = {"4077/13754/4077-13754-0001": "ONE WAS LOUD", "5142/33396/5142-33396-0065": "THE OTHER WAS NOT SO LOUD"}
MIXTURE = "4077-13754-0001_5142-33396-0065"
HEADER = {
    "mix_clean": "mixture_ID,mixture_path,source_1_path,source_2_path,length",
    "mix_both": "mixture_ID,original_mixture_ID,mixture_path,source_1_path,source_2_path,noise_path,length",
}


def write_librispeech(root):
    for utterance, text in TEXTS.items():
        folder, _, name = utterance.rpartition("/")
        path = root / "test-clean" / folder
        path.mkdir(parents=True)
        (path / f"{name.rpartition('-')[0]}.trans.txt").write_text(f"{name} {text}\n")
    return root


def write_libri2mix(root, rate="16k"):
    hertz = int(rate[:-1]) * 1000
    folder = root / f"wav{rate}/max"
    (folder / "metadata").mkdir(parents=True)
    for mixture, header in HEADER.items():
        place = f"{HERE}/wav{rate}/max/test"
        cells = {"mixture_ID": MIXTURE, "original_mixture_ID": MIXTURE, "length": str(2 * hertz)}
        cells["mixture_path"] = f"{place}/{mixture}/{MIXTURE}.wav"
        row = [cells.get(column, f"{place}/s1/{MIXTURE}.wav") for column in header.split(",")]
        (folder / f"metadata/mixture_test_{mixture}.csv").write_text(f"{header}\n{','.join(row)}\n")
        (folder / f"metadata/metrics_test_{mixture}.csv").write_text("mixture_ID,source_1_SNR,source_2_SNR\n")
        (folder / "test" / mixture).mkdir(parents=True)
        soundfile.write(folder / "test" / mixture / f"{MIXTURE}.wav", tone(2.0)[:: 16_000 // hertz], hertz)
    return root


@pytest.mark.parametrize("keys", [{}, {"mixture": "mix_both"}, {"rate": "8k"}])
def test_a_mixture_is_answered_with_both_transcripts_the_longer_first(tmp_path, keys):
    mixes = write_libri2mix(tmp_path / "Libri2Mix", keys.get("rate", "16k"))
    speech = write_librispeech(tmp_path / "LibriSpeech")
    config = LibriMixConfig(root=str(mixes), librispeech=str(speech), subsets=["test"], out=str(tmp_path / "m"), **keys)
    report = prepare_librimix(config)
    assert (report.clips, report.examples, report.hours) == (1, 1, 2.0 / 3600)
    (example,) = read_examples(str(tmp_path / "m"))
    assert (example.split, example.task) == ("test", "overlapped_speech_recognition")
    assert example.answer == "the other was not so loud\none was loud"
    (clip,) = read_clips(str(tmp_path / "m"))
    folder = f"wav{config.rate}/max/test/{config.mixture}"
    assert clip.recordings == [f"{folder}/{MIXTURE}.wav"] and (mixes / clip.recordings[0]).is_file()
    assert clip.segments[0].duration_seconds == 2.0


def test_what_is_wrong_is_named(tmp_path, capsys):
    mixes = write_libri2mix(tmp_path / "Libri2Mix")
    speech = write_librispeech(tmp_path / "LibriSpeech")
    words = ["prepare", "librimix", f"root={mixes}", f"librispeech={speech}", f"out={tmp_path}/m", "subsets=test"]

    def error(*changed):
        assert main([*words, *changed]) == 2
        return capsys.readouterr().err

    assert "no wav16k/max/metadata/mixture_dev_mix_clean.csv; expected the folder Libri2Mix" in error("subsets=dev")
    assert "'train-500' is not in Libri2Mix; choose from train-360" in error("subsets=train-500")
    assert "librispeech=" in error(f"librispeech={tmp_path}/absent")
    table = mixes / "wav16k/max/metadata/mixture_test_mix_clean.csv"
    row = table.read_text()
    table.write_text(row.replace("32000", "0"))
    assert "mixture_test_mix_clean.csv:2: length '0' must be a number of samples" in error()
    table.write_text(row.replace("5142-33396-0065", "5142-33396-0066"))
    assert "clean.csv:2: no transcript of '5142-33396-0066' below" in error()
