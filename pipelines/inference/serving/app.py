"""The requests that the server takes: those of the OpenAI API that mean something here, and the page."""

import asyncio
import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from encoders.errors import EncoderError
from pipelines.cache.reader import ClipFeatures
from pipelines.errors import UserError
from pipelines.inference.listening.listener import Answer, Listener
from pipelines.inference.listening.waves import Wave, read_parts
from pipelines.inference.serving.bodies import Request, parse_chat, parse_transcription
from pipelines.inference.serving.config import ServeConfig
from pipelines.inference.serving.engine import Answered, Asked, Engine, EngineError, QueueFullError, Ticket
from pipelines.inference.serving.examples import Examples
from pipelines.inference.serving.measures import Measures
from pipelines.inference.serving.page import page_responses
from pipelines.inference.serving.refusal import RefusalError, refused
from pipelines.inference.serving.token import is_right

Handler = Callable[[HttpRequest], Awaitable[Response]]
RETRY_SECONDS = 1
"""After which a refused request may be tried again."""


@dataclass
class App:
    """What answers requests, and what they share.

    Args:
        config: The verb's.
        listeners: Runs by their names.
        engine: Answers.
        token_digest: Of the token that requests must bear; empty: none.
        examples: That the page offers, if there are any.
    """

    config: ServeConfig
    listeners: dict[str, Listener]
    engine: Engine
    token_digest: str
    examples: Examples | None = None
    started: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.measures = Measures(self.engine)

    def asgi(self) -> Starlette:
        """Return the application."""
        routes = [
            Route("/v1/chat/completions", self._guard(self.chat), methods=["POST"]),
            Route("/v1/audio/transcriptions", self._guard(self.transcribe), methods=["POST"]),
            Route("/v1/models", self._guard(self.models), methods=["GET"]),
            Route("/v1/models/{name}", self._guard(self.model), methods=["GET"]),
            Route("/v1/examples", self._guard(self.list_examples), methods=["GET"]),
            Route("/v1/examples/{clip_id}", self._guard(self.example_sound), methods=["GET"]),
            Route("/metrics", self._guard(self.metrics), methods=["GET"]),
            Route("/healthz", self.health, methods=["GET"]),
            *(Route(path, lambda _, found=found: found) for path, found in page_responses().items()),
        ]
        handlers: dict[Any, Any] = {HTTPException: _refuse_http, Exception: _refuse_bug}
        return Starlette(routes=routes, exception_handlers=handlers)

    def _guard(self, handler: Handler) -> Handler:
        """Let a handler's refusals become responses, count it, and call it only for those who know the token."""

        async def guarded(request: HttpRequest) -> Response:
            try:
                if self.token_digest and not is_right(request.headers.get("authorization", ""), self.token_digest):
                    raise RefusalError(401, "the token is missing or wrong", code="invalid_api_key")
                response = await handler(request)
            except RefusalError as error:
                response = _response_of(error)
            except Exception:
                self.measures.requests.labels(request.scope["route"].path, "500").inc()
                raise
            self.measures.requests.labels(request.scope["route"].path, str(response.status_code)).inc()
            return response

        return guarded

    async def chat(self, http: HttpRequest) -> Response:
        """Answer a question about sound."""
        started = time.monotonic()
        if not http.headers.get("content-type", "").startswith("application/json"):
            raise RefusalError(415, "the content type must be application/json", code="invalid_content_type")
        request = await asyncio.to_thread(parse_chat, await self._body(http))
        ticket = await self._submit(request)
        about = _Completion(request, ticket.asked.name)
        if request.is_streamed:
            return await self._stream(ticket, started, about.chunk, about.last)
        answered = await self._wait(ticket, started)
        return JSONResponse(about.whole(answered))

    async def transcribe(self, http: HttpRequest) -> Response:
        """Write down what is said in an uploaded sound, which stays in memory."""
        started = time.monotonic()
        fields, sound = await self._form(http)
        request, response_format = parse_transcription(fields, sound)
        ticket = await self._submit(request)
        if request.is_streamed:
            return await self._stream(ticket, started, _transcript_delta, _transcript_done)
        answered = await self._wait(ticket, started)
        if response_format == "text":
            return PlainTextResponse(answered.answer.text + "\n")
        return JSONResponse({"text": answered.answer.text, "heard": _heard(answered.answer)})

    async def models(self, _: HttpRequest) -> Response:
        """List the runs."""
        return JSONResponse({"object": "list", "data": [self._described(name) for name in self.listeners]})

    async def model(self, http: HttpRequest) -> Response:
        """Describe a run."""
        return JSONResponse(self._described(self._listener(http.path_params["name"]).name))

    async def list_examples(self, _: HttpRequest) -> Response:
        """List the examples that the page offers."""
        return JSONResponse({"object": "list", "data": self.examples.listing() if self.examples else []})

    async def example_sound(self, http: HttpRequest) -> Response:
        """Return an example's sound."""
        clip_id, examples = http.path_params["clip_id"], self.examples
        recipe = next(iter(self.listeners.values())).spec.recipe
        try:
            if examples is None:
                raise KeyError(clip_id)
            sound = await asyncio.to_thread(examples.sound, clip_id, recipe)
        except KeyError:
            raise RefusalError(404, f"{clip_id}: no example has this clip", code="not_found") from None
        except (EncoderError, UserError, OSError) as error:
            raise RefusalError(404, str(error), code="not_found") from None
        return Response(sound, media_type="audio/flac")

    async def metrics(self, _: HttpRequest) -> Response:
        """Return what is counted."""
        return PlainTextResponse(self.measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def health(self, _: HttpRequest) -> Response:
        """Say whether questions are answered."""
        is_well = not self.engine.is_broken
        return JSONResponse({"status": "ok" if is_well else "broken"}, 200 if is_well else 503)

    def _described(self, name: str) -> dict[str, Any]:
        listener = self.listeners[name]
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "salmonn",
            "step": listener.step,
            "heard_seconds": listener.heard_seconds,
            "num_beams": self.config.num_beams,
            "max_new_tokens": self.config.max_new_tokens,
        }

    def _listener(self, name: str) -> "_Named":
        if name not in self.listeners:
            known = ", ".join(self.listeners)
            raise RefusalError(404, f"model {name}: there are {known}", code="model_not_found", param="model")
        return _Named(name, self.listeners[name])

    async def _body(self, http: HttpRequest) -> bytes:
        """Return a request's body, of which no more is read than may be."""
        chunks, nbytes = [], 0
        async for chunk in self._chunks(http):
            chunks.append(chunk)
            nbytes += len(chunk)
        return b"".join(chunks)

    async def _chunks(self, http: HttpRequest) -> AsyncGenerator[bytes, None]:
        most, nbytes = int(self.config.most_megabytes * 1e6), 0
        async for chunk in http.stream():
            nbytes += len(chunk)
            if nbytes > most:
                raise RefusalError(413, f"a request may be {most / 1e6:g} MB, and this is larger", code="too_large")
            yield chunk

    async def _form(self, http: HttpRequest) -> tuple[dict[str, str], bytes]:
        """Return a form's fields and its file, whose name nobody looks at."""
        if not http.headers.get("content-type", "").startswith("multipart/form-data"):
            raise RefusalError(415, "the content type must be multipart/form-data", code="invalid_content_type")
        parser = MultiPartParser(http.headers, self._chunks(http), max_files=1, max_fields=20)
        parser.spool_max_size = int(self.config.most_megabytes * 1e6) + 1  # never on disk
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError) as error:
            raise refused(f"not a form ({getattr(error, 'message', error)})", "file") from None
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(form.close)
            uploads = {name: value for name, value in form.items() if isinstance(value, UploadFile)}
            if set(uploads) != {"file"}:
                raise refused("file: is needed: one sound", "file", "missing_required_parameter")
            return {name: value for name, value in form.items() if isinstance(value, str)}, await uploads["file"].read()

    async def _submit(self, request: Request) -> Ticket:
        named = self._listener(request.model)
        most = self.config.max_new_tokens
        if request.most_tokens and request.most_tokens > most:
            raise refused(
                f"max_completion_tokens={request.most_tokens}: must be {most} or fewer", "max_completion_tokens"
            )
        sound = await asyncio.to_thread(self._sound, request, named.listener)
        asked = Asked(
            name=named.name,
            question=request.question,
            sound=sound,
            digest=_digest(request.sounds) if isinstance(sound, Wave) else "",
            is_streamed=request.is_streamed,
            most_tokens=request.most_tokens or most,
        )
        try:
            return self.engine.submit(asked)
        except QueueFullError as error:
            raise RefusalError(429, f"{error}; try again later", code="rate_limit_exceeded") from None
        except EngineError as error:
            raise RefusalError(503, str(error), code="unavailable") from None

    def _sound(self, request: Request, listener: Listener) -> Wave | ClipFeatures:
        try:
            if request.clip_id:
                if self.examples is None:
                    raise KeyError(request.clip_id)
                listener.spec.recipe.require_same(
                    self.examples.cache.recipe, here=listener.run, there=self.config.cache
                )
                return self.examples.features(request.clip_id)
            most = self.config.most_seconds
            recipe = listener.spec.recipe
            return read_parts(
                request.sounds, channel=recipe.channel, max_clip_seconds=recipe.max_clip_seconds, most_seconds=most
            )
        except KeyError:
            raise refused(f"{request.clip_id}: no example has this clip", "clip_id", "not_found") from None
        except (EncoderError, UserError) as error:
            raise refused(str(error), "audio", "invalid_audio") from None

    async def _wait(self, ticket: Ticket, started: float) -> Answered:
        async with contextlib.aclosing(self._events(ticket, started)) as events:
            async for event in events:
                if isinstance(event, Answered):
                    return event
        raise AssertionError("events end with an answer")

    async def _events(self, ticket: Ticket, started: float) -> AsyncGenerator[str | Answered, None]:
        """Yield what happens to a question; when nobody asks for more, it is forgotten."""
        end = started + self.config.timeout_seconds
        event: str | Answered = ""
        try:
            while not isinstance(event, Answered):
                is_first = not event
                event = await asyncio.wait_for(ticket.next(), end - time.monotonic())
                seconds = time.monotonic() - started
                if is_first:
                    self.measures.first.observe(seconds)
                if isinstance(event, Answered):
                    self._count(event.answer, seconds)
                yield event
        except TimeoutError:
            raise RefusalError(504, f"not answered within {self.config.timeout_seconds:g} s", code="timeout") from None
        except UserError as error:
            raise refused(str(error), "messages", "context_length_exceeded") from None
        except EngineError as error:
            raise RefusalError(503, str(error), code="unavailable") from None
        finally:
            self.engine.cancel(ticket)

    def _count(self, answer: Answer, seconds: float) -> None:
        self.measures.whole.observe(seconds)
        self.measures.tokens.inc(answer.num_tokens)
        self.measures.heard.inc(answer.heard_seconds)

    async def _stream(
        self,
        ticket: Ticket,
        started: float,
        chunk: Callable[[str], dict[str, Any]],
        last: Callable[[Answered], list[dict[str, Any] | str]],
    ) -> Response:
        """Return the answer as events; what goes wrong before the first of them is a response of its own."""
        events = self._events(ticket, started)
        first = await anext(events)

        async def lines() -> AsyncIterator[str]:
            event: str | Answered = first
            async with contextlib.aclosing(events):
                try:
                    while not isinstance(event, Answered):
                        yield _event(chunk(event))
                        event = await anext(events)
                    for one in last(event):
                        yield _event(one)
                except RefusalError as error:
                    yield _event(error.body())

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@dataclass(frozen=True)
class _Named:
    name: str
    listener: Listener


@dataclass(frozen=True)
class _Completion:
    """The objects of a chat's completion."""

    request: Request
    model: str
    number: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answered: Answered) -> dict[str, Any]:
        message = {"role": "assistant", "content": answered.answer.text}
        choice = {"index": 0, "message": message, "finish_reason": _reason(answered.answer), "logprobs": None}
        about = {"usage": _usage(answered), "heard": _heard(answered.answer)}
        return {**self._head("chat.completion"), "choices": [choice], **about}

    def chunk(self, text: str) -> dict[str, Any]:
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def last(self, answered: Answered) -> list[dict[str, Any] | str]:
        head = self._head("chat.completion.chunk")
        choice = {"index": 0, "delta": {}, "finish_reason": _reason(answered.answer)}
        chunks: list[dict[str, Any] | str] = [{**head, "choices": [choice], "heard": _heard(answered.answer)}]
        if self.request.counts_tokens:
            chunks.append({**head, "choices": [], "usage": _usage(answered)})
        return [*chunks, "[DONE]"]

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.number, "object": kind, "created": self.created, "model": self.model}


def _transcript_delta(text: str) -> dict[str, Any]:
    return {"type": "transcript.text.delta", "delta": text}


def _transcript_done(answered: Answered) -> list[dict[str, Any] | str]:
    done = {"type": "transcript.text.done", "text": answered.answer.text, "heard": _heard(answered.answer)}
    return [done, "[DONE]"]


def _event(content: dict[str, Any] | str) -> str:
    return f"data: {content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)}\n\n"


def _reason(answer: Answer) -> str:
    return "length" if answer.is_cut else "stop"


def _usage(answered: Answered) -> dict[str, int]:
    prompt, answer = answered.prompt_tokens, answered.answer.num_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _heard(answer: Answer) -> dict[str, float]:
    return {"heard_seconds": round(answer.heard_seconds, 3), "given_seconds": round(answer.given_seconds, 3)}


def _digest(sounds: tuple[bytes, ...]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(sound).digest() for sound in sounds)).hexdigest()


def _response_of(error: RefusalError) -> Response:
    headers = {429: {"Retry-After": str(RETRY_SECONDS)}, 401: {"WWW-Authenticate": "Bearer"}}.get(error.status)
    return JSONResponse(error.body(), error.status, headers)


async def _refuse_http(_: HttpRequest, error: HTTPException) -> Response:
    return _response_of(RefusalError(error.status_code, error.detail, code="not_found"))


async def _refuse_bug(_: HttpRequest, error: Exception) -> Response:
    return _response_of(RefusalError(500, "a bug in the server; its log has the traceback", code="internal_error"))
