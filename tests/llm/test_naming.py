import json
from pathlib import Path

import pytest

from llm.naming import base_name, hub_name


@pytest.mark.parametrize(
    ("folder", "config", "name"),
    [
        ("vicuna", {"_name_or_path": "lmsys/vicuna-13b-v1.1"}, "lmsys/vicuna-13b-v1.1"),
        ("vicuna", {"_name_or_path": "/home/me/vicuna"}, None),
        ("vicuna", {}, None),
        ("hub/models--some-lab--a--b/snapshots/0123", {}, "some-lab/a--b"),
    ],
)
def test_the_name_on_the_hub_is_read_off_a_folder(folder, config, name, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "config.json").write_text(json.dumps(config))
    assert hub_name(str(tmp_path / folder)) == name
    known = name or f"{Path(folder).name} (a local folder when the adapter was trained)"
    assert base_name(str(tmp_path / folder)) == known


def test_a_name_stays_and_a_folder_that_has_gone_has_none(tmp_path: Path) -> None:
    assert hub_name("lmsys/vicuna-7b-v1.5") == "lmsys/vicuna-7b-v1.5"
    assert hub_name(str(tmp_path / "gone")) is None
