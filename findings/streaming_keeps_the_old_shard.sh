#!/usr/bin/env bash
# mosaicml-streaming 0.13.0, run on 2026-11-28.
#
# A dataset was written anew under the same path. A machine that had read the old one reads the old samples on, though it asks
# for hashes to be validated: neither the index nor a shard that lies in `local` is compared with `remote`, and validate_hash
# looks at what is downloaded, which is nothing. A machine with an empty `local` reads the new ones, so that two workers of one
# job train on two versions, in silence.
#
# It matters to whoever mends a dataset, or extracts features again, and keeps its path.
# What helps: a new path for each version, or an empty `local` for each job.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.11.0 torchvision==0.26.0 mosaicml-streaming==0.13.0
cat >"$folder/try.py" <<'END'
import shutil

from streaming import MDSWriter, StreamingDataset


def write(value):
    shutil.rmtree("remote", ignore_errors=True)
    with MDSWriter(out="remote", columns={"value": "int"}, hashes=["sha1"]) as writer:
        for _ in range(8):
            writer.write({"value": value})


def read(local):
    samples = StreamingDataset(remote="remote", local=local, batch_size=1, validate_hash="sha1")
    return {sample["value"] for sample in samples}


write(1)
first = read("machine-1")
write(2)
again, elsewhere = read("machine-1"), read("machine-2")
print(f"written 1, read {first}; written 2, read {again} where 1 was read before and {elsewhere} elsewhere")
raise SystemExit(0 if (first, again, elsewhere) == ({1}, {1}, {2}) else 1)
END
cd "$folder"
"$folder/venv/bin/python" "$folder/try.py" 2>&1 | tail -1
