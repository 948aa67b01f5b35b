"""VoxCeleb1: recordings `<speaker>/<video>/<number>.wav` and a list of trials, lines of `0|1 path path`.

A clip is two recordings joined with 0.1 s of silence. Both are heard: of each the first 14.95 s at most, half of the
30 s that a clip holds. (The mean recording lasts 8 s, the longest 145 s.)
"""

import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import TypeVar

from omegaconf import MISSING

from encoders.audio import CLIP_SAMPLES, JOIN_SILENCE_SAMPLES, SAMPLE_RATE_HZ, AudioError, Segment
from encoders.sound.sound_file import probe_seconds
from pipelines import storage
from pipelines.errors import MissingError, UserError
from pipelines.interface.config import require_range
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.recordings import recording_folders
from pipelines.manifest.corpora.text_files import read_lines, require_layout
from pipelines.manifest.corpus import CorpusExample, PrepareConfig
from pipelines.manifest.prepare import write_manifest
from pipelines.manifest.reports import PrepareReport

HALF_SECONDS = (CLIP_SAMPLES - JOIN_SILENCE_SAMPLES) / 2 / SAMPLE_RATE_HZ
UTTERANCE = "{speaker}/{video}/{number}"
PACKAGINGS = {
    "wav/{speaker}/{video}/{number}.wav": "its archives, unpacked in one place; torchaudio",
    "dev/wav/{speaker}/{video}/{number}.wav": "its archives, each unpacked into a folder: the part of dev",
    "test/wav/{speaker}/{video}/{number}.wav": "the same, the part of test",
    "vox1_dev_wav/wav/{speaker}/{video}/{number}.wav": "its archives, each in a folder of its name: the part of dev",
    "vox1_test_wav/wav/{speaker}/{video}/{number}.wav": "the same, the part of test",
    "{speaker}/{video}/{number}.wav": "speakers' folders at the root",
    "dev/{speaker}/{video}/{number}.wav": "speakers' folders in dev",
    "test/{speaker}/{video}/{number}.wav": "speakers' folders in test",
}
"""All that are there are read: the archives of dev and test may lie apart."""
THREADS = 16
BATCH_PAIRS = 1_024

ItemT = TypeVar("ItemT")
_UTTERANCE = r"(?:\S*/)?(id\d+)/([^/\s]+)/(\d+)\.\w+"  # some lists put a folder in front
_TRIAL = re.compile(rf"([01])\s+{_UTTERANCE}\s+{_UTTERANCE}")


@dataclass(frozen=True)
class VoxCelebConfig(PrepareConfig):
    root: str = MISSING
    """[URI] The folder that holds the recordings and the list of trials."""
    recording: str = ""
    """[template] A recording's name below the root: a folder, {speaker}/{video}/{number}, and an ending; empty: all
    packagings of docs/packagings.md that are there."""
    trials: str = "veri_test2.txt"
    """[path] List of trials below the root, which become split `test`: veri_test.txt or, cleaned, veri_test2.txt."""
    train_pairs: int = 520_000
    """[pairs] Drawn from the speakers that no trial names, half of one speaker in two videos, half of two speakers."""
    seed: int = 0
    """[number] Chooses the training pairs."""
    corpus: str = "voxceleb"
    """[name] Corpus name in the manifest; part of every clip's identity."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, ["train_pairs"], low=0)
        if self.recording and not re.fullmatch(rf"([^{{}}]+/)?{re.escape(UTTERANCE)}\.\w+", self.recording):
            raise UserError(f"recording={self.recording}: must be a folder, {UTTERANCE} and an ending such as .wav")

    @property
    def folders(self) -> list[str]:
        """Folders below the root that may hold speakers' folders."""
        return recording_folders(self.recording, PACKAGINGS)

    @property
    def ending(self) -> str:
        """What the recordings' names end in."""
        return PurePosixPath(self.recording or next(iter(PACKAGINGS))).suffix


@dataclass(frozen=True)
class Pair:
    """Two recordings below the root, and whether one speaker is heard in both."""

    recordings: tuple[str, str]
    same: bool
    split: str


def prepare_voxceleb(config: VoxCelebConfig, progress: Progress | None = None) -> PrepareReport:
    """Write the manifest of training pairs and trials."""
    expected = "the folder that holds the recordings and the list of trials"
    root = require_layout(config.root, [config.trials], expected=expected)
    return write_manifest(read_voxceleb(config), corpus=config.corpus, root=root, config=config, progress=progress)


def read_voxceleb(config: VoxCelebConfig) -> Iterator[CorpusExample]:
    """Yield the training pairs in the order drawn, then the trials in their list's; the answer is yes or no.

    The names of all training recordings (148,642) are in memory. Headers are read, as a recording's length decides
    where it is cut; one that cannot be read is passed on whole.

    Raises:
        MissingError: If no speaker's folder is there.
        UserError: Naming the trial that is malformed, or if training speakers are too few.
        OSError: If storage fails.
    """
    folder_of = _speaker_folders(config)
    pairs = _pairs(config, folder_of)
    segments: dict[str, Segment] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(islice(pairs, BATCH_PAIRS)):
            recordings = {recording for pair in batch for recording in pair.recordings} - segments.keys()
            segments |= zip(recordings, pool.map(partial(_cut, config.root), recordings), strict=True)
            for pair in batch:
                first, second = pair.recordings
                answer = "yes" if pair.same else "no"
                yield CorpusExample((segments[first], segments[second]), pair.split, "speaker_verification", answer)


def _speaker_folders(config: VoxCelebConfig) -> dict[str, str]:
    """Return speaker -> folder below the root that holds the speaker's."""
    folders = {
        speaker: folder
        for folder in config.folders
        for speaker in storage.list_folders(storage.join(config.root, folder or "."))
        if re.fullmatch(r"id\d+", speaker)
    }
    if not folders:
        places = ", ".join(f"{folder}/" for folder in config.folders if folder)
        raise MissingError(f"root={config.root}: no speaker's folder id…, looked in {places or 'it'}")
    return folders


def _cut(root: str, recording: str) -> Segment:
    try:
        seconds = probe_seconds(storage.join(root, recording), open_file=storage.open_file)
    except AudioError:
        return Segment(recording)
    return Segment(recording, 0.0, min(seconds, HALF_SECONDS))


def _pairs(config: VoxCelebConfig, folder_of: dict[str, str]) -> Iterator[Pair]:
    trials = list(_trials(config, folder_of))
    if config.train_pairs:
        tested = {PurePosixPath(recording).parts[-3] for trial in trials for recording in trial.recordings}
        yield from _training_pairs(config, {name: folder_of[name] for name in sorted(folder_of.keys() - tested)})
    yield from trials


def _trials(config: VoxCelebConfig, folder_of: dict[str, str]) -> Iterator[Pair]:
    for place, line in read_lines(storage.join(config.root, config.trials)):
        trial = _TRIAL.fullmatch(line)
        if trial is None:
            raise UserError(f"{place}: {line!r} does not read 0|1 id…/video/number.wav id…/video/number.wav")
        same, *names = trial.groups()
        first, second = (_recording(config, folder_of, *utterance) for utterance in (names[:3], names[3:]))
        yield Pair((first, second), same == "1", "test")


def _recording(config: VoxCelebConfig, folder_of: dict[str, str], speaker: str, video: str, number: str) -> str:
    folder = folder_of.get(speaker, config.folders[0])
    return f"{folder}/{speaker}/{video}/{number}{config.ending}".lstrip("/")


def _training_pairs(config: VoxCelebConfig, folder_of: dict[str, str]) -> Iterator[Pair]:
    """Draw pairs, the even ones of one speaker; some may be drawn twice."""
    with ThreadPoolExecutor(THREADS) as pool:
        places = [f"{folder}/{speaker}".lstrip("/") for speaker, folder in folder_of.items()]
        videos_of = dict(zip(folder_of, pool.map(partial(_videos, config), places), strict=True))
    speakers = [speaker for speaker, videos in videos_of.items() if videos]
    in_two_videos = [speaker for speaker in speakers if len(videos_of[speaker]) > 1]
    if len(speakers) < 2 or not in_two_videos:
        raise UserError(
            f"root={config.root}: {len(speakers)} speakers that {config.trials} does not name, {len(in_two_videos)} of "
            f"them in two videos; train_pairs={config.train_pairs} needs two and one, train_pairs=0 none"
        )
    rng = random.Random(config.seed)
    for number in range(config.train_pairs):
        same = number % 2 == 0
        if same:
            videos = _draw_two(rng, videos_of[_draw(rng, in_two_videos)])
        else:
            first_speaker, second_speaker = _draw_two(rng, speakers)
            videos = _draw(rng, videos_of[first_speaker]), _draw(rng, videos_of[second_speaker])
        yield Pair((_draw(rng, videos[0]), _draw(rng, videos[1])), same, "train")


def _videos(config: VoxCelebConfig, speaker: str) -> list[list[str]]:
    """Return the recordings of each of a speaker's videos that has any."""
    root = config.root
    videos = (f"{speaker}/{video}" for video in storage.list_folders(storage.join(root, speaker)))
    found = (
        [f"{video}/{name}" for name in storage.list_names(storage.join(root, video), config.ending)] for video in videos
    )
    return [recordings for recordings in found if recordings]


def _draw(rng: random.Random, items: Sequence[ItemT]) -> ItemT:
    """Draw an item by `random()`, the one method that gives the same in every version of Python."""
    return items[int(rng.random() * len(items))]


def _draw_two(rng: random.Random, items: Sequence[ItemT]) -> tuple[ItemT, ItemT]:
    """Draw two different items."""
    first = second = _draw(rng, items)
    while second == first:
        second = _draw(rng, items)
    return first, second
