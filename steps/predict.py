"""A registered model and texts -> the similarity of two texts, or the class of each."""

from collections.abc import Sequence

from steps import contract, embed, registry
from steps.schema import InputError


def predict(name: str, texts: Sequence[str]) -> list[str]:
    """A line for people: the cosine similarity under an encoder, or each text's class under a classifier."""
    for text in texts:
        if not text.strip():
            raise InputError(f"{text!r} is an empty text")
        if contract.SURROGATE.search(text):
            raise InputError(f"{text!r} {contract.HALF}")
    version, folder = registry.resolve(name)
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    who = f"{version.recipe}@{version.number}{aliases}"
    if (folder / "components").is_dir():
        return [f"{score:.4f}  {label}  {text!r} under {who}" for text, (label, score) in
                zip(texts, classes(folder, texts), strict=True)]
    if len(texts) != 2:
        raise InputError(f"{who} compares two texts; {len(texts)} given")
    model, *_ = embed.load(name)
    first, second = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
    return [f"{float(first @ second):.4f}  cosine similarity under {who}"]


def classes(folder, texts: Sequence[str]) -> list[tuple[str, float]]:
    """The most probable class of each text, and its probability."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "components/tokenizer", local_files_only=True)
    features = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        best = model(**features).logits.softmax(dim=-1).max(dim=-1)
    return [(model.config.id2label[int(i)], float(p)) for i, p in zip(best.indices, best.values, strict=True)]
