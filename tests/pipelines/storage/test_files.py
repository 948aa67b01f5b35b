"""Covers pipelines.storage.uris."""

import os
import tarfile
import time
from pathlib import Path

import pytest

from encoders.sound.recordings import UnreadableError, split_member
from pipelines import storage


def test_written_file_appears_whole(tmp_path):
    uri = str(tmp_path / "deep" / "file.bin")
    storage.write_bytes(uri, b"abc")
    assert storage.read_bytes(uri) == b"abc"
    assert storage.list_names(str(tmp_path / "deep")) == ["file.bin"]


def test_exception_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    uri = str(tmp_path / "file.bin")
    storage.write_bytes(uri, b"old")
    with pytest.raises(RuntimeError, match="disk"), storage.staged_file(uri) as path:
        Path(path).write_bytes(b"ne")
        raise RuntimeError("disk")
    assert [file.name for file in tmp_path.iterdir()] == ["file.bin"]
    assert storage.read_bytes(uri) == b"old"


def test_unfinished_files_are_not_listed(tmp_path):
    (tmp_path / ".tmp-1-a.tar").write_bytes(b"x")
    (tmp_path / "a.tar").write_bytes(b"x")
    assert storage.list_names(str(tmp_path), ".tar") == ["a.tar"]
    assert storage.list_names(str(tmp_path / "absent")) == []


def test_what_killed_writers_left_is_removed_once_it_is_old(tmp_path):
    for name, age in [(".tmp-old-a.tar", 100), (".tmp-new-a.tar", 1), ("a.tar", 100)]:
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    storage.remove_stale(str(tmp_path), older_than_seconds=50)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".tmp-new-a.tar", "a.tar"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", ".."])
def test_no_name_leads_out_of_its_folder(name):
    with pytest.raises(ValueError, match="leads out of"):
        storage.join("/data", name)


def test_names_that_only_look_like_leading_out_are_names():
    assert storage.join("/data", "...dots.wav") == "/data/...dots.wav"


@pytest.mark.parametrize("use", [storage.resolve, lambda uri: storage.join(uri, "clips.parquet")])
def test_an_empty_path_is_not_the_root_of_the_disk(use):
    with pytest.raises(ValueError, match="empty path"):
        use("")


def test_names_in_uris_are_taken_literally(tmp_path):
    name = "sub dir/häßlich %20#ü.bin"
    storage.write_bytes(storage.join(f"file://{tmp_path}", name), b"1")
    assert (tmp_path / name).read_bytes() == b"1"


def test_keys_do_not_belong_in_a_uri():
    with pytest.raises(ValueError, match="keys belong in the environment"):
        storage.resolve("s3://key:secret@bucket/x")


def test_exclusive_write_refuses_what_is_there(tmp_path):
    storage.write_bytes(str(tmp_path / "x"), b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        storage.write_bytes(str(tmp_path / "x"), b"second", exclusive=True)
    assert storage.read_bytes(str(tmp_path / "x")) == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_paths_that_mean_the_same_are_written_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.full_path("a/../b/") == storage.full_path("b") == str(tmp_path / "b")
    assert storage.full_path("s3://bucket/b/?region=x") == "s3://bucket/b?region=x"
    assert storage.parent("s3://bucket/b/t.csv?region=x") == "s3://bucket/b?region=x"
    assert (storage.parent("t.csv"), storage.parent("/t.csv")) == (".", "/")


def test_query_stays_at_the_end():
    assert storage.join("s3://bucket/a?region=x", "b", "c.tar") == "s3://bucket/a/b/c.tar?region=x"
    assert storage.join("/a?b", "c") == "/a?b/c"


def test_relative_path_and_file_uri_are_the_same_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("x.bin", b"1")
    assert storage.read_bytes(f"file://{tmp_path}/x.bin") == b"1"


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.bin"):
        storage.read_bytes(str(tmp_path / "absent.bin"))
    with pytest.raises(ValueError, match="gopher"):
        storage.resolve("gopher://x/y")


def test_same_table_gives_the_same_bytes(tmp_path):
    import pyarrow as pa

    for name in ("a", "b"):
        storage.write_table(str(tmp_path / name), pa.table({"x": list(range(1000))}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_member_of_a_tar_is_opened_by_path_and_by_uri(tmp_path, scheme):
    (tmp_path / "x").write_bytes(b"data")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "x", "deep/x")
    uri = storage.join(f"{scheme}{tmp_path}", "a.tar!deep/x")
    with storage.open_file(uri) as file:
        assert (file.read(1), file.seek(2), file.read()) == (b"d", 2, b"ta")
    with pytest.raises(UnreadableError, match=r"a\.tar!none: no such member"):
        storage.open_file(f"{scheme}{tmp_path}/a.tar!none")
    with pytest.raises(FileNotFoundError, match=r"b\.tar!x: no such file"):
        storage.open_file(f"{scheme}{tmp_path}/b.tar!x")


def test_member_in_an_object_store_is_named_before_the_query():
    uri = storage.join("s3://bucket/corpus?endpoint_override=127.0.0.1:9", "tars/a.tar!x/y.flac")
    assert uri == "s3://bucket/corpus/tars/a.tar!x/y.flac?endpoint_override=127.0.0.1:9"
    assert split_member(uri) == ("s3://bucket/corpus/tars/a.tar?endpoint_override=127.0.0.1:9", "x/y.flac")


def test_pipes_are_refused_before_anyone_waits_for_them(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableError, match="a pipe or a device"):
        storage.open_file(str(tmp_path / "pipe"))


@pytest.mark.parametrize("nbytes", [0, 1, 5, 15, 16, 17, 47, 48, 49, 1000])
def test_samples_are_first_middle_and_last_bytes(tmp_path, nbytes):
    content = bytes(number % 251 for number in range(nbytes))
    (tmp_path / "x").write_bytes(content)
    found, blocks = storage.read_samples(str(tmp_path / "x"), 16)
    starts = storage.sample_starts(nbytes, 16)
    assert found == nbytes and blocks == [content[start : start + 16] for start in starts]
    assert (starts[0] == 0 and b"".join(blocks)[-16:] == content[-16:]) or nbytes < 16


def test_only_plain_files_are_sampled(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert [storage.read_samples(str(tmp_path / name), 16) for name in ("pipe", "absent", ".", "pipe/x")] == [None] * 4
