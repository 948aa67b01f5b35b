#!/usr/bin/env bash
# pyarrow 26.0.0 against the S3 server of moto 5.2.5, run on 2026-11-27.
#
# An object in S3 appears whole or not at all: that is what one chooses it for. With pyarrow's S3FileSystem an exception
# in the middle of `with filesystem.open_output_stream(...)` leaves the block, the stream is closed as if all were
# written, and the half object appears. It takes the place of a good one that stood under the same key. There is no way
# to abandon the stream.
#
# It matters to every job that can be stopped by an error while it writes a shard, a checkpoint or an index. What helps:
# finish the bytes in memory or in a local file, and open the stream after that.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.0 'moto[server]==5.2.5'
cat >"$folder/try.py" <<'END'
import logging, os

os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}
logging.disable(logging.CRITICAL)
from moto.server import ThreadedMotoServer
from pyarrow.fs import S3FileSystem

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
store = S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True)
store.create_dir("bucket")
with store.open_output_stream("bucket/weights") as stream:
    stream.write(b"good" * 1000)
try:
    with store.open_output_stream("bucket/weights") as stream:
        stream.write(b"half")
        raise RuntimeError("the disk that the rest comes from is gone")
except RuntimeError as error:
    print("raised:", error)
size = store.get_file_info("bucket/weights").size
server.stop()
print(f"4,000 good bytes stood under the key; now {size} bytes")
raise SystemExit(0 if size == 4 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
