"""Whether an answer is right: labels, options, slots, keywords and stories."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from pipelines.inference.scoring.answers import Answered
from pipelines.inference.scoring.measured import Measured, mean
from pipelines.inference.scoring.texts import normalise, words

STORY_WORDS = 50
NUM_KEYWORDS = 3
SLOT_WORDS = 10
"""A slot holds a time or a name; an answer of more words is a transcript or an explanation."""

LABEL_WORDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "speaker_verification": {"yes": "yes", "no": "no"},
        "gender_recognition": {"male": "male man masculine", "female": "female woman feminine"},
        "emotion_recognition": {
            "happy": "happy hap happiness joy joyful excited excitement",
            "sad": "sad sadness sorrow",
            "angry": "angry ang anger",
            "neutral": "neutral neu calm",
        },
    }
)
"""Task -> label -> the words for it."""

Link = Literal["exact", "contains", "option"]
LINKS: tuple[Link, ...] = ("exact", "contains", "option")
NORM = "norm:NFKC,lower,no punctuation"

_OPTION = re.compile(r"(?:^|(?<=[\s(,;:]))\(?([A-Ha-h1-8])[).:]\s+(.+?)(?=[\s,;]+\(?[A-Ha-h1-8][).:]\s|$)", re.DOTALL)
_CHOICE = re.compile(
    r"^\W*(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)(?:\s+is)?\W*)?\(?([A-Ha-h1-8])(?:[).:]|\W*$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Match:
    """How an answer was found right, and whether it has the asked form.

    Args:
        link: The first link of the chain that found it; None: it is wrong.
        follows: None: the question asks for no form that can be checked.
    """

    link: Link | None
    follows: bool | None = None


def first_label(labels: Mapping[str, str]) -> Callable[[str], str | None]:
    """Return a reader of the label that a text names first, given label -> the words for it."""
    label_of = {word: label for label, words_for_it in labels.items() for word in words_for_it.split()}
    return lambda text: next((label_of[word] for word in words(text) if word in label_of), None)


def match_label(item: Answered, read: Callable[[str], str | None]) -> Match:
    """Match an answer that must name one of a task's labels: the first one that it names counts."""
    named = read(item.answer)
    if is_exact(item):
        return Match("exact", named is not None)
    right = {read(reference) for reference in item.references} - {None}
    return Match("contains" if named in right else None, named is not None)


def match_open(item: Answered) -> Match:
    """Match an answer to a question, which may show options.

    It contains its reference word for word; where options are shown, it may name no other one.
    """
    options = shown_options(item.question)
    chosen = chosen_option(item.answer, options)
    named = [text for text in options.values() if holds(item.answer, text)]
    follows = (chosen is not None or bool(named)) if options else None
    if is_exact(item):
        return Match("exact", follows)
    right = [reference for reference in item.references if holds(item.answer, reference)]
    others = [text for text in named if not any(holds(reference, text) for reference in right)]
    if right and not others and not (options and all(len(normalise(reference)) == 1 for reference in right)):
        return Match("contains", follows)
    references = {normalise(reference) for reference in item.references}
    correct = {letter for letter, text in options.items() if {letter, text, f"{letter} {text}"} & references}
    return Match("option" if chosen in correct else None, follows)


def match_slot(item: Answered) -> Match:
    """Match an answer that must hold everything that fills the slot, which commas separate, and little else."""
    follows = 0 < len(words(item.answer)) <= SLOT_WORDS
    if is_exact(item):
        return Match("exact", follows)
    found = any(all(holds(item.answer, part) for part in reference.split(",")) for reference in item.references)
    return Match("contains" if found else None, follows)


def match_exact(item: Answered) -> Match:
    """Match an answer that must be a reference but for case and punctuation."""
    return Match("exact" if is_exact(item) else None)


def is_exact(item: Answered) -> bool:
    """Tell whether the answer is a reference, in the same words."""
    answer = normalise(item.answer)
    return any(normalise(reference) == answer for reference in item.references)


def holds(text: str, part: str) -> bool:
    """Tell whether a text holds a part, word for word; nothing holds a part without words."""
    inner = normalise(part)
    return bool(inner) and f" {inner} " in f" {normalise(text)} "


def shown_options(question: str) -> dict[str, str]:
    """Return letter or number -> normalised text of the options that a question shows, such as `(A) dog (B) cat`.

    They must begin at A or 1 and go on without a gap: otherwise there are none.
    """
    found = {letter.lower(): normalise(text) for letter, text in _OPTION.findall(question)}
    expected = ("abcdefgh"[: len(found)], "12345678"[: len(found)])
    return found if len(found) > 1 and "".join(found) in expected else {}


def chosen_option(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter or number that an answer begins with, as in `B`, `(b) cat` or `The answer is B.`."""
    found = _CHOICE.match(answer)
    return found[1].lower() if found and found[1].lower() in options else None


def accuracy(
    answered: Sequence[Answered], match: Callable[[Answered], Match], links: Sequence[Link] = LINKS
) -> Iterator[Measured]:
    """Yield the share of right answers, with the counts of each link, and of those that have the asked form."""
    matches = [match(item) for item in answered]
    by_link = Counter(one.link for one in matches)
    note = ", ".join(f"{by_link[link]} {link}" for link in links)
    yield mean(
        "accuracy",
        np.array([one.link is not None for one in matches], np.float64),
        signature=f"match:{'→'.join(links)}|{NORM}",
        notes=(f"found right by: {note}",),
    )
    yield mean(
        "following_rate",
        np.array([bool(one.follows) for one in matches], np.float64),
        counted=np.array([one.follows is not None for one in matches]),
        signature="names a label or an option that is asked for, or fits a slot",
    )


def keywords(answered: Sequence[Answered]) -> Iterator[Measured]:
    """Yield the mean share of the three keywords asked for that the reference has too, of its best reference.

    Keywords stand between commas, semicolons or line ends, with or without numbers before them; the first three count.
    A reference of fewer than three sets how many there are to find.
    """
    found = [
        max(_common_keywords(_keywords(reference), _keywords(item.answer)) for reference in item.references)
        for item in answered
    ]
    yield mean("accuracy", np.array(found), signature=f"keywords:{NUM_KEYWORDS}|{NORM}")


def _common_keywords(reference: list[str], answer: list[str]) -> float:
    wanted = min(NUM_KEYWORDS, len(reference))
    return len(set(answer[:NUM_KEYWORDS]) & set(reference)) / wanted if wanted else 0.0


def _keywords(text: str) -> list[str]:
    parts = (normalise(re.sub(r"^\W*\d+[.)]", "", part)) for part in re.split(r"[,;\n]", text))
    return list(dict.fromkeys(filter(None, parts)))


def stories(answered: Sequence[Answered]) -> Iterator[Measured]:
    """Yield the mean number of different words of a story, and the share of stories of 50 words or more."""
    told = [words(item.answer) for item in answered]
    yield mean("diversity", np.array([len(set(story)) for story in told], np.float64), signature=f"words|{NORM}")
    long = np.array([len(story) >= STORY_WORDS for story in told], np.float64)
    yield mean("following_rate", long, signature=f"words>={STORY_WORDS}|{NORM}")
