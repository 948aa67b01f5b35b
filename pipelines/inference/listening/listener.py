"""A run's model and encoders, loaded once: what `ask`, `evaluate` and `serve` answer with, and Python programs too.

listener = Listener.from_run("runs/stage3")
listener.answer("dog.wav", "What can be heard?").text
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from encoders.audio import CLIP_SECONDS, MOST_SECONDS
from encoders.features import FRAME_RATE_HZ
from llm.answering import Answering
from llm.decoding.layers import most_positions
from llm.lora import set_lora_scaling, use_lora
from llm.salmonn import Answer as Generated
from llm.salmonn import Batch
from pipelines.batches.batch import make_batch
from pipelines.batches.micro_batch import count_audio_tokens
from pipelines.cache.reader import ClipFeatures
from pipelines.errors import UserError
from pipelines.inference.hearing import Hearing, load_hearing
from pipelines.inference.listening.waves import Wave, read_wave, wave_of_array
from pipelines.interface.devices import local_device
from pipelines.runs.checkpoint import LoadedRun, load_run, load_runs
from pipelines.runs.spec import RunSpec

Audio = str | os.PathLike[str] | tuple[Any, int] | Wave | ClipFeatures
"""What can be asked about: a path or URI, (samples, rate in Hz), a wave, or what was encoded before: a clip of a
`FeatureCache`, or what `Listener.features` returned."""


@dataclass(frozen=True)
class Answer:
    """What a run says, and of how much sound."""

    text: str
    num_tokens: int
    """[count] Tokens of the text."""
    is_cut: bool
    """Whether it ended because it may be no longer."""
    heard_seconds: float
    """[seconds] How much of the sound was heard, from its start."""
    given_seconds: float
    """[seconds] How long the sound is."""


class Listener:
    """A run that hears and answers. One thread at a time may use it; several of one LLM share that thread."""

    def __init__(
        self,
        run: str,
        loaded: LoadedRun,
        *,
        device: str,
        whisper: str = "",
        beats: str = "",
        hears_as: "Listener | None" = None,
    ) -> None:
        """Take a run as it was loaded.

        Its encoders are loaded when they are first needed; a run that `hears_as` another one uses those of that.
        """
        self.run, self.model, self.spec, self.step = run, loaded.model, loaded.spec, loaded.step
        self.device = device
        self.adapter, self._hears_as = loaded.adapter, hears_as
        self._places = {"whisper": whisper, "beats": beats}

    @classmethod
    def from_run(
        cls,
        run: str,
        *,
        checkpoint: str = "last",
        llm: str = "",
        whisper: str = "",
        beats: str = "",
        lora_scaling: float = 1.0,
        heard_seconds: float = 0.0,
        device: str = "auto",
    ) -> "Listener":
        """Load a run.

        Args:
            run: Its folder, a path or URI.
            checkpoint: last, best or a step.
            llm: Where its frozen LLM lies now; empty: where it was.
            whisper: Where its Whisper encoder lies now, likewise.
            beats: Where BEATs lies now, likewise.
            lora_scaling: Factor on LoRA's alpha / rank.
            heard_seconds: How much of a sound is heard at most; 0: as the run learnt. More needs one with hear=clip.
            device: auto, cpu or cuda.

        Raises:
            FileNotFoundError: If there is no run.
            UserError: If it has no such checkpoint, its LLM is another now, or it cannot hear so much.
        """
        found = local_device(device)
        loaded = load_run(run, checkpoint=checkpoint, device=found, llm=llm)
        if heard_seconds:
            loaded = replace(loaded, spec=_hearing(loaded.spec, heard_seconds, run))
        set_lora_scaling(loaded.model.llm, lora_scaling)
        return cls(run, loaded, device=found, whisper=whisper, beats=beats)

    @classmethod
    def from_runs(
        cls,
        runs: Sequence[str],
        *,
        checkpoint: str = "last",
        llm: str = "",
        whisper: str = "",
        beats: str = "",
        device: str = "auto",
    ) -> list["Listener"]:
        """Load several runs over one LLM, which is in memory once, as are encoders of one recipe.

        Raises as `load_runs`.
        """
        found = local_device(device)
        listeners: list[Listener] = []
        for run, one in zip(runs, load_runs(runs, checkpoint=checkpoint, device=found, llm=llm), strict=True):
            same = (known for known in listeners if known.spec.recipe == one.spec.recipe)
            places = {"whisper": whisper, "beats": beats}
            listeners.append(cls(run, one, device=found, hears_as=next(same, None), **places))
        return listeners

    def features(self, audio: Audio) -> ClipFeatures:
        """Return what the run's encoders make of a sound: questions about that encode nothing again.

        Raises:
            AudioError: If it cannot be heard.
            UserError: If an encoder is another than the run learnt with.
        """
        return self.features_of([audio])[0]

    def features_of(
        self, audios: Sequence[Audio], *, on_clips: Callable[[float], None] | None = None
    ) -> list[ClipFeatures]:
        """Return the features of several sounds, encoded together, `on_clips` told meanwhile. Raises as `features`."""
        sounds = [self.read(audio) for audio in audios]
        found = {place: sound for place, sound in enumerate(sounds) if isinstance(sound, ClipFeatures)}
        waves = {place: sound for place, sound in enumerate(sounds) if isinstance(sound, Wave)}
        streams = self._hear([wave.samples for wave in waves.values()], on_clips) if waves else []
        for (place, wave), encoded in zip(waves.items(), streams, strict=True):
            found[place] = ClipFeatures(encoded, wave.seconds)
        return [found[place] for place in range(len(audios))]

    def answer(self, audio: Audio, question: str, *, num_beams: int = 4, max_new_tokens: int = 200) -> Answer:
        """Answer a question about a sound.

        Args:
            audio: The sound, or its features.
            question: What is asked.
            num_beams: Of the search; 1: greedy.
            max_new_tokens: Longest answer.

        Raises:
            AudioError: If the sound cannot be heard.
            UserError: If an encoder is another than the run learnt with, or the features are another recipe's; if the
                question is empty, or a number is not 1 or more.
        """
        return self.answers([(audio, question)], num_beams=num_beams, max_new_tokens=max_new_tokens)[0]

    def answers(
        self, asked: Sequence[tuple[Audio, str]], *, num_beams: int = 4, max_new_tokens: int = 200
    ) -> list[Answer]:
        """Answer (audio, question) pairs together; each answer is what the pair alone would get.

        A sound that stands in several pairs, as the same object, is encoded once. Raises as `answer`.
        """
        if not asked:
            return []
        sounds = {id(audio): self.read(audio) for audio, _ in asked}
        for audio, question in asked:
            self.require_room(question, max_new_tokens, sounds[id(audio)].seconds)
        features = dict(zip(sounds, self.features_of(list(sounds.values())), strict=True))
        clips = [features[id(audio)] for audio, _ in asked]
        batch = self.batch(clips, [question for _, question in asked])
        generated = self.generate(batch, num_beams=num_beams, max_new_tokens=max_new_tokens)
        return [self.answer_of(one, clip, max_new_tokens) for one, clip in zip(generated, clips, strict=True)]

    def stream(self, audio: Audio, question: str, *, num_beams: int = 4, max_new_tokens: int = 200) -> Iterator[str]:
        """Yield the answer as it comes, in pieces that join to the text of `answer`; raises as that does.

        With several beams a piece comes when all beams agree on it.
        """
        sound = self.read(audio)
        self.require_room(question, max_new_tokens, sound.seconds)
        answering = Answering(self.model, num_beams=num_beams, max_new_tokens=max_new_tokens)
        batch = self.batch([self.features(sound)], [question])
        self.take_turn()
        answering.join([0], batch)
        while len(answering):
            self.take_turn()
            yield from (told.text for told in answering.step(streamed=[0]) if told.text)

    def generate(self, batch: Batch, *, num_beams: int, max_new_tokens: int) -> list[Generated]:
        """Answer a batch as it stands on the CPU: its clips are of the run's recipe."""
        self.take_turn()
        return self.model.generate(batch.to(self.device), num_beams=num_beams, max_new_tokens=max_new_tokens)

    def batch(self, clips: Sequence[ClipFeatures], questions: Sequence[str]) -> Batch:
        """Put clips and questions together, on the run's device.

        Raises:
            UserError: If the features are not of the streams and widths that the run hears.
        """
        widths = {name: stream.width for name, stream in self.spec.recipe.streams.items()}
        for clip in clips:
            found = {name: frames.shape[-1] for name, frames in clip.streams.items()}
            if found != widths:
                raise UserError(f"{self.run} hears streams of {widths} channels, and these features have {found}")
        heard = self.spec.heard
        frames_of = heard.frames_of(np.array([clip.seconds for clip in clips])).tolist()
        for clip, frames in zip(clips, frames_of, strict=True):
            if len(clip.streams["speech"]) < frames:
                raise UserError(
                    f"{self.run} hears {frames} frames of a clip of {clip.seconds:g} s, and these features hold "
                    f"{len(clip.streams['speech'])}: they are of a cache without the silence behind a sound"
                )
        streams = [
            {name: stored[:frames].to(self.device) for name, stored in clip.streams.items()}
            for clip, frames in zip(clips, frames_of, strict=True)
        ]
        return make_batch(streams, questions, [], heard=heard).to(self.device)

    def require_room(self, question: str, most_tokens: int, seconds: float) -> None:
        """Check that there is a question, and that the LLM has positions for it, the sound and so long an answer.

        Raises:
            UserError: If it has too few, or the question is empty.
        """
        if not question.strip():
            raise UserError("the question is empty")
        positions = most_positions(self.model.llm)
        (audio_tokens,) = count_audio_tokens(self.model, self.spec.heard, np.array([seconds]))
        taken = self.model.prompt_tokens(question, num_audio_tokens=audio_tokens) + most_tokens
        if positions and taken > positions and seconds > CLIP_SECONDS:
            raise UserError(
                f"the sound is too long: {min(seconds, self.heard_seconds):.1f} s of it are {audio_tokens} tokens, and "
                f"with the question and {most_tokens} tokens of answer it takes {taken} positions of the LLM's "
                f"{positions}; a smaller heard_seconds=… hears its beginning"
            )
        if positions and taken > positions:
            raise UserError(
                f"the question is too long: with the clip and {most_tokens} tokens of answer it takes {taken} "
                f"positions of the LLM's {positions}"
            )

    def answer_of(self, generated: Generated, clip: ClipFeatures, most_tokens: int) -> Answer:
        """Say beside what was generated how much of the clip was heard."""
        heard = min(clip.seconds, self.heard_seconds)
        is_cut = generated.num_tokens >= most_tokens
        return Answer(generated.text, generated.num_tokens, is_cut, heard, clip.seconds)

    @property
    def heard_seconds(self) -> float:
        """[seconds] How much of a clip the run hears at most, from its start."""
        return min(self.spec.recipe.max_clip_seconds, self.spec.frames / FRAME_RATE_HZ)

    def take_turn(self) -> None:
        """Make the LLM this run's; other runs that share it have theirs later."""
        use_lora(self.model.llm, self.adapter)

    def read(self, audio: Audio) -> Wave | ClipFeatures:
        """Return a sound as it is to be encoded; features as they are. Raises AudioError if it cannot be heard."""
        if isinstance(audio, Wave | ClipFeatures):
            return audio
        channel, most = self.spec.recipe.channel, self.spec.recipe.max_clip_seconds
        if isinstance(audio, tuple):
            return wave_of_array(*audio, channel=channel, max_clip_seconds=most)
        if isinstance(audio, str | os.PathLike):
            return read_wave(os.fspath(audio), channel=channel, max_clip_seconds=most)
        raise UserError(f"audio of type {type(audio).__name__}: a path, (samples, rate) or a clip's features is needed")

    @property
    def encoder_run(self) -> str:
        """The run whose encoders are used: features of one are those of all that use them."""
        return self._hears_as.encoder_run if self._hears_as else self.run

    @cached_property
    def _hear(self) -> Hearing:
        if self._hears_as:
            return self._hears_as._hear
        return load_hearing(self.spec, self.run, device=self.device, **self._places)


def _hearing(spec: RunSpec, seconds: float, run: str) -> RunSpec:
    """Return the description of the run as one that hears so much of a sound.

    Raises:
        UserError: If that is more than it learnt to, and it learnt to hear so much of every clip.
    """
    learnt = spec.frames / FRAME_RATE_HZ
    if not 1 <= seconds <= MOST_SECONDS:
        raise UserError(f"heard_seconds={seconds:g}: must be between 1 and {MOST_SECONDS}")
    if spec.hear == "all" and seconds != learnt:
        raise UserError(f"heard_seconds={seconds:g}: {run} hears {learnt:g} s of every sound (hear=all)")
    longest = max(spec.recipe.max_clip_seconds, float(seconds))
    return replace(spec, frames=round(seconds * FRAME_RATE_HZ), recipe=replace(spec.recipe, max_clip_seconds=longest))
