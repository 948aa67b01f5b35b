"""Batches: some examples' texts beside the features of their clips."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from encoders.features import Heard
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
    heard: Heard,
    prompt_seed: int | None,
) -> Batch:
    """Read the features of some (epoch, example index) and ask their questions.

    Args:
        examples: Where the indices point to.
        cache: Where the features are.
        picked: What to read.
        heard: How much of each clip is heard.
        prompt_seed: Chooses among a task's prompts per example and epoch; None takes the first, as in evaluation.
    """
    texts = read_texts(examples, picked, prompt_seed=prompt_seed)
    return join_features(examples, cache, picked, dict(zip(picked, texts, strict=True)), heard=heard)


def join_features(
    examples: ExampleSet,
    cache: FeatureCache,
    picked: Sequence[tuple[int, int]],
    texts: Mapping[tuple[int, int], tuple[str, str]],
    *,
    heard: Heard,
    pin_memory: bool = False,
) -> Batch:
    """Read the features of some (epoch, example index) and put their questions and answers beside them."""
    positions = [int(examples.positions[index]) for _, index in picked]
    questions, answers = ([texts[place][part] for place in picked] for part in (0, 1))
    return read_questions(cache, positions, questions, answers, heard=heard, pin_memory=pin_memory)


def read_questions(
    cache: FeatureCache,
    positions: Sequence[int],
    questions: list[str],
    answers: list[str],
    *,
    heard: Heard,
    pin_memory: bool = False,
) -> Batch:
    """Read the features of the clips in some rows of a cache's index and put a question about each beside them."""
    streams = cache.read_frames(positions, frames=cache.heard_of(positions, heard), pin_memory=pin_memory)
    speech, audio = streams["speech"], streams.get("audio")
    return Batch(
        speech.frames,
        audio.frames if audio else None,
        audio.lengths if audio else None,
        questions,
        answers,
        speech_frames=speech.lengths if heard.hear == "clip" else None,
        speech_scale=speech.scale,
        audio_scale=audio.scale if audio else None,
    )


def make_batch(
    streams: Sequence[dict[str, Tensor]], questions: Sequence[str], answers: Sequence[str], *, heard: Heard
) -> Batch:
    """Stack the first frames of clips of different lengths, zeros after their ends, real lengths beside them.

    The speech stream of a clip that is heard at its own length ends where its sound does.
    """
    speech, speech_lengths = _stacked([clip["speech"][: heard.frames] for clip in streams])
    own = speech_lengths if heard.hear == "clip" else None
    if "audio" not in streams[0]:
        return Batch(speech, None, None, list(questions), list(answers), speech_frames=own)
    audio, audio_lengths = _stacked([clip["audio"][: heard.frames] for clip in streams])
    return Batch(speech, audio, audio_lengths, list(questions), list(answers), speech_frames=own)


def _stacked(clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return pad_sequence(list(clips), batch_first=True), torch.tensor([len(clip) for clip in clips])
