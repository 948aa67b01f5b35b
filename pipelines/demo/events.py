"""Synthetic sound clips, and what is asked and told about them, in SALMONN's annotation format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

from pipelines.demo.sound_events import SOUND_EVENTS, SoundEvent, synthesise_event

Example = dict[str, str | list[str]]

EVENT_QUESTION = "Which sound is it?"

_RATES_HZ = (16_000, 22_050, 44_100)
_STEREO_EVERY = 11  # prime to the number of events, so that each is stereo now and then

# Each about whatever is heard: `{name}` is the event's, `{heard}` its caption in the past tense.
STORIES = (
    "Mara woke before sunrise and lay very still. Outside, {heard}, just as it had on the morning her brother left "
    "for the sea. She put on his old coat, lit the stove and set two cups on the table. When the {name} stopped at "
    "last, somebody knocked, shook the snow from his boots, and asked whether the tea was still warm.",
    "Nobody in the village could explain it: every Tuesday, at noon exactly, {heard}. The baker blamed the ghosts, "
    "the teacher blamed the baker, and the children charged visitors a penny to listen. Then little Tom followed the "
    "{name} down to the cellar of the old mill, found the cause in a biscuit tin, and wisely told no one.",
    "The detective closed her eyes and played the tape once more. Behind two whispering voices {heard}, faint but "
    "certain. That could only be the yard behind the theatre. She drove there through empty streets, counted the "
    "windows, and waited. When the {name} came again from the third floor, she smiled, and reached for the door.",
    "On the last night of the expedition the radio brought nothing but static, until suddenly {heard}. Four tired "
    "people stared at each other across the tent. After months of ice the {name} meant a valley, a road, perhaps a "
    "kitchen with bread in it. They packed without a word and walked towards it, laughing like children let out "
    "early.",
    "Grandfather had built a museum of sounds, each kept in a glass jar with a paper label. My favourite stood on the "
    "highest shelf: you lifted the lid, and {heard}. One summer I dropped it. The {name} escaped through the window "
    "and has lived in our street ever since, and he, instead of scolding me, gave me an empty jar to begin my own.",
    "Captain Ortega trusted neither maps nor stars, only her ears. In the thick white fog she raised one hand and the "
    "whole crew fell silent. Far away to the left, {heard}. She turned the wheel gently, for where the {name} was, "
    "there had to be land. An hour later the harbour lights rose out of the grey, one by one.",
    "The robot had learned every word in the library, yet it had never been outdoors. On its first walk it halted in "
    "the middle of the square, because {heard}. It searched ten thousand pages and found the name, but none of them "
    "said how the {name} would feel. So it sat down on the steps, next to a sleeping cat, and listened until evening.",
    "Two sisters inherited one house and had not spoken for nine years. While they were dividing the spoons, {heard}, "
    "and both of them looked up at the same moment. They remembered the same kitchen, the same summer, the same joke "
    "about the {name}. The spoons went back into the drawer, and nobody mentioned selling anything again.",
    "For the school play Jonas was given the smallest part: he had to stand behind the curtain and make the audience "
    "believe that {heard}. He practised for weeks with pots, paper and his uncle's bicycle. On the great evening the "
    "{name} sounded so real that people in the front row turned round, and the heroine forgot her lines.",
    "A letter without a sender told the clockmaker's apprentice to be on the bridge at midnight and to wait until "
    "{heard}. She thought it a prank, but she went. The river was black and the lamps were low. Then the {name} broke "
    "the silence, a small boat slid out of the dark, and a stranger handed her the key she had dreamed about.",
    "High above the city the night nurse opened a window for the old composer, who could no longer leave his bed. "
    "Outside {heard}. Listen, he said, all my life I have looked for that note. She brought him paper. By dawn the "
    "{name} had become eleven bars of music, and he slept, smiling, with the pencil still in his hand.",
    "The dragon was not fierce at all, merely very short of sleep. Each time it closed its eyes, {heard}, and the "
    "whole mountain trembled with its sighs. A shepherd girl climbed up with two enormous balls of wool and packed "
    "them into its ears. The {name} went on and on, but the dragon slept for a hundred years, and the valley was "
    "grateful.",
)


@dataclass(frozen=True)
class EventClip:
    event: SoundEvent
    split: str
    number: int

    @property
    def path(self) -> str:
        """The recording, relative to the events' folder."""
        return f"audio/{self.split}-{self.number:04d}-{self.event.name}.wav"

    @property
    def rate_hz(self) -> int:
        """Another rate each time the events come round, so that it tells nothing of the event."""
        return _RATES_HZ[self.number // len(SOUND_EVENTS) % len(_RATES_HZ)]

    @property
    def num_channels(self) -> int:
        return 2 if self.number % _STEREO_EVERY == _STEREO_EVERY - 1 else 1


def plan_clips(split: str, num_clips: int) -> list[EventClip]:
    """Return clips of all events in turn."""
    events = tuple(SOUND_EVENTS.values())
    return [EventClip(events[number % len(events)], split, number) for number in range(num_clips)]


def write_clips(events_dir: Path, clips: Sequence[EventClip], *, seed: int, on_recording: Callable[[], None]) -> None:
    """Write the recordings, one to two seconds each, calling `on_recording` after each."""
    (events_dir / "audio").mkdir(parents=True, exist_ok=True)
    for clip in clips:
        rng = np.random.default_rng([seed, *clip.path.encode()])
        seconds = rng.integers(55, 101) / 50  # a length without large prime factors transforms fast
        samples = synthesise_event(clip.event, rng, seconds=seconds, rate_hz=clip.rate_hz)
        if clip.num_channels == 2:  # the right ear hears it later and softer
            samples = np.stack((samples, 0.5 * np.roll(samples, clip.rate_hz // 2000)), axis=1)
        sf.write(events_dir / clip.path, samples, clip.rate_hz, subtype="PCM_16")
        on_recording()


def caption_examples(clips: Sequence[EventClip]) -> list[Example]:
    """Say of every clip what is heard."""
    return [{"path": clip.path, "text": clip.event.caption, "task": "audiocaption"} for clip in clips]


def question_examples(clips: Sequence[EventClip]) -> list[Example]:
    """Ask of every clip which sound it is."""
    return [{"path": clip.path, "text": clip.event.name, "task": "aqa", "Q": EVENT_QUESTION} for clip in clips]


def joined_examples(clips: Sequence[EventClip], num_examples: int, *, seed: int) -> list[Example]:
    """Caption two clips of different events, heard one after the other."""
    rng = np.random.default_rng([seed, *b"joined"])
    examples: list[Example] = []
    for _ in range(num_examples):
        first = clips[int(rng.integers(len(clips)))]
        others = [clip for clip in clips if clip.event != first.event]
        second = others[int(rng.integers(len(others)))]
        text = f"{first.event.caption} and then {second.event.caption}"
        examples.append({"path": first.path, "expand_wav": [second.path], "text": text, "task": "audiocaption"})
    return examples


def story_examples(clips: Sequence[EventClip]) -> list[Example]:
    """Tell each of the stories of one clip.

    Raises:
        ValueError: If there are fewer clips than stories.
    """
    return [
        {
            "path": clip.path,
            "text": story.format(name=clip.event.name, heard=clip.event.caption.replace(" is ", " was ")),
            "task": "audio_story",
        }
        for story, clip in zip(STORIES, clips[: len(STORIES)], strict=True)
    ]
