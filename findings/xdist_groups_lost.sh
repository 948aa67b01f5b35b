#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.2.0 (and 9.1.1 to compare), run on 2026-11-27.
#
# Tests marked with the same xdist_group run in one process under `--dist loadgroup`. With pytest 9.2 they no longer do.
# xdist appends the group to a private attribute, which pytest 9.2 does not read any more. Nothing fails and nothing warns:
# the tests are dealt to all processes, and each makes the fixtures that the group was there to share. Here every process
# started a Ray cluster of its own, and a fixture of a minute was made twice.
#
# What helps: pytest below 9.2, and a test that looks for the group in its own node id.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pytest==9.2.0 pytest-xdist==3.8.0
cat >"$folder/test_group.py" <<'END'
import os, pathlib, time, pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_of_one_group(number):
    time.sleep(0.2)
    pathlib.Path(os.environ["SEEN"], f"{os.getpid()}-{number}").touch()
END
processes() {
  rm -rf "$folder/seen" && mkdir "$folder/seen"
  (cd "$folder" && SEEN="$folder/seen" venv/bin/pytest -q -p no:cacheprovider -n 2 --dist loadgroup test_group.py >/dev/null)
  ls "$folder/seen" | cut -d- -f1 | sort -u | wc -l
}
new=$(processes)
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pytest==9.1.1
old=$(processes)
echo "processes that ran the tests of one group: $new with pytest 9.2.0, $old with 9.1.1"
[ "$new" = 2 ] && [ "$old" = 1 ]
