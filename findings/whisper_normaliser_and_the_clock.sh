#!/usr/bin/env bash
# whisper-normalizer 0.1.12 (the normaliser that openai-whisper and transformers use too), run on 2026-11-27.
#
# Word error rates of English speech are compared after Whisper's text normaliser. It is not idempotent, and it reads
# "o'clock" as a number: "ten o'clock" becomes "100 clock", "minus five" becomes "-5" and, normalised once more, "5"; "007"
# becomes "7" at the second pass. A pipeline that normalises when it writes and again when it scores changes the result.
#
# What helps: normalise once, in the scorer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check whisper-normalizer==0.1.12
cat >"$folder/try.py" <<'END'
from whisper_normalizer.english import EnglishTextNormalizer

normalise = EnglishTextNormalizer()
clock, once = normalise("ten o'clock"), normalise("minus five")
twice = normalise(once)
print(f"ten o'clock -> {clock!r}; minus five -> {once!r} -> {twice!r}")
raise SystemExit(0 if clock == "100 clock" and once != twice else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
