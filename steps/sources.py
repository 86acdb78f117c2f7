"""The entries of params.yaml that say where data sets and base models come from, as strict types."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from steps.schema import (
    Columns,
    Commit,
    InputError,
    InsidePath,
    Key,
    Name,
    Pooling,
    Positive,
    Sha256,
    SplitName,
    Strict,
)

# What of a url's query only its user may know.
SECRET = re.compile(r"(?:^|&)([^=&]*(?:token|secret|signature|password|credential|auth|key|sig))=", re.IGNORECASE)


class Source(Strict):
    """A pinned source elsewhere. `sha256` maps the files to keep to their hashes (empty: trust the revision).

    `follow` names the branch of which a newer commit is news; `evergreen pin` writes it as `revision`.
    """

    hub: str | None = None
    revision: Commit | None = None
    follow: Annotated[str, Field(min_length=1)] | None = None
    package: Name | None = None
    url: str | None = None
    files: list[InsidePath] = Field(default_factory=list)
    sha256: dict[InsidePath, Sha256] = Field(default_factory=dict)
    licence: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _keeps_no_secret(self):
        """An InputError: unlike another's, its line does not repeat the value."""
        parts = urlsplit(self.url or "")
        user, _, place = parts.netloc.rpartition("@")
        if user or (named := SECRET.search(parts.query)):
            raise InputError(f"a url at {place} has {'a user or password' if user else f'{named[1]!r} in its query'}, "
                             "which source.json and the versions' tags would show: take it out, or fetch the files "
                             "yourself and name their folder under local")
        return self

    @model_validator(mode="after")
    def _complete(self):
        if not (self.hub or self.package or self.url):
            raise ValueError("one of hub, package or url must say where it comes from")
        if self.hub and not self.revision:
            raise ValueError("hub needs a revision: the commit hash to use; write the present one with: "
                             "evergreen pin NAME")
        if self.follow and not self.hub:
            raise ValueError("follow names a branch of a hub repository; a package or url has none")
        wanted = self.wanted()
        if not wanted:
            raise ValueError("files or sha256 must name the files to keep")
        if (self.package or self.url) and (missing := [f for f in wanted if f not in self.sha256]):
            raise ValueError(f"sha256 must give the hash of {missing[0]}: package and url are verified by it")
        return self

    def wanted(self) -> list[str]:
        return sorted(self.files or self.sha256)


class LocalModel(Strict):
    path: str
    licence: Annotated[str, Field(min_length=1)]


# One file or several, which are read one after the other.
Files = Annotated[list[InsidePath], BeforeValidator(lambda v: [v] if isinstance(v, str) else v), Field(min_length=1)]


class Splits(Strict):
    """Which file is which split: train, dev and test have their meaning, others are for `tasks`."""

    splits: dict[SplitName, Files]

    def split_files(self) -> list[str]:
        return [file for files in self.splits.values() for file in files]


class RemoteDataset(Splits, Source):
    """What its splits name is fetched; `files` and `sha256` may stay away where the source is the hub."""

    def wanted(self) -> list[str]:
        return sorted(self.files or self.sha256 or self.split_files())

    @model_validator(mode="after")
    def _splits_are_kept(self):
        if missing := [f for f in self.split_files() if f not in self.wanted()]:
            raise ValueError(f"splits names {missing[0]!r}, which is not among files or sha256")
        return self


class LocalDataset(LocalModel, Splits):
    """`sha256` of a file, where given, says that it is whole and unchanged."""

    sha256: dict[InsidePath, Sha256] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _hashes_are_of_its_files(self):
        if other := [f for f in self.sha256 if f not in self.split_files()]:
            raise ValueError(f"sha256 names {other[0]!r}, which is not among splits")
        return self


class Sources(Strict):
    @model_validator(mode="after")
    def _named_once(self):
        if both := sorted(set(self.local) & set(self.remote)):
            raise ValueError(f"{both[0]!r} stands under local and under remote; keep one")
        return self


class Datasets(Sources):
    local: dict[Key, LocalDataset] = Field(default_factory=dict)
    remote: dict[Key, RemoteDataset] = Field(default_factory=dict)


class BaseModels(Sources):
    local: dict[Key, LocalModel] = Field(default_factory=dict)
    remote: dict[Key, Source] = Field(default_factory=dict)


class Published(Strict):
    """Sources that are fetched only when a recipe names them."""

    datasets: dict[Key, RemoteDataset] = Field(default_factory=dict)
    base_models: dict[Key, Source] = Field(default_factory=dict)


class ParallelColumns(Columns):
    english: str
    non_english: str


class Teacher(Strict):
    """A parallel data set whose English side a teacher embeds; the result is the data set data/taught/NAME.

    dimensions are those of the student, where the teacher has others.
    """

    dataset: InsidePath
    model: InsidePath
    columns: ParallelColumns
    max_length: Annotated[int, Field(ge=8)]         # tokens
    pooling: Pooling                                # for a teacher that brings none of its own
    batch_size: Positive
    dimensions: Positive | None = None
