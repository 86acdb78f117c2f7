"""Documents -> sentences, one document at a time."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from steps import schema


class Columns(schema.Columns):
    """`text` is the one column of a plain text file, whose lines are the documents."""

    text: str


class Prepare(schema.Prepare):
    """splitter is a regular expression between sentences, or none where each row is one; sentences of at least
    min_characters are kept. held_out is the share of sentences (at most 10,000 of them) kept for the loss on unseen
    text. limit counts sentences, and reading ends there."""

    columns: Columns
    splitter: str | None
    min_characters: schema.Positive
    held_out: schema.Share

    @field_validator("splitter")
    @classmethod
    def _an_expression(cls, value: str | None) -> str | None:
        try:
            if value is not None and re.compile(value).match(""):
                raise ValueError("the expression matches the empty text; give what stands between sentences")
            if value is not None and re.compile(value).groups:
                raise ValueError("the expression has a group in brackets; write (?:...)")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value


class NoisyPrepare(Prepare):
    class Noise(schema.Strict):
        """How many of the words it is that change; see steps/noise.py."""

        kind: Annotated[str, Field(pattern="^(delete|swap|insert|mask)$")]
        ratio: Annotated[float, Field(gt=0.0, lt=1.0)]

    noise: Noise


class Train(schema.EmbeddingTrain):
    """metric `loss` is that on held-out text: a mean over batches too, to be compared at one length_grouping.

    The loss is a mean over tokens: batches of one length, as length_grouping makes them, would give each word of a
    short sentence more weight, and few words to some steps. split_saving is for random ones: on a CPU a batch is
    computed in parts of similar length, where each spares at least so many tokens of padding; whole where it is null.
    The loss stays as it is. A part costs a gradient of the whole word matrix; a GPU waits for its host in batches of 8
    to 32 rows, and computes them whole.
    """

    split_saving: schema.Positive | None = None
    metric: Literal["spearman_cosine", "pearson_cosine", "loss"]


class Unlabelled(schema.Recipe):
    """A recipe that trains on plain text; its first task selects on its dev split and reports on its test split."""

    @model_validator(mode="after")
    def _has_a_task(self):
        entry = next(iter(self.tasks.values()), None)
        if entry is None or entry.task != "sts" or entry.dev is None:
            raise ValueError("tasks must begin with a task `sts` that names a dev and a test split of the suite: "
                             "plain text alone tells nothing of the model's quality")
        if entry.dev == entry.test:
            raise ValueError(f"the first of tasks has {entry.test!r} as dev and as test: a model would be selected by "
                             "the rows on which it is reported; name two splits")
        if self.prepare.subset:
            raise ValueError("prepare.subset is of labelled rows; for fewer sentences set prepare.limit")
        if self.train.metric == "loss" and not self.prepare.held_out:
            raise ValueError("train.metric is loss, which is that on held-out text, and prepare.held_out is 0: hold "
                             "some out, or select by another metric")
        return self

    def further_tasks(self) -> dict[str, Any]:
        return dict(list(self.tasks.items())[1:])


def examples(row: Mapping[str, str], prepare: Prepare) -> list[dict]:
    """The document's sentences, white space collapsed. A document without one gives none."""
    document = row[prepare.columns.text]
    parts = re.split(prepare.splitter, document) if prepare.splitter else [document]
    found = [" ".join(part.split()) for part in parts]
    return [{"text": text} for text in found if len(text) >= prepare.min_characters]
