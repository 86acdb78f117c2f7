"""A base model of the published shape, 12 layers of 768 dimensions, with random weights: for speed and memory alone.

python -m benchmarks.random_base MODEL FOLDER       with MODEL's tokenizer; name FOLDER in base_models.local
"""

import sys

from steps import command


def main(model: str, folder: str) -> None:
    command.quiet()
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
