"""What requests hold, checked: every key is known and every value is one that means something here."""

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from llm.prompts import PROMPTS
from pipelines.inference.serving.refusal import refusal_of, refused

Format = Literal["wav", "flac", "mp3", "ogg", "opus"]
"""Names that are taken; what a sound is, its bytes say."""


@dataclass(frozen=True)
class Request:
    """A question about sound, as it was asked."""

    model: str
    question: str
    sounds: tuple[bytes, ...]
    """Contents of sound files, heard one after the other."""
    clip_id: str = ""
    """In place of sounds: an example's clip."""
    is_streamed: bool = False
    counts_tokens: bool = False
    """Whether a stream ends with what it took."""
    most_tokens: int | None = None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Sound(_Body):
    data: str
    format: Format


class _Clip(_Body):
    clip_id: str


class _TextPart(_Body):
    type: Literal["text"]
    text: str


class _SoundPart(_Body):
    type: Literal["input_audio"]
    input_audio: _Sound


class _ClipPart(_Body):
    type: Literal["input_clip"]
    input_clip: _Clip


_Part = Annotated[_TextPart | _SoundPart | _ClipPart, Field(discriminator="type")]


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class _Message(_Body):
    role: str
    content: Annotated[list[_Part], BeforeValidator(_as_parts)]


class _StreamOptions(_Body):
    include_usage: bool = False


class _Chat(_Body):
    model: str
    messages: list[_Message]
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    n: Literal[1] | None = None


class _Transcription(_Body):
    model: str
    response_format: Literal["json", "text"] = "json"
    stream: bool = False
    temperature: float | None = None


def parse_chat(body: bytes) -> Request:
    """Read a request for a chat's completion.

    Raises:
        RefusalError: Naming the first key that is wrong.
    """
    try:
        chat = _Chat.model_validate_json(body)
    except ValidationError as error:
        raise refusal_of(error, list(_Chat.model_fields)) from None
    _require_search(chat.temperature)
    if len(chat.messages) != 1 or chat.messages[0].role != "user":
        raise refused(
            "messages: one message of the role user is taken, with sound and question: what was said before is not "
            "remembered",
            "messages",
        )
    parts = chat.messages[0].content
    question = "\n".join(part.text for part in parts if isinstance(part, _TextPart)).strip()
    if not question:
        raise refused("messages.0.content: a part of the type text is needed: what is asked", "messages")
    clips = [part.input_clip.clip_id for part in parts if isinstance(part, _ClipPart)]
    sounds = tuple(
        _decoded(part.input_audio.data, f"messages.0.content.{place}.input_audio.data")
        for place, part in enumerate(parts)
        if isinstance(part, _SoundPart)
    )
    if (not sounds and len(clips) != 1) or (sounds and clips):
        raise refused(
            "messages.0.content: parts of the type input_audio are needed, or one of the type input_clip", "messages"
        )
    return Request(
        model=chat.model,
        question=question,
        sounds=sounds,
        clip_id=clips[0] if clips else "",
        is_streamed=chat.stream,
        counts_tokens=bool(chat.stream_options and chat.stream_options.include_usage),
        most_tokens=chat.max_completion_tokens or chat.max_tokens,
    )


def parse_transcription(fields: dict[str, str], sound: bytes) -> tuple[Request, str]:
    """Read a request for a transcription; return it with the format of the response. Raises as `parse_chat`."""
    try:
        asked = _Transcription.model_validate(fields)
    except ValidationError as error:
        raise refusal_of(error, ["file", *_Transcription.model_fields]) from None
    _require_search(asked.temperature)
    request = Request(asked.model, PROMPTS["asr"][0], (sound,), is_streamed=asked.stream)
    return request, asked.response_format


def _require_search(temperature: float | None) -> None:
    if temperature:
        raise refused(
            f"temperature={temperature:g}: answers are searched for and not drawn; leave it out", "temperature"
        )


def _decoded(text: str, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise refused(f"{place}: not base64 ({error})", place) from None
