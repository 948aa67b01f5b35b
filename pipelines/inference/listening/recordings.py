"""Recordings asked about on this machine."""

from collections.abc import Sequence

import torch

from encoders.audio import CLIP_SECONDS, AudioError
from pipelines.cache.reader import ClipFeatures
from pipelines.inference.config import AskConfig
from pipelines.inference.listening.answerer import Answer
from pipelines.inference.listening.listener import Listener
from pipelines.inference.listening.waves import Wave
from pipelines.interface.progress import Progress


class LocalAnswerer:
    """A run that this process has loaded."""

    def __init__(self, config: AskConfig) -> None:
        """Load the run; raises as `Listener.from_run`."""
        torch.set_num_threads(config.threads)
        self._config = config
        self._listener = Listener.from_run(
            config.run,
            checkpoint=config.checkpoint,
            llm=config.llm,
            whisper=config.whisper,
            beats=config.beats,
            lora_scaling=config.lora_scaling,
            heard_seconds=config.heard_seconds,
            device=config.device,
        )
        self._heard: dict[str, ClipFeatures | AudioError] = {}

    def answer(self, recordings: Sequence[str], question: str) -> list[Answer]:
        """Return the answers to a question about recordings, in their order; what is heard is kept.

        Raises:
            UserError: If the run learnt with other encoders.
        """
        self._hear([recording for recording in recordings if recording not in self._heard], question)
        heard = {recording: self._heard[recording] for recording in recordings}
        clips = {recording: clip for recording, clip in heard.items() if isinstance(clip, ClipFeatures)}
        config = self._config
        texts = self._listener.answers(
            [(clip, question) for clip in clips.values()],
            num_beams=config.num_beams,
            max_new_tokens=config.max_new_tokens,
        )
        said = dict(zip(clips, texts, strict=True))
        if config.question:  # it is the only one
            self._heard.clear()
        answers = []
        for recording in recordings:
            clip = heard[recording]
            if isinstance(clip, AudioError):
                answers.append(Answer(recording, question, error=clip.reason))
                continue
            one = said[recording]
            answers.append(Answer(recording, question, one.text, "", one.heard_seconds, one.given_seconds, one.is_cut))
        return answers

    def _hear(self, recordings: Sequence[str], question: str) -> None:
        sounds: dict[str, Wave | ClipFeatures] = {}
        for recording in recordings:
            try:
                sounds[recording] = self._listener.read(recording)
            except AudioError as error:
                self._heard[recording] = error
        for sound in sounds.values():  # before anything is encoded
            self._listener.require_room(question, self._config.max_new_tokens, sound.seconds)
        waves = list(sounds.values())
        seconds = sum(min(wave.seconds, self._listener.spec.recipe.max_clip_seconds) for wave in waves)
        if seconds <= CLIP_SECONDS:
            features = self._listener.features_of(waves)
        else:
            with Progress().phase("encode", unit="s of sound", total=round(seconds, 1)) as phase:
                each = seconds / len(waves)
                features = self._listener.features_of(waves, on_clips=lambda clips: phase.advance(clips * each))
        self._heard |= zip(sounds, features, strict=True)
