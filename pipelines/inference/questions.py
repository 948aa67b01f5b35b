"""What is to be answered: each question about a clip once, with all that the manifest gives as its answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm.prompts import question_for
from pipelines import storage
from pipelines.batches.example_set import load_examples
from pipelines.cache.clip_index import ClipIndex
from pipelines.manifest.tables import CLIPS, require_named

KEY = ["clip_id", "question"]


@dataclass(frozen=True)
class Questions:
    """Questions in the order of the manifest, a row of `table` each."""

    table: pa.Table
    """clip_id, question, task, corpus, split, and the lists example_ids, references and recordings."""
    num_examples: int
    missing: int
    """Examples that are left out because the cache lacks their clips."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def of_other_clips(self, seed: int) -> pa.Array:
        """Return a clip for each question, heard instead of its own: another one of the same task and corpus.

        Null where there is no other. Whole clips change places, in a circle of random order.
        """
        generator = np.random.default_rng(seed)
        clips = self.table["clip_id"].combine_chunks().dictionary_encode()
        clip_N = clips.indices.to_numpy()
        group_N = pc.binary_join_element_wise(self.table["task"], self.table["corpus"], "/")
        group_N = group_N.combine_chunks().dictionary_encode().indices.to_numpy()
        other_N = np.full(len(clip_N), -1)
        for group in range(group_N.max(initial=-1) + 1):
            rows = np.flatnonzero(group_N == group)
            circle = generator.permutation(np.unique(clip_N[rows]))
            if len(circle) > 1:
                place = np.empty(len(clips.dictionary), dtype=np.int64)
                place[circle] = np.arange(len(circle))
                other_N[rows] = circle[(place[clip_N[rows]] + 1) % len(circle)]
        return clips.dictionary.take(pa.array(other_N, mask=other_N < 0))


def load_questions(
    manifest: str, cache: ClipIndex, *, splits: Sequence[str], tasks: Sequence[str], max_missing_fraction: float
) -> Questions:
    """Gather a manifest's examples by clip, task and question; where an example has no question, its task's first.

    Raises:
        UserError: As `require_named` and `load_examples`.
        LLMError: If an example has no question and its task none either.
    """
    require_named(manifest, splits, tasks)
    examples = load_examples(
        manifest,
        cache,
        splits=splits,
        tasks=tasks,
        max_missing_fraction=max_missing_fraction,
        more_columns=("corpus", "split"),
    )
    table = examples.table
    asked = pc.if_else(pc.equal(table["question"], ""), None, table["question"])
    first = {}
    for task in pc.unique(table.filter(pc.is_null(asked))["task"]).to_pylist():
        first[task] = question_for(task)
    tasks_N = table["task"].combine_chunks().dictionary_encode()
    prompts = pa.array([first.get(task) for task in tasks_N.dictionary.to_pylist()], pa.string())
    questions = pc.coalesce(asked, prompts.take(tasks_N.indices))
    table = table.set_column(table.column_names.index("question"), "question", questions)
    grouped = table.group_by([*KEY, "task", "corpus", "split"], use_threads=False).aggregate(
        [("example_id", "list"), ("answer", "list")]
    )
    grouped = grouped.rename_columns({"example_id_list": "example_ids", "answer_list": "references"})
    recordings = _recordings(manifest, grouped["clip_id"])
    return Questions(grouped.append_column("recordings", recordings), len(examples), examples.missing.num_rows)


def _recordings(manifest: str, clip_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the names of each clip's recordings below its corpus's root."""
    wanted = pc.field("clip_id").isin(pc.unique(clip_ids))
    clips = storage.select_parquet(storage.join(manifest, CLIPS), ["clip_id", "segments"], wanted)
    segments = clips["segments"].combine_chunks()
    names = pc.struct_field(segments.values, "recording")
    lists = pa.ListArray.from_arrays(segments.offsets, names)
    return pa.chunked_array([lists]).take(pc.index_in(clip_ids, clips["clip_id"]))
