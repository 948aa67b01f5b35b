"""Answers on disk, kept under all that determined them: an answer is given once, and other weights give other answers.

<run>/answers/<digest>/setup.json     what determined the answers here
                       <unit>.parquet  some of them, written whole or not at all
<run>/answers/jobs/<time>/*.jsonl      what ran: a line per unit, while it runs
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipelines import storage
from pipelines.errors import UserError
from pipelines.inference.questions import KEY
from pipelines.runs.folder import ADAPTER, ALIGNER, checkpoint_uri
from pipelines.runs.spec import RunSpec

FOLDER, SETUP, JOBS = "answers", "setup.json", "jobs"
SILENCE = "silence"
"""Stands for the clip of 30 s in which there is nothing to hear."""
SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("tokens", pa.int32()),
        ("seconds", pa.float32()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Answers drawn by chance; the questions of a batch are drawn together, from `seed` and what they are."""

    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """What shapes an answer besides model, features and question; without `sampling` it is searched for."""

    num_beams: int
    max_new_tokens: int
    lora_scaling: float
    sampling: Sampling | None = None
    engine: str | None = None
    """Another engine than our own, with its version."""

    @property
    def in_whole_batches(self) -> bool:
        """Whether batches are answered one after the other: what is drawn depends on them, and engines take them so."""
        return self.sampling is not None or self.engine is not None


@dataclass(frozen=True)
class AnswerStore:
    """The answers that one model gives with one way of decoding."""

    uri: str

    def read(self) -> pa.Table:
        """Return all answers; of one that was given twice, as by a machine that was given up too early, the first."""
        uris = [storage.join(self.uri, name) for name in storage.list_names(self.uri, ".parquet")]
        tables = [storage.read_parquet(uri, SCHEMA).select(SCHEMA.names) for uri in uris]
        table = pa.concat_tables([SCHEMA.empty_table(), *(table.cast(SCHEMA) for table in tables)])
        others = [name for name in SCHEMA.names if name not in KEY]
        once = table.group_by(KEY, use_threads=False).aggregate([(name, "first") for name in others])
        return once.rename_columns({f"{name}_first": name for name in others}).select(SCHEMA.names)

    def read_unit(self, unit: str) -> pa.Table | None:
        """Return a unit's answers, if they are kept already."""
        uri = storage.join(self.uri, f"{unit}.parquet")
        return storage.read_parquet(uri) if storage.file_exists(uri) else None

    def write(self, unit: str, rows: Sequence[dict[str, Any]]) -> None:
        """Keep a unit's answers."""
        storage.write_table(storage.join(self.uri, f"{unit}.parquet"), pa.Table.from_pylist(list(rows), SCHEMA))


def open_answers(run: str, step: int, spec: RunSpec, settings: DecodeSettings) -> AnswerStore:
    """Return where a run's checkpoint keeps the answers that it gives in this way.

    Raises:
        UserError: If what the folder's setup.json says is not this.
    """
    setup = {
        "aligner": _digest(storage.join(checkpoint_uri(run, step), ALIGNER)),
        "adapter": _digest(storage.join(checkpoint_uri(run, step), ADAPTER, "adapter_model.safetensors")),
        "llm": dict(spec.llm_identity),
        "precision": spec.dtype,
        "shape": {"aligner": asdict(spec.aligner), "lora": asdict(spec.lora)},
        "frames": spec.frames,
        **({"hear": spec.hear} if spec.hear != "all" else {}),
        "recipe": spec.recipe.fields,
        "decode": {name: value for name, value in asdict(settings).items() if value is not None},
    }
    content = json.dumps(setup, indent=2, sort_keys=True).encode()
    store = storage.join(run, FOLDER, hashlib.sha256(content).hexdigest()[:16])
    uri = storage.join(store, SETUP)
    if not storage.file_exists(uri):
        storage.write_bytes(uri, content)
    elif storage.read_bytes(uri) != content:
        raise UserError(f"{uri}: damaged, or changed by hand; remove the folder")
    return AnswerStore(store)


def _digest(uri: str) -> str:
    return hashlib.sha256(storage.read_bytes(uri)).hexdigest()
