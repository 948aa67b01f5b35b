#!/usr/bin/env bash
# nltk 3.10.4, run on 2026-11-29.
#
# Answers to questions about a sound are often one word: "yes", "dog". One would expect a right one to have METEOR 1.
# nltk gives it 0.5, and two right words 0.94: it takes a penalty for every run of matching words, even for the one run
# that is the whole sentence. An answer of eight words with one wrong has more than a single right word. METEOR 1.5, the
# authors' program in Java, gives 1 to all answers that equal their reference.
#
# It matters because METEOR of short answers then measures their length, and figures of the two programs do not compare.
# What helps: the Java program (pycocoevalcap has it), or accuracy for one-word answers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nltk==3.10.4
cat >"$folder/try.py" <<'END'
from nltk.translate.meteor_score import single_meteor_score


class NoSynonyms:  # in place of WordNet, which is a download of its own; equal words need none
    def synsets(self, word):
        return []


def meteor(reference, answer):
    return round(single_meteor_score(reference.split(), answer.split(), wordnet=NoSynonyms()), 3)


right = {text: meteor(text, text) for text in ("yes", "a dog", "a dog barks at a passing red car")}
wrong = meteor("a dog barks at a passing red car", "a dog barks at a passing red train")
print(f"right answers: {right}; one word of eight wrong: {wrong}")
raise SystemExit(0 if list(right.values()) == [0.5, 0.938, 0.999] and wrong > right["yes"] else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
