"""One spelling of each emotion, so that corpora teach the same words and answers are scored by what they say."""

EMOTION_TASK = "emotion_recognition"
SPELLINGS = {
    "angry": "ang anger",
    "happy": "hap happiness",
    "excited": "exc excitement",
    "sad": "sadness",
    "neutral": "neu",
    "frustrated": "fru frustration",
    "fearful": "fea fear",
    "surprised": "sur surprise",
    "disgusted": "dis disgust",
}
"""Label -> codes of IEMOCAP and nouns that mean it. No emotion is merged with another here."""
_LABEL_OF = {word: label for label, others in SPELLINGS.items() for word in (label, *others.split())}


def emotion_label(text: str) -> str:
    """Return the label that a text spells as a whole, in any case and with or without a full stop; other texts stay."""
    return _LABEL_OF.get(text.strip().removesuffix(".").lower(), text)
