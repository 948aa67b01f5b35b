"""IEMOCAP (full release): `Session<n>/dialog/EmoEvaluation/*.txt`, `Session<n>/sentences/wav/<dialog>/<turn>.wav`.

The four classes of the field: angry, happy, sad, neutral; 5,531 turns. Excited counts as happy; others are skipped.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import MISSING

from encoders.audio import Segment
from pipelines import storage
from pipelines.errors import UserError
from pipelines.interface.config import require_range
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.recordings import with_recordings
from pipelines.manifest.corpora.text_files import read_lines, require_layout
from pipelines.manifest.corpus import CorpusExample, PrepareConfig, Skipped
from pipelines.manifest.emotions import EMOTION_TASK, emotion_label
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

SESSIONS = range(1, 6)
FOUR_EMOTIONS = ("angry", "happy", "sad", "neutral")
LABELS_DIR, WAV_DIR = "dialog/EmoEvaluation", "sentences/wav"
PACKAGINGS = {"Session{session}/sentences/wav/{dialog}/{turn}.wav": "its archive"}

_TURN = re.compile(r"\[\d+\.\d+ - \d+\.\d+\]\s+(Ses\w+)\s+([a-z]{3})\s+\[.*\]")


@dataclass(frozen=True)
class IemocapConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The folder IEMOCAP_full_release, with Session1 to Session5 in it."""
    recording: str = ""
    """[template] A turn's name below the root, made of session (1 to 5), dialog and turn; empty: the packaging of
    docs/packagings.md."""
    test_session: int = 5
    """[number] Session whose two speakers are held out as split `test`; the others are `train`."""
    corpus: str = "iemocap"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, ["test_session"], low=SESSIONS[0], high=SESSIONS[-1])


def prepare_iemocap(config: IemocapConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of the five sessions."""
    needed = (LABELS_DIR,) if config.recording else (LABELS_DIR, WAV_DIR)
    folders = [f"Session{session}/{folder}" for session in SESSIONS for folder in needed]
    root = require_layout(config.root, folders, expected="IEMOCAP_full_release, the folder that holds the sessions")
    return write_manifest(read_iemocap(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_iemocap(config: IemocapConfig) -> Iterator[CorpusExample | Skipped]:
    """Yield the turns by session, dialogue and place in the dialogue's label file.

    Raises:
        UserError: Naming the line of a turn that does not read `[start - end] turn emotion [v, a, d]`.
    """
    for _, turn, recording in with_recordings(_turns(config), config.recording, PACKAGINGS, config.root):
        emotion = emotion_label("hap" if turn["code"] == "exc" else turn["code"])
        if emotion in FOUR_EMOTIONS:
            yield CorpusExample((Segment(recording),), turn["split"], EMOTION_TASK, emotion)
        else:
            yield Skipped(recording, "not one of the four emotions", turn["code"])


def _turns(config: IemocapConfig) -> Iterator[tuple[str, dict[str, str]]]:
    for session in SESSIONS:
        split = "test" if session == config.test_session else "train"
        folder = storage.join(config.root, f"Session{session}", LABELS_DIR)
        for name in storage.list_names(folder, ".txt"):
            if name.startswith("._"):  # left in the release by the system it was packed on
                continue
            for place, line in read_lines(storage.join(folder, name)):
                if not line.startswith("["):
                    continue
                turn = _TURN.fullmatch(line)
                if turn is None:
                    raise UserError(f"{place}: {line!r} does not read [start - end] turn emotion [v, a, d]")
                about = {"session": str(session), "dialog": turn[1].rpartition("_")[0], "turn": turn[1]}
                yield place, {**about, "split": split, "code": turn[2]}
