"""The token ids that prepare writes are those of the model's own tokenizer."""

import pytest

from steps import writing
from steps.tasks import sts
from tests.conftest import findings
from tests.project import sample, write_rows
from tests.test_prepare import rows, table


@pytest.mark.parametrize("max_length", [8, 128])
def test_token_ids_are_what_the_models_own_tokenizer_gives(tmp_path, tiny_model, max_length):
    from transformers import AutoTokenizer

    write_rows(path := tmp_path / "train.csv", [*sample("train", 20), ["one", "two", "5"]])
    found = rows("sts", path)
    writer = writing.Writer(tiny_model, max_length, tmp_path, findings(tmp_path))
    writer.write("train", sts.TEXTS, found)
    tokenizer, written = AutoTokenizer.from_pretrained(tiny_model), table(tmp_path / "train.arrow")
    longer = 0
    for column in sts.TEXTS:
        assert written[column] == [e[column] for e in found]
        assert written[f"{column}_input_ids"] == [
            tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in written[column]]
        longer += sum(len(tokenizer(text)["input_ids"]) > max_length for text in written[column])
    counts = writer.found.written["train"]
    assert (counts["rows"], counts["truncated"]) == (21, longer) and (longer > 0) == (max_length == 8)
    assert written["label"] == pytest.approx([e["label"] for e in found])
