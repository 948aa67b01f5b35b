"""Questions about a few tones, their features, and a run that answers them."""

import json
from pathlib import Path

from pipelines.manifest.corpora.table import TableConfig, prepare_table
from tests.pipelines.builders import config_of, fill, make_worker, train_here
from tests.toy import write_tones


def prepare_questions(folder: Path, *, clips: int, each: int) -> tuple[str, str, str]:
    """Return manifest, cache and run; `each` is how many questions are asked about a clip."""
    names = write_tones(folder / "audio", [1.0 + 0.25 * (number % 4) for number in range(clips)])
    rows = [
        {"path": name, "task": "aqa", "question": f"Which of {number}?", "text": f"high {place}", "split": "test"}
        for place, name in enumerate(names)
        for number in range(each)
    ]
    table, manifest = folder / "table.jsonl", str(folder / "m")
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_table(TableConfig(table=str(table), audio_root=str(folder / "audio"), out=manifest))
    fill(folder / "c", manifest, make_worker(folder / "c"))
    train_here(config_of((manifest, str(folder / "c")), folder / "run", splits=["test"]))
    return manifest, str(folder / "c"), str(folder / "run")
