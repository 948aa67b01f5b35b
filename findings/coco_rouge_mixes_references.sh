#!/usr/bin/env bash
# pycocoevalcap 1.2, run on 2026-11-27.
#
# ROUGE-L of a caption with several references is the F-measure of one of them, one would think: the best. pycocoevalcap,
# whose numbers captioning papers print, takes the best precision and the best recall of all references apart, and puts the
# two together. A caption can score above what it reaches against any single reference.
#
# It matters when a score is set beside a paper's: rouge-score and others give lower values for the same captions.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps pycocoevalcap==1.2
cat >"$folder/try.py" <<'END'
import sys, types

sys.modules["numpy"] = types.SimpleNamespace(mean=lambda values: sum(values) / len(values), array=list)  # all it uses
from pycocoevalcap.rouge.rouge import Rouge

caption = ["a dog barks at night"]
references = ["a dog", "a big dog barks loudly at somebody far away late at night"]
together = Rouge().calc_score(caption, references)
alone = [Rouge().calc_score(caption, [reference]) for reference in references]
print(f"both references: {together:.3f}; each alone: {alone[0]:.3f}, {alone[1]:.3f}")
raise SystemExit(0 if together > max(alone) + 0.01 else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
