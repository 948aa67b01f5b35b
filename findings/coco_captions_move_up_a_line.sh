#!/usr/bin/env bash
# pycocoevalcap 1.2 with Java 17 on the path, run on 2026-11-27.
#
# The tokenizer that stands before BLEU, METEOR, CIDEr and SPICE in captioning work is a Java program: all captions go
# to it joined by line feeds, and its output lines are dealt back by number. Line feeds within a caption are taken out
# before. But Java ends a line at the Unicode line separator, U+2028, too, which texts copied from web pages hold. One
# such caption becomes two lines, all later captions move to the next clip, and the last is lost. Scores of the whole
# list fall, and nothing is reported.
#
# What helps: " ".join(caption.split()) on every caption and reference before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps pycocoevalcap==1.2
cat >"$folder/try.py" <<'END'
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

def tokens(mark):
    captions = ["a dog barks", f"rain falls{mark}on a roof", "a bell rings", "an engine starts"]
    found = PTBTokenizer().tokenize({clip: [{"caption": caption}] for clip, caption in enumerate(captions)})
    return {clip: texts[0] for clip, texts in found.items()}

plain, moved = tokens("\n"), tokens("\u2028")
print(f"with a line feed:      {plain}\nwith a line separator: {moved}")
raise SystemExit(0 if plain[2] == "a bell rings" and moved[2] == "on a roof" and moved[3] == "a bell rings" else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
