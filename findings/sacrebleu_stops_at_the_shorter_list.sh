#!/usr/bin/env bash
# sacrebleu 2.6.0, run on 2026-11-27.
#
# corpus_bleu takes a list of answers and lists of references. Where one list is shorter, because an answer was lost or a
# file has one line more, one would expect an error. The score is computed over the shorter length instead, and nothing is
# said: one right answer beside four references gives BLEU 100.
#
# What helps: compare the lengths before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sacrebleu==2.6.0
cat >"$folder/try.py" <<'END'
import sacrebleu

references = ["a dog barks at the gate", "rain falls on a tin roof", "a bell rings twice", "an engine starts"]
score = sacrebleu.corpus_bleu(references[:1], [references]).score
print(f"one answer beside {len(references)} references: BLEU {score:.1f}")
raise SystemExit(0 if score > 99 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
