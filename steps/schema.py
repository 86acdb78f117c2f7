"""The entries of params.yaml as strict types: recipes and tasks; sources.py has where data comes from."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

PARAMS = Path("params.yaml")


class InputError(ValueError):
    """Raised when what the user gave cannot be used; says where, what and the remedy. Exit status 2."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _checked(pattern: str, rule: str):
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(rule)
        return value

    return Annotated[str, AfterValidator(check)]


def _inside(value: str) -> str:
    if Path(value).is_absolute() or ".." in Path(value).parts:
        raise ValueError("must be a path inside the project, without '..'")
    return value


Name = _checked(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "a name has letters, digits, '_', '-' and '.' only")
SplitName = _checked(r"[A-Za-z0-9][A-Za-z0-9_-]*", "a split's name has letters, digits, '_' and '-' only: what "
                     "follows a '.' in a file's name says which of several files it is")
Key = _checked(r"[A-Za-z0-9][A-Za-z0-9_-]*", "a name has letters, digits, '_' and '-' only here: DVC finds a key of "
               "params.yaml by its path, in which '.' divides")
Sha256 = _checked(r"[0-9a-f]{64}", "must be a sha256: 64 hexadecimal digits")
Commit = _checked(r"[0-9a-f]{40}", "must be a commit hash: 40 hexadecimal digits, not a branch or tag; write the "
                  "present one with: evergreen pin NAME")
InsidePath = Annotated[str, AfterValidator(_inside)]
Positive = Annotated[int, Field(ge=1)]
LARGEST_SEED = 2**32 - 1        # that numpy takes
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Part = Annotated[float, Field(ge=0.0, le=1.0)]


class Columns(Strict):
    """The data set's names of a recipe's or task's columns. `source` says where a row is from, for the slices."""

    source: str | None = None

    def wanted(self) -> list[str]:
        return [name for name in self.model_dump().values() if name is not None]

    def vectors(self) -> list[str]:
        """Those whose values are lists of numbers."""
        return [name for key, name in self.model_dump().items() if key == "vector"]


class Split(Strict):
    """Shares of the rows that dev and test get where the data set has no such split, and the seed that draws them."""

    dev: Share
    test: Share
    seed: Seed

    @model_validator(mode="after")
    def _leave_a_train_split(self):
        if self.dev + self.test >= 1:
            raise ValueError("dev and test together must leave a share to train")
        return self


class Subset(Strict):
    """A smaller run: so many rows of each split, drawn with the seed as datasets' shuffle(seed).select() draws them."""

    seed: Seed
    train: Positive
    dev: Positive


class Prepare(Strict):
    """What every recipe's `prepare` has. `header` names the columns of files that have no header."""

    header: list[str] | None = None
    max_length: Annotated[int, Field(ge=8)]         # tokens
    limit: Positive | None = None                   # the first so many rows of train
    subset: Subset | None = None


class Contract(Strict):
    """What a recipe's data must be besides what its columns say; more than is allowed stops the run before training.

    bad_rows is a share of a split's rows, unknown of its tokens, truncated of its texts, leaked of an evaluation
    split's rows: those that stand in train too. similarity is the Jaccard similarity of near-duplicates.
    """

    licences: list[str] | None                      # those allowed; any that is stated where null
    min_rows: Positive                              # of train
    max_characters: Positive                        # of a text
    bad_rows: Share
    unknown: Part
    truncated: Part
    leaked: Part
    near_duplicates: Literal["report", "drop"]
    similarity: Annotated[float, Field(ge=0.5, le=1.0)]


Pooling = Literal["mean", "cls", "max"]


class Train(Strict):
    """What every training has: patience is in evaluations, length_grouping in batches.

    batch_size is that of all processes together: each of the `processes` on each of the `nodes` computes an equal share
    of every batch, so that their number changes no loss.

    gradient_accumulation adds up the gradients of so many batches before a step. It makes no batch larger to a
    contrastive loss: an anchor still sees the negatives of its own batch alone.

    dropout is the share of the encoder's activations set to 0 in training (Srivastava et al. 2014,
    https://jmlr.org/papers/v15/srivastava14a.html); the base model's own where it is null.
    """

    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    epochs: Positive
    processes: Positive                             # on each node, one GPU each where there are any
    nodes: Positive
    batch_size: Positive
    gradient_accumulation: Positive
    learning_rate: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    scheduler: Literal["linear", "constant"]
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    warmup_ratio: Share
    max_grad_norm: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    precision: Literal["auto", "bf16", "fp32"]
    length_grouping: Positive
    eval_batch_size: Positive
    evaluations: Positive                           # on dev, in each epoch
    metric: str
    patience: Positive

    @model_validator(mode="after")
    def _every_process_has_an_equal_share(self):
        size, ranks = self.batch_size, self.processes * self.nodes
        if left := size % ranks:
            choices = " or ".join(str(n) for n in (size - left, size - left + ranks) if n)
            raise ValueError(f"batch_size {size} is that of all processes together and cannot be divided by processes "
                             f"{self.processes} x nodes {self.nodes} = {ranks}: set batch_size to {choices}, or change "
                             "processes")
        return self


class EmbeddingTrain(Train):
    """pooling is how the words' vectors become one; that of the base model, else mean, where it is null."""

    pooling: Pooling | None


class ClassificationTrain(Train):
    """class_weights `balanced` weighs each class by the inverse of its share (King and Zeng 2001).

    Weight decay spares biases and LayerNorm, as the library does it; Adam's epsilon is 1e-8.
    """

    class_weights: Literal["none", "balanced"]
    metric: Literal["matthews_correlation", "f1_macro", "f1_micro", "accuracy"]


class Evaluate(Strict):
    batch_size: Positive
    resamples: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]


class Schedule(Strict):
    """When a server starts a recipe's run: `cron` in five fields, or every `interval` seconds, in a time zone."""

    cron: str | None = None
    interval: Positive | None = None
    timezone: str                                   # such as Europe/Paris

    @field_validator("timezone")
    @classmethod
    def _is_a_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("must be a time zone such as Europe/Paris or UTC") from None
        return value

    @model_validator(mode="after")
    def _one_of_two(self):
        if (self.cron is None) == (self.interval is None):
            raise ValueError("needs one of cron and interval")
        if self.cron is not None and len(self.cron.split()) != 5:
            raise ValueError("cron has five fields: minute, hour, day of the month, month, day of the week")
        return self


class Task(Strict):
    """Another held-out set a recipe's model is scored on: `test` and `dev` name splits of the recipe's suite."""

    dev: Name | None = None
    test: Name
    header: list[str] | None = None


class Recipe(Strict):
    """What every recipe's entry has; a recipe file narrows `kind`, `prepare` and `train` to its own."""

    kind: Literal["embedding", "classification"]
    dataset: InsidePath
    base_model: InsidePath
    suite: InsidePath                               # the data set that `tasks` are taken from
    tasks: dict[Name, Any] = {}
    contract: Contract
    prepare: Any
    train: Any
    evaluate: Evaluate
    gate: Any                                       # gate.Rules: when a new model takes the champion's place
    schedule: Schedule | None = None                # when a server retrains it; only by hand where none

    @field_validator("gate")
    @classmethod
    def _gate(cls, value: Any):
        from steps import gate
        from steps.validation import validate

        return validate(gate.Rules, value, f"recipes.{cls.__module__.rpartition('.')[2]}.gate.")

    @model_validator(mode="after")
    def _guards_are_tasks(self):
        known = list(self.further_tasks())
        if unknown := [name for name in self.gate.guards if name not in known]:
            raise ValueError(f"gate.guards names {unknown[0]!r}, which is no further task of the recipe; "
                             f"those are: {', '.join(known) or 'none'}")
        return self

    @model_validator(mode="after")
    def _tasks_are_of_its_kind(self):
        for name, entry in self.tasks.items():
            if (entry.task == "classes") != (self.kind == "classification"):
                raise ValueError(f"tasks.{name}: a model of the kind {self.kind} cannot be scored on the task "
                                 f"{entry.task!r}, which takes {'labels' if entry.task == 'classes' else 'vectors'}; "
                                 "remove it, or move it to a recipe of the other kind")
            if entry.task == "classes" and entry.labels != self.prepare.labels:
                raise ValueError(f"tasks.{name}.labels is {entry.labels}, and the model's labels are "
                                 f"{self.prepare.labels}: give it the same, in the same order")
        return self

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, value: dict[str, Any]) -> dict[str, Any]:
        from steps import tasks
        from steps.validation import validate

        found = {}
        for name, entry in value.items():
            task = entry.get("task") if isinstance(entry, dict) else None
            if task not in tasks.names():
                raise ValueError(f"{name}: task must be one of {', '.join(tasks.names())}")
            found[name] = validate(tasks.get(task).Entry, entry,
                                   f"recipes.{cls.__module__.rpartition('.')[2]}.tasks.{name}.")
        return found

    def further_tasks(self) -> dict[str, Any]:
        """The tasks a model is scored on besides the recipe's own dev and test."""
        return self.tasks

    def what_makes_it(self) -> dict[str, Any]:
        """The values that change a version: all but when it is made and when it is promoted."""
        return self.model_dump(exclude={"gate", "schedule"})


class Reference(Strict):
    """Another model that is scored on a recipe's held-out data, for its table."""

    recipe: Name
    model: InsidePath
