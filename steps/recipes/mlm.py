"""Plain text -> an encoder adapted to its words by guessing masked ones; the first link of a chain.

Gururangan et al. 2020, Don't Stop Pretraining, https://arxiv.org/abs/2004.10964; 15 % masking as in Devlin et al.
2019, https://arxiv.org/abs/1810.04805. dev and test come from `tasks`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from steps import sentences
from steps.schema import InputError
from steps.tasks import sts as task

TASK = task
METRIC = task.METRIC
UNLABELLED = True


class Train(sentences.Train):
    """mask_ratio of the tokens are asked for."""

    mask_ratio: Annotated[float, Field(gt=0.0, lt=1.0)]


class Params(sentences.Unlabelled):
    kind: Literal["embedding"]
    prepare: sentences.Prepare
    train: Train


def collator(tokenizer, settings, seed: int):
    from steps import batching

    return batching.MaskCollator(tokenizer, settings.train.mask_ratio, seed, settings.prepare.max_length)


def check(base_model: Path) -> None:
    """Raises InputError where the encoder's kind has no head for masked words, or its tokenizer no mask."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as HEADS

    from steps import vocabulary

    config = AutoConfig.from_pretrained(base_model, local_files_only=True)
    if config.model_type not in HEADS or vocabulary.tokenizer(base_model).mask_token_id is None:
        raise InputError(f"{base_model} is a {config.model_type} encoder without a head or a token for masked words; "
                         "choose a base_model of the kind bert, roberta, mpnet or distilbert")


def counted(batch) -> int:
    """The masked tokens."""
    return (batch["label"] != -100).sum()


def loss(model, train: Train, rows):
    from steps import losses

    return losses.MaskedLanguageModelLoss(model)
