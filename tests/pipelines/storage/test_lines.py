import math

import pytest

from pipelines import storage
from pipelines.errors import UserError
from tests.s3_server import s3_server


def test_a_line_is_there_as_soon_as_it_is_written_and_a_half_one_waits(tmp_path):
    uri = str(tmp_path / "log" / "a.jsonl")
    tail = storage.LineTail(uri)
    assert tail.read() == []
    file = storage.LineFile(uri, [{"step": 1}])
    assert tail.read() == [{"step": 1}]
    file.append({"step": 2, "loss": math.inf, "parts": {"a": math.nan}})
    assert tail.read() == [{"step": 2, "loss": None, "parts": {"a": None}}] and tail.read() == []
    with (tmp_path / "log" / "a.jsonl").open("a") as other:
        other.write('{"step": 3')
        other.flush()
        assert tail.read() == []
        other.write("}\n")
    assert tail.read() == [{"step": 3}]
    file.close()
    storage.LineFile(uri, [{"step": 1}]).close()
    assert tail.read() == [{"step": 1}]


def test_a_damaged_line_is_named_with_its_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"st\n')
    with pytest.raises(UserError, match=r"a\.jsonl: damaged, not a JSON object a line"):
        storage.LineTail(str(tmp_path / "a.jsonl")).read()


def test_an_upload_that_fails_costs_no_line_and_ends_nothing(monkeypatch, caplog):
    with s3_server("bucket") as server:
        uri = server.uri("bucket/log.jsonl")
        file, tail = storage.LineFile(uri), storage.LineTail(uri)
        monkeypatch.setattr("pipelines.storage.lines.UPLOAD_SECONDS", 0.0)
        with monkeypatch.context() as broken:
            broken.setattr("pipelines.storage.lines.write_bytes", refuse)
            file.append({"unit": 1})
            with pytest.raises(OSError, match="refused"):
                file.flush()
        assert "log.jsonl" in caplog.text and "not uploaded (refused)" in caplog.text
        assert tail.read() == []
        file.append({"unit": 2})
        assert tail.read() == [{"unit": 1}, {"unit": 2}]
        file.close()


def refuse(*_: object) -> None:
    raise OSError("refused")
