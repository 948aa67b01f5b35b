import shutil
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.jobs.shipped import require_small, shipped_files
from tests import ROOT
from tests.sources import OURS


def write(folder: Path, sizes: dict[str, int]) -> Path:
    for name, nbytes in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(nbytes))
    return folder


def test_every_file_of_the_packages_is_shipped_and_the_environment_is_not() -> None:
    shipped = shipped_files(ROOT)
    tops = {path.parts[0] for path in shipped}
    ours = {
        path.relative_to(ROOT)
        for package in OURS
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours and ours <= shipped.keys()
    assert "pyproject.toml" in tops and not {".venv", ".git"} & tops


def test_ignore_files_are_honoured_in_every_folder(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": 1, "data/x": 1, "sub/keep": 1, "sub/drop": 1})
    (tmp_path / ".gitignore").write_text("/data/\n")
    (tmp_path / "sub" / ".rayignore").write_text("drop\n")
    assert {"a.py", "sub/keep"} == {str(path) for path in shipped_files(tmp_path) if "ignore" not in path.name}


def test_too_much_is_refused_and_the_largest_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": 10, "film/one": 300_000, "film/two": 300_000, "small/x": 100})
    assert require_small(tmp_path, most_nbytes=700_000) > 600_110
    with pytest.raises(ClusterError, match=r"0\.6 MiB would be sent.*largest are film 0\.6 MiB, .*\.rayignore"):
        require_small(tmp_path, most_nbytes=500_000)


def test_the_bytes_are_those_of_the_archive_that_ray_makes(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    folder = write(tmp_path / "f", {"a.py": 10, "ünïcode/name with blanks": 70_000, "b/c/d": 0})
    create_package(str(folder), tmp_path / "p.zip", include_gitignore=True)
    archive = (tmp_path / "p.zip").stat().st_size
    assert archive <= require_small(folder) < archive + 1_000
    shutil.rmtree(folder)
