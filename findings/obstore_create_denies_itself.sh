#!/usr/bin/env bash
# obstore 0.12.1 (object_store 0.14), run on 2026-11-27.
#
# A conditional put (mode="create") says that exactly one of many writers wins. When the answer to the winner's request
# is lost on its way back, obstore asks again by itself, meets the object that it has just written, and raises
# AlreadyExistsError. The winner is told that it lost, and no writer knows that it has won.
#
# It matters to whoever elects a leader or claims work by such a put: after a broken connection everybody stands back.
# What helps: write something of one's own into the object, and on AlreadyExistsError read it and compare.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1
cat >"$folder/try.py" <<'END'
import http.server
import threading

import obstore
from obstore.store import S3Store

objects, lost = {}, [True]


class Store(http.server.BaseHTTPRequestHandler):
    """Keeps objects as S3 does; the answer to the very first request never arrives."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        refused = self.headers.get("If-None-Match") == "*" and self.path in objects
        if not refused:
            objects[self.path] = body
        if lost and lost.pop():
            self.close_connection = True
            return
        self.send_response(412 if refused else 200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
threading.Thread(target=server.serve_forever, daemon=True).start()
store = S3Store(
    "bucket",
    endpoint=f"http://127.0.0.1:{server.server_port}",
    region="us-east-1",
    access_key_id="a",
    secret_access_key="b",
    client_options={"allow_http": True},
)
try:
    obstore.put(store, "leader", b"this process", mode="create")
    told = "created"
except obstore.exceptions.AlreadyExistsError:
    told = "exists already"
print(f"the only writer is told: {told}; the store holds {objects}")
raise SystemExit(0 if told == "exists already" and objects == {"/bucket/leader": b"this process"} else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
