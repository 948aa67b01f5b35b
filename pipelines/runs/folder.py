"""What a run's folder holds, and which of its checkpoints are complete.

<run>/config.yaml           the resolved config
      run.json              recipe and encoders of the features, the LLM, the widths
      start.json            which checkpoint of the run before it started from, if there is one
      metrics.jsonl         one line every few steps, with the alarms that rang
      scores.jsonl          what checkpoints scored by generating answers, a line for each score (train eval_every=N)
      report.html           what was forecast and what came, once training has ended
      llm/                  the tiny LLM, if that is the base
      tensorboard/          event files
      checkpoints/000200/   aligner.safetensors, adapter/ (PEFT), README.md (model card), optimizer.pt, and state.json
                            with their digests, which is written last
"""

import json
from contextlib import suppress

from pipelines import storage
from pipelines.errors import UserError

STATE, CARD, ALIGNER, OPTIMIZER, ADAPTER = "state.json", "README.md", "aligner.safetensors", "optimizer.pt", "adapter"
DIGESTS = "sha256"
"""Key of state.json: the SHA-256 of each of the checkpoint's other files, by its name."""
START = "start.json"
REPORT = "report.html"


def complete_steps(run: str) -> list[int]:
    """Return the steps of a run's complete checkpoints, in order."""
    folder = storage.join(run, "checkpoints")
    names = [name for name in storage.list_folders(folder) if name.isascii() and name.isdecimal()]
    return sorted(int(name) for name in names if storage.file_exists(storage.join(folder, name, STATE)))


def newest_step(run: str) -> int:
    """Return the step of a run's newest complete checkpoint.

    Raises:
        UserError: If it has none.
    """
    steps = complete_steps(run)
    if not steps:
        raise UserError(f"{run}: has no complete checkpoint yet; salmonn train with the same keys goes on")
    return steps[-1]


def start_step(run: str, init_from: str) -> int:
    """Return the checkpoint of `init_from` that a run starts from: the newest at the first call, later the same.

    Raises:
        UserError: If there is none.
    """
    uri = storage.join(run, START)
    if not storage.file_exists(uri):
        storage.write_bytes(uri, json.dumps({"init_from": init_from, "step": newest_step(init_from)}).encode())
    return int(storage.read_json(uri)["step"])


def best_checkpoint(run: str, held_out: str | None = None) -> tuple[int, float] | None:
    """Return step and validation loss of the complete checkpoint with the lowest one; None if none was validated.

    Only losses on the held-out examples of the digest `held_out`, or else of the newest checkpoint, count.
    """
    steps = complete_steps(run)
    states = [storage.read_json(storage.join(checkpoint_uri(run, step), STATE)) for step in steps]
    validated = [state for state in states if "valid_loss" in state]
    if validated and held_out is None:
        held_out = validated[-1].get("held_out")
    losses = [(state["valid_loss"], state["step"]) for state in validated if state.get("held_out") == held_out]
    return (min(losses)[1], min(losses)[0]) if losses else None


def find_checkpoint(run: str, checkpoint: str) -> int:
    """Return the step that `best`, `last` or a number stands for.

    Raises:
        UserError: If there is no such complete checkpoint, naming those there are.
    """
    if checkpoint == "last":
        return newest_step(run)
    if checkpoint == "best":
        best = best_checkpoint(run)
        if not best:
            raise UserError(f"{run}: checkpoint=best: none was validated; train with valid_splits and valid_every")
        return best[0]
    steps = complete_steps(run)
    if not checkpoint.isdecimal() or int(checkpoint) not in steps:
        raise UserError(f"{run}: checkpoint={checkpoint}: there are best, last and {', '.join(map(str, steps))}")
    return int(checkpoint)


def checkpoint_uri(run: str, step: int) -> str:
    return storage.join(run, "checkpoints", f"{step:06d}")


def unfinished_steps(run: str) -> list[int]:
    """Return the steps whose checkpoint lacks state.json: one is being written, or its writer was killed."""
    names = storage.list_folders(storage.join(run, "checkpoints"))
    return sorted({int(name) for name in names if name.isdecimal()} - set(complete_steps(run)))


def delete_checkpoint(run: str, step: int) -> None:
    """Remove a checkpoint; it is incomplete from the first moment on."""
    filesystem, path = storage.resolve(checkpoint_uri(run, step))
    with suppress(FileNotFoundError):
        filesystem.delete_file(f"{path}/{STATE}")
    filesystem.delete_dir(path)


def is_described(run: str) -> bool:
    """Tell whether a run has begun: its description is written last."""
    return storage.file_exists(storage.join(run, "run.json"))


MIX = "mix.yaml"
