"""Files by URI, local or in an object store: written whole or not at all, read whole or in ranges.

Nothing here knows what a file holds. Other folders say `from pipelines import storage` and `storage.join(…)`.
"""

from pipelines.storage.files import (
    delete_file,
    file_exists,
    file_nbytes,
    folder_exists,
    list_folders,
    list_names,
    list_unfinished,
    open_copy,
    open_file,
    read_bytes,
    read_json,
    remove_stale,
    staged_file,
    write_bytes,
)
from pipelines.storage.tables import iter_batches, open_parquet, write_table
from pipelines.storage.uris import full_path, is_local, join, parent, resolve

__all__ = [
    "delete_file",
    "file_exists",
    "file_nbytes",
    "folder_exists",
    "full_path",
    "is_local",
    "iter_batches",
    "join",
    "list_folders",
    "list_names",
    "list_unfinished",
    "open_copy",
    "open_file",
    "open_parquet",
    "parent",
    "read_bytes",
    "read_json",
    "remove_stale",
    "resolve",
    "staged_file",
    "write_bytes",
    "write_table",
]
