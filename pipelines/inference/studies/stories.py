"""`salmonn stories`: a run with LoRA scaled down writes stories about cached clips; the accepted become a manifest."""

import hashlib
import sys
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from llm.prompts import question_for
from pipelines import storage
from pipelines.errors import JobIncompleteError, UserError
from pipelines.inference.answering import answer
from pipelines.inference.answers import DecodeSettings, Sampling
from pipelines.inference.held_out import open_held_out, with_full_paths
from pipelines.inference.questions import Questions
from pipelines.inference.studies.candidates import FILE, Candidate, flaw_of, with_decisions, write_candidates
from pipelines.inference.studies.config import StoriesConfig
from pipelines.inference.studies.review import accept_first, accept_named, ask_person
from pipelines.interface.config import save_config
from pipelines.interface.progress import Progress
from pipelines.manifest.ids import example_id
from pipelines.manifest.tables import EXAMPLES, Clip, Example, read_clips
from pipelines.manifest.writer import ManifestWriter

TASK = "audio_story"


def stories(config: StoriesConfig, progress: Progress | None = None) -> int:
    """Write what was not written before, let the stories be accepted, write those as a manifest, and return how many.

    Raises:
        UserError: As `evaluate`; if there is a manifest in `out` and `append` is off; if `accept` names no story, or
            candidates.jsonl was edited to something else.
        JobIncompleteError: If stories stay unwritten, none is accepted yet, or there are fewer than `accept_first`.
    """
    config = with_full_paths(config)  # workers run in folders of their own
    if not config.append and storage.file_exists(storage.join(config.out, EXAMPLES)):
        raise UserError(f"{config.out}: holds a manifest already; append=true adds to it")
    candidates = with_decisions(config.out, _write(config, progress or Progress()))
    write_candidates(config.out, candidates, config)
    _print_counts(candidates, config)
    accepted = [one for one in _decide(candidates, config) if one.accept]
    if not accepted or len(accepted) < config.accept_first:
        raise JobIncompleteError(_too_few(len(accepted), config))
    _write_manifest(config, accepted)
    print(f"{config.out}: {len(accepted)} accepted stories")
    return len(accepted)


def _too_few(accepted: int, config: StoriesConfig) -> str:
    if config.accept_first:
        return (
            f"{config.out}: accept_first={config.accept_first}, but {accepted} stories are offered; clips=… writes more"
        )
    return (
        f'{storage.join(config.out, FILE)}: no story is accepted yet; set "accept": true where one is good, and call '
        "the same command again, or with accept=[ids] or accept_first=N"
    )


def _write(config: StoriesConfig, progress: Progress) -> list[Candidate]:
    """Return a story about each of the clips, in the order in which they were drawn."""
    model, questions = open_held_out(config)
    clips = _draw_clips(questions, config)
    question = question_for(TASK)
    wanted = pa.table({"clip_id": list(clips), "question": [question] * len(clips), "length": [0.0] * len(clips)})
    (answers,) = answer(config, model, [_settings(config)], wanted, progress)
    mine = answers.filter(pc.equal(answers["question"], question))
    told = dict(zip(mine["clip_id"].to_pylist(), mine["answer"].to_pylist(), strict=True))
    known = _known(questions, clips)
    return [
        Candidate(
            clip_id=clip_id,
            recordings=tuple(clip.recordings),
            known=known[clip_id],
            written=told[clip_id],
            story=told[clip_id],
        )
        for clip_id, clip in clips.items()
    ]


def _settings(config: StoriesConfig) -> DecodeSettings:
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p, seed=config.seed)
    return DecodeSettings(
        num_beams=1 if config.temperature else config.num_beams,
        max_new_tokens=config.max_new_tokens,
        lora_scaling=config.lora_scaling,
        sampling=sampling if config.temperature else None,
    )


def _draw_clips(questions: Questions, config: StoriesConfig) -> dict[str, Clip]:
    """Return id -> clip of as many clips as are asked for, whatever the order and the number of all."""

    def chance(clip_id: str) -> bytes:
        return hashlib.sha256(f"{config.seed}/{clip_id}".encode()).digest()

    drawn = sorted(pc.unique(questions.table["clip_id"]).to_pylist(), key=chance)[: config.clips]
    found = _read_clips(config.manifest, drawn)
    return {clip_id: found[clip_id] for clip_id in drawn}


def _read_clips(manifest: str, clip_ids: Iterable[str]) -> dict[str, Clip]:
    wanted = set(clip_ids)
    return {clip.clip_id: clip for clip in read_clips(manifest) if clip.clip_id in wanted}


def _known(questions: Questions, clip_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return clip -> task and answers of each question about it."""
    rows = questions.table.filter(pc.is_in(questions.table["clip_id"], pa.array([*clip_ids], pa.string())))
    known: dict[str, tuple[str, ...]] = {}
    for row in rows.to_pylist():
        line = f"{row['task']}: {' / '.join(row['references'])}"
        known[row["clip_id"]] = (*known.get(row["clip_id"], ()), line)
    return known


def _decide(candidates: list[Candidate], config: StoriesConfig) -> list[Candidate]:
    """Return the candidates once they are decided on; every decision is in candidates.jsonl."""
    if config.accept:
        candidates = accept_named(candidates, config.accept)
    elif config.accept_first:
        candidates = accept_first(candidates, config)
    elif sys.stdin.isatty() and sys.stdout.isatty():
        for decided in ask_person(candidates, config):
            candidates = decided
            write_candidates(config.out, candidates, config)
    write_candidates(config.out, candidates, config)
    return candidates


def _write_manifest(config: StoriesConfig, accepted: Sequence[Candidate]) -> None:
    """Write the stories beside their clips, which keep their ids: the cache knows them."""
    clip_ids = [one.clip_id for one in accepted]
    clips = _read_clips(config.manifest, clip_ids)
    with ManifestWriter(config.out, append=config.append) as writer:
        for clip_id, is_new in zip(clip_ids, writer.note_clips(clip_ids), strict=True):
            if is_new:
                writer.add_clip(clips[clip_id])
        examples = [_example(one, clips[one.clip_id].corpus, config.split) for one in accepted]
        is_new_N = writer.note_examples([example.example_id for example in examples])
        for example, is_new in zip(examples, is_new_N, strict=True):
            if is_new:
                writer.add_example(example)
        save_config(config, storage.join(config.out, "stories.yaml"))


def _example(accepted: Candidate, corpus: str, split: str) -> Example:
    return Example(
        example_id=example_id(accepted.clip_id, split, TASK, None, accepted.story),
        clip_id=accepted.clip_id,
        corpus=corpus,
        split=split,
        task=TASK,
        question=None,  # the task's prompts ask, in turn
        answer=accepted.story,
    )


def _print_counts(candidates: Sequence[Candidate], config: StoriesConfig) -> None:
    offered = sum(not flaw_of(one.story, config) for one in candidates)
    why = "" if offered == len(candidates) else "; `flaw` says why the others are not"
    print(f"{storage.join(config.out, FILE)}: {offered} of {len(candidates)} stories are offered{why}")
