"""Imports point down, dangerous calls stand nowhere, and importing a module does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from steps import command
from tests.project import ROOT

FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
         for package in ("steps", "flows", "infra") for path in sorted((ROOT / package).rglob("*.py"))}
BENCHMARKS = {f"benchmarks.{path.stem}": path for path in sorted((ROOT / "benchmarks").glob("*.py"))}
STEPS = ("download", "teach", "prepare", "train", "evaluate", "register")
RECIPES = ("cola", "emotion", "mlm", "multilingual", "nli", "sts", "tsdae")
TASKS = ("classes", "sts", "translation", "triplet")
HOMES = {"mlflow": ["steps.model_files", "steps.registry", "steps.tracking"], "dvc": ["flows.graph"],
         "prefect": [f"flows.{name}" for name in (
             "approval", "deploy", "lease", "notifications", "pipeline", "server", "stages")]}


def imports(tree: ast.AST) -> set[str]:
    """The modules a file imports, wherever in it: `from a import b` gives both a and a.b."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found |= {name.name for name in names}
            case ast.ImportFrom(module=module, names=names):
                found |= {module, *(f"{module}.{name.name}" for name in names)}
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="__import__"),
                          args=[ast.Constant(value=str(name)), *_]):
                found.add(name)
    return found


def dangers(tree: ast.AST) -> set[str]:
    """The calls that run code from data, and shells."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="trust_remote_code" | "shell" as key, value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    found.add(key)
            case ast.Dict(keys=keys):       # f(**{...})
                found |= {key.value for key in keys if isinstance(key, ast.Constant)} & {"trust_remote_code", "shell"}
            case ast.keyword(arg="weights_only", value=value):
                if not (isinstance(value, ast.Constant) and value.value is True):
                    found.add("weights_only")
            case ast.keyword(arg="allow_pickle", value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    found.add("allow_pickle")
            case ast.Attribute(attr="read_pickle" | "to_pickle" | "allow_unsafe" as name):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="yaml"), attr="load" | "unsafe_load" | "full_load" as name):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="os"), attr="system" | "popen" as name):
                found.add(name)
            case ast.ImportFrom(module="os" | "yaml" | "subprocess", names=names):
                found |= {name.name for name in names} & {"system", "popen", "load", "unsafe_load", "full_load",
                                                          "getoutput", "getstatusoutput"}
            case ast.Attribute(value=ast.Name(id="subprocess"), attr="getoutput" | "getstatusoutput" as name):
                found.add(name)
            case ast.Name(id="eval" | "exec" as name):
                found.add(name)
            case ast.keyword(arg="typ", value=ast.Constant(value="unsafe")):
                found.add("unsafe_load")
    pickles = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
    return found | {name for name in imports(tree) if name.split(".")[0] in pickles}


def parsed(module: str) -> ast.AST:
    return ast.parse((FILES | BENCHMARKS)[module].read_text(encoding="utf-8"))


def python(code: str, folder: Path, environment: dict[str, str]) -> None:
    """Runs code in an empty folder, with an empty home; it may say and write nothing in either."""
    for name in ("here", "home"):
        (folder / name).mkdir()
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=folder / "here", text=True, capture_output=True,
                          env=environment | {"PYTHONPATH": str(ROOT), "HOME": str(folder / "home"),
                                             "PREFECT_HOME": str(folder / "prefect")}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [*(folder / "here").iterdir(), *(folder / "home").iterdir()] == []


def test_no_library_reports_what_we_do(tmp_path, environment):
    """Each is asked in its own words whether it would; a step sets the switches before it imports any."""
    python("from steps import command\ncommand.quiet()\n"
           "from mlflow.telemetry.utils import is_telemetry_disabled\nassert is_telemetry_disabled()\n"
           "from prefect.settings import get_current_settings\n"
           "assert not get_current_settings().server.analytics_enabled\n"
           "from dvc import analytics\nassert not analytics.is_enabled()\n"
           "from huggingface_hub import constants\nassert constants.HF_HUB_DISABLE_TELEMETRY\n", tmp_path,
           {key: value for key, value in environment.items() if key not in command.QUIET})


def test_the_files_are_all_here():
    below = {f"steps.recipes.{name}" for name in RECIPES} | {f"steps.tasks.{name}" for name in TASKS}
    homes = {home for files in HOMES.values() for home in files}
    assert {f"steps.{step}" for step in STEPS} | homes | below | {"steps"} <= set(FILES)


@pytest.mark.parametrize("library", HOMES)
def test_each_driver_is_imported_in_its_own_files(library):
    assert [module for module in FILES if any(name.split(".")[0] == library for name in imports(parsed(module)))] == (
        HOMES[library])


def test_no_module_of_steps_imports_a_step_or_a_flow_or_the_stack():
    """Recipes, tasks, kinds and the rest lie below the steps."""
    above = {module for module in FILES if module.startswith(("flows", "infra"))} | {f"steps.{step}" for step in STEPS}
    upward = {module: imports(parsed(module)) & above for module in FILES if module.startswith("steps")}
    assert {module: found for module, found in upward.items() if found} == {}


@pytest.mark.parametrize("module", FILES | BENCHMARKS)
def test_no_file_runs_code_from_data_or_a_shell(module):
    assert dangers(parsed(module)) == set()


@pytest.mark.parametrize("code", [
    "load(path, trust_remote_code=True)", "load(path, trust_remote_code=flag)", "run('ls', shell=True)",
    "import pickle", "from pickle import load", "import pickle as p", "yaml.unsafe_load(text)",
    "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)", "pd.read_pickle(path)",
    "import cloudpickle", "YAML(typ='unsafe')", "os.system('ls')", "eval(text)", "importlib.import_module('pickle')",
    "from os import system", "from subprocess import getoutput as run", "subprocess.getoutput('ls')",
    "from yaml import unsafe_load", "load(path, **{'trust_remote_code': True})"])
def test_a_dangerous_line_would_be_found(code):
    assert dangers(ast.parse(f"def body():\n    {code}\n"))


@pytest.mark.parametrize("code", ["import mlflow", "import mlflow.pyfunc as p", "from mlflow import entities",
                                  "from mlflow.models import x", "importlib.import_module('mlflow')"])
def test_an_import_in_a_function_would_be_found(code):
    assert any(name.split(".")[0] == "mlflow" for name in imports(ast.parse(f"def body():\n    {code}\n")))


def test_every_step_imports_without_the_drivers_and_does_nothing(tmp_path, environment):
    modules = [module for module in FILES if module.startswith("steps")]
    python(f"import importlib, sys; sys.modules.update(dict.fromkeys({[*HOMES]}))\n"
           f"for module in {modules}: importlib.import_module(module)", tmp_path, environment)


def test_importing_a_flow_does_nothing(tmp_path, environment):
    """Prefect makes its own folder when it is imported; it lies where PREFECT_HOME says."""
    modules = [module for module in FILES if module.startswith("flows")]
    python(f"import importlib\nfor module in {modules}: importlib.import_module(module)", tmp_path, environment)


def test_the_light_modules_import_no_heavy_library(tmp_path, environment):
    python("import sys\nfrom steps import command, params, provenance\nimport flows.cli\n"
           "assert not {'torch', 'transformers', 'numpy', 'prefect', 'mlflow', 'dvc'} & set(sys.modules)",
           tmp_path, environment)
