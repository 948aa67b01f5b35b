"""Covers pipelines.storage.snapshots, pipelines.storage.arrays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import storage

TABLE = pa.table({"number": list(range(1000)), "text": [f"text {number}" for number in range(1000)]})
MAKER = """
import os, sys, time
import pyarrow as pa
from pipelines import storage
rows, seconds = int(sys.argv[1]), float(sys.argv[2])
def make(before):
    with open(os.environ["LOG"], "a") as log:
        log.write(f"made {rows}\\n")
    time.sleep(seconds)
    return pa.table({"number": list(range(rows))})
table = storage.snapshot("numbers", f"key{rows}", make)
assert table["number"].to_pylist() == list(range(rows))
print(table.num_rows)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SALMONN_SNAPSHOTS", str(tmp_path / "own"))
    return tmp_path / "own"


def never(before: pa.Table | None) -> pa.Table:
    raise AssertionError("made again")


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.arrow"))


def test_a_table_is_made_once_and_mapped_afterwards(folder):
    assert storage.snapshot("words", "one", lambda before: TABLE).equals(TABLE)
    mapped_before = pa.total_allocated_bytes()
    found = storage.snapshot("words", "one", never)
    assert found.equals(TABLE) and found["number"].num_chunks == 1
    assert pa.total_allocated_bytes() - mapped_before < TABLE.nbytes / 10
    assert oct(folder.stat().st_mode)[-3:] == "700"


def test_another_key_is_given_the_table_before_and_takes_its_place(folder):
    first = storage.snapshot("words", "one", lambda before: TABLE)
    storage.snapshot("others", "one", lambda before: TABLE)

    def grown(before: pa.Table | None) -> pa.Table:
        assert before is not None and before.equals(TABLE)
        return pa.concat_tables([before, before])

    assert storage.snapshot("words", "two", grown).num_rows == 2000
    assert [path.name.rsplit(".", 2)[0] for path in files(folder)] == ["others.one", "words.two"]
    assert first.equals(TABLE)  # whoever has it mapped keeps it


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other bytes"])
def test_a_damaged_copy_is_made_again(folder, damage):
    storage.snapshot("words", "one", lambda before: TABLE)
    (path,) = files(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    content = {"flip": bytes(data), "truncate": bytes(data[: len(data) // 2]), "empty": b"", "other bytes": b"x" * 999}
    path.unlink()
    path.write_bytes(content[damage])
    made = []
    assert storage.snapshot("words", "one", lambda before: made.append(before) or TABLE).equals(TABLE)
    assert made == [None]
    assert storage.snapshot("words", "one", never).equals(TABLE)


def test_each_byte_that_changes_is_noticed(folder):
    small = pa.table({"number": [1, 2, 3]})
    storage.snapshot("words", "one", lambda before: small)
    (path,) = files(folder)
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert storage.snapshot("words", "one", lambda before: small).equals(small)
        assert path.read_bytes() == data


def test_where_nothing_can_be_kept_the_table_is_there_all_the_same(tmp_path, monkeypatch, caplog):
    common = tmp_path / "common"
    common.mkdir()
    common.chmod(0o777)
    monkeypatch.setenv("SALMONN_SNAPSHOTS", str(common))
    assert storage.snapshot("words", "one", lambda before: TABLE).equals(TABLE)
    assert "common: others may write there" in caplog.text and not files(common)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SALMONN_SNAPSHOTS", str(tmp_path / "file"))
    assert storage.snapshot("words", "one", lambda before: TABLE).equals(TABLE)


def test_without_a_home_the_folder_for_temporary_files_serves(tmp_path, monkeypatch):
    monkeypatch.delenv("SALMONN_SNAPSHOTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage.snapshot("words", "one", lambda before: TABLE)
    assert files(tmp_path / "cache" / "salmonn")
    (tmp_path / "none").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    storage.snapshot("words", "one", lambda before: TABLE)
    assert files(tmp_path / f"salmonn-{os.getuid()}")


def start(rows: int, seconds: float, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(rows), str(seconds)]
    return subprocess.Popen(command, env={**os.environ, "LOG": str(log)}, stdout=subprocess.PIPE, text=True)


def test_of_processes_that_begin_together_one_makes_it(folder, tmp_path):
    log = tmp_path / "log"
    processes = [start(50, 0.5, log) for _ in range(4)]
    assert [process.communicate()[0] for process in processes] == ["50\n"] * 4
    assert log.read_text() == "made 50\n"


def test_a_process_that_dies_while_it_makes_one_leaves_nothing_behind(folder, tmp_path):
    log = tmp_path / "log"
    dying = start(50, 60, log)
    while not log.exists():
        time.sleep(0.05)
    waiting = start(50, 0, log)
    time.sleep(0.5)
    dying.send_signal(signal.SIGKILL)
    dying.communicate()
    assert waiting.communicate(timeout=60)[0] == "50\n"
    assert log.read_text() == "made 50\n" * 2


def test_a_full_disk_costs_the_copy_only(folder, tmp_path):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n" + MAKER
    done = subprocess.run(
        [sys.executable, "-c", limited, "5000", "0"],
        env={**os.environ, "LOG": str(tmp_path / "log")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "5000\n" and "no snapshot of numbers is kept" in done.stderr
    assert not files(folder) and not list(folder.glob(".tmp-*"))


def test_what_nobody_opened_for_a_month_is_removed(folder):
    storage.snapshot("old", "one", lambda before: TABLE)
    (path,) = files(folder)
    os.utime(path, (0, time.time() - 31 * 24 * 3600))
    storage.snapshot("words", "one", lambda before: TABLE)
    assert [path.name.split(".")[0] for path in files(folder)] == ["words"]
