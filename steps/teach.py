"""Parallel sentences and a teacher -> the same sentences with the teacher's vectors of the English side.

python -m steps.teach NAME FOLDER
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from steps import command, contract, params, provenance, reading, vocabulary
from steps.schema import InputError
from steps.sources import Teacher


def main(arguments: Sequence[str]) -> None:
    name, folder = arguments
    provenance.check_environment()
    project = params.load()
    torch.set_num_threads(project.threads)
    teach(project.teachers[name], Path(folder))


def teach(settings: Teacher, folder: Path) -> None:
    """Writes each split of the data set as Parquet with english, non_english, vector and, where one is named, source.

    What has no English stays as it is. An English sentence that stands there often is embedded once. Rows keep their
    places, bad ones too, which are for the contract of the recipe to judge. Vectors of more dimensions than asked for
    are projected on the first principal components of train's, as the library's examples of distillation do
    (https://www.sbert.net/examples/sentence_transformer/training/distillation/README.html); to those of fewer, zeros
    are added, which change no distance. All or nothing.
    """
    from steps import embedding

    dataset, teacher = Path(settings.dataset), Path(settings.model)
    vocabulary.check_length(f"teachers.{folder.name}.max_length", settings.max_length, teacher)
    vocabulary.check(teacher, vocabulary.tokenizer(teacher))
    model = embedding.encoder(teacher, settings.max_length, settings.pooling)
    found, directions = reading.splits(dataset), None
    with command.whole(folder) as partial:
        for split in sorted(found, key=lambda split: split != "train"):
            files = found[split]
            if split in ("train", "dev", "test"):
                columns = pairs(settings, files)
                distinct = list(dict.fromkeys(columns["english"]))
                vectors, = embedding.outputs(model, [distinct], settings.batch_size)
                if settings.dimensions not in (None, vectors.shape[1]):
                    if directions is None:
                        directions = projection(vectors, settings.dimensions, split, folder.name)
                    vectors = (torch.as_tensor(vectors) @ directions).numpy()
                write(partial / f"{split}.parquet", columns, vectors, distinct)
                print(f"{split}: {len(columns['english'])} pairs, {len(distinct)} distinct English sentences embedded",
                      flush=True)
            else:
                for file in files:
                    shutil.copyfile(file, partial / file.name)
        source = json.loads((dataset / "source.json").read_text(encoding="utf-8"))
        weights = provenance.sha256(teacher / "model.safetensors")
        source["teacher"] = {"model": settings.model, "weights_sha256": weights} | (
            {} if directions is None else {"dimensions": settings.dimensions})
        (partial / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


def projection(vectors: np.ndarray, dimensions: int, split: str, name: str) -> torch.Tensor:
    """[dim, dimensions] what a teacher's vectors [n, dim] are multiplied with, as those of train say."""
    count, own = vectors.shape
    if dimensions > own:
        return torch.eye(own, dimensions)
    if split != "train" or count <= dimensions:
        raise InputError(f"teachers.{name}.dimensions = {dimensions}: principal components are those of more English "
                         f"sentences than that, and train has {count if split == 'train' else 0}; give more, or choose "
                         "a teacher of the student's dimensions")
    whole = torch.as_tensor(vectors[np.isfinite(vectors).all(axis=1)], dtype=torch.float64)
    values, directions = torch.linalg.eigh(torch.cov(whole.T))      # by rising variance
    print(f"{own} dimensions of the teacher become {dimensions}, with "
          f"{values[-dimensions:].sum() / values.sum():.1%} of the variance of train", flush=True)
    return directions.flip(1)[:, :dimensions].float()


def pairs(settings: Teacher, files: list[Path]) -> dict[str, list[str]]:
    """The columns of a split: of files with both sides, or of two text files whose lines belong together."""
    names = {key: name for key in ("english", "non_english", "source") if (name := getattr(settings.columns, key))}
    if [file.name.removesuffix(".gz").rpartition(".")[2] for file in files] == ["txt", "txt"]:
        sides = [[row["text"] for _, row in reading.rows(file, ["text"])] for file in files]
        if len(sides[0]) != len(sides[1]):
            raise InputError(f"{files[0]} has {len(sides[0])} lines and {files[1]} {len(sides[1])}; parallel files "
                             "have one line for each sentence, in the same order")
        if "source" in names:
            raise InputError(f"{files[0]} is plain text and has no column {names['source']!r}; remove the teacher's "
                             "columns.source, or give the rows as CSV")
        rows = [(f"{' and '.join(map(str, files))}, line {n}", *both)
                for n, both in enumerate(zip(*sides, strict=True), start=1)]
    else:
        rows = [(f"{file}:{line}", *(row[name] for name in names.values()))
                for file in files for line, row in reading.rows(file, [*names.values()])]
    for place, *texts in rows:
        for key, text in zip(names, texts, strict=True):
            if contract.SURROGATE.search(text):
                raise InputError(f"{place}: {key} {contract.HALF}")
    if not rows:
        raise InputError(f"{files[0]} has no rows")
    return {key: [row[place] for row in rows] for place, key in enumerate(names, start=1)}


def write(path: Path, columns: dict[str, list[str]], vectors, distinct: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    places = {text: place for place, text in enumerate(distinct)}
    rows = vectors[[places[text] for text in columns["english"]]]
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel(), pa.float32()), rows.shape[1])
    pq.write_table(pa.table({**columns, "vector": column}), path)


if __name__ == "__main__":
    command.main(main)
