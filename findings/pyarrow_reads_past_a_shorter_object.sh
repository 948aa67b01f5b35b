#!/usr/bin/env bash
# pyarrow 26.0.0 against a small HTTP server that keeps objects as S3 does, run on 2026-11-27.
#
# pyarrow asks an object's length when it opens it and the bytes when it reads. If a shorter object has taken the place in
# between, which in S3 happens whole and at once, the read gives as many bytes as the old object had: the new ones, and
# after them bytes that nobody wrote. There is no error.
#
# It matters to small state files that are written anew in place (a lock, a pointer to the newest checkpoint, progress):
# JSON with something behind its end, or worse. What helps: pad such files to one length, or never overwrite them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.0
cat >"$folder/try.py" <<'END'
import http.server
import os
import threading

os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}
from pyarrow.fs import S3FileSystem

objects = {"/bucket/state": b'{"progress": false}'}


class Store(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(200, b"", len(objects[self.path]))

    def do_GET(self):
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        data = objects[self.path]
        part = data[int(first) : int(last) + 1]
        self.answer(206, part, len(part), f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")

    def answer(self, status, body, length, content_range=""):
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Last-Modified", "Fri, 27 Nov 2026 00:00:00 GMT")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
threading.Thread(target=server.serve_forever, daemon=True).start()
store = S3FileSystem(endpoint_override=f"127.0.0.1:{server.server_port}", scheme="http", region="us-east-1")
with store.open_input_file("bucket/state") as file:
    objects["/bucket/state"] = b'{"progress": true}'
    data = file.read()
print(f"the object holds {objects['/bucket/state']!r}, {len(objects['/bucket/state'])} bytes")
print(f"read:            {data!r}, {len(data)} bytes")
raise SystemExit(0 if data != objects["/bucket/state"] and len(data) == 19 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
