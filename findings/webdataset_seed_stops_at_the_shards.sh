#!/usr/bin/env bash
# webdataset 1.0.2, run on 2026-11-28.
#
# `WebDataset(urls, shardshuffle=100, seed=7)` brings the shards into the same order each time. `.shuffle(1000)` behind it does
# not know of that seed: it draws from a generator that begins with the clock and the process, so the samples come in another
# order at each run, and no argument of the constructor says so.
#
# It matters to whoever repeats an experiment with a stated seed, or continues one where it stopped.
# What helps: `.compose(webdataset.detshuffle(1000, seed=7))` instead of `.shuffle(1000)`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check webdataset==1.0.2
cat >"$folder/try.py" <<'END'
import webdataset

URLS = [f"{number}.tar" for number in range(4)]
for url in URLS:
    with webdataset.TarWriter(url) as writer:
        for number in range(50):
            writer.write({"__key__": f"{url[0]}-{number:02d}", "txt": "a"})


def order(*, shuffled):
    samples = webdataset.WebDataset(URLS, shardshuffle=100, seed=7)
    samples = {"": samples, "shuffle": samples.shuffle(100), "detshuffle": samples.compose(webdataset.detshuffle(100, seed=7))}[shuffled]
    return [sample["__key__"] for sample in samples]


same = {name: order(shuffled=name) == order(shuffled=name) for name in ("", "shuffle", "detshuffle")}
print(f"the same order twice: shards alone {same['']}, .shuffle(100) {same['shuffle']}, detshuffle {same['detshuffle']}")
raise SystemExit(0 if same == {"": True, "shuffle": False, "detshuffle": True} else 1)
END
cd "$folder"
"$folder/venv/bin/python" "$folder/try.py"
