"""Who may import whom, read from the sources; what a verb loads before it works; what no file may call."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import ROOT
from tests.sources import LEAVES, OURS, imported, imports_of, sources

LIBRARIES = {
    "encoders": {"torch", "torchaudio", "transformers", "safetensors", "numpy", "soundfile"},
    "qformer": {"torch"},
    "llm": {"torch", "transformers", "peft", "safetensors", "numpy", "tokenizers", "huggingface_hub"},
    "cluster": {"ray", "jinja2"},
    "pipelines": {"ray", "torch", "transformers", "pyarrow", "numpy", "safetensors", "omegaconf", "yaml", "rich"}
    | {"starlette", "pydantic", "prometheus_client"}
    | {"ijson", "jinja2", "matplotlib", "soundfile", "espeakng_loader", "tensorboardX"}
    | {"kaldialign", "nltk", "pycocoevalcap", "rapidfuzz", "sacrebleu", "vllm", "whisper_normalizer"},
}
"""What a package may import besides the standard library, itself and, in `pipelines`, the leaves."""
ONLY_IN = {
    "ray": ("pipelines", "cluster"),
    "peft": ("llm/peft_parts.py",),
    "espeakng_loader": ("pipelines/demo/speech_synthesis.py",),
    # It runs in an environment of its own.
    "vllm": ("pipelines/inference/engines/vllm_program.py",),
    "tensorboardX": ("pipelines/training/monitoring/curves.py",),
    "starlette": ("pipelines/inference/serving/",),
    "pydantic": ("pipelines/inference/serving/",),
    "prometheus_client": ("pipelines/inference/serving/",),
}
ERRORS = {"errors"}
GROUND = {"storage", "interface"} | ERRORS
MAY_IMPORT = {
    "errors": ({*()}, {"encoders.errors", "qformer.errors", "llm.errors", "cluster.errors"}),
    # One place says what jobs publish, as alerts and dashboard use its names.
    "metrics": ({*()}, {"cluster.metrics"}),
    "storage": (ERRORS, {"encoders.sound.recordings"}),
    "interface": ({"storage"} | ERRORS, {*()}),
    "manifest": (GROUND, {"encoders.audio", "encoders.sound", "llm.prompts", "llm.errors", "cluster"}),
    "cache": (GROUND | {"manifest"}, {"encoders"}),
    "extraction": (GROUND | {"manifest", "cache", "metrics"}, {"encoders", "cluster"}),
    "batches": (GROUND | {"manifest", "cache"}, {"llm", "qformer", "encoders.features"}),
    "runs": (GROUND | {"cache"}, {"encoders.features", "llm", "qformer"}),
    # A run's checkpoints are scored while it trains, as evaluation scores them.
    "training": (
        GROUND | {"manifest", "cache", "batches", "runs", "inference", "metrics"},
        {"encoders.features", "llm", "qformer", "cluster"},
    ),
    # What was heard is named by the manifest, and stories that a run wrote become one.
    "inference": (GROUND | {"manifest", "cache", "batches", "runs", "metrics"}, {"encoders", "llm", "cluster"}),
    # A submitted verb's keys are checked before anything is sent, so its config is needed, and nothing else of it.
    # `top` reads what jobs leave in caches, in runs and beside answers.
    "operations": (GROUND | {"extraction", "training", "inference", "cache", "runs", "verbs"}, {"cluster"}),
    "demo": (GROUND | {"manifest", "cache", "extraction", "batches", "runs", "training", "inference"}, set(LEAVES)),
    "verbs": (ERRORS, {*()}),
    "cli": ({"interface", "verbs"} | ERRORS, {"cluster.logs"}),
    "__main__": ({"cli"}, {*()}),
}
"""Folder or module of `pipelines` -> what it may import there, and of the leaves (a package or some of its modules)."""
HEAVY = {"torch", "torchaudio", "transformers", "peft", "ray", "bitsandbytes", "pandas", "matplotlib", "webdataset"}
LIGHT_VERBS = (
    *("runs list", "cache info", "cache ls", "cache verify", "cache diff", "cache prune"),
    *("recipe diff", "tasks"),
    *("manifest info", "manifest check", "manifest sample", "prepare table", "prepare librispeech"),
    *("deploy values", "deploy kuberay", "deploy slurm", "deploy ray-up", "deploy docker"),
    *("deploy monitoring", "top", "report-bug"),
)
"""Verbs whose work is done without anything heavy too."""
DRIVERS = {"extract": HEAVY - {"ray"}, "train": HEAVY - {"ray", "pandas"}}
"""Drivers, and what they do without: Ray itself loads the rest."""


def within(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


@pytest.mark.parametrize("package", OURS)
def test_packages_import_only_what_the_table_allows(package):
    allowed = LIBRARIES[package] | {package} | (set(LEAVES) if package == "pipelines" else set())
    for path in sorted((ROOT / package).rglob("*.py")):
        foreign = imports_of(path) - set(sys.stdlib_module_names) - allowed
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_some_libraries_have_their_place(library):
    for path in sources().values():
        if library in imports_of(path):
            name = path.relative_to(ROOT).as_posix()
            assert name.startswith(ONLY_IN[library]), f"{name} imports {library}"


def test_folders_of_pipelines_import_only_what_the_table_allows():
    for module, path in sources().items():
        package, _, rest = module.partition(".")
        if package != "pipelines" or not rest:
            continue
        own = rest.partition(".")[0]
        assert own in MAY_IMPORT, f"{path}: the table of imports has no row for {own}"
        folders, leaves = MAY_IMPORT[own]
        for name in imported(path):
            top, _, inner = name.partition(".")
            if top == "pipelines" and inner:
                assert inner.partition(".")[0] in folders | {own}, f"{module} imports {name}"
            elif top in LEAVES:
                assert within(name, leaves), f"{module} imports {name}"


def test_no_module_imports_itself_by_way_of_others():
    links = {module: set(imported(path)) & sources().keys() for module, path in sources().items()}
    above: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in above, " → ".join([*above[above.index(module) :], module])
        if module not in done:
            above.append(module)
            for link in sorted(links[module]):
                visit(link)
            above.pop()
            done.add(module)

    for module in links:
        visit(module)


def test_folders_have_no_more_modules_than_can_be_overlooked():
    for folder in sorted({path.parent for path in sources().values()} - {ROOT / "pipelines/manifest/corpora"}):
        modules = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(modules) <= 14, f"{folder}: {len(modules)} modules"


def loaded_after(*statements: str) -> set[str]:
    """Run statements in a process of its own and return the heavy packages that are loaded then."""
    code = "; ".join(["import sys, json", *statements, f"print(json.dumps([*({HEAVY} & sys.modules.keys())]))"])
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return set(json.loads(process.stdout.splitlines()[-1]))


def test_help_and_wrong_keys_of_all_verbs_load_nothing_heavy():
    calls = ["from pipelines.cli import main; from pipelines.verbs import VERBS", "sys.stdout = sys.stderr"]
    calls.append("assert all(main([*name.split(), '--help']) == 0 for name in VERBS)")
    calls.append("assert all(main([*name.split(), 'wrong_key=1']) == 2 for name in VERBS)")
    assert loaded_after(*calls, "sys.stdout = sys.__stdout__") == set()


WRONG_PATHS = (
    "ask run=/nowhere audio=README.md question=?",
    "ask run=/nowhere audio=README.md question=? address=http://127.0.0.1:1",
    "serve run=/nowhere",
    "evaluate run=/nowhere manifest=/nowhere cache=/nowhere",
    "scaling run=/nowhere manifest=/nowhere cache=/nowhere",
    "stories run=/nowhere manifest=/nowhere cache=/nowhere out=/nowhere/out",
    "import-official ckpt=/nowhere llm=/nowhere whisper=tiny beats=tiny out=/nowhere/out",
    "export-official run=/nowhere out=/nowhere/out",
    "plan train tiny manifest=/nowhere cache=/nowhere run=/nowhere/run llm=tiny",
    "plan extract manifest=/nowhere cache=/nowhere whisper=tiny beats=tiny",
    "train tiny manifest=/nowhere cache=/nowhere run=/nowhere/run llm=tiny",
    "sweep tiny manifest=/nowhere cache=/nowhere sweep=/nowhere/sweep llm=tiny grid.seed=[1,2]",
    "cache info cache=/nowhere",
    "cache show cache=/nowhere clip=ab out=a.png",
    "cache export cache=/nowhere clips=[ab] out=/nowhere/out",
    "manifest info manifest=/nowhere",
    "recipe diff a=/nowhere b=/nowhere",
    "cache diff a=/nowhere b=/nowhere",
    "top cache=/nowhere",
    "top run=/nowhere",
    "report-bug run=/nowhere",
    "report-bug cache=/nowhere",
    "submit extract manifest=m cache=c whisper=tiny beats=tiny folder=/nowhere",
    "deploy kuberay values=/nowhere.yaml out=/nowhere",
)


def test_wrong_paths_load_nothing_heavy():
    calls = ["from pipelines.cli import main", "sys.stdout = sys.stderr"]
    calls += [f"assert main({words.split()!r}) == 2, {words!r}" for words in WRONG_PATHS]
    assert loaded_after(*calls, "sys.stdout = sys.__stdout__") == set()


def test_verbs_that_list_and_check_load_nothing_heavy():
    loads = [f"VERBS[{name!r}].load_function()" for name in LIGHT_VERBS]
    assert loaded_after("from pipelines.verbs import VERBS", *loads) == set()


@pytest.mark.parametrize("verb", DRIVERS)
def test_drivers_of_jobs_load_no_pytorch(verb):
    found = loaded_after("from pipelines.verbs import VERBS", f"VERBS[{verb!r}].load_function()")
    assert not found & DRIVERS[verb]


def test_a_driver_that_scores_checkpoints_loads_no_pytorch():
    assert not loaded_after("import pipelines.training.monitoring.scores") & DRIVERS["train"]


def test_controller_of_a_training_loads_no_pytorch():
    assert loaded_after("import pipelines.training.worker.start") <= {"ray", "pandas"}


def test_model_packages_load_neither_ray_nor_what_only_8_and_4_bits_need():
    modules = [module for module in sources() if module.startswith(("encoders", "qformer", "llm"))]
    assert not {"ray", "bitsandbytes"} & loaded_after(*(f"import {module}" for module in modules))


def test_lora_on_an_llm_in_float32_loads_no_bitsandbytes(tmp_path):
    steps = [
        "from llm.tiny import write_tiny_llm",
        "from llm.loading import load_llm, share_llm",
        "from llm.lora import *",
    ]
    steps.append(f"write_tiny_llm(['a b'], {str(tmp_path)!r})")
    steps.append(f"add_lora(share_llm(load_llm({str(tmp_path)!r})[0]), LoraSettings())")
    assert "bitsandbytes" not in loaded_after(*steps)


UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of calls that unpickle, or may."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            if found := {str(name).partition(".")[0] for name in names} & UNPICKLERS:
                yield node.lineno, f"import of {found.pop()}"
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield node.lineno, "torch.load without weights_only=True"
        reads_npy = name in ("np.load", "numpy.load") or name.endswith("read_array")
        if reads_npy and keywords.get("allow_pickle") != "False":
            yield node.lineno, f"{name} without allow_pickle=False"
        makes_texts = [ast.unparse(argument) for argument in node.args[1:]] == ["yaml.BaseLoader"]
        is_yaml = name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") and not makes_texts
        if is_yaml or name in ("eval", "exec"):
            yield node.lineno, name


def test_nothing_is_unpickled():
    for path in sources().values():
        for line, call in unsafe_calls(ast.parse(path.read_text())):
            pytest.fail(f"{path.relative_to(ROOT)}:{line}: {call}")


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(\n    file,\n    map_location='cpu',\n    weights_only=False,\n)",
        "torch.load(file)",
        "np.load(\n    path,\n)",
        "np.lib.format.read_array(file, allow_pickle=True)",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text, yaml.FullLoader)",
    ],
)
def test_planted_unpickling_is_found(code):
    assert len(list(unsafe_calls(ast.parse(code)))) == 1


def test_top_level_holds_only_the_agreed_packages():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests", "benchmarks"} == set(OURS)


def test_tests_import_nothing_from_other_test_modules():
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        found = [name for name in imported(path) if name.startswith("tests.") and ".test_" in name]
        assert not found, f"{path.relative_to(ROOT)} imports {found}; what tests share is in builders.py"


def test_a_job_is_shipped_with_every_file_of_the_packages():
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    excludes = get_excludes_from_ignore_files(ROOT, include_gitignore=True)
    assert len(excludes) == 2
    files = [path for package in OURS for path in (ROOT / package).rglob("*") if path.is_file()]
    left_out = [
        path for path in files if "__pycache__" not in path.parts and any(excluded(path) for excluded in excludes)
    ]
    assert files and not left_out


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs all tests")
@pytest.mark.xdist_group("one")
def test_groups_of_tests_reach_pytests_processes(request):
    assert request.node.nodeid.endswith("@one"), "pytest-xdist's groups are lost: each process starts a Ray of its own"


def test_the_tests_of_every_module_are_found():
    """By its name in the same folder of the tests, or by the docstring that says `Covers …`."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    covered = {
        name
        for path in tests
        for text in re.findall(r"Covers ([\w., \n]+)\.\n?", ast.get_docstring(ast.parse(path.read_text())) or "")
        for name in re.split(r",\s+", text)
    }
    assert not covered - sources().keys(), "a docstring names what is not there"
    for module, path in sources().items():
        folder = ROOT / "tests" / path.relative_to(ROOT).parent
        named = folder / f"test_{path.stem}.py"
        assert path.stem.startswith("__") or named in tests or module in covered, f"{module} has no tests"


def test_no_page_holds_both_sides_of_a_merge():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/*.md")]
    assert not [page.name for page in pages if re.search(r"^(<{7}|={7}|>{7})( |$)", page.read_text(), re.MULTILINE)]
