"""Writing a manifest: clips once each, one writer at a time."""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import pyarrow as pa

from pipelines import storage
from pipelines.errors import UserError
from pipelines.manifest.id_set import IdSet, to_ids
from pipelines.manifest.tables import (
    CLIP_SCHEMA,
    CLIPS,
    EXAMPLE_SCHEMA,
    EXAMPLES,
    Clip,
    Example,
    read_batches,
    row_from_clip,
)
from pipelines.storage.arrays import Booleans
from pipelines.storage.tables import RowTable

LOCK = "prepare.lock"


class ManifestWriter:
    """Writes both tables in the order given; nothing appears before the block ends. A manifest has one writer at once.

    The clips are replaced before the examples: killed in between, the manifest holds clips that nothing asks about
    yet, and the same command run again adds their examples. A manifest is there once its examples are.

    Args:
        uri: The manifest's folder.
        append: Add to the manifest that is there.

    Raises:
        UserError: If there is a manifest and `append` is off, or another writer is at work.
    """

    def __init__(self, uri: str, *, append: bool) -> None:
        self.uri = uri
        self._clip_ids, self._example_ids = IdSet(), IdSet()
        with ExitStack() as files:
            files.enter_context(_lock(uri))
            there = storage.file_exists(storage.join(uri, EXAMPLES))
            if there and not append:
                raise UserError(f"{uri}: holds a manifest already; append=true adds to it")
            # Tables are finished in the reverse order.
            self._examples = files.enter_context(RowTable(storage.join(uri, EXAMPLES), EXAMPLE_SCHEMA))
            self._clips = files.enter_context(RowTable(storage.join(uri, CLIPS), CLIP_SCHEMA))
            if there:
                self._copy(CLIPS, self._clips, self._clip_ids)
                self._copy(EXAMPLES, self._examples, self._example_ids)
            self._files = files.pop_all()

    def _copy(self, name: str, table: "RowTable", ids: IdSet) -> None:
        for batch in read_batches(self.uri, name, table.schema.names):
            ids.add(to_ids(batch.column(0)))
            table.add_batch(batch)

    @property
    def num_clips(self) -> int:
        return self._clips.num_rows

    @property
    def num_examples(self) -> int:
        return self._examples.num_rows

    def note_clips(self, clip_ids: Sequence[str]) -> Booleans:
        """Tell which clips [N] are new, that is neither written nor noted before; the caller adds those."""
        return self._clip_ids.add(to_ids(pa.array(clip_ids, pa.string())))

    def note_examples(self, example_ids: Sequence[str]) -> Booleans:
        """Tell which examples [N] are new, as `note_clips`."""
        return self._example_ids.add(to_ids(pa.array(example_ids, pa.string())))

    def add_clip(self, clip: Clip) -> None:
        self._clips.add(row_from_clip(clip))

    def add_example(self, example: Example) -> None:
        self._examples.add(vars(example))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)


@contextmanager
def _lock(uri: str) -> Iterator[None]:
    lock = storage.join(uri, LOCK)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    owner = f"process {os.getpid()} on {socket.gethostname()} since {started}"
    try:
        storage.write_bytes(lock, owner.encode(), exclusive=True)
    except FileExistsError:
        if not storage.file_exists(lock):
            raise
        raise UserError(
            f"{uri}: is being written by {storage.read_bytes(lock).decode()}; if that was killed, delete {lock}"
        ) from None
    try:
        yield
    finally:
        storage.delete_file(lock)
