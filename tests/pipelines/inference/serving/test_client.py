import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import soundfile

from pipelines.cli import main
from tests.pipelines.inference.serving.builders import Server
from tests.toy import tone

SHORT = ["max_new_tokens=20", "json=true"]


@pytest.fixture(autouse=True)
def known(server: Server, monkeypatch) -> None:
    monkeypatch.setenv("SALMONN_TOKEN", server.token)


def test_a_server_answers_as_this_machine_does(server, unbroken, recordings, tmp_path, capsys):
    for path in recordings[:3]:
        shutil.copy(path, tmp_path)
    (tmp_path / "z.wav").write_text("no sound")
    soundfile.write(tmp_path / "zz.wav", tone(50.0), 44_100)
    words = ["ask", f"run={unbroken}", f"audio={tmp_path}", "question=Is it high or low?", *SHORT]
    assert main([*words, f"address={server.address}"]) == 1  # the fifth is larger than the server takes
    from_server = capsys.readouterr()
    assert main([*words, "threads=1"]) == 1
    here = capsys.readouterr()
    there = [json.loads(line) for line in from_server.out.splitlines()]
    assert there[:3] == [json.loads(line) for line in here.out.splitlines()][:3]
    assert set(there[3]) == set(there[4]) == {"recording", "question", "error"} and "2 MB" in there[4]["error"]
    assert "salmonn: 2 of 5 recordings cannot be heard" in from_server.err


def test_a_server_that_hears_a_part_says_so(server, tmp_path, capsys, recordings):
    words = ["ask", "run=other", f"audio={recordings[5]}", "question=Who?", f"address={server.address}/"]
    assert main([*words, "max_new_tokens=2"]) == 0
    error = capsys.readouterr().err
    assert "note: " in error and "heard are the first 2 s of 2.5 s" in error and "the answer is cut" in error


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["run=nobody"], "model nobody: there are unbroken, other"),
        (["num_beams=2"], "num_beams=2: the server at http://127.0.0.1:"),
        (["lora_scaling=0.5"], "lora_scaling=0.5: the server at http://127.0.0.1:"),
        (["max_new_tokens=41"], "max_completion_tokens=41: must be 40 or fewer"),
        (["address=here"], "address=here: must be http://host:port"),
        (["address=http://127.0.0.1:1"], "no server of `salmonn serve` answers"),
        (["audio=README.md"], "README.md: audio 1: "),
    ],
)
def test_asking_a_server_wrongly_gives_one_line_and_exit_code_2(server, recordings, keys, message, capsys):
    words = ["ask", "run=unbroken", f"audio={recordings[0]}", "question=Who?", f"address={server.address}"]
    assert main([*words, "max_new_tokens=2", *keys]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_a_wrong_token_is_one_line(server, recordings, monkeypatch, capsys):
    monkeypatch.setenv("SALMONN_TOKEN", "wrong")
    assert main(["ask", "run=other", f"audio={recordings[0]}", "question=Who?", f"address={server.address}"]) == 2
    assert "the token is missing or wrong; SALMONN_TOKEN must be the server's token" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "code"), [(500, 1), (503, 1), (200, 2)])
def test_a_server_that_fails_and_one_of_another_kind_are_told_apart(recordings, status, code, capsys):
    class Failing(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Failing) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{other.server_port}"
        assert main(["ask", "run=r", f"audio={recordings[0]}", "question=Who?", f"address={address}"]) == code
        other.shutdown()
    assert capsys.readouterr().err.startswith(f"salmonn: address={address}: ")
