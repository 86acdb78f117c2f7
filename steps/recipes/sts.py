"""Sentence pairs with a graded similarity -> a siamese encoder, cosine similarity fitted by mean squared error.

Reimers and Gurevych 2019, Sentence-BERT, https://arxiv.org/abs/1908.10084 (regression objective).
The columns are those of the task `sts`.
"""

from typing import Literal

from steps import schema
from steps.tasks import sts as task

TASK = task
METRIC = task.METRIC


class Prepare(schema.Prepare, task.Rows):
    split: schema.Split


class Train(schema.EmbeddingTrain):
    metric: Literal["spearman_cosine", "pearson_cosine"]


class Params(schema.Recipe):
    kind: Literal["embedding"]
    prepare: Prepare
    train: Train


def loss(model, train: Train, rows):
    """Mean squared error between the cosine similarity of a pair and its label in [0, 1]."""
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    return CosineSimilarityLoss(model)
