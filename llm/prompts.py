"""What the LLM is asked: the text around the audio, and questions for every task of SALMONN's three levels."""

import difflib
import hashlib
from collections.abc import Mapping
from types import MappingProxyType

from llm.errors import LLMError

BEFORE_AUDIO = "USER: <Speech>"
AFTER_AUDIO = "</Speech> {question}\nASSISTANT:"

_OWN_QUESTION = "{question}"  # a task whose every example brings what is asked

PROMPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # Level 1: tasks that are trained.
        "asr": (
            "Write down what is said.",
            "What are the words spoken in this recording?",
            "Turn the speech into text.",
            "Please transcribe the speech you hear.",
            "Give me the exact words of the speaker.",
        ),
        "en2zh": (
            "Translate the spoken English into Chinese.",
            "What does the speaker say, in Chinese?",
            "Listen to the English speech and write it in Chinese.",
            "Give a Chinese translation of what is said.",
        ),
        "audiocaption": (
            "Describe what can be heard.",
            "What sounds are there in this recording?",
            "Give a short caption of the audio.",
            "Summarise the audio in one sentence.",
            "In a few words, what is happening in this audio?",
        ),
        "phone_recognition": (
            "Write down the phonemes of the speech.",
            "Which phonemes are spoken, in order?",
            "Give the phonetic transcription of the recording.",
            "Spell the speech as a sequence of phonemes.",
        ),
        "emotion_recognition": (
            "Name the speaker's emotion in one word.",
            "Which emotion does the voice express?",
            "How does the speaker feel? Answer with one word.",
            "What is the emotional tone of this speech?",
        ),
        "music_caption": (
            "Describe the music.",
            "What does this piece of music sound like?",
            "Tell me about the genre, the instruments and the mood of this music.",
            "Write a caption for this music.",
        ),
        "overlapped_speech_recognition": (
            "Several people speak at once. Write down what each of them says.",
            "Transcribe every speaker in this mixture.",
            "The voices overlap: give the words of each speaker.",
            "Separate the speakers and write down their words.",
        ),
        "speaker_verification": (
            "There are two recordings. Is the speaker the same in both? Answer yes or no.",
            "Do both parts come from one speaker? Answer yes or no.",
            "Compare the two voices: are they the same person's? Answer yes or no.",
            "Is it one and the same person before and after the pause? Answer yes or no.",
        ),
        "gender_recognition": (
            "Is the speaker a man or a woman?",
            "Name the gender of the speaker.",
            "Does this voice belong to a male or a female speaker?",
            "Judging by the voice, which gender does the speaker have?",
        ),
        "sqa": (_OWN_QUESTION,),
        "aqa": (_OWN_QUESTION,),
        "mqa": (_OWN_QUESTION,),
        # Level 2: speech tasks that are not trained.
        "en2de": (
            "Translate the spoken English into German.",
            "What does the speaker say, in German?",
            "Listen to the English speech and write it in German.",
            "Give a German translation of what is said.",
        ),
        "en2ja": (
            "Translate the spoken English into Japanese.",
            "What does the speaker say, in Japanese?",
            "Listen to the English speech and write it in Japanese.",
            "Give a Japanese translation of what is said.",
        ),
        "keywords": (
            "List three keywords of the speech.",
            "Which three words sum up what is said?",
            "Pick the most important words out of the speech.",
            "Give me the key terms that the speaker uses.",
        ),
        "sqqa": (
            "Answer the question that is asked in the speech.",
            "The speaker asks you something. What is your answer?",
            "Listen to the question and answer it in full.",
            "Please reply to what you are asked.",
        ),
        "slot_filling": (_OWN_QUESTION,),
        # Level 3: tasks that need speech and other sounds to be understood together.
        "audio_story": (
            "Tell a story about what you hear.",
            "Make up a long and detailed story that fits this audio.",
            "Let the sounds inspire you: write a story around them.",
            "What might have happened here? Tell it as a story.",
        ),
        "speech_audio_coreasoning": (
            "Answer the spoken question with the help of the sounds in the background.",
            "Someone asks about the sounds around them. Answer, and explain your answer.",
            "Use both the speech and the other sounds to reply to the speaker.",
            "Listen to the question and to the background, and say what follows from them.",
        ),
    }
)


def question_for(
    task: str,
    *,
    question: str | None = None,
    example_id: str | None = None,
    seed: int | None = None,
    epoch: int = 0,
) -> str:
    """Return what is asked about one example.

    Args:
        task: A task of `PROMPTS`, or any other when the example has its own question.
        question: The example's own question, which is asked as it is.
        example_id: What tells examples apart in a seeded choice.
        seed: None for the task's first question; otherwise the question is drawn for each example and epoch, with the
            same result on every machine and in any order.
        epoch: Pass over the data.

    Raises:
        LLMError: If the task is unknown, or asks the example's own question and there is none.
    """
    if question:
        return question
    if task not in PROMPTS:
        nearest = difflib.get_close_matches(task, PROMPTS, n=3, cutoff=0.0)
        raise LLMError(f"task {task!r} has no questions and the example none of its own; nearest: {', '.join(nearest)}")
    templates = PROMPTS[task]
    if templates == (_OWN_QUESTION,):
        raise LLMError(f"task {task!r} asks each example's own question, and example {example_id!r} has none")
    if seed is None:
        return templates[0]
    digest = hashlib.sha256(f"{seed}/{epoch}/{task}/{example_id}".encode()).digest()
    return templates[int.from_bytes(digest[:8], "big") % len(templates)]
