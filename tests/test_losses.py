"""Losses by hand, and which weights the encoder and the heads it trains with have in common."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
)

from steps import batching, embedding, losses, params
from steps.recipes import mlm, tsdae
from steps.schema import InputError
from tests.project import ROOT

IGNORED = -100
MASK = 4
KINDS = {
    "distilbert": lambda size: DistilBertModel(DistilBertConfig(
        vocab_size=size, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=128)),
    "roberta": lambda size: RobertaModel(RobertaConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=130, pad_token_id=0, bos_token_id=2, eos_token_id=3)),
    "mpnet": lambda size: MPNetModel(MPNetConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=130, pad_token_id=0, bos_token_id=2, eos_token_id=3)),
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory, tiny_model) -> dict[str, Path]:
    """A tiny encoder of each kind, with the tokenizer of the tiny BERT."""
    folders = {"bert": tiny_model}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for kind, make in KINDS.items():
        folders[kind] = tmp_path_factory.mktemp("kinds") / kind
        torch.manual_seed(0)
        make(len(tokenizer)).save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


def masked(model) -> tuple[dict, torch.Tensor]:
    """Two texts of 7 and 5 tokens with three masks, and what stood there."""
    batch = batching.pad([[2, 50, MASK, 70, MASK, 90, 3], [2, MASK, 60, 80, 3]], model.tokenizer.pad_token_id)
    labels = torch.full_like(batch["input_ids"], IGNORED)
    labels[0, 2], labels[0, 4], labels[1, 1] = 61, 81, 99
    return batch, labels


# Masked words


@pytest.mark.parametrize("kind", ["bert", *KINDS])
def test_the_head_reads_words_from_the_matrix_the_encoder_writes_them_with(encoders, kind):
    model = embedding.encoder(encoders[kind], 32, "mean")
    loss = losses.MaskedLanguageModelLoss(model)
    there = model.transformers_model.get_input_embeddings().weight
    assert loss.head.get_output_embeddings().weight is there
    assert loss.head.base_model is model.transformers_model
    before = there.detach().clone()
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    batch, labels = masked(model)
    loss([batch], labels).backward()
    optimizer.step()
    assert loss.head.get_output_embeddings().weight is model.transformers_model.get_input_embeddings().weight
    assert not torch.equal(there, before)


@pytest.mark.parametrize("kind", ["bert", *KINDS])
def test_the_loss_of_masked_words_is_their_mean_cross_entropy(encoders, kind):
    model = embedding.encoder(encoders[kind], 32, "mean")
    loss = losses.MaskedLanguageModelLoss(model).eval()
    batch, labels = masked(model)
    with torch.no_grad():
        found = float(loss([batch], labels))
        likely = loss.head(**batch).logits.double().log_softmax(-1)
    by_hand = -(likely[0, 2, 61] + likely[0, 4, 81] + likely[1, 1, 99]) / 3
    assert found == pytest.approx(float(by_hand), abs=1e-4)
    assert found == pytest.approx(math.log(len(model.tokenizer)), rel=0.1)       # it knows nothing yet


def test_the_head_of_a_base_model_that_has_one_is_kept(tiny_model, tmp_path):
    """Its loss is that of the library's own model."""
    torch.manual_seed(7)
    theirs = BertForMaskedLM.from_pretrained(tiny_model)
    torch.nn.init.normal_(theirs.cls.predictions.bias)
    shutil.copytree(tiny_model, tmp_path / "model")
    theirs.save_pretrained(tmp_path / "model")
    model = embedding.encoder(tmp_path / "model", 32, "mean")
    batch, labels = masked(model)
    with torch.no_grad():
        ours = losses.MaskedLanguageModelLoss(model).eval()([batch], labels)
        assert float(ours) == pytest.approx(float(theirs.eval()(**batch, labels=labels).loss), abs=1e-5)


def test_an_encoder_that_was_trained_here_learns_masked_words_too(tiny_model, tmp_path):
    embedding.save(embedding.encoder(tiny_model, 32, "mean"), tmp_path / "model")
    model = embedding.encoder(tmp_path / "model", 32, "mean")
    loss = losses.MaskedLanguageModelLoss(model)
    assert loss.head.get_output_embeddings().weight is model.transformers_model.get_input_embeddings().weight


def test_padding_changes_no_loss(tiny_model):
    model = embedding.encoder(tiny_model, 32, "mean")
    loss = losses.MaskedLanguageModelLoss(model).eval()
    text, wanted = [2, 50, MASK, 70, 3], [IGNORED, IGNORED, 61, IGNORED, IGNORED]
    alone = batching.pad([text], 0)
    padded = {name: torch.nn.functional.pad(x, (0, 9)) for name, x in alone.items()}
    with torch.no_grad():
        first = loss([alone], torch.tensor([wanted]))
        assert float(loss([padded], torch.tensor([wanted + [IGNORED] * 9]))) == pytest.approx(float(first), abs=1e-5)


# Sentences rebuilt


def test_the_decoder_is_the_encoder_but_for_what_looks_at_the_vector(tiny_model):
    """Every weight of the encoder is the decoder's own; the decoder alone has cross-attention."""
    model = embedding.encoder(tiny_model, 32, "cls")
    loss = tsdae.loss(model, None, None)
    decoder = {name: p.data_ptr() for name, p in loss.decoder.base_model.named_parameters()}
    encoder = {name: p.data_ptr() for name, p in model.transformers_model.named_parameters()
               if not name.startswith("pooler.")}
    assert encoder == {name: place for name, place in decoder.items() if "crossattention" not in name}
    assert len(encoder) < len(decoder)


def test_a_step_on_rebuilding_moves_the_encoder(tiny_model):
    model = embedding.encoder(tiny_model, 32, "cls")
    loss = tsdae.loss(model, None, None)
    before = {name: p.detach().clone() for name, p in model.transformers_model.named_parameters()}
    batch = [batching.pad(texts, 0) for texts in ([[2, 50, 3]], [[2, 50, 60, 70, 3]])]
    loss(batch, None).backward()
    torch.optim.SGD(loss.parameters(), lr=0.1).step()
    moved = {name for name, p in model.transformers_model.named_parameters() if not torch.equal(p, before[name])}
    assert {"embeddings.word_embeddings.weight", "encoder.layer.1.attention.self.value.weight"} <= moved


# What is refused


def test_a_bert_and_a_roberta_can_be_trained_both_ways_and_the_others_on_masked_words(encoders):
    for kind in ("bert", "roberta"):
        tsdae.check(encoders[kind])
    for kind in encoders:
        mlm.check(encoders[kind])


@pytest.mark.parametrize("kind", ["distilbert", "mpnet"])
def test_an_encoder_without_a_decoder_is_refused_by_its_name(encoders, kind):
    with pytest.raises(InputError, match=rf"{kind} is a {kind} encoder, for which there is no decoder .* choose a "
                                         "base_model of the kind bert, roberta"):
        tsdae.check(encoders[kind])


def test_a_model_without_a_head_for_masked_words_is_refused_by_its_name(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "gpt")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"gpt is a gpt2 encoder without a head or a token for masked words; choose a "
                                         "base_model of the kind bert"):
        mlm.check(folder)


def test_a_tokenizer_without_a_mask_is_refused(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    folder = shutil.copytree(tiny_model, tmp_path / "maskless")
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "mask_token": None}), encoding="utf-8")
    with pytest.raises(InputError, match="maskless is a bert encoder without a head or a token for masked words"):
        mlm.check(folder)


def test_the_defaults_of_params_are_those_of_the_papers():
    recipes = params.load(ROOT / "params.yaml").recipes
    assert recipes["mlm"].train.mask_ratio == 0.15
    assert (recipes["tsdae"].prepare.noise.kind, recipes["tsdae"].prepare.noise.ratio) == ("delete", 0.6)
    assert recipes["tsdae"].train.pooling == "cls"


@pytest.mark.parametrize("labels, weights", [
    ([0, 0, 0, 1], [4 / 6, 4 / 2]),
    ([0, 1, 1, 0], [1, 1]),
    ([0, 0, 0, 2], [4 / 6, 0, 4 / 2]),
    ([1] * 9 + [0], [10 / 2, 10 / 18]),
])
def test_weights_are_inverse_to_shares_and_one_on_average_over_the_rows(labels, weights):
    found = losses.class_weights(labels, len(weights))
    assert found.tolist() == pytest.approx(weights)
    assert found[labels].mean() == pytest.approx(1)
