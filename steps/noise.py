"""(seed, epoch, row) -> the words of a sentence with noise, the same on every machine and after every resume.

Deletion: Wang, Reimers and Gurevych 2021, TSDAE, https://arxiv.org/abs/2104.06979 (60 % of the words deleted).
Every draw is a hash of (seed, epoch, row, word) with the finalizer of SplitMix64 (Steele, Lea and Flood 2014,
https://doi.org/10.1145/2714064.2660195), so rows can be drawn in any order, by any number of workers.
"""

import numpy as np

KINDS = ("delete", "swap", "insert", "mask")
MASKED = -1         # stands for a masked word among the indices that `words` returns


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, epoch: int, stream: int, rows: np.ndarray, sentence: np.ndarray,
            place: np.ndarray) -> np.ndarray:
    """[n] numbers in [0, 1), one for each `place` [n] in the row number rows[sentence]; streams are independent."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):        # the arithmetic is modulo 2^64
        key = np.zeros(1, np.uint64)
        for part in (seed, epoch, stream):
            key = _mix(key + golden + np.uint64(part))
        state = _mix(key + golden * rows.astype(np.int64).view(np.uint64))
        return (_mix(state[sentence] + golden * (place + 1).astype(np.uint64)) >> np.uint64(11)) * 2.0 ** -53


def _by_draw(sentence: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """[n] the order by sentence, and within one by its draws; one whole number each, as sorting by two keys is slow."""
    return np.argsort((sentence << 40) | (drawn * 2.0 ** 40).astype(np.int64), kind="stable")


def words(kind: str, ratio: float, seed: int, epoch: int, rows: np.ndarray,
          counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is left of sentences of `counts` [b] words, in rows number `rows` [b].

    Returns the indices [m] of the words, counted through all sentences, and how many [b] each sentence has:

    - delete: each word goes with probability `ratio`; at least one stays
    - swap: each word is drawn with probability `ratio`, and the drawn ones of a sentence change places at random
    - insert: behind each word, with probability `ratio`, a copy of a random word of the same sentence
    - mask: each word is MASKED with probability `ratio`; at least one is not
    """
    sentence = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum(counts) - counts
    place = np.arange(len(sentence)) - starts[sentence]
    drawn = uniform(seed, epoch, 0, rows, sentence, place)
    index = np.arange(len(sentence))
    hit = drawn < ratio
    if kind in ("delete", "mask"):
        if (gone := np.minimum.reduceat(hit, starts)).any():        # the word with the highest draw stays
            last = np.flatnonzero(gone[sentence])
            order = last[_by_draw(sentence[last], drawn[last])]
            hit[order[np.cumsum(counts[gone]) - 1]] = False
        if kind == "mask":
            return np.where(hit, MASKED, index), counts
        return index[~hit], counts - np.add.reduceat(hit, starts, dtype=counts.dtype)
    other = uniform(seed, epoch, 1, rows, sentence, place)
    if kind == "swap":
        index[hit] = index[hit][_by_draw(sentence[hit], other[hit])]
        return index, counts
    if kind == "insert":
        times = 1 + hit
        last = np.cumsum(times) - 1
        out = np.repeat(index, times)
        out[last[hit]] = (starts[sentence] + (other * counts[sentence]).astype(np.int64))[hit]
        return out, counts + np.add.reduceat(hit, starts, dtype=counts.dtype)
    raise ValueError(f"no such kind of noise: {kind!r}")


def tokens(ids: np.ndarray, first: np.ndarray, index: np.ndarray, mask_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Word indices -> their tokens [t] and how many [m] each word has; word w is ids[first[w]:first[w + 1]]."""
    masked = index == MASKED
    length = np.where(masked, 1, np.diff(first)[index])
    ends = np.cumsum(length)
    word = np.repeat(np.arange(len(index)), length)
    at = first[index][word] + np.arange(len(word)) - (ends - length)[word]
    return np.where(masked[word], mask_id, ids[at % len(ids)]), length


def mask_tokens(ids: np.ndarray, ratio: float, seed: int, epoch: int, rows: np.ndarray, counts: np.ndarray,
                mask_id: int, choices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masked-language-model noise over the tokens of sentences of `counts` [b] tokens.

    Devlin et al. 2019, BERT, https://arxiv.org/abs/1810.04805: of the drawn tokens (`ratio`, at least one a
    sentence) 80 % become the mask, 10 % a random one of `choices`, 10 % stay. Returns inputs and targets [t];
    a target is -100 where nothing is asked.
    """
    sentence = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum(counts) - counts
    place = np.arange(len(sentence)) - starts[sentence]
    drawn, how, which = (uniform(seed, epoch, stream, rows, sentence, place) for stream in (2, 3, 4))
    hit = drawn < ratio
    hit[_by_draw(sentence, drawn)[starts]] = True
    out = ids.copy()
    out[hit & (how < 0.8)] = mask_id
    chance = hit & (how >= 0.9)
    out[chance] = choices[(which[chance] * len(choices)).astype(np.int64)]
    return out, np.where(hit, ids, -100)
