#!/usr/bin/env bash
# webdataset 1.0.2, run on 2026-11-27.
#
# A program that writes samples raises in the middle of a `with ShardWriter(...)` block. One would expect no shard, or one
# that a reader notices to be cut off. ShardWriter closes the tar as if all were written: the shard is valid, shorter than
# it should be, and stands under its final name. A job that takes "the file exists" for "the shard is done" loses the rest
# without a word.
#
# What helps: write to a temporary name, rename after the block, and believe a record written after that.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check webdataset==1.0.2 numpy==2.4.1
cat >"$folder/try.py" <<'END'
import os, sys, tarfile
import webdataset

os.chdir(sys.path[0])
try:
    with webdataset.ShardWriter("shard-%06d.tar", maxcount=100, verbose=0) as writer:
        for number in range(10):
            if number == 3:
                raise RuntimeError("a recording that cannot be decoded")
            writer.write({"__key__": f"clip{number}", "txt": "words"})
except RuntimeError as error:
    print("raised:", error)
with tarfile.open("shard-000000.tar") as tar:
    names = tar.getnames()
print(f"the shard is there, valid, with {len(names)} of 10 samples")
raise SystemExit(0 if len(names) == 3 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
