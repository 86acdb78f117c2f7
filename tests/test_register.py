"""One version for one result, with its tags, card, curves and safe files; a store that many may open at once."""

import contextlib
import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flows import report
from steps import embedding, model_files, params, register, registry, tracking
from steps.schema import InputError
from tests.project import Project

OPENERS = 8
WEIGHTS = "model.sentence_transformer/model.safetensors"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def store(finished, inside):
    """A client of the finished project's store."""
    inside(finished)
    return tracking.client()


@pytest.fixture
def version(store):
    return store.get_model_version_by_alias("sts", "challenger")


@pytest.fixture
def unregistered(finished, tmp_path, environment) -> Project:
    """A copy of the finished project without its store."""
    shutil.copytree(finished.folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".evergreen"))
    return Project(tmp_path / "copy", environment)


@pytest.mark.fault(20)
def test_registering_twice_makes_one_version(finished, store):
    assert "sts@1 (challenger), registered before" in finished.evergreen("register", "sts").stdout
    assert [v.version for v in store.search_model_versions("name = 'sts'")] == [1]
    assert len(store.search_runs(["1"])) == 1


def test_another_evaluation_is_another_version_and_the_old_one_is_found_again(unregistered, inside):
    inside(unregistered)
    metrics = unregistered / "evaluation/sts/test/metrics.json"
    first, content = register.register("sts"), metrics.read_text(encoding="utf-8")
    metrics.write_text(content + " ", encoding="utf-8")
    second = register.register("sts")
    metrics.write_text(content, encoding="utf-8")
    again = register.register("sts")
    assert [(v.number, v.created, v.aliases) for v in (first, second, again)] == [
        (1, True, ["challenger"]), (2, True, ["challenger"]), (1, False, ["challenger"])]
    assert first.run_id == second.run_id


def test_the_tags_say_what_made_the_version(finished, version):
    def of(path: str) -> str:
        return sha256((finished / path).read_bytes())
    evaluation = {name: of(f"evaluation/sts/test/{name}") for name in ("metrics.json", "predictions.csv", "tasks.csv")}
    locks = [of("requirements.torch.txt"), of("requirements.train.lock")]
    source = json.loads((finished / "data/raw/appliances/source.json").read_text(encoding="utf-8"))
    metrics = json.loads((finished / "evaluation/sts/test/metrics.json").read_text(encoding="utf-8"))
    expected = {
        "git_commit": finished.git("rev-parse", "HEAD").stdout.strip(),
        "dvc_lock_sha256": of("dvc.lock"),
        "weights_sha256": of("models/sts/model.safetensors"),
        "environment_sha256": sha256(json.dumps(locks).encode()),
        "test_sha256": of("data/prepared/sts/test.arrow"),
        "base_model_sha256": of("models/base/tiny/model.safetensors"),
        "evaluation_sha256": sha256(json.dumps(evaluation).encode()),
        "dataset_sha256": sha256(json.dumps(source["sha256"], sort_keys=True).encode()),
        "dataset_revision": "local",
        "test_spearman_cosine": str(metrics["model"]["spearman_cosine"]),
    }
    assert {name: version.tags.get(name) for name in expected} == expected
    assert len(version.tags["params_sha256"]) == 64


def test_the_model_has_a_signature_and_an_example(finished, version, inside):
    import mlflow

    inside(finished)
    tracking.client()
    info = mlflow.models.get_model_info(f"models:/sts/{version.version}")
    assert [str(column.type) for column in info.signature.inputs] == ["DataType.string"]
    assert info.signature.outputs.inputs[0].shape == (-1, 32)
    assert info.saved_input_example_info


def test_the_parameters_digest_changes_with_a_parameter(unregistered, inside, version):
    inside(unregistered)
    unregistered.edit("recipes.sts.train.patience", 7)
    register.register("sts")
    other = tracking.client().get_model_version("sts", "1")
    assert other.tags["params_sha256"] != version.tags["params_sha256"]
    assert other.tags["weights_sha256"] == version.tags["weights_sha256"]


def test_the_description_is_the_model_card(finished, store, version):
    deciding = json.loads((finished / "evaluation/sts/test/metrics.json").read_text())["spearman_cosine"]
    row = f"| new model | {deciding['model']:.4f} | {deciding['model_low']:.4f} to {deciding['model_high']:.4f} |"
    assert version.description.startswith("# sts\n")
    assert row in version.description
    assert version.tags["weights_sha256"] in version.description
    assert '("models:/sts@champion")`; version N, in charge or not, is `models:/sts/N`.' in version.description
    assert "@challenger" not in version.description     # the newest, which nobody has judged
    stored = Path(store.download_artifacts(version.run_id, "model_card.md")).read_text(encoding="utf-8")
    assert stored == version.description


def test_the_intervals_are_labelled_with_the_confidence_that_was_asked(unregistered, inside):
    inside(unregistered)
    unregistered.edit("recipes.sts.evaluate.confidence", 0.975)
    made = register.register("sts")
    assert "97.5 % interval" in tracking.client().get_model_version("sts", "1").description
    assert "97.5 % interval" in report.table("sts", made)


def test_the_run_has_parameters_data_set_and_code(finished, store, version):
    run = store.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert {key: run.data.params[key] for key in ("seed", "threads", "train.epochs", "train.learning_rate")} == {
        "seed": "42", "threads": "1", "train.epochs": "1", "train.learning_rate": "0.001"}
    used, = run.inputs.dataset_inputs
    assert used.dataset.name == "appliances"
    assert {"train_rows": "48", "dataset_sha256": version.tags["dataset_sha256"]}.items() <= {
        tag.key: tag.value for tag in used.tags}.items()
    assert run.data.tags["git_commit"] == version.tags["git_commit"]
    outputs = {out["path"]: out["md5"] for out in params.read(finished / "dvc.lock")["stages"]["train@sts"]["outs"]}
    assert len(outputs) == 3
    assert {path: run.data.tags.get(f"dvc.{path}") for path in outputs} == outputs


def test_the_run_has_the_curves_by_step(store, version):
    """48 pairs in batches of 16: three steps, and dev before and after them."""
    steps = {key: [m.step for m in store.get_metric_history(version.run_id, key)]
             for key in ("train_loss", "dev_loss", "dev_spearman_cosine")}
    assert steps == {"train_loss": [1, 2, 3], "dev_loss": [0, 3], "dev_spearman_cosine": [0, 3]}


def test_the_run_has_the_pictures(store, version):
    pictures = store.list_artifacts(version.run_id, "plots")
    assert [p.path for p in pictures] == ["plots/dev_score.png", "plots/loss.png", "plots/predicted.png"]
    for picture in pictures:
        assert Path(store.download_artifacts(version.run_id, picture.path)).read_bytes().startswith(b"\x89PNG")


def test_the_stored_model_is_safetensors_and_no_pickle(version):
    folder = model_files.stored("models:/sts/1")
    stored = [p for p in folder.rglob("*") if p.is_file()]
    assert sha256((folder / WEIGHTS).read_bytes()) == version.tags["weights_sha256"]
    assert {p.suffix for p in stored} <= {".safetensors", ".json", ".txt", ".yaml", ".md", ""}
    for path in (p for p in stored if p.suffix != ".safetensors"):
        path.read_text(encoding="utf-8")


def test_mlflow_loads_the_challenger_and_it_encodes_as_the_trained_model(finished, store):
    import mlflow

    loaded = mlflow.sentence_transformers.load_model("models:/sts@challenger")
    trained = embedding.encoder(finished / "models/sts", 128, "mean")
    texts = ["Water drips from the indoor unit.", "It is loud."]
    assert np.allclose(loaded.encode(texts), trained.encode(texts), atol=1e-6)


@contextlib.contextmanager
def changed(path: Path, content: bytes | None):
    """The file with another content, or without it; as it was afterwards."""
    before = path.read_bytes()
    try:
        path.unlink() if content is None else path.write_bytes(content)
        yield
    finally:
        path.write_bytes(before)


@pytest.mark.fault(25)
def test_a_flipped_byte_in_the_stored_weights_is_refused(store):
    _, folder = registry.resolve("sts")
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    with changed(folder / WEIGHTS, bytes(content)), \
            pytest.raises(InputError, match=r"^sts@1: the files in .* are not those that were registered; restore"):
        registry.resolve("sts")
    assert registry.resolve("sts")[0].number == 1


def test_stored_weights_that_are_gone_are_an_error_that_says_so(store):
    _, folder = registry.resolve("sts")
    with changed(folder / WEIGHTS, None), \
            pytest.raises(InputError, match=r"^sts@1: the files in .* are not those that were registered; restore"):
        registry.resolve("sts")


def test_registering_what_was_never_made_names_the_stages_to_run(project):
    done = project.evergreen("register", "sts", check=False)
    assert done.returncode == 2
    assert "train@sts, evaluate@sts would have to run again" in done.stderr
    assert done.stderr.endswith("first: dvc repro evaluate@sts\n")


@pytest.mark.fault(21)
def test_processes_that_open_a_fresh_store_at_once_make_its_schema_once(project):
    shutil.rmtree(project / ".evergreen")
    code = ("import sys\n"
            "from mlflow.store.db import utils\n"
            "from steps import tracking\n"
            "make = utils._initialize_tables\n"
            "utils._initialize_tables = lambda engine: (print('made', flush=True), make(engine))\n"
            "print('ready', flush=True)\n"
            "sys.stdin.readline()\n"
            "tracking.experiment(tracking.client(), 'sts')\n"
            "print('opened')\n")
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=project.folder, env=project.environment, text=True,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for _ in range(OPENERS)]
    assert [process.stdout.readline() for process in started] == ["ready\n"] * OPENERS
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * OPENERS, said
    assert sorted(out for out, _ in said) == ["made\nopened\n"] + ["opened\n"] * (OPENERS - 1)
    with contextlib.closing(sqlite3.connect(project / ".evergreen/mlflow.db")) as database:
        assert database.execute("select count(*) from alembic_version").fetchone() == (1,)
        assert sorted(database.execute("select name from experiments")) == [("Default",), ("sts",)]


def test_a_run_killed_in_training_is_closed_by_the_next_training(unregistered, inside):
    database, deadline = unregistered / ".evergreen/mlflow.db", time.monotonic() + 120
    train = [sys.executable, "-m", "steps.train", "sts", "data/prepared/sts", "models/sts", "evaluation/training"]
    for key in ("epochs", "patience"):
        unregistered.edit(f"recipes.sts.train.{key}", 100_000)
    training = subprocess.Popen(train, cwd=unregistered.folder, env=unregistered.environment,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def logged() -> set[str]:
        with contextlib.suppress(sqlite3.OperationalError), \
                contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
            return {key for key, in reader.execute("select distinct key from metrics")}
        return set()
    try:
        while not {"train_loss", "system/cpu_utilization_percentage"} <= logged():
            assert training.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        training.kill()
        training.wait()

    def statuses() -> list[str]:
        return [run.info.status for run in store.search_runs(["1"], order_by=["attributes.start_time"])]
    inside(unregistered)
    store = tracking.client()
    assert statuses() == ["RUNNING"]
    for key in ("epochs", "patience"):
        unregistered.edit(f"recipes.sts.train.{key}", 1)
    unregistered.run(*train)
    assert statuses() == ["KILLED", "FINISHED"]


def test_a_store_that_does_not_answer_is_named_without_its_password(project, inside, monkeypatch):
    inside(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:open-sesame@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError) as caught:
        tracking.client()
    assert str(caught.value).startswith("the MLflow store http://127.0.0.1:9 cannot be used: ")
    assert "open-sesame" not in str(caught.value)
