"""Files by URI, local or in an object store: written whole or not at all, read whole or in ranges.

Nothing here knows what a file holds. Other folders say `from pipelines import storage` and `storage.join(…)`.
"""

from pipelines.storage.files import (
    delete_file,
    delete_folder,
    file_exists,
    file_nbytes,
    folder_exists,
    folder_nbytes,
    list_below,
    list_files,
    list_folders,
    list_names,
    list_unfinished,
    open_copy,
    open_file,
    read_bytes,
    read_json,
    read_samples,
    remove_empty,
    remove_stale,
    sample_starts,
    staged_file,
    write_bytes,
)
from pipelines.storage.hold import Holder, held, held_by
from pipelines.storage.lines import LineFile, LineTail
from pipelines.storage.snapshots import snapshot
from pipelines.storage.tables import (
    PAGE_CHECKSUMS,
    iter_batches,
    open_parquet,
    read_parquet,
    read_small_parquets,
    select_parquet,
    write_table,
)
from pipelines.storage.uris import full_path, is_local, join, parent, resolve, root_of

__all__ = [
    "PAGE_CHECKSUMS",
    "Holder",
    "LineFile",
    "LineTail",
    "delete_file",
    "delete_folder",
    "file_exists",
    "file_nbytes",
    "folder_exists",
    "folder_nbytes",
    "full_path",
    "held",
    "held_by",
    "is_local",
    "iter_batches",
    "join",
    "list_below",
    "list_files",
    "list_folders",
    "list_names",
    "list_unfinished",
    "open_copy",
    "open_file",
    "open_parquet",
    "parent",
    "read_bytes",
    "read_json",
    "read_parquet",
    "read_samples",
    "read_small_parquets",
    "remove_empty",
    "remove_stale",
    "resolve",
    "root_of",
    "sample_starts",
    "select_parquet",
    "snapshot",
    "staged_file",
    "write_bytes",
    "write_table",
]
