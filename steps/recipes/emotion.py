"""Short messages and the emotion they tell of -> a classifier, judged by macro F1.

Saravia et al. 2018, CARER, https://aclanthology.org/D18-1404; fine-tuning as in Devlin et al. 2019,
https://arxiv.org/abs/1810.04805. The columns are those of the task `classes`.
"""

from typing import Literal

from steps import schema
from steps.tasks import classes as task

TASK = task
METRIC = "f1_macro"


class Prepare(schema.Prepare, task.Rows):
    split: schema.Split


class Params(schema.Recipe):
    kind: Literal["classification"]
    prepare: Prepare
    train: schema.ClassificationTrain
