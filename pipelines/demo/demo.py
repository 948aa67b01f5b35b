"""`salmonn demo`: the whole path on a corpus made here, ending in a table and an HTML report.

Spoken two-word phrases (LibriSpeech's layout) and synthetic sound events (SALMONN's annotations) are prepared,
extracted, learnt in three small stages, answered on recordings and speakers never trained on, and asked about.
"""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from encoders.audio import SAMPLE_RATE_HZ
from encoders.sound.clips import load_clip
from pipelines import storage
from pipelines.cache.reader import FeatureCache
from pipelines.demo.config import HEARD, STAGES, TEST_SPLITS, DemoConfig, DemoFolders
from pipelines.demo.corpus import DemoCorpus, write_demo_corpus
from pipelines.demo.figures import draw_curves, draw_scores, draw_streams
from pipelines.demo.report import HeldOut, Stopwatch, held_out_scores, page_address, scores_with_silence
from pipelines.extraction.config import ExtractConfig
from pipelines.extraction.extract import ExtractReport, extract
from pipelines.inference.ask import ask
from pipelines.inference.config import AskConfig, EvaluateConfig
from pipelines.inference.evaluate import evaluate, evaluation_folder
from pipelines.inference.scoring.answers import TaskScores
from pipelines.interface.config import load_config
from pipelines.interface.figures import Picture, draw_shares
from pipelines.interface.page import Section, Tile, write_report
from pipelines.interface.progress import Progress
from pipelines.manifest.corpora.annotations import AnnotationsConfig, prepare_annotations
from pipelines.manifest.corpora.librispeech import LibriSpeechConfig, prepare_librispeech
from pipelines.manifest.tables import Clip, count_clips, read_clips, read_examples
from pipelines.runs.metrics import read_metrics
from pipelines.training.config import TrainConfig
from pipelines.training.train import train_in_turn


def demo(config: DemoConfig) -> None:
    """Run every verb in turn and write `report.html`; what an interrupted demo finished is not done again."""
    folders, watch, progress = DemoFolders(config.out), Stopwatch(), Progress()
    with watch.phase("make corpus"):
        corpus = _make_corpus(config, folders, progress)
    with watch.phase("prepare"):
        _prepare(corpus, folders, progress)
    with watch.phase("extract"):
        extracted = _extract(config, folders, progress)
    with watch.phase("train, three stages"):
        train_in_turn([_train_config(config, folders, stage) for stage in STAGES], progress)
    with watch.phase("evaluate"):
        scores = {stage: _evaluate(folders, stage, progress) for stage in STAGES[1:]}
    with watch.phase("ask"):
        asked = _ask(corpus, folders)
    held_out = held_out_scores(scores["stage3"], corpus, scores_with_silence(_evaluation(folders, "stage3")))
    _print_table(folders, extracted, held_out, watch)
    before = held_out_scores(scores["stage2"], corpus, {})
    _write_report(config, folders, extracted, before, held_out, asked, watch)
    print(f"report: {storage.join(config.out, 'report.html')}")


def _make_corpus(config: DemoConfig, folders: DemoFolders, progress: Progress) -> DemoCorpus:
    with progress.phase("make corpus", unit="recordings") as phase:
        return write_demo_corpus(
            folders.corpus,
            seed=config.seed,
            sizes=config.sizes,
            on_progress=lambda done, total: phase.update(done, total=total),
        )


def _prepare(corpus: DemoCorpus, folders: DemoFolders, progress: Progress) -> None:
    """Read both layouts into one manifest; the stories and questions share the clips of captions and transcripts."""
    librispeech, events = str(corpus.librispeech_dir), str(corpus.train_annotation_path.parent)
    out, append = folders.manifest, True
    prepare_librispeech(LibriSpeechConfig(out=out, append=append, root=librispeech), progress)
    for corpus_name, root, split, annotation in [
        ("librispeech", librispeech, "train", corpus.train_questions_path),
        ("librispeech", librispeech, "test", corpus.test_questions_path),
        ("events", events, "train", corpus.train_annotation_path),
        ("events", events, "test", corpus.test_annotation_path),
        ("events", events, "stories", corpus.stories_path),
    ]:
        annotations = AnnotationsConfig(
            out=out, append=append, annotation=str(annotation), audio_root=root, corpus=corpus_name, split=split
        )
        prepare_annotations(annotations, progress)


def _extract(config: DemoConfig, folders: DemoFolders, progress: Progress) -> ExtractReport:
    return extract(
        ExtractConfig(
            manifest=folders.manifest,
            cache=folders.cache,
            whisper="tiny",
            beats="tiny",
            shard_megabytes=16,
            ray=config.ray,
        ),
        progress,
    )


def _train_config(config: DemoConfig, folders: DemoFolders, stage: str) -> TrainConfig:
    """Return `tiny.yaml` with the stage's tasks and length."""
    keys = {
        "stage1": ["tasks=[asr,audiocaption]", "splits=[train,train-demo]", f"steps={3 * config.steps // 10}"],
        "stage2": ["splits=[train,train-demo]", f"steps={config.steps - 3 * config.steps // 10}"],
        "stage3": [
            "splits=[stories]",
            "steps=12",
            "batch_examples=12",
            "lora_scaling=0.5",
            "optim.lr=1e-4",
            "log_every=1",
        ],
    }[stage]
    before = STAGES.index(stage) - 1
    if before >= 0:
        keys = [*keys, f"init_from={folders.run(STAGES[before])}"]
    shared = [f"manifest={folders.manifest}", f"cache={folders.cache}", f"run={folders.run(stage)}", "llm=tiny"]
    loaded = load_config(TrainConfig, ["tiny", *shared, *keys, f"seed={config.seed}", "threads=1", HEARD])
    return replace(loaded, ray=config.ray)


def _evaluate(folders: DemoFolders, stage: str, progress: Progress) -> list[TaskScores]:
    """Answer what is held out; of the last stage also with silence and other clips, for the page to listen to."""
    is_last = stage == STAGES[-1]
    return evaluate(
        EvaluateConfig(
            run=folders.run(stage),
            manifest=folders.manifest,
            cache=folders.cache,
            splits=TEST_SPLITS,
            batch_examples=32,
            num_beams=1,
            max_new_tokens=16,
            check_heard=is_last,
            page_examples=50 if is_last else 0,
        ),
        progress,
    )


def _evaluation(folders: DemoFolders, stage: str) -> str:
    return evaluation_folder(folders.run(stage), TEST_SPLITS)


def _ask(corpus: DemoCorpus, folders: DemoFolders) -> list[tuple[str, str, str, str]]:
    """Ask about a held-out recording of each kind; return (recording, question, answer, truth)."""
    asked = []
    for recording, question, truth in _questions(corpus, folders):
        print(f"$ salmonn ask run={folders.run('stage3')} audio={recording} question={question!r}")
        (answer,) = ask(
            AskConfig(run=folders.run("stage3"), audio=recording, question=question, num_beams=1, max_new_tokens=16)
        )
        asked.append((recording, question, answer.answer, truth))
    return asked


def _questions(corpus: DemoCorpus, folders: DemoFolders) -> Iterator[tuple[str, str, str]]:
    """Yield (recording, question, truth) of the first held-out question of each task."""
    seen = set()
    clips = {clip.clip_id: clip for clip in read_clips(folders.manifest)}
    for answered in _answers(folders, "stage3"):
        if answered["task"] not in seen:
            seen.add(answered["task"])
            recording = clips[answered["clip_id"]].located()[0].recording
            yield recording, answered["question"], answered["references"][0]


def _answers(folders: DemoFolders, stage: str) -> list[dict[str, Any]]:
    uri = storage.join(_evaluation(folders, stage), "answers.parquet")
    answers: list[dict[str, Any]] = storage.read_parquet(uri).to_pylist()
    return answers


def _print_table(folders: DemoFolders, extracted: ExtractReport, held_out: Sequence[HeldOut], watch: Stopwatch) -> None:
    table = Table(title="the demo in numbers", title_justify="left", box=None, pad_edge=False, show_header=False)
    for name, value in _counts(folders).items():
        table.add_row(name, value)
    for name, seconds in watch.seconds.items():
        table.add_row(f"{name}", f"{seconds:.1f} s")
    table.add_row("all", f"{sum(watch.seconds.values()):.1f} s")
    for score in held_out:
        ratio = score.score / score.chance
        silence = "" if score.silence is None else f"   silence {score.silence:.3f}"
        table.add_row(score.name, f"{score.score:.3f}   chance {score.chance:.3f} ({ratio:.1f}×){silence}")
    Console().print(table)


def _counts(folders: DemoFolders) -> dict[str, str]:
    cache = FeatureCache(folders.cache)
    shards = storage.list_names(storage.join(folders.cache, "shards"), ".tar")
    nbytes = sum(storage.file_nbytes(storage.join(folders.cache, "shards", shard)) for shard in shards)
    hours = float(cache.seconds.sum()) / 3600
    rejects = count_clips(folders.manifest) - cache.num_clips
    return {
        "clips": f"{cache.num_clips}",
        "rejected clips": f"{rejects}",
        "hours of audio": f"{hours:.3f}",
        "shards": f"{len(shards)}",
        "feature megabytes": f"{nbytes / 1e6:.1f}",
    }


def _write_report(
    config: DemoConfig,
    folders: DemoFolders,
    extracted: ExtractReport,
    before: Sequence[HeldOut],
    final: Sequence[HeldOut],
    asked: Sequence[tuple[str, str, str, str]],
    watch: Stopwatch,
) -> None:
    scores_before = {score.name: score.score for score in before}
    bars = draw_scores(
        {score.name: (score.score, score.chance) for score in final},
        caption="Recordings, and for speech also speakers, that training never saw.",
    )
    score_rows = [
        [
            score.name,
            f"{scores_before[score.name]:.3f}",
            f"{score.score:.3f}",
            "—" if score.silence is None else f"{score.silence:.3f}",
            f"{score.chance:.3f}",
            f"{score.score / score.chance:.1f}×",
        ]
        for score in final
    ]
    curves = draw_curves(
        {stage: read_metrics(folders.run(stage)) for stage in STAGES},
        caption="Three stages, one after the other: captions and transcripts, all tasks, twelve stories. Stories are "
        "long, and so few steps barely begin to learn their words: the last loss stays high.",
    )
    shown = [[p["task"], p["question"], p["answer"], p["references"][0]] for p in _answers(folders, "stage3")]
    every = max(1, len(shown) // 16)
    sections = [
        Section(
            "How well it hears",
            "Word accuracy for transcripts, exact match for the rest. With silence in place of the clip, the model has "
            "only the question to go by.",
            ("held-out score", "after stage 2", "after stage 3", "with silence", "chance", "above chance"),
            score_rows,
            [bars],
            [("Listen to the answers, the worst first", page_address(config.out, _evaluation(folders, STAGES[-1])))],
        ),
        Section("What the encoders made", pictures=[_draw_clips(folders)]),
        Section("How it learnt", pictures=[curves]),
        Section("Asked from disk", columns=("recording", "question", "answer", "truth"), rows=asked),
        Section("Held-out answers", columns=("task", "question", "answer", "truth"), rows=shown[::every]),
        Section(
            "Where the time went",
            columns=("phase", "seconds"),
            rows=[[name, f"{seconds:.1f}"] for name, seconds in watch.seconds.items()],
            pictures=[draw_shares(extracted.parts, caption="Extraction, part by part.")] if extracted.parts else [],
        ),
    ]
    lead = (
        "Spoken two-word phrases and synthetic sounds, heard by frozen random encoders, cached once, and learnt by a "
        "window-level Q-Former and LoRA around a frozen random language model."
    )
    tiles = [Tile(name, value) for name, value in _counts(folders).items()]
    tiles += [Tile("seconds in all", f"{sum(watch.seconds.values()):.0f}")]
    tiles += [Tile(score.name, f"{100 * score.score:.0f} %") for score in final]
    write_report(
        storage.join(config.out, "report.html"),
        title="From recordings to an answer",
        lead=lead,
        tiles=tiles,
        sections=sections,
        footer=f"seed {config.seed}; {_machine()}",
    )


def _draw_clips(folders: DemoFolders) -> Picture:
    """Draw two spoken phrases and two sounds beside their features."""
    clips: list[Clip] = []
    for corpus in ("librispeech", "events"):
        held_out = (clip for clip in read_clips(folders.manifest) if clip.split in TEST_SPLITS)
        clips += islice((clip for clip in held_out if clip.corpus == corpus), 2)
    cache = FeatureCache(folders.cache)
    positions = cache.positions([clip.clip_id for clip in clips])
    said = {example.clip_id: example.answer for example in reversed(list(read_examples(folders.manifest)))}
    titles = [said[clip.clip_id] for clip in clips]
    streams = [{name: frames.numpy() for name, frames in cache.read(int(place)).items()} for place in positions]
    return draw_streams(
        {title: load_clip(clip.located()).numpy() for title, clip in zip(titles, clips, strict=True)},
        dict(zip(titles, streams, strict=True)),
        sample_rate_hz=SAMPLE_RATE_HZ,
        caption="Waves, and below them the cached frames of both streams (each channel centred and scaled).",
    )


def _machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "transformers", "peft"))
    return f"{platform.machine()}, Python {platform.python_version()}, {torch.get_num_threads()} threads, {libraries}"
