#!/usr/bin/env bash
# jiwer 4.0.0, run on 2026-11-27.
#
# Two surprises for whoever scores transcripts read from tables. A tab or a no-break space between two words does not part
# them: jiwer's default transforms split at the plain space only, so a right answer counts as errors. And an empty
# reference does not raise: its word error rate is the plain number of inserted words, 3.0 for three words, which then
# moves an average over clips.
#
# What helps: collapse white space before, score over the whole list, and report insertions against empty references apart.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jiwer==4.0.0
cat >"$folder/try.py" <<'END'
import jiwer

tab = jiwer.wer("the cat sat", "the\tcat sat")
empty = jiwer.wer("", "three more words")
print(f"a tab between two right words: word error rate {tab:.2f}; an empty reference and three words: {empty:.1f}")
raise SystemExit(0 if tab > 0 and empty == 3 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
