#!/usr/bin/env bash
# rouge-score 0.1.2, run on 2026-11-27.
#
# ROUGE-L of a text against itself is 1, in any language, one would think. rouge-score keeps the letters a to z and the
# digits, and parts the text at all others. Two equal Chinese sentences score 0, with no warning, as if the model had
# said nothing right. In German an umlaut parts a word: "Müller" is "m" and "ller", so "m ller" is a perfect answer.
#
# It matters where a speech translation or caption model answers in another language and one loop scores all tasks. What
# helps: RougeScorer(..., tokenizer=...) with an object that has tokenize(text), such as characters for Chinese.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rouge-score==0.1.2
cat >"$folder/try.py" <<'END'
from rouge_score.rouge_scorer import RougeScorer

class Characters:
    def tokenize(self, text):
        return list(text)

plain, by_character = RougeScorer(["rougeL"]), RougeScorer(["rougeL"], tokenizer=Characters())
chinese = "一只狗在门口叫"
score = plain.score(chinese, chinese)["rougeL"].fmeasure
umlaut = plain.score("Herr Müller", "Herr m ller")["rougeL"].fmeasure
whole = by_character.score(chinese, chinese)["rougeL"].fmeasure
print(f"a Chinese sentence against itself: {score}; by characters: {whole}; 'Herr Müller' against 'Herr m ller': {umlaut}")
raise SystemExit(0 if score == 0 and whole == 1 and umlaut == 1 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
