"""The room that a training needs, on the disk, in memory and on GPUs, and what of it this machine has.

Memory is a rough upper bound: 16 bytes a parameter (weights, gradients, two moments of AdamW), and what the layers
keep of a batch whose texts all reach max_length (Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198, eq. 2); of
plain text, whose words are guessed, a score of each token for each word of the vocabulary too.
"""

import importlib.metadata
import itertools
import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from steps import checkpoint, recipes, vocabulary
from steps.schema import Recipe, Train

CHECKPOINTS = 3         # that lie on the disk at the worst moment: two that are kept and one that is written
SCORES = 12             # bytes for each token and word of the vocabulary: scores, their logarithms, their gradient
SAVED = 16              # bytes a parameter in a checkpoint: the weights, the best ones so far, two moments of AdamW
CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def needs(name: str, settings: Recipe, model: Path) -> tuple[str, list[str]]:
    """What a training of the base model in `model` needs, and what of it is not there."""
    count, free, cards = parameters(model), shutil.disk_usage(".").free, len(visible_cards())
    has, problems = memory(settings.train.processes), []
    here = 1 if cards else settings.train.processes     # that share this memory
    disk, batch = CHECKPOINTS * SAVED * count, here * (16 * count + activations(model, settings, recipes.get(name)))
    if cards and settings.train.processes > cards:
        problems.append(f"{name}: train.processes = {settings.train.processes}, one GPU each, and there are {cards}; "
                        f"set it to {cards}")
    if disk > free + checkpoint.size(checkpoint.PLACE / name):      # which the run continues, or removes for room
        problems.append(f"{name}: {CHECKPOINTS} checkpoints of {model} need {disk / 1e9:.1f} GB of the disk and "
                        f"{free / 1e9:.1f} are free; free some, or choose a smaller base_model")
    if batch > has:
        problems.append(f"{name}: a batch may need {batch / 1e9:.1f} GB of memory and there are {has / 1e9:.1f}; "
                        f"{remedy(settings.train)}, or lower prepare.max_length ({settings.prepare.max_length})")
    return (f"{name}: {count / 1e6:.1f} M parameters; {CHECKPOINTS} checkpoints of {disk / 1e9:.1f} GB "
            f"({free / 1e9:.1f} free), at most {batch / 1e9:.1f} GB of memory (of {has / 1e9:.1f})", problems)


def parameters(model: Path) -> int:
    """How many numbers the model's safetensors files hold, by their headers."""
    return sum(math.prod(shape) for shape in vocabulary.shapes(model).values())


def remedy(train: Train) -> str:
    """What to set for the same training with less in memory; the negatives of `nli` are the other rows of its batch."""
    if getattr(train, "loss", None) == "multiple_negatives":
        return "set train.loss: cached"
    if getattr(train, "loss", None) == "cached":
        return f"lower train.mini_batch_size ({train.mini_batch_size})"
    return f"halve train.batch_size ({train.batch_size}) and double train.gradient_accumulation"


def activations(model: Path, settings: Recipe, recipe: ModuleType) -> int:
    """Bytes that one process keeps of its part of a batch for the gradient."""
    config = vocabulary.config(model)
    hidden, layers, heads = (next((config[k] for k in keys if k in config), 0) for keys in (
        ("hidden_size", "dim"), ("num_hidden_layers", "n_layers"), ("num_attention_heads", "n_heads")))
    length = settings.prepare.max_length
    rows = settings.train.batch_size // (settings.train.processes * settings.train.nodes)
    if getattr(settings.train, "loss", None) == "cached":
        rows = min(rows, settings.train.mini_batch_size)
    texts = len(recipes.texts(recipe, settings.prepare)) + getattr(recipe, "WORDS", False)     # with and without noise
    number = 2 if settings.train.precision == "bf16" else 4
    scores = SCORES * config.get("vocab_size", 0) if recipes.unlabelled(recipe) else 0
    return rows * length * (texts * number * layers * (17 * hidden + 5 * heads * length // 2) + scores)


def memory(processes: int = 1) -> int:
    """Bytes of memory of the smallest GPU that so many processes use, else of the machine or of this container."""
    if cards := visible_cards():
        return min(cards[:processes])
    import psutil

    limits = [int(text) for path in CGROUP if path.exists() and (text := path.read_text().strip()).isdigit()]
    return min([psutil.virtual_memory().total, *limits])


def device_problems() -> Iterator[str]:
    """Why the GPU that was asked for cannot be had."""
    asked, cards = os.environ.get("CUDA_VISIBLE_DEVICES", ""), _cards()
    wrong = [number for number in asked.split(",") if number.isdigit() and int(number) >= len(cards)]
    if wrong and cards:
        yield f"CUDA_VISIBLE_DEVICES names GPU {wrong[0]}; this machine has {len(cards)}, counted from 0: correct it"
    elif wrong and not _torch_has_one():
        yield (f"CUDA_VISIBLE_DEVICES names GPU {wrong[0]}, and torch {importlib.metadata.version('torch')} finds none "
               "here: mend the driver or install torch's CUDA build, or train on the CPU with CUDA_VISIBLE_DEVICES=")


def _torch_has_one() -> bool:
    """Whether torch finds a GPU that nvidia-smi did not tell of."""
    import torch

    return torch.cuda.device_count() > 0


def visible_cards() -> list[int]:
    """Bytes of memory of each GPU that training can use; of one that is not named by its number, the smallest's."""
    cards, asked = _cards(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None or not cards:
        return cards
    names = itertools.takewhile(lambda name: name != "-1", filter(None, map(str.strip, asked.split(","))))
    return [cards[int(name)] if name.isdigit() and int(name) < len(cards) else min(cards) for name in names]


def _cards() -> list[int]:
    """Bytes of memory of each GPU, where torch can use one."""
    if shutil.which("nvidia-smi") is None or "+cpu" in importlib.metadata.version("torch"):
        return []
    done = subprocess.run(["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
                          capture_output=True, text=True, check=False)
    return [int(line) << 20 for line in done.stdout.split() if line.isdigit()] if done.returncode == 0 else []
