import dataclasses

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from llm.answering import Answering
from llm.lora import MAIN_ADAPTER, add_lora, use_lora
from llm.salmonn import Batch, Salmonn
from llm.settings import LoraSettings

QUESTIONS = ["What is heard?", "Which colour?", "Red or green, or another one?", "Who?", "Why?"]


class Sound(nn.Module):
    """Two audio tokens of each clip: its frames as they are."""

    def forward(self, speech_BTC: Tensor, audio: None, *, audio_frames: None) -> Tensor:
        return speech_BTC


@pytest.fixture
def salmonn(adapted_llm: PeftModel, tiny_tokenizer: PreTrainedTokenizerBase) -> Salmonn:
    return Salmonn(Sound(), adapted_llm, tiny_tokenizer).eval()


def batch_of(questions: list[str]) -> Batch:
    speech = torch.randn(len(QUESTIONS), 2, 128, generator=torch.Generator().manual_seed(0))
    places = [QUESTIONS.index(question) for question in questions]
    return Batch(speech[places], None, None, questions)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_questions_join_and_leave_and_each_is_told_in_pieces_what_it_is_answered_alone(
    salmonn: Salmonn, num_beams: int
) -> None:
    options = {"num_beams": num_beams, "max_new_tokens": 24}
    alone = {question: salmonn.generate(batch_of([question]), **options)[0] for question in QUESTIONS}
    answering = Answering(salmonn, **options)
    answering.join([0, 1], batch_of(QUESTIONS[:2]))
    told, answers, pieces = dict.fromkeys(range(5), ""), {}, dict.fromkeys(range(5), 0)
    steps = 0
    while len(answering):
        if steps == 2:
            assert answering.join([2, 3, 4], batch_of(QUESTIONS[2:]))[0] > 10
        if steps == 4:
            answering.drop(3)
        for one in answering.step(streamed=[0, 2, 3]):
            told[one.question] += one.text
            pieces[one.question] += bool(one.text)
            if one.answer:
                answers[one.question] = one.answer
        steps += 1
    assert answers == {number: alone[QUESTIONS[number]] for number in (0, 1, 2, 4)}
    assert all(told[number] == answer.text for number, answer in answers.items())
    assert pieces[0] > 1 and pieces[1] == 1  # the latter is not streamed
    assert not answering._told


def test_an_answer_may_be_shorter_than_others(salmonn: Salmonn) -> None:
    answering = Answering(salmonn, num_beams=1, max_new_tokens=24)
    answering.join([0, 1], batch_of(QUESTIONS[:2]), [3, 24])
    answers = {}
    while len(answering):
        answers |= {one.question: one.answer for one in answering.step() if one.answer}
    short = salmonn.generate(batch_of(QUESTIONS[:1]), num_beams=1, max_new_tokens=3)[0]
    assert answers[0] == short and answers[1].num_tokens > 3


@pytest.mark.parametrize("num_beams", [1, 4])
def test_questions_to_models_over_one_llm_are_answered_together_each_with_its_own_lora(
    salmonn: Salmonn, num_beams: int
) -> None:
    options = {"num_beams": num_beams, "max_new_tokens": 24}
    add_lora(salmonn.llm, LoraSettings(rank=2, alpha=8, dropout=0.0), adapter="other")
    for name, parameter in salmonn.llm.named_parameters():
        if "lora_B.other" in name:
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(2))
    other = Salmonn(Sound(), salmonn.llm, salmonn.tokenizer).eval()
    alone = {}
    for adapter in (MAIN_ADAPTER, "other"):
        use_lora(salmonn.llm, adapter)
        alone[adapter] = salmonn.generate(batch_of(QUESTIONS), **options)
    assert alone[MAIN_ADAPTER] != alone["other"]
    answering = Answering(salmonn, **options)
    answering.join([0, 1], batch_of(QUESTIONS[:2]), adapter=MAIN_ADAPTER)
    answering.join([10, 11, 12], batch_of(QUESTIONS[:3]), model=other, adapter="other")
    answers = {one.question: one.answer for one in answering.step() if one.answer}
    answering.join([2, 3, 4], batch_of(QUESTIONS[2:]), adapter=MAIN_ADAPTER)
    while len(answering):
        answers |= {one.question: one.answer for one in answering.step() if one.answer}
    expected = dict(enumerate(alone[MAIN_ADAPTER])) | {10 + place: alone["other"][place] for place in range(3)}
    assert answers == expected


def test_half_a_character_is_not_told(salmonn: Salmonn, monkeypatch: pytest.MonkeyPatch) -> None:
    answering = Answering(salmonn, num_beams=1, max_new_tokens=24)
    tokens = salmonn.tokenizer("aé b", add_special_tokens=False).input_ids
    texts = [answering._news(0, tokens[:count]) for count in range(len(tokens) + 1)]
    assert "".join(texts) == "aé b" and not any("\ufffd" in text or text.endswith(" ") for text in texts)
    assert len(tokens) == 4  # the character takes two


def test_wrong_counts_are_named(salmonn: Salmonn) -> None:
    wrong = dataclasses.replace(batch_of(QUESTIONS[:2]), questions=["one"])
    with pytest.raises(ValueError, match="1 questions about 2 clips"):
        Answering(salmonn).join([0], wrong)
