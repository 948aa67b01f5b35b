"""What an answering worker does with a unit: features from the cache, answers by the model, both kept together."""

import hashlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch

from encoders.audio import CLIP_SAMPLES, SAMPLE_RATE_HZ
from llm.answering import Answering
from llm.lora import set_lora_scaling
from llm.salmonn import Answer, Batch, Salmonn
from pipelines.batches.batch import make_batch, read_questions
from pipelines.cache.reader import FeatureCache
from pipelines.inference.answers import SILENCE, AnswerStore, DecodeSettings
from pipelines.inference.engines.vllm_engine import VllmEngine
from pipelines.inference.listening.listener import Listener
from pipelines.inference.units import AnswerConfig, AnswerUnit, UnitAnswers
from pipelines.runs.checkpoint import LoadedRun, load_weights
from pipelines.runs.model import build_model
from pipelines.storage.ahead import ReadAhead

logger = logging.getLogger(__name__)
JOINS_PER_BATCH = 4
"""After a unit's first batch, which begins whole, so many groups are a batch; each joins when there is room for it."""
READ_SECONDS = 3600.0
"""Longest wait for a group's clips; reading each from its cache has a shorter limit, and silence is encoded first."""


class AnswerWorker:
    """Answers questions about the clips of a cache."""

    def __init__(self, config: AnswerConfig, node: str = "here") -> None:
        """Load the model; `node` is where this is."""
        self.node = node
        torch.set_num_threads(config.threads)
        self._config = config
        self._cache = FeatureCache(config.cache)
        device = "cpu" if config.engine_python else config.device
        self._model = build_model(config.spec, config.run, device=device)
        load_weights(config.run, config.step, self._model)
        self._engine = _engine(config, self._model.eval()) if config.engine_python else None
        self._listener = Listener(
            config.run,
            LoadedRun(self._model.eval(), config.spec, config.step),
            device=config.device,
            whisper=config.whisper,
            beats=config.beats,
        )
        self.answered = 0
        """Questions of the running unit."""

    def run(self, unit: AnswerUnit) -> UnitAnswers:
        """Answer a unit's questions and keep the answers.

        Raises:
            UserError: If features are not the written ones, naming shard and clip.
            MemoryError: If a GPU's memory is too small for the batch.
            OSError: If storage fails.
        """
        started = time.monotonic()
        store = AnswerStore(self._config.stores[unit.setting])
        if (kept := store.read_unit(unit.unit_id)) is not None:  # by a worker that died before it could say so
            return UnitAnswers(kept.num_rows, sum(kept["tokens"].to_pylist()), 0.0, self.node)
        try:
            rows = self.answers(unit)
        except torch.OutOfMemoryError as error:
            most = self._config.batch_examples
            hint = f"the device has too little memory for batch_examples={most}; a smaller one needs less"
            raise MemoryError(f"{hint} ({str(error).splitlines()[0]})") from error
        store.write(unit.unit_id, rows)
        tokens = sum(row["tokens"] for row in rows)
        done = UnitAnswers(len(rows), tokens, time.monotonic() - started, self.node)
        logger.info("unit %s: %d answers, %d tokens in %.1f s", unit.unit_id, len(rows), tokens, done.seconds)
        return done

    def answers(self, unit: AnswerUnit) -> list[dict[str, Any]]:
        """Return a unit's answers as rows of `answers.SCHEMA`, kept nowhere. Raises as `run`."""
        settings = self._config.settings[unit.setting]
        if self._engine is None:
            set_lora_scaling(self._model.llm, settings.lora_scaling)
        self.answered, started = 0, time.monotonic()
        answer = self._in_whole_batches if settings.in_whole_batches else self._in_continuous_batch
        answers = answer(unit, settings)
        seconds = (time.monotonic() - started) / len(answers)
        self.answered = 0  # the driver counts them itself now
        return [
            {"clip_id": clip, "question": question, "seconds": seconds, "answer": one.text, "tokens": one.num_tokens}
            for clip, question, one in zip(unit.clip_ids, unit.questions, answers, strict=True)
        ]

    def _in_continuous_batch(self, unit: AnswerUnit, settings: DecodeSettings) -> list[Answer]:
        """Decode up to `batch_examples` questions together; as answers end, the next questions take their places.

        These are read ahead meanwhile.
        """
        most, count = self._config.batch_examples, len(unit.clip_ids)
        size = max(1, most // JOINS_PER_BATCH)
        groups = [range(min(most, count)), *(range(at, min(at + size, count)) for at in range(most, count, size))]
        batches = ReadAhead(
            lambda step: self._of(unit, groups[step]),
            range(len(groups)),
            ahead_steps=1,
            timeout_seconds=READ_SECONDS,
        )
        answering = Answering(self._model, num_beams=settings.num_beams, max_new_tokens=settings.max_new_tokens)
        answers: dict[int, Answer] = {}
        waiting = deque(groups)
        self._listener.take_turn()
        while waiting or len(answering):
            while waiting and len(answering) + len(waiting[0]) <= most:
                group, batch = waiting.popleft(), batches.take().to(self._config.device)
                answering.join(group, batch, one=partial(self._one, unit, group))
            for told in answering.step():
                assert told.answer
                answers[told.question] = told.answer
            self.answered = len(answers)
        return [answers[place] for place in range(count)]

    def _one(self, unit: AnswerUnit, group: Sequence[int], place: int) -> Batch:
        return self._of(unit, group[place : place + 1]).to(self._config.device)

    def _of(self, unit: AnswerUnit, places: Sequence[int]) -> Batch:
        return self._read([unit.clip_ids[place] for place in places], [unit.questions[place] for place in places])

    def _in_whole_batches(self, unit: AnswerUnit, settings: DecodeSettings) -> list[Answer]:
        """Let the engine answer `batch_examples` at a time, or draw so many answers: those depend on each other."""
        answers: list[Answer] = []
        for first in range(0, len(unit.clip_ids), self._config.batch_examples):
            part = slice(first, first + self._config.batch_examples)
            answers += self._answer(unit.clip_ids[part], unit.questions[part], settings)
            self.answered = len(answers)
        return answers

    def _answer(self, clip_ids: Sequence[str], questions: Sequence[str], settings: DecodeSettings) -> list[Answer]:
        batch = self._read(clip_ids, questions).to(self._config.device)
        if self._engine:
            return self._engine.generate(batch, max_new_tokens=settings.max_new_tokens)
        sampling = settings.sampling
        assert sampling
        drawn = hashlib.sha256(repr((sampling.seed, clip_ids, questions)).encode()).digest()
        torch.manual_seed(int.from_bytes(drawn[:8], "big"))
        return self._model.sample(
            batch,
            max_new_tokens=settings.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )

    def _read(self, clip_ids: Sequence[str], questions: Sequence[str]) -> Batch:
        heard = self._config.spec.heard
        if SILENCE not in clip_ids:
            positions = self._cache.positions(list(clip_ids)).tolist()
            return read_questions(self._cache, positions, list(questions), [], heard=heard)
        positions = self._cache.positions([clip_id for clip_id in clip_ids if clip_id != SILENCE])
        frames = self._cache.heard_of(positions, heard).tolist()
        clips = iter([self._cache.read(*clip) for clip in zip(positions.tolist(), frames, strict=True)])
        streams = [self._silence if clip_id == SILENCE else next(clips) for clip_id in clip_ids]
        return make_batch(streams, list(questions), [], heard=heard)

    @cached_property
    def _silence(self) -> dict[str, torch.Tensor]:
        heard = self._listener.features((torch.zeros(CLIP_SAMPLES), SAMPLE_RATE_HZ))
        return {name: frames.cpu() for name, frames in heard.streams.items()}


def _engine(config: AnswerConfig, model: Salmonn) -> VllmEngine:
    (settings,) = config.settings
    assert settings.engine
    return VllmEngine(
        model,
        name=settings.engine,
        python=config.engine_python,
        precision=config.spec.dtype,
        lora_scaling=settings.lora_scaling,
        device=config.device,
    )
