"""Sentences and whether they are acceptable English -> a classifier, judged by Matthews correlation.

Warstadt, Singh and Bowman 2019, https://arxiv.org/abs/1805.12471; fine-tuning as in Devlin et al. 2019,
https://arxiv.org/abs/1810.04805. The columns are those of the task `classes`.
"""

from typing import Literal

from steps import schema
from steps.tasks import classes as task

TASK = task
METRIC = "matthews_correlation"


class Prepare(schema.Prepare, task.Rows):
    split: schema.Split


class Params(schema.Recipe):
    kind: Literal["classification"]
    prepare: Prepare
    train: schema.ClassificationTrain
