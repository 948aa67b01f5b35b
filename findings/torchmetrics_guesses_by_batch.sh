#!/usr/bin/env bash
# torchmetrics 1.9.0 with torch 2.13.0, run on 2026-11-29.
#
# Average precision and AUROC look at the order of the scores alone, so one would expect the same value however an
# evaluation is cut into batches. torchmetrics applies a sigmoid where "preds has values outside [0,1]", and it looks at
# every batch by itself. A batch with all its scores in [0, 1] is kept as it is, the next one is squeezed, and the two
# kinds are then sorted together. The scores here separate the classes entirely, and the average precision falls from 1
# to below 0.3 with the size of the batch.
#
# It matters to tagging with logits, and to similarities between -1 and 1, most of all in batches of one clip. What helps:
# apply the sigmoid before the metric, or give it all scores at once.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6
cat >"$folder/try.py" <<'END'
import torch
from torchmetrics import AUROC, AveragePrecision

generator = torch.Generator().manual_seed(0)
present = (torch.rand(1000, generator=generator) < 0.1).long()
scores = present + 0.95 * torch.rand(1000, generator=generator)  # absent: below 0.95, present: 1 and more


def over_batches(metric, prepare, size):
    for some_scores, some_present in zip(scores.split(size), present.split(size)):
        metric.update(prepare(some_scores), some_present)
    return round(metric.compute().item(), 3)


found = {}
for name, prepare in {"as they are": lambda values: values, "after a sigmoid": torch.sigmoid}.items():
    for size in (1000, 32, 8, 1):
        found[name, size] = [over_batches(kind(task="binary"), prepare, size) for kind in (AveragePrecision, AUROC)]
        print(f"scores {name}, batches of {size}: average precision {found[name, size][0]}, AUROC {found[name, size][1]}")
plain = [found["as they are", size][0] for size in (1000, 32, 8, 1)]
even = all(found["after a sigmoid", size] == [1, 1] for size in (1000, 32, 8, 1))
raise SystemExit(0 if plain[0] == 1 and plain == sorted(plain, reverse=True) and plain[-1] < 0.3 and even else 1)
END
"$folder/venv/bin/python" "$folder/try.py"
