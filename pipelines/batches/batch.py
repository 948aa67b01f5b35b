"""Batches: some examples' texts beside the features of their clips."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llm.prompts import question_for
from llm.salmonn import Batch
from pipelines.batches.example_set import ExampleSet
from pipelines.cache.reader import FeatureCache


def read_texts(
    examples: ExampleSet, picked: Sequence[tuple[int, int]], *, prompt_seed: int | None
) -> list[tuple[str, str]]:
    """Return question and answer of some (epoch, example index), as `read_batch` does."""
    rows = examples.rows([index for _, index in picked])
    return [
        (
            question_for(
                row["task"], question=row["question"], example_id=row["example_id"], seed=prompt_seed, epoch=epoch
            ),
            row["answer"],
        )
        for row, (epoch, _) in zip(rows, picked, strict=True)
    ]


def read_batch(
    examples: ExampleSet,
    cache: FeatureCache,
    picked: Sequence[tuple[int, int]],
    *,
    frames: int,
    prompt_seed: int | None,
) -> Batch:
    """Read the features of some (epoch, example index) and ask their questions.

    Args:
        examples: Where the indices point to.
        cache: Where the features are.
        picked: What to read.
        frames: How many frames of each stream are heard, from the clip's start.
        prompt_seed: Chooses among a task's prompts per example and epoch; None takes the first, as in evaluation.
    """
    texts = read_texts(examples, picked, prompt_seed=prompt_seed)
    return join_features(examples, cache, picked, dict(zip(picked, texts, strict=True)), frames=frames)


def join_features(
    examples: ExampleSet,
    cache: FeatureCache,
    picked: Sequence[tuple[int, int]],
    texts: Mapping[tuple[int, int], tuple[str, str]],
    *,
    frames: int,
    pin_memory: bool = False,
) -> Batch:
    """Read the features of some (epoch, example index) and put their questions and answers beside them."""
    positions = [int(examples.positions[index]) for _, index in picked]
    streams = cache.read_frames(positions, frames=frames, pin_memory=pin_memory)
    speech, audio = streams["speech"], streams.get("audio")
    return Batch(
        speech.frames,
        audio.frames if audio else None,
        audio.lengths if audio else None,
        [texts[place][0] for place in picked],
        [texts[place][1] for place in picked],
        speech_scale=speech.scale,
        audio_scale=audio.scale if audio else None,
    )


def make_batch(
    streams: Sequence[dict[str, Tensor]], questions: Sequence[str], answers: Sequence[str], *, frames: int
) -> Batch:
    """Stack the first frames of clips of different lengths, zeros after their ends, real lengths beside them."""
    speech = torch.stack([clip["speech"][:frames] for clip in streams])
    if "audio" not in streams[0]:
        return Batch(speech, None, None, list(questions), list(answers))
    audio = [clip["audio"][:frames] for clip in streams]
    lengths = torch.tensor([len(clip) for clip in audio])
    return Batch(speech, pad_sequence(audio, batch_first=True), lengths, list(questions), list(answers))
