#!/usr/bin/env bash
# espeakng-loader 0.2.4 (espeak-ng 1.52), run on 2026-11-27.
#
# LibriSpeech and many ASR corpora write transcripts in capitals. Phones of them for phone recognition come from espeak-ng.
# One would expect case not to matter. Some words are read letter by letter, or with another stress, when they are
# in capitals: the phones of the same sentence differ, and a phone error rate with them.
#
# What helps: lower-case the text first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check espeakng-loader==0.2.4
cat >"$folder/try.py" <<'END'
import ctypes
import espeakng_loader

library = ctypes.CDLL(espeakng_loader.get_library_path())
library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)
library.espeak_SetVoiceByName(b"en-us")
library.espeak_TextToPhonemes.restype = ctypes.c_char_p

def phones(text):
    pointer = ctypes.c_char_p(text.encode())
    return library.espeak_TextToPhonemes(ctypes.byref(pointer), 1, 2).decode().strip()

words = "he told us that it was an old saint of may".split()
differ = [word for word in words if phones(word) != phones(word.upper())]
for word in differ:
    print(f"{word}: {phones(word)}   {word.upper()}: {phones(word.upper())}")
raise SystemExit(0 if differ else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
