#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.1.1, run on 2026-11-27.
#
# `--dist loadgroup` sends tests of one xdist_group to one process. A conftest.py may add the mark in
# pytest_collection_modifyitems, as it may add skips. One would expect the group to count. It does not: xdist reads the
# groups in a hook of the same name, which runs before the conftest's. The tests of the group run in both processes, and
# no warning is given. A shared fixture that takes a minute is then made twice, or two processes use one resource at once.
#
# What helps: @pytest.hookimpl(tryfirst=True) on the conftest's hook.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pytest==9.1.1 pytest-xdist==3.8.0
cat >"$folder/test_group.py" <<'END'
import os, time, pathlib, pytest

@pytest.mark.parametrize("number", range(8))
def test_of_one_group(number):
    time.sleep(0.2)
    pathlib.Path(os.environ["SEEN"], f"{os.getpid()}-{number}").touch()
END
processes() { # first line of the hook
  rm -rf "$folder/seen" && mkdir "$folder/seen"
  cat >"$folder/conftest.py" <<END
import pytest

$1
def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.xdist_group("one"))
END
  (cd "$folder" && SEEN="$folder/seen" venv/bin/pytest -q -p no:cacheprovider -n 2 --dist loadgroup test_group.py >/dev/null)
  ls "$folder/seen" | cut -d- -f1 | sort -u | wc -l
}
plain=$(processes "")
first=$(processes "@pytest.hookimpl(tryfirst=True)")
echo "processes that ran tests of the one group: $plain with a plain hook, $first with tryfirst"
[ "$plain" = 2 ] && [ "$first" = 1 ]
