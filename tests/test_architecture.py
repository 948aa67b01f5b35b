"""Who may import whom; read from the sources, so that nothing is imported to find out."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

OURS = {"pipelines", "encoders", "qformer", "llm", "cluster"}
MAY_IMPORT = {
    "encoders": {"torch", "torchaudio", "transformers", "safetensors", "numpy", "soundfile"},
    "qformer": {"torch"},
    "llm": {"torch", "transformers", "peft", "safetensors", "numpy", "tokenizers"},
    "cluster": {"ray"},
    "pipelines": OURS
    | {"ray", "torch", "transformers", "webdataset", "pyarrow", "numpy", "safetensors", "omegaconf", "yaml", "rich"}
    | {"jinja2", "matplotlib", "jiwer", "soundfile", "espeakng_loader", "tensorboardX"},
}
ONLY_IN = {
    "ray": {"pipelines", "cluster"},
    "webdataset": {"pipelines/cache/shard.py"},
    "peft": {"llm"},
    "espeakng_loader": {"pipelines/demo/speech_synthesis.py"},
    "tensorboardX": {"pipelines/training/monitoring/curves.py"},
}
FORBIDDEN_CALLS = ("pickle.load", "torch.load(", "np.load(", "yaml.load(")


def imports_of(path: Path) -> set[str]:
    """Top-level packages a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("package", sorted(OURS))
def test_packages_import_only_what_the_table_allows(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        foreign = imports_of(path) - set(sys.stdlib_module_names) - {package} - MAY_IMPORT[package]
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_some_libraries_have_their_place(library):
    for path in sorted(path for package in OURS for path in (ROOT / package).rglob("*.py")):
        if library in imports_of(path):
            name = path.relative_to(ROOT).as_posix()
            assert name in ONLY_IN[library] or name.partition("/")[0] in ONLY_IN[library], f"{name} imports {library}"


def test_ray_is_not_loaded_by_the_model_packages():
    modules = sorted(
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for package in ("encoders", "qformer", "llm")
        for path in (ROOT / package).rglob("*.py")
        if path.stem != "__init__"
    )
    code = f"import sys; [__import__(name) for name in {modules}]; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_driver_of_an_extraction_loads_neither_pytorch_nor_what_draws():
    heavy = {"torch", "torchaudio", "transformers", "peft", "webdataset", "matplotlib"}
    code = f"import sys, pipelines.cli, pipelines.extraction.extract; sys.exit(str({heavy} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert found.stderr == "set()\n"


def test_nothing_is_unpickled():
    for path in sorted(path for package in OURS for path in (ROOT / package).rglob("*.py")):
        for line in path.read_text().splitlines():
            if any(call in line for call in FORBIDDEN_CALLS):
                assert "weights_only=True" in line or "allow_pickle=False" in line, f"{path}: {line.strip()}"


def test_top_level_holds_only_the_agreed_packages():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests", "benchmarks"} == OURS
