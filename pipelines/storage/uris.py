"""Paths and URIs: which filesystem one means, and how a file in a folder is named."""

import os
import posixpath
from functools import lru_cache

import pyarrow as pa
from pyarrow import fs

from pipelines.errors import UserError


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a URI and the path in it, taken literally; a local path counts from the root.

    Raises:
        UserError: If the path is empty, the scheme unknown or the URI malformed.
    """
    if not uri:
        raise UserError("an empty path was given")
    if "://" not in uri:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111 - `~nobody` is a name
    base, _, query = uri.partition("?")
    scheme, _, path = base.partition("://")
    if scheme == "file":
        return fs.LocalFileSystem(), "/" + path.strip("/")
    bucket = path.partition("/")[0]
    if "@" in bucket:
        raise UserError(f"{scheme}://…@…: keys belong in the environment, not in a URI")
    return _filesystem(scheme, bucket, query), path.rstrip("/")


@lru_cache
def _filesystem(scheme: str, bucket: str, query: str) -> fs.FileSystem:
    uri = f"{scheme}://{bucket}" + (f"?{query}" if query else "")
    try:
        return fs.FileSystem.from_uri(uri)[0]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{uri}: not a path or URI that can be read ({error})") from None


def full_path(uri: str) -> str:
    """Return a URI without a slash at its end, and a local path from the root, so that it means the same everywhere."""
    if "://" not in uri:
        return resolve(uri)[1]
    base, mark, query = uri.partition("?")
    return base.rstrip("/") + mark + query


def join(uri: str, *names: str) -> str:
    """Return the URI of a file below a folder's URI; a query stays at the end.

    Raises:
        UserError: If the folder is empty or a name would lead out of it.
    """
    if not uri:
        raise UserError("an empty path was given")
    base, mark, query = _split_query(uri)
    inner = posixpath.normpath(posixpath.join(*names))
    if inner.startswith(("/", "../")) or inner == "..":
        raise UserError(f"{posixpath.join(*names)}: leads out of {uri}")
    return base.rstrip("/") + "/" + inner + mark + query


def parent(uri: str) -> str:
    """Return the URI of a file's folder."""
    base, mark, query = _split_query(uri)
    folder, slash, _ = base.rpartition("/")
    return (folder or slash or ".") + mark + query


def _split_query(uri: str) -> tuple[str, str, str]:
    return uri.partition("?") if "://" in uri else (uri, "", "")


def root_of(path: str) -> str:
    """Return what an absolute path or a URI starts from: `/` or `scheme://bucket`; empty of a relative path."""
    scheme, mark, rest = path.partition("://")
    if mark and scheme.isalnum():
        return "/" if scheme == "file" else f"{scheme}://{rest.partition('/')[0]}"
    return "/" if path.startswith("/") else ""


def is_local(uri: str) -> bool:
    """Tell whether a URI is on a filesystem of this machine."""
    return isinstance(resolve(uri)[0], fs.LocalFileSystem)
