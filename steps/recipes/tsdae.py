"""Plain text -> an encoder whose one vector is enough to rebuild a sentence from what noise left of it.

Wang, Reimers and Gurevych 2021, TSDAE, https://arxiv.org/abs/2104.06979: 60 % of the words deleted, CLS pooling,
decoder tied to the encoder. Several published scripts keep 60 % instead. dev and test come from `tasks`.
"""

from pathlib import Path
from typing import Literal

from steps import sentences
from steps.schema import InputError
from steps.tasks import sts as task

TASK = task
METRIC = task.METRIC
UNLABELLED = True
WORDS = True


class Params(sentences.Unlabelled):
    kind: Literal["embedding"]
    prepare: sentences.NoisyPrepare
    train: sentences.Train


def collator(tokenizer, settings, seed: int):
    from steps import batching

    prepare = settings.prepare
    return batching.NoiseCollator(tokenizer, prepare.noise.kind, prepare.noise.ratio, seed, prepare.max_length)


def check(base_model: Path) -> None:
    """Raises InputError where the encoder's kind has no decoder class (DistilBERT, MPNet, ModernBERT), or one that
    looks at no encoder's vector (Qwen, Llama)."""
    import inspect

    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS

    config = transformers.AutoConfig.from_pretrained(base_model, local_files_only=True)
    name = DECODERS.get(config.model_type)
    if name is None or "encoder_hidden_states" not in inspect.signature(getattr(transformers, name).forward).parameters:
        raise InputError(f"{base_model} is a {config.model_type} encoder, for which there is no decoder to rebuild "
                         "sentences with; choose a base_model of the kind bert, roberta, xlm-roberta or electra")


def counted(batch) -> int:
    """The original's tokens but the first."""
    return batch["text_attention_mask"][:, 1:].sum()


def loss(model, train: sentences.Train, rows):
    """Cross entropy of the original's words, given the vector of what noise left of it. Inputs: noised, original.

    The decoder drops nothing out, in any number of processes: the library's trainer leaves it so.
    """
    import logging

    from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss

    from steps import training

    for noisy in ("sentence_transformers.sentence_transformer.losses.denoising_auto_encoder",
                  "transformers.modeling_utils"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    loss = DenoisingAutoEncoderLoss(model, tie_encoder_decoder=True)
    training.set_dropout(0.0, loss.decoder)
    return loss
