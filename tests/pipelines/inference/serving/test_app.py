"""Covers pipelines.inference.serving.bodies, pipelines.inference.serving.refusal, pipelines.inference.serving.measures,
pipelines.inference.serving.config.
"""

import io
import json
import re
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import openai
import pytest
import soundfile

from llm.prompts import PROMPTS
from pipelines.cli import main
from pipelines.errors import UserError
from pipelines.inference.serving.config import ServeConfig, names_of
from tests.pipelines.inference.serving.builders import about, counted, sound_part, wait_until
from tests.toy import RATE_HZ, tone

QUESTIONS = ("What can be heard?", "Is it high or low?")


def text_of(response) -> str:
    return response.choices[0].message.content


def pieces_of(stream) -> list[str]:
    return [chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content]


def test_many_clients_of_two_runs_get_whole_and_streamed_what_each_question_gets_alone(server, alone, recordings):
    asked = [(name, recording, question) for name in alone for recording in recordings[:4] for question in QUESTIONS]
    client = server.client()

    def whole(one):
        name, recording, question = one
        return text_of(client.chat.completions.create(model=name, messages=about([recording], question)))

    def streamed(one):
        name, recording, question = one
        return "".join(
            pieces_of(client.chat.completions.create(model=name, messages=about([recording], question), stream=True))
        )

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(whole, asked)), list(pool.map(streamed, asked))
    expected = [
        alone[name].answer(str(recording), question, max_new_tokens=40).text for name, recording, question in asked
    ]
    assert found == (expected, expected)
    assert len(set(expected)) > 6


def test_a_stream_comes_in_pieces_and_ends_with_what_it_took(server, recordings):
    stream = server.client().chat.completions.create(
        model="unbroken",
        messages=about([recordings[1]], "What can be heard?"),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(texts) > 1
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-2].model_extra["heard"] == {"heard_seconds": 1.3, "given_seconds": 1.3}
    assert chunks[-1].usage.completion_tokens > 1 and chunks[-1].usage.prompt_tokens > 20


def test_curl_gets_the_answer_too(server, alone, recordings, tmp_path):
    body = {"model": "unbroken", "messages": about([recordings[0]], "Who?")}
    (tmp_path / "body.json").write_text(json.dumps(body))
    header = ["-H", f"Authorization: Bearer {server.token}", "-H", "Content-Type: application/json"]
    url = f"{server.address}/v1/chat/completions"
    done = subprocess.run(
        ["curl", "-sS", *header, "--data", f"@{tmp_path}/body.json", url], capture_output=True, check=True
    )
    told = json.loads(done.stdout)
    expected = alone["unbroken"].answer(str(recordings[0]), "Who?", max_new_tokens=40)
    assert told["choices"][0]["message"]["content"] == expected.text
    assert told["usage"]["completion_tokens"] == expected.num_tokens


@pytest.mark.parametrize(("container", "subtype"), [("FLAC", None), ("OGG", "OPUS"), ("OGG", "VORBIS"), ("MP3", None)])
def test_other_containers_are_heard(server, container, subtype):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(2.0), RATE_HZ, format=container, subtype=subtype)
    part = sound_part(buffer.getvalue(), container.lower())
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "Who?"}]}]
    heard = server.client().chat.completions.create(model="other", messages=messages).model_extra["heard"]
    assert abs(heard["given_seconds"] - 2.0) < 0.1 and heard["heard_seconds"] == min(heard["given_seconds"], 2.0)


def test_several_sounds_are_heard_one_after_the_other_and_a_long_one_is_not_cut_in_silence(server, recordings):
    first, second = recordings[:2]
    response = server.client().chat.completions.create(model="other", messages=about([first, second], "Who?"))
    assert response.model_extra["heard"] == {"heard_seconds": 2.0, "given_seconds": 2.4}  # 1.0 + 0.1 + 1.3


def test_a_transcription_is_the_answer_to_the_first_question_of_its_task(server, alone, recordings):
    expected = alone["other"].answer(str(recordings[2]), PROMPTS["asr"][0], max_new_tokens=40).text
    transcriptions, sound = server.client().audio.transcriptions, recordings[2].read_bytes()
    for name in ("x.wav", "../../../etc/x.wav", "/tmp/x\x00.wav"):
        assert transcriptions.create(model="other", file=(name, sound)).text == expected
    assert transcriptions.create(model="other", file=("x", sound), response_format="text") == expected + "\n"
    stream = transcriptions.create(model="other", file=("x", sound), stream=True)
    assert "".join(event.delta for event in stream if event.type == "transcript.text.delta") == expected


def test_an_upload_is_never_on_disk(server, recordings, monkeypatch):
    from starlette import formparsers

    rolled = []
    spooled = formparsers.SpooledTemporaryFile
    monkeypatch.setattr(spooled, "rollover", rolled.append)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.tile(tone(2.0), 15), RATE_HZ, format="WAV", subtype="FLOAT")
    assert len(buffer.getvalue()) > formparsers.MultiPartParser.spool_max_size
    server.client().audio.transcriptions.create(model="other", file=("x", buffer.getvalue()))
    assert not rolled


@pytest.mark.parametrize(
    ("keys", "status", "code", "message"),
    [
        (
            {"extra_body": {"max_tokenz": 3}},
            400,
            "unknown_parameter",
            "max_tokenz: is not a key.*did you mean max_tokens",
        ),
        ({"model": "nobody"}, 404, "model_not_found", "model nobody: there are unbroken, other"),
        ({"temperature": 0.7}, 400, "invalid_value", r"temperature=0\.7"),
        ({"n": 2}, 400, "invalid_value", "^n: "),
        ({"max_completion_tokens": 0}, 400, "invalid_value", "^max_completion_tokens: "),
        ({"max_completion_tokens": 41}, 400, "invalid_value", "max_completion_tokens=41: must be 40 or fewer"),
        ({"messages": []}, 400, "invalid_value", "one message of the role user"),
        ({"messages": [{"role": "user", "content": "Who?"}]}, 400, "invalid_value", "input_audio are needed"),
        ({"messages": about([b"no sound"], "Who?")}, 400, "invalid_audio", "^audio 1: "),
        ({"messages": about([b"RIFF\x24\0\0\0WAVE"], "Who?")}, 400, "invalid_audio", "^audio 1: "),
        ({"messages": about([b"x"], " ")}, 400, "invalid_value", "type text is needed"),
        ({"messages": about([b"x" * 2_000_000], "Who?")}, 413, "too_large", "may be 2 MB"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            *(400, "invalid_value", "image_url"),
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_audio", "input_audio": {"data": "§§", "format": "wav"}},
                            {"type": "text", "text": "Who?"},
                        ],
                    }
                ]
            },
            *(400, "invalid_value", r"messages\.0\.content\.0\.input_audio\.data: not base64"),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            400,
            "missing_required_parameter",
            "is needed",
        ),
    ],
)
def test_what_is_wrong_is_named_in_the_apis_own_words_and_the_server_stays(
    server, recordings, keys, status, code, message
):
    client, rest = server.client(), {"model": "unbroken", "messages": about([recordings[0]], "Who?")}
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(**(rest | keys))
    assert raised.value.status_code == status and raised.value.code == code
    assert re.search(message, raised.value.body["message"]), raised.value.body
    assert text_of(client.chat.completions.create(**rest))


def test_a_question_longer_than_the_llm_and_a_sound_longer_than_is_taken_are_refused(server, recordings):
    client = server.client()
    for is_streamed in (False, True):
        with pytest.raises(openai.BadRequestError, match=r"the question is too long: .* positions of the LLM's 1024"):
            client.chat.completions.create(
                model="other", messages=about([recordings[0]], "Who? " * 2000), stream=is_streamed
            )
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(8000 * 61, np.float32), 8000, format="FLAC")
    with pytest.raises(openai.BadRequestError, match=r"the sound lasts 61\.0 s, more than the 60 s that are taken"):
        client.chat.completions.create(model="other", messages=about([buffer.getvalue()], "Who?"))


@pytest.mark.parametrize("token", ["", "wrong", "Ünicode"])
def test_without_the_token_only_the_page_and_the_health_are_seen(server, token):
    headers = {"Authorization": f"Bearer {token}".encode()} if token else {}
    for path in ("/v1/models", "/metrics", "/v1/examples", "/v1/models/unbroken"):
        assert status_of(server.address + path, headers) == 401
    for path in ("/", "/talk.js", "/healthz"):
        assert status_of(server.address + path, headers) == 200
    assert status_of(f"{server.address}/v1/nothing", server.headers) == 404
    assert status_of(f"{server.address}/v1/chat/completions", server.headers) == 405


@pytest.mark.parametrize(
    "path",
    ["/..%2f..%2fetc/passwd", "/%2e%2e/etc/passwd", "//etc/passwd", "/talk.js/..%2ftoken", "/v1/examples/..%2f..%2fx"],
)
def test_no_path_of_a_request_leads_to_a_file(server, path):
    assert status_of(server.address + path, server.headers) == 404


def status_of(url: str, headers) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
            return response.status
    except urllib.error.HTTPError as error:
        assert error.code in (401, 404, 405) and "message" in json.loads(error.read())["error"]
        return error.code


def test_a_form_is_refused_where_it_lacks_the_file_or_is_none(server):
    def post(content_type: str, body: bytes) -> str:
        request = urllib.request.Request(
            f"{server.address}/v1/audio/transcriptions", body, {**server.headers, "Content-Type": content_type}
        )
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(request)
        return f"{raised.value.code} {json.loads(raised.value.read())['error']['message']}"

    assert post("application/json", b"{}").startswith("415 ")
    assert post("multipart/form-data", b"").startswith("400 not a form")
    field = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nother\r\n--x--\r\n'
    assert post("multipart/form-data; boundary=x", field) == "400 file: is needed: one sound"


def test_what_is_counted_is_told_to_prometheus(server, recordings):
    before = counted(server.address, server.token)
    response = server.client().chat.completions.create(model="other", messages=about([recordings[0]], "Who?"))
    after = counted(server.address, server.token)

    def gained(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert gained('salmonn_requests_total{path="/v1/chat/completions",status="200"}') == 1
    assert gained("salmonn_answer_tokens_total") == response.usage.completion_tokens
    assert gained("salmonn_heard_seconds_total") == pytest.approx(1.0)  # a difference of sums over all tests
    assert gained("salmonn_first_token_seconds_count") == gained("salmonn_answer_seconds_count") == 1
    assert after["salmonn_waiting_questions"] == after["salmonn_running_questions"] == 0


def test_a_client_that_goes_away_stops_its_decoding(server, recordings, monkeypatch):
    dropped = []
    answering = server.app.engine._answering
    drop = answering.drop
    monkeypatch.setattr(answering, "drop", lambda number: (dropped.append(number), drop(number)))
    stream = server.client().chat.completions.create(
        model="unbroken", messages=about([recordings[1]], "What can be heard?"), stream=True
    )
    monkeypatch.setattr(answering, "step", slowed(answering.step))
    next(iter(stream))
    stream.close()
    wait_until(lambda: dropped)
    wait_until(lambda: not server.app.engine.running)


def test_too_many_questions_are_refused_with_429_and_one_that_takes_too_long_with_504(server, recordings, monkeypatch):
    client, engine = server.client(), server.app.engine
    rest = {"model": "unbroken", "messages": about([recordings[0]], "Who?")}
    monkeypatch.setattr(engine, "_most_waiting", 0)
    with pytest.raises(openai.RateLimitError, match="0 questions wait already; try again later") as raised:
        client.chat.completions.create(**rest)
    assert raised.value.response.headers["retry-after"] == "1"
    monkeypatch.undo()
    answering = engine._answering
    monkeypatch.setattr(answering, "step", slowed(answering.step))
    monkeypatch.setattr(server.app, "config", replace(server.app.config, timeout_seconds=0.3))
    for is_streamed in (False, True):
        with pytest.raises(openai.APIError, match=r"not answered within 0\.3 s"):
            for _ in client.chat.completions.create(**rest, stream=is_streamed):
                pass
    monkeypatch.undo()
    wait_until(lambda: not engine.running)
    assert text_of(client.chat.completions.create(**rest))


def slowed(step):
    def slow(*given):
        time.sleep(0.05)
        return step(*given)

    return slow


def test_names_tell_runs_apart():
    assert names_of(["/a/one", "b/two/"]) == {"one": "/a/one", "two": "b/two/"}
    with pytest.raises(UserError, match="run=b/one: is called one, as a/one is"):
        names_of(["a/one", "b/one"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run=… is needed"),
        (["run=absent"], "absent: no run there"),
        (["run=absent", "cache=c"], "manifest=… and cache=… go together"),
        (["run=absent", "port=0"], "port=0: must be between 1 and 65535"),
    ],
)
def test_serving_wrongly_gives_one_line_and_exit_code_2(words, message, capsys):
    assert main(["serve", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_defaults_listen_to_this_machine_alone_and_want_a_token():
    config = ServeConfig(run=["r"])
    assert config.host == "127.0.0.1" and config.require_token
