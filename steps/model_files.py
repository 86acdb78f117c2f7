"""A model's files in MLflow: written there, found there, one digest of them, and no pickle among them."""

import importlib.metadata
import re
from pathlib import Path

from steps import provenance, tracking
from steps.schema import InputError

MODEL = "model"                     # the artifact folder of a logged model
PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".bin"}


def log(kind: str, folder: Path, example: list[str]):
    """Writes the model in `folder` to the active run, as MLflow loads its kind. Returns what MLflow says of it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    requirements = [f"{p}=={importlib.metadata.version(p).split('+')[0]}"
                    for p in ("sentence-transformers", "transformers", "torch")]
    return {"embedding": _log_encoder, "classification": _log_classifier}[kind](folder, example, requirements)


def _log_encoder(folder: Path, example: list[str], requirements: list[str]):
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    vectors = TensorSpec(np.dtype("float32"), (-1, model.get_embedding_dimension()))
    signature = ModelSignature(Schema([ColSpec("string")]), Schema([vectors]))
    return mlflow.sentence_transformers.log_model(
        model, name=MODEL, signature=signature, input_example=example, pip_requirements=requirements)


def _log_classifier(folder: Path, example: list[str], requirements: list[str]):
    import logging

    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    logging.getLogger("mlflow.transformers").setLevel(logging.ERROR)    # it asks a hub for the card of a local folder
    parts = {"model": AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True),
             "tokenizer": AutoTokenizer.from_pretrained(folder, local_files_only=True)}
    signature = ModelSignature(Schema([ColSpec("string")]), Schema([ColSpec("string", "label"),
                                                                    ColSpec("double", "score")]))
    return mlflow.transformers.log_model(parts, name=MODEL, task="text-classification", signature=signature,
                                         input_example=example[:1], pip_requirements=requirements)


def stored(model_uri: str) -> Path:
    """The local folder of a stored model as MLflow laid it out, downloaded when the store is elsewhere."""
    import mlflow

    here = tracking.uri().startswith("sqlite:")      # a model on this disk is read where it lies
    return Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=None if here else tracking.downloads()))


def digest(stored: Path) -> str:
    """One digest of the model's own files; those beside them are MLflow's, which adds to them."""
    return provenance.digest({p.relative_to(stored).as_posix(): provenance.sha256(p)
                              for p in stored.rglob("*") if p.is_file() and p.parent != stored})


def refuse_pickle(folder: Path) -> None:
    """Raises InputError where a file is a pickle, by its name or its first bytes: loading one runs what it holds."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb") as file:
            start = file.read(64)
        zipped = start.startswith(b"PK\x03\x04") and b"data.pkl" in start      # torch.save
        if path.suffix in PICKLES or zipped or re.match(rb"\x80[\x02-\x05]", start):
            raise InputError(f"{path} is a pickle, which runs code when it is loaded; save the model as safetensors "
                             "and remove the file")
