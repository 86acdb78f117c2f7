"""Token features of a batch -> the losses that the library does not have."""

from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

from steps import ranks


class SharedNegatives(MultipleNegativesRankingLoss):
    """The library's loss, in which every text of the whole batch is a negative, on whichever rank it is.

    Its own way to gather, gather_across_devices, needs as many rows on each rank; the last batch of an epoch has not.
    `rows` are those of the whole batch.
    """

    rows = 0

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        if ranks.world() > 1 and torch.is_grad_enabled():      # on dev every rank has the whole batch
            embeddings = [ranks.gathered(column, self.rows) for column in embeddings]
        return super().compute_loss_from_embeddings(embeddings, labels)


class CachedSharedNegatives(CachedMultipleNegativesRankingLoss):
    """The same over mini batches."""

    rows = 0

    def calculate_loss(self, reps: list[list[Tensor]], labels: Tensor | None = None, **how) -> Tensor:
        if ranks.world() > 1 and torch.is_grad_enabled():
            reps = [[ranks.gathered(torch.cat(column), self.rows)] for column in reps]
        return super().calculate_loss(reps, labels, **how)


class MaskedLanguageModelLoss(nn.Module):
    """Cross entropy of the masked tokens.

    Devlin et al. 2019, https://arxiv.org/abs/1810.04805. The head is the base model's where it has one, else new;
    its word matrix is the encoder's own.

    | inputs                      | labels                                                          |
    |-----------------------------|-----------------------------------------------------------------|
    | token ids [b, l], masked    | ids [b, l or more] asked for, -100 elsewhere and beyond the text |
    """

    def __init__(self, model: SentenceTransformer):
        super().__init__()
        self.encoder = model
        words = model.transformers_model
        self.head = AutoModelForMaskedLM.from_pretrained(words.config._name_or_path, local_files_only=True)
        setattr(self.head, self.head.base_model_prefix, words)
        self.head.tie_weights()

    def forward(self, features: Sequence[dict[str, Tensor]], labels: Tensor) -> Tensor:
        text, = features
        ids = text["input_ids"]
        labels = labels[:, :ids.shape[1]].contiguous()
        return self.head(input_ids=ids, attention_mask=text["attention_mask"], labels=labels).loss

    def get_config_dict(self) -> dict:
        return {}


def class_weights(labels: Sequence[int], classes: int) -> torch.Tensor:
    """[classes] weights inverse to each class's share, 1 on average over the rows; 0 where a class has none."""
    counts = torch.bincount(torch.as_tensor(labels), minlength=classes).float()
    present = (counts > 0).sum()
    return torch.where(counts > 0, counts.sum() / (present * counts.clamp(min=1)), torch.zeros(()))
