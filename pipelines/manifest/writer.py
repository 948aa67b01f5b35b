"""Writing a manifest: clips once each, one writer at a time."""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.errors import UserError
from pipelines.manifest.id_set import ID_TYPE, IdSet, to_ids
from pipelines.manifest.tables import (
    CLIP_SCHEMA,
    CLIPS,
    EXAMPLE_SCHEMA,
    EXAMPLES,
    Clip,
    Example,
    read_batches,
    row_from_clip,
    source_key,
    source_keys,
)
from pipelines.storage.arrays import Booleans, Ids, Keys
from pipelines.storage.tables import RowTable


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
            files.enter_context(storage.held(uri))
            there = storage.file_exists(storage.join(uri, EXAMPLES))
            if there and not append:
                raise UserError(
                    f"{uri}: holds a manifest already; append=true adds to it, another out=… makes a new one"
                )
            # Tables are finished in the reverse order.
            self._examples = files.enter_context(RowTable(storage.join(uri, EXAMPLES), EXAMPLE_SCHEMA))
            self._clips = files.enter_context(RowTable(storage.join(uri, CLIPS), CLIP_SCHEMA))
            known = self._copy(CLIPS, self._clips, self._clip_ids) if there else []
            if there:
                self._copy(EXAMPLES, self._examples, self._example_ids)
            ids_N = np.concatenate([np.zeros(0, ID_TYPE), *(ids for ids, _ in known)])
            keys_N = np.concatenate([np.zeros(0, np.uint64), *(keys for _, keys in known)])
            order_N = np.argsort(ids_N)
            self._known_ids, self._known_keys = ids_N[order_N], keys_N[order_N]
            self._files = files.pop_all()

    def _copy(self, name: str, table: "RowTable", ids: IdSet) -> list[tuple[Ids, Keys]]:
        """Copy a table; return ids and keys of sources of the clips."""
        known = []
        for batch in read_batches(self.uri, name, table.schema.names):
            found = to_ids(batch.column(0))
            ids.add(found)
            table.add_batch(batch)
            if name == CLIPS:
                known.append((found, source_keys(batch["sources"])))
        return known

    @property
    def num_clips(self) -> int:
        return self._clips.num_rows

    @property
    def num_examples(self) -> int:
        return self._examples.num_rows

    @property
    def appends(self) -> bool:
        """Say whether the manifest held clips before."""
        return bool(len(self._known_ids))

    def is_other_sound(self, clip_id: str, sources: Sequence[str]) -> bool:
        """Say whether the manifest held this clip before, and of other recordings as far as it knows."""
        (identity,) = to_ids(pa.array([clip_id]))
        place = int(np.searchsorted(self._known_ids, identity))
        if place == len(self._known_ids) or self._known_ids[place] != identity:
            return False
        return self._known_keys[place] not in (0, source_key(sources))

    def note_clips(self, clip_ids: Sequence[str]) -> Booleans:
        """Tell which clips [N] are new, that is neither written nor noted before; the caller adds those."""
        return self._clip_ids.add(to_ids(pa.array(clip_ids, pa.string())))

    def note_examples(self, example_ids: Sequence[str]) -> Booleans:
        """Tell which examples [N] are new, as `note_clips`."""
        return self._example_ids.add(to_ids(pa.array(example_ids, pa.string())))

    def add_clip(self, clip: Clip) -> None:
        self._clips.add(row_from_clip(clip))

    def add_seen_clip(self, clip: Clip, seconds: float | None, sources: Sequence[str]) -> None:
        """Add a clip with the length and the sources that were found since it was named."""
        self._clips.add(row_from_clip(clip) | {"seconds": seconds, "sources": list(sources) or None})

    def add_example(self, example: Example) -> None:
        self._examples.add(vars(example))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)
