"""A base model's folder -> an error where its files, weights or tokenizer are not what they should be."""

import json
from pathlib import Path

from steps.provenance import digest
from steps.schema import InputError

WORDS = ("word_embeddings.weight", "embed_tokens.weight", "tok_embeddings.weight", "wte.weight")
POSITIONS = "position_embeddings.weight"    # [positions, dim]; models with relative ones have none
HEADS = ("classifier.", "score.", "logits_proj.")
BEHIND_PADDING = {"camembert", "data2vec-text", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm",
                  "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
AGAIN = "fetch it again (git-lfs keeps it elsewhere: git lfs pull)"
ENOUGH = 50             # pairs of words below which the numbers below say nothing
TRAINED = 3.0           # times the spread of norms that random vectors have
ALIKE = 0.75            # share of pairs nearer than chance; 0.998 measured with the right vocabulary, 0.52 with another


def tokenizer(base_model: Path):
    """The model's tokenizer. Raises InputError where its files are not whole, or not there."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(base_model, local_files_only=True)
    except Exception as error:      # as which the library raises what it finds wrong
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{base_model}: its tokenizer cannot be read ({type(error).__name__}: {error}); "
                         f"{AGAIN}") from None
    if len(found) <= len(found.all_special_tokens):     # made up by the library where there is no file of one
        raise InputError(f"{base_model}: its tokenizer knows no word; its tokenizer.json is missing: {AGAIN}")
    return found


def check(base_model: Path, tokenizer) -> None:
    """Raises InputError where the weights are no safetensors, or the tokenizer is not the model's: it has more tokens
    than the model, or numbers them otherwise.

    A model that was trained here says which tokenizer it was trained with. Of any other, whose word vectors are
    trained, a word and its plural have similar vectors; under another model's vocabulary they do not.
    """
    if not any(base_model.glob("*.safetensors")):
        raise InputError(f"{base_model} has no weights as safetensors; other formats can run code when they are "
                         "loaded: save the model with save_pretrained, which writes model.safetensors")
    known = base_model / "lineage.json"
    if known.exists():
        expected = json.loads(known.read_text(encoding="utf-8"))["vocabulary_sha256"]
        if expected != digest(tokenizer.get_vocab()):
            raise InputError(f"{base_model}: its tokenizer is not the one it was trained with; train it again, or put "
                             "its own tokenizer.json back")
    words = vectors(base_model)
    if words is None:
        return
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values()) >= len(words):
        raise InputError(f"{base_model}: the tokenizer numbers tokens up to {max(vocabulary.values())} and the model "
                         f"has vectors for {len(words)}; use the tokenizer that was published with the model")
    if (share := plurals_alike(vocabulary, words)) is not None and share < ALIKE:
        raise InputError(f"{base_model}: the tokenizer does not belong to the model: only {share:.0%} of its words "
                         "have a vector more like their plural's than a random word's; use the tokenizer that was "
                         "published with the model")


def check_length(key: str, length: int, base_model: Path) -> None:
    """Raises InputError where texts of so many tokens, as `key` of params.yaml says, are longer than the model takes.

    Also where its configuration or its weights are no whole files.
    """
    if (most := positions(base_model)) is not None and length > most:
        raise InputError(f"{key} = {length}: {base_model} has positions for {most} tokens of a text; set it to {most} "
                         "or less, or choose a base model for longer texts")


def positions(base_model: Path) -> int | None:
    """How many tokens of a text the model has positions for; None where it counts them without a table."""
    said, known = config(base_model), shapes(base_model)
    count = next((shape[0] for name, shape in known.items() if f".{name}".endswith(f".{POSITIONS}")), None)
    if count is None or said.get("model_type") not in BEHIND_PADDING:
        return count
    padding = said.get("pad_token_id")
    return count - (1 if padding is None else padding) - 1


def config(base_model: Path) -> dict:
    """The model's config.json. Raises InputError where it is not there or no whole JSON."""
    path = base_model / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{base_model} has no config.json, which says how the model is built; fetch the model "
                         "again, whole") from None
    except ValueError as error:
        raise InputError(f"{path} is no whole JSON file: {error}; {AGAIN}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds {type(found).__name__}, and a configuration is keys and values; {AGAIN}")
    return found


def dimensions(model: Path) -> int | None:
    """How many its vectors have, as pooling makes one of those of the words; None where other modules may change it."""
    modules = model / "modules.json"
    if modules.exists() and "Dense" in modules.read_text(encoding="utf-8"):
        return None
    said = config(model)
    return next((said[key] for key in ("hidden_size", "dim", "d_model") if key in said), None)


def own_labels(model: Path) -> list[str]:
    """The names that a classifier's config gives its classes; none where they are the library's LABEL_0, LABEL_1 ..."""
    names = config(model).get("id2label", {})
    found = [str(names[place]) for place in sorted(names, key=int)]
    return [] if found == [f"LABEL_{place}" for place in range(len(found))] else found


def other_classes(model: Path, labels: list[str]) -> str:
    """Why its answers, which are the places of labels, cannot be those of these labels; nothing where they may be."""
    if not any(name.startswith(HEADS) for name in shapes(model)):
        return "it has no head that classifies"
    names = own_labels(model)
    return f"its classes are {', '.join(names)}" if names and names != labels else ""


def shapes(base_model: Path) -> dict[str, list[int]]:
    """{name: shape} of every tensor, by the headers. Raises InputError where a file is no whole safetensors file."""
    found = {}
    for path in sorted(base_model.glob("*.safetensors")):
        try:
            found |= _shapes(path)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is no whole safetensors model: {error}; {AGAIN}") from None
    return found


def _shapes(path: Path) -> dict[str, list[int]]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise ValueError(f"it has {size} bytes, and its header would have {length}")
        header = json.loads(file.read(length))
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    whole = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if size != whole:
        raise ValueError(f"it has {size} bytes, and its header tells of {whole}")
    return {name: tensor["shape"] for name, tensor in tensors.items()}


def vectors(base_model: Path):
    """[tokens, dim] the model's word vectors; None where they have no name we know."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(base_model.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118, a safetensors file is no mapping
                    if name.endswith(WORDS):
                        return file.get_tensor(name).float().numpy()
        except SafetensorError as error:
            raise InputError(f"{path} is no whole safetensors model: {error}; {AGAIN}") from None
    return None


def plurals_alike(vocabulary: dict[str, int], words) -> float | None:
    """Share of words whose vector is nearer to their plural's than to another's; None where nothing can be said."""
    import numpy as np

    norms = np.linalg.norm(words, axis=1)
    if norms.std() / norms.mean() < TRAINED / np.sqrt(2 * words.shape[1]):
        return None     # as random as it was made
    pairs = [(number, vocabulary[token[:-1]]) for token, number in vocabulary.items()
             if token.endswith("s") and len(token) > 4 and token[1:].isalpha() and token[:-1] in vocabulary]
    if len(pairs) < ENOUGH:
        return None
    centred = words - words.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    plural, single = (centred[list(numbers)] for numbers in zip(*pairs, strict=True))
    other = np.random.default_rng(0).permutation(len(pairs))
    near, chance = (plural * single).sum(axis=1), (plural * single[other]).sum(axis=1)
    return float((near > chance).mean())
