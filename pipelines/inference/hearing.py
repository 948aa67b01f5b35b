"""From a wave to the features that a run's model hears: what the encoders give, through the cache's codec and back."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from encoders.audio import SAMPLE_RATE_HZ
from encoders.codecs import dequantise, quantise
from encoders.features import heard_frames
from pipelines.cache.encoder_recipe import load_encoder_of, recorded_beats
from pipelines.runs.spec import RunSpec


class Hearing(Protocol):
    """Makes float32 streams [frames, width] of 16 kHz waves [samples]; `on_clips` as `ClipEncoder.encode` has it."""

    def __call__(
        self, waves: Sequence[Tensor], on_clips: Callable[[float], None] | None = None
    ) -> list[dict[str, Tensor]]: ...


def load_hearing(spec: RunSpec, run: str, *, device: str, whisper: str = "", beats: str = "") -> Hearing:
    """Load a run's encoders and return what makes float32 streams [frames, width] of 16 kHz waves [samples].

    A wave gets the same bits whatever is heard beside it. A run that hears clips at their own lengths gets the frames
    of the sound alone.

    Args:
        spec: Of the run.
        run: Named in errors.
        device: Where the encoders run.
        whisper: Where the Whisper encoder is now; empty: where it was.
        beats: Where BEATs is now, likewise, unless that was code (module:function).

    Raises:
        UserError: If an encoder cannot be loaded, or its weights are not those that the run learnt with,
            or the run alone names code as its encoder.
    """
    recipe = spec.recipe
    encoder = load_encoder_of(
        recipe,
        whisper=whisper or spec.encoders["speech"],
        beats=beats or recorded_beats(spec.encoders, of=run),
        device=device,
        here=run,
        there="these encoders' output",
    )

    def hear(waves: Sequence[Tensor], on_clips: Callable[[float], None] | None = None) -> list[dict[str, Tensor]]:
        clips = [
            {name: dequantise(quantise(streams.pop(name), recipe.codec), recipe.codec) for name in list(streams)}
            for wave in waves  # one by one: in a batch some last digits would depend on the others
            for streams in encoder.encode([wave], on_clips=on_clips)
        ]
        if spec.hear == "clip":
            frames_of = heard_frames([wave.numel() / SAMPLE_RATE_HZ for wave in waves])
            for streams, frames in zip(clips, frames_of.tolist(), strict=True):
                streams["speech"] = streams["speech"][:frames]
        return clips

    return hear
