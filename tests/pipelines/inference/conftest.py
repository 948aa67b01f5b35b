import shutil

import pytest

from pipelines.inference.scoring import captions


@pytest.fixture
def without_java(monkeypatch):
    """METEOR's Java takes longer to start than all that these tests do."""
    monkeypatch.setattr(captions, "_java_folder", lambda: None)


@pytest.fixture
def run(unbroken, tmp_path) -> str:
    """A run of the test's own, for answers are kept in it."""
    return shutil.copytree(unbroken, tmp_path / "run").as_posix()
