"""What is hidden of a text, however it is written, and what stays to be read."""

import base64
import json
import random
import string
import time
from urllib.parse import quote

import pytest

from pipelines.operations.redaction import HIDDEN, redact, secrets_of

WORD = "pa55/wo?d@x"
KEYS = {
    "a key of AWS": "AKIAIOSFODNN7EXAMPLE",
    "a secret of AWS": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "a token of a hub": "hf_abcdefghijklmnop",
    "a token of a forge": "ghp_abcdefghijklmnop1234",
    "another forge's": "glpat-abcdefghijklmnop",
    "a short web token": "eyJhbGciOi.eyJzdWIi.c2ln",
    "a web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "a random token": "k3Jx9TqLw2Vb8NzPy7RmXc4D_s-0aGhE1fUo5iKQ",
    "a digest that is a token": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize(
    "text", ["{}", "failed with {} at step 3", '{{"error": "{}", "unit": 3}}', "/a/b={}/c", "x:{}\ny"]
)
def test_what_looks_like_a_key_is_hidden_wherever_it_stands(key, text):
    told = redact(text.format(key), {})
    assert key not in told and HIDDEN in told.replace("…", HIDDEN)


@pytest.mark.parametrize(
    "text",
    [
        "api_key=hunter2",
        "DB_PASS: hunter2",
        "PGPASS=hunter2",
        "passcode = hunter2",
        "--password hunter2",
        "--hub-token hunter2 --steps 3",
        '("X-Auth-Token", "hunter2")',
        "[b'x-api-key', b'hunter2']",
        '["authorization", "hunter2"]',
        "curl -u me:hunter2 host",
        "proxy=me:hunter2@proxy:3128",
        "//me:hunter2@host/path",
        "https://hooks.slack.com/services/T0/B0/hunter2",
        "ray.auth.token: hunter2",
        '{"secret_access_key": "hunter2"}',
        r'{"error": "{\"token\": \"hunter2\"}"}',
        "HF_TOKEN='hunter2' python -m x",
        "the password is hunter2",
        "password: correct horse hunter2",
        "token =\n  hunter2",
        "Authorization: Bearer hunter2",
        "authorization: Digest username=a, response=hunter2",
        "-H 'X-Api-Key: hunter2'",
        "Basic hunter2",
        "Cookie: a=b; session=hunter2",
        "AccountKey=hunter2;EndpointSuffix=x",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhunter2\n",
        "https://user:hunter2@host/path",
        "https://hunter2@host/path",
        f"https://user:hunter2{WORD}@host/path",
        "https://user:quote'hunter2@host/path",
        "s3://bucket/path?access_key=hunter2&region=us-east-1",
        '{"cache": "s3://bucket/path?x=hunter2", "unit": 3}',
        "s3://bucket/path?mail=a@hunter2",
        "https://host/path#state=hunter2",
        "HTTPS://user:hunter2@host",
    ],
)
def test_what_is_named_as_a_secret_is_hidden(text):
    assert "hunter2" not in redact(text, {})


def test_values_of_the_environment_are_hidden_however_they_are_written():
    word = 'blue "whale"\\ätt/x'
    environment = {
        "ANYTHING": word,
        "MY_PASSWORD": "zz9q",
        "HTTPS_PROXY": "http://someone:plural-z@proxy:3128",
        "PEM": "first-line-of-it\nsecond-line-of-it",
        "STORE": "Account=abc;Extra=whatever-it-is;",
        "CUDA_VISIBLE_DEVICES": "GPU-12345678",
        "MODE": "on",
    }
    secrets = secrets_of(environment)
    written = [
        word,
        json.dumps(word),
        quote(word),
        quote(word, safe=""),
        "x zz9q",
        "plural-z, someone",
        "second-line-of-it",
    ]
    told = redact("\n".join([*written, "whatever-it-is", "it goes on on GPU-12345678"]), secrets)
    for secret in ("whale", "ätt", "zz9q", "plural", "someone", "second-line", "whatever"):
        assert secret not in told, told
    assert "<$ANYTHING>" in told and "<$MY_PASSWORD>" in told and told.endswith("it goes on on GPU-12345678")


READ = (
    "steps: 2000",
    '{"step": 6, "loss": 0.53, "valid_token_accuracy": 0.25, "loss_by_task": {"asr": 1.5}, "alarms": []}',
    "max_new_tokens=24 max_answer_tokens: 120",
    "s3://bucket/some/cache/shards/000042.tar: has 10 bytes, its index says 12",
    "beats: /weights/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt",
    '  File "/opt/project/pipelines/training/worker/loop.py", line 121, in run',
    "KeyError: 'speech'",
    "2026-11-28T12:00:00+00:00 20261128T120000.000000Z extract-1ad01642d300-2",
)


@pytest.mark.parametrize("text", READ)
def test_what_a_maintainer_reads_stays(text):
    assert redact(text, secrets_of({"HOME": "/home/somebody", "TERM": "xterm"})) == text


def test_two_digests_can_still_be_told_apart():
    told = redact(f"weights {'0123abcd' * 8} and {'4567ef01' * 8}", {})
    assert told == "weights 0123abcd… and 4567ef01…"


def test_two_thousand_random_keys_are_not_left_whole():
    rng = random.Random(0)
    for _ in range(2_000):
        data = rng.randbytes(rng.randint(24, 48))
        key = rng.choice((base64.urlsafe_b64encode(data).decode().rstrip("="), data.hex()))
        before, after = rng.choice(string.punctuation + " \n"), rng.choice(" \n\"',;")
        assert key not in redact(f"x{before}{key}{after}y", {}), key


@pytest.mark.parametrize("word", ["token", "key-", "secret.", "passw", "cookie-.", "a.a.a.", "x:y", "--a-", "me:me"])
def test_a_long_line_takes_no_square_of_its_length(word):
    started = time.process_time()
    redact(word * (65_536 // len(word)), {})
    assert time.process_time() - started < 2.0
