#!/usr/bin/env bash
# datasets 5.2.0 (Hugging Face), run on 2026-11-27.
#
# load_dataset("webdataset", ...) reads shards of tar files. It looks at the first five samples of the first tar and
# takes their types for all. One would expect an error where a later sample does not fit. A member that first appears in
# the sixth sample is left out, in silence. Worse: where the first five scores of a JSON member happen to be whole
# numbers, all later ones lose their fractions, 0.93 becomes 0.
#
# It matters to labels, durations and scores that are mostly fractions, and to optional members such as a second
# transcript. What helps: features=datasets.Features({...}) for load_dataset, or webdataset itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 numpy==2.4.1
cat >"$folder/try.py" <<'END'
import io, json, os, sys, tarfile

os.environ |= {"HF_HOME": sys.path[0] + "/home", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
import datasets

path = sys.path[0] + "/shard.tar"
scores = [1, 0, 1, 1, 0, 0.93, 0.51]
with tarfile.open(path, "w") as tar:
    for number, score in enumerate(scores):
        members = {"json": json.dumps({"score": score})} | ({"note.txt": "unsure"} if score % 1 else {})
        for kind, text in members.items():
            member = tarfile.TarInfo(f"clip{number}.{kind}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
for streaming in (False, True):
    rows = list(datasets.load_dataset("webdataset", data_files=path, split="train", streaming=streaming))
    read = [row["json"]["score"] for row in rows]
    notes = sum("note.txt" in row for row in rows)
    print(f"streaming {streaming}: scores {scores} read as {read}; rows with a note: {notes}, in the tar: 2")
    if read != [int(score) for score in scores] or notes:
        raise SystemExit(1)
END
"$folder/venv/bin/python" "$folder/try.py"
