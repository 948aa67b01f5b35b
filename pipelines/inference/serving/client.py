"""`ask` with a server that is running: recordings are sent to it, and nothing is loaded here."""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

from pipelines import storage
from pipelines.errors import JobIncompleteError, UserError
from pipelines.inference.config import AskConfig
from pipelines.inference.listening.answerer import Answer
from pipelines.inference.serving.config import name_of
from pipelines.inference.serving.token import VARIABLE, known_token

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TIMEOUT_SECONDS = 600.0


class ServerAnswerer:
    """A server that `salmonn serve` started."""

    def __init__(self, config: AskConfig) -> None:
        """Look whether the server is there and has the run.

        Raises:
            UserError: If it does not answer, or decodes otherwise than the config says.
        """
        self._config, self._address = config, config.address.rstrip("/")
        host = urlsplit(self._address).hostname
        if not self._address.startswith(("http://", "https://")) or not host:
            raise UserError(f"address={config.address}: must be http://host:port, as `salmonn serve` prints it")
        self._headers = {"Content-Type": "application/json"}
        if token := known_token(for_others=host not in LOOPBACK):
            self._headers["Authorization"] = f"Bearer {token}"
        self._model = name_of(config.run)
        found = self._request("GET", f"/v1/models/{quote(self._model, safe='')}")
        if found["num_beams"] != config.num_beams:
            raise UserError(f"num_beams={config.num_beams}: the server at {config.address} has {found['num_beams']}")

    def answer(self, recordings: Sequence[str], question: str) -> list[Answer]:
        """Return the answers to a question about recordings, in their order; they are asked at the same time.

        Raises:
            UserError: If the server refuses the question.
            JobIncompleteError: If it fails.
        """
        with ThreadPoolExecutor(max(1, len(recordings))) as pool:
            return list(pool.map(lambda recording: self._ask(recording, question), recordings))

    def _ask(self, recording: str, question: str) -> Answer:
        data = base64.b64encode(storage.read_bytes(recording)).decode()
        parts = [
            {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},  # the bytes say what it is
            {"type": "text", "text": question},
        ]
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": parts}],
            "max_completion_tokens": self._config.max_new_tokens,
        }
        try:
            told = self._request("POST", "/v1/chat/completions", body)
        except _UnheardError as error:
            return Answer(recording, question, error=str(error))
        choice = told["choices"][0]
        return Answer(recording, question, choice["message"]["content"], "", **told["heard"], is_cut=_is_cut(choice))

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._address}{path}", data, self._headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                content: dict[str, Any] = json.loads(response.read())
                return content
        except urllib.error.HTTPError as error:
            self._refuse(error)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"address={self._config.address}: no server of `salmonn serve` answers ({reason})"
            ) from None

    def _refuse(self, error: urllib.error.HTTPError) -> NoReturn:
        try:
            told = json.loads(error.read())["error"]
            code, message = told["code"], told["message"]
        except (ValueError, KeyError, TypeError):
            code, message = "", error.reason
        where = f"address={self._config.address}"
        if code in ("invalid_audio", "too_large"):
            raise _UnheardError(message)
        if error.code == 401:
            raise UserError(f"{where}: {message}; {VARIABLE} must be the server's token")
        if error.code in (429, 500, 502, 503, 504):
            raise JobIncompleteError(f"{where}: {message}")
        raise UserError(f"{where}: {message}")


class _UnheardError(Exception):
    """The recording cannot be heard."""


def _is_cut(choice: dict[str, Any]) -> bool:
    return bool(choice["finish_reason"] == "length")
