import pytest

from pipelines.cli import main
from pipelines.manifest.corpora.covost import CovostConfig, prepare_covost, read_covost
from pipelines.manifest.corpus import Skipped
from pipelines.manifest.tables import read_clips, read_examples
from tests.toy import write_tones

HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent"
CLIPS = [f"common_voice_en_{number}.mp3" for number in (17245831, 99, 4)]


def write_covost(root):
    (root / "clips").mkdir(parents=True)
    sentences = ['He said "no" and left.', '"Tis here.', "Two\\\tcells?"]
    rows = [f"ab12\t{clip}\t{text}\t2\t0\ttwenties\tmale\tus" for clip, text in zip(CLIPS, sentences, strict=True)]
    (root / "validated.tsv").write_text(
        "\n".join([HEADER, *rows, "ff\tcommon_voice_en_1.mp3\tNot translated.\t2\t0\t\t\t"])
    )
    write_tsv(root / "covost_v2.en_zh-CN.tsv", ["他说“不”，然后走了。", "它在这里。", ""])
    write_tsv(root / "covost_v2.en_de.tsv", ['Er sagte "nein" und ging.', "Es ist hier.", "Zwei Zellen?"])
    (root / "covost_v2.en_de.train.tsv").write_text("path\tsentence\ttranslation\tclient_id\n")
    return root


def write_tsv(path, translations):
    splits = ["train", "dev", "test"]
    rows = [f"{clip}\t{text}\t{split}" for clip, text, split in zip(CLIPS, translations, splits, strict=True)]
    path.write_text("\n".join(["path\ttranslation\tsplit", *rows, f"{CLIPS[0]}\tx\tdev_covost"]) + "\n")


def read(root, *tasks):
    entries = read_covost(CovostConfig(root=str(root), out="unused", tasks=list(tasks)))
    return [(e.split, e.task, e.answer) for e in entries if not isinstance(e, Skipped)]


def test_translations_and_sentences_of_a_clip_share_it(tmp_path):
    root = write_covost(tmp_path / "en")
    for clip, tone in zip(CLIPS, write_tones(root / "clips", [1.0, 1.5, 2.0]), strict=True):
        (root / "clips" / tone).rename(root / "clips" / clip)  # what a recording holds is found by its contents
    config = CovostConfig(root=str(root), out=str(tmp_path / "m"), tasks=["en2zh", "en2de", "asr"])
    report = prepare_covost(config)
    assert (report.clips, report.examples, report.unreadable) == (3, 8, 0)
    assert dict(report.skipped) == {"no text for en2zh": 1}
    assert [clip.recordings for clip in read_clips(str(tmp_path / "m"))] == [[f"clips/{clip}"] for clip in CLIPS]
    assert [(e.split, e.task, e.answer) for e in read_examples(str(tmp_path / "m"))] == [
        ("train", "en2zh", "他说“不”，然后走了。"),
        ("dev", "en2zh", "它在这里。"),
        ("train", "en2de", 'Er sagte "nein" und ging.'),
        ("dev", "en2de", "Es ist hier."),
        ("test", "en2de", "Zwei Zellen?"),
        ("train", "asr", 'He said "no" and left.'),
        ("dev", "asr", '"Tis here.'),
        ("test", "asr", "Two\tcells?"),
    ]


def test_sentences_alone_need_any_translations_for_their_splits(tmp_path):
    root = write_covost(tmp_path)
    assert [split for split, _, _ in read(root, "asr")] == ["train", "dev", "test"]
    for file in root.glob("covost_v2.en_*-CN.tsv"):
        file.unlink()
    (root / "covost_v2.en_de.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="no covost_v2"):
        read(root, "asr")


def test_rows_of_splits_that_the_corpus_does_not_use_are_left_out(tmp_path):
    root = write_covost(tmp_path)
    write_tsv(root / "covost_v2.en_ja.tsv", ["彼は「いいえ」と言った。", "ここです。", "二つのセル？"])
    text = (root / "covost_v2.en_ja.tsv").read_text()
    (root / "covost_v2.en_ja.tsv").write_text(text.replace("\tdev\n", "\ttrain_covost\n"))
    assert [split for split, _, _ in read(root, "en2ja")] == ["train", "train", "test"]


@pytest.mark.parametrize(
    ("file", "content", "keys", "message"),
    [
        ("validated.tsv", None, [], "no validated.tsv; expected the folder en of Common Voice 4"),
        ("covost_v2.en_zh-CN.tsv", None, [], "covost_v2.en_zh-CN.tsv: no such file"),
        ("covost_v2.en_zh-CN.tsv", "path\ttext\n", [], "no column 'translation'; found 'path', 'text'"),
        ("covost_v2.en_zh-CN.tsv", "", [], "no column 'path'; found nothing"),
        ("covost_v2.en_zh-CN.tsv", "path\ttranslation\tsplit\na.mp3\tx\n", [], "zh-CN.tsv:2: does not have 3 cells"),
        ("covost_v2.en_zh-CN.tsv", "path\ttranslation\tsplit\na\tb\tc\td\n", [], "zh-CN.tsv:2: does not have 3 cells"),
        ("covost_v2.en_zh-CN.tsv", b"path\ttranslation\tsplit\na.mp3\t\xff\ttest\n", [], "zh-CN.tsv: not UTF-8"),
        ("x", "", ["tasks=en2fr"], "'en2fr' cannot be made from CoVoST"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, capsys, file, content, keys, message):
    root = write_covost(tmp_path / "en")
    if content is None:
        (root / file).unlink()
    else:
        (root / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["prepare", "covost", f"root={root}", f"out={tmp_path}/m", *keys]) == 2
    assert message in capsys.readouterr().err
