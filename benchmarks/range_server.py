"""The reading half of S3 on 127.0.0.1: a folder's files by `sendfile`, whole, by range, their sizes, and listings.

`python -m benchmarks.range_server FOLDER`: the first folders in it are the buckets; the port is the first line printed.
It stands in for moto's server, which gives some 10 MB/s.
"""

import http.server
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from subprocess import PIPE, Popen
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass(frozen=True)
class RangeServer:
    process: "Popen[bytes]"
    port: int

    def uri(self, path: str) -> str:
        """Return what the project calls a bucket's path."""
        return f"s3://{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"


@contextmanager
def range_server(folder: Path) -> Iterator[RangeServer]:
    """Serve a folder from a process of its own."""
    with Popen([sys.executable, "-m", "benchmarks.range_server", str(folder)], stdout=PIPE) as process:
        try:
            assert process.stdout is not None
            yield RangeServer(process, int(process.stdout.readline()))
        finally:
            process.kill()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if "list-type" in query:
            listing = self._list(unquote(url.path).strip("/"), query.get("prefix", [""])[0]).encode()
            self._head(HTTPStatus.OK, len(listing), {"Content-Type": "application/xml"})
            self.wfile.write(listing)
            return
        try:
            file = (self.folder / unquote(url.path).lstrip("/")).open("rb")
        except OSError:
            self._head(HTTPStatus.NOT_FOUND, 0, {})
            return
        with file:
            info = os.fstat(file.fileno())
            first, last = 0, info.st_size - 1
            headers = {"Last-Modified": formatdate(info.st_mtime, usegmt=True), "ETag": f'"{info.st_ino}"'}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if wanted:
                first, last = int(wanted[1]), min(int(wanted[2] or last), last)
                headers["Content-Range"] = f"bytes {first}-{last}/{info.st_size}"
            self._head(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK, last + 1 - first, headers)
            while body and first <= last:
                first += os.sendfile(self.connection.fileno(), file.fileno(), first, last + 1 - first)

    def _head(self, status: HTTPStatus, nbytes: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(nbytes)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()

    def _list(self, bucket: str, prefix: str) -> str:
        """Return all files below a prefix in one page; folders are their prefixes, as for any S3."""
        root = self.folder / bucket
        keys = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        found = [(key, (root / key).stat().st_size) for key in keys if key.startswith(prefix)]
        time = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        contents = (f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size>{time}</Contents>" for key, size in found)
        return (
            f'<?xml version="1.0"?><ListBucketResult><Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix>'
            f"<KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>{''.join(contents)}</ListBucketResult>"
        )


def main(folder: str) -> None:
    """Serve until the process is killed, a thread per connection."""
    _Handler.folder = Path(folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
