"""The demo's own corpora: phrases laid out as LibriSpeech, sound events and stories as SALMONN annotates them."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from pipelines.demo.config import DemoSizes
from pipelines.demo.events import (
    caption_examples,
    joined_examples,
    plan_clips,
    question_examples,
    story_examples,
    write_clips,
)
from pipelines.demo.phrases import COLOURS, THINGS, phrase_questions, plan_phrases, write_librispeech
from pipelines.demo.sound_events import SOUND_EVENTS
from pipelines.errors import UserError

TRAIN_SUBSET, TEST_SUBSET = "train-demo", "test-demo"


@dataclass(frozen=True)
class DemoCorpus:
    """Where the parts are, and the closed vocabularies that say what chance would score."""

    sizes: DemoSizes
    librispeech_dir: Path
    damaged_recording: Path
    """The training utterance that cannot be decoded to its end."""
    events_dir: Path
    """Folder that the paths in all three annotation files start from."""
    train_questions_path: Path
    """Questions about the words of the training phrases; paths are relative to LibriSpeech's folder."""
    test_questions_path: Path
    train_annotation_path: Path
    """Captions and questions about the training clips."""
    test_annotation_path: Path
    stories_path: Path
    """Stories about some of the training clips."""
    train_subset: str = TRAIN_SUBSET
    """Folder of LibriSpeech's with the training utterances."""
    test_subset: str = TEST_SUBSET
    word_slots: tuple[tuple[str, ...], ...] = (COLOURS, THINGS)
    """Words that can be first and second in a phrase, equally often."""
    event_names: tuple[str, ...] = tuple(SOUND_EVENTS)
    event_captions: tuple[str, ...] = tuple(event.caption for event in SOUND_EVENTS.values())


def write_demo_corpus(
    out_dir: Path,
    *,
    seed: int,
    sizes: DemoSizes | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DemoCorpus:
    """Write `LibriSpeech/`, `events/` and `stories.json` below `out_dir`; the same seed and sizes give the same bytes.

    What an interrupted call left is completed by the same call.

    Args:
        out_dir: A new or empty folder, or one with this very corpus.
        seed: Decides everything drawn at random; not negative.
        sizes: How much to make; `DemoSizes()` where None.
        on_progress: Called after each recording with how many are done and how many there will be.

    Raises:
        UserError: If `out_dir` holds anything else, or the speech synthesiser cannot be loaded.
    """
    sizes = sizes or DemoSizes()
    _claim_dir(out_dir, seed=seed, sizes=sizes)
    librispeech_dir, events_dir = out_dir / "LibriSpeech", out_dir / "events"
    train_speakers = range(sizes.train_speakers)
    test_speakers = range(sizes.train_speakers, sizes.train_speakers + sizes.test_speakers)
    train_phrases = plan_phrases(TRAIN_SUBSET, sizes.train_utterances, train_speakers, seed=seed)
    test_phrases = plan_phrases(TEST_SUBSET, sizes.test_utterances, test_speakers, seed=seed)
    train_clips, test_clips = plan_clips("train", sizes.train_clips), plan_clips("test", sizes.test_clips)
    numbers = count(1)

    def on_recording() -> None:
        if on_progress:
            on_progress(next(numbers), sizes.num_recordings)

    write_librispeech(librispeech_dir, train_phrases + test_phrases, seed=seed, on_recording=on_recording)
    write_clips(events_dir, train_clips + test_clips, seed=seed, on_recording=on_recording)

    corpus = DemoCorpus(
        sizes=sizes,
        librispeech_dir=librispeech_dir,
        damaged_recording=librispeech_dir / train_phrases[len(train_phrases) // 2].path,
        events_dir=events_dir,
        train_questions_path=out_dir / "train_questions.json",
        test_questions_path=out_dir / "test_questions.json",
        train_annotation_path=events_dir / "train.json",
        test_annotation_path=events_dir / "test.json",
        stories_path=out_dir / "stories.json",
    )
    _cut_in_half(corpus.damaged_recording)
    joined = joined_examples(train_clips, sizes.joined_examples, seed=seed)
    for path, examples in {
        corpus.train_questions_path: phrase_questions(train_phrases),
        corpus.test_questions_path: phrase_questions(test_phrases),
        corpus.train_annotation_path: caption_examples(train_clips) + question_examples(train_clips) + joined,
        corpus.test_annotation_path: caption_examples(test_clips) + question_examples(test_clips),
        corpus.stories_path: story_examples(train_clips),
    }.items():
        path.write_text(json.dumps({"annotation": examples}, indent=1) + "\n", encoding="utf-8")
    return corpus


def _claim_dir(out_dir: Path, *, seed: int, sizes: DemoSizes) -> None:
    """Write down what `out_dir` is for, unless it already says so."""
    claim_path = out_dir / "demo_corpus.json"
    claim = json.dumps({"seed": seed, **asdict(sizes)}, indent=1) + "\n"
    if claim_path.is_file() and claim_path.read_text(encoding="utf-8") == claim:
        return
    if out_dir.exists() and any(out_dir.iterdir()):
        raise UserError(f"{out_dir}: not empty, and not the demo corpus of seed {seed} and these sizes")
    out_dir.mkdir(parents=True, exist_ok=True)
    claim_path.write_text(claim, encoding="utf-8")


def _cut_in_half(path: Path) -> None:
    contents = path.read_bytes()
    path.write_bytes(contents[: len(contents) // 2])
