"""Training examples and those of evaluation -> training without what it shares with them, and a list of that.

Texts are compared after Unicode's NFKC, in lower case and with white space collapsed; of pairs, both orders. Near-
duplicates share most of their pieces of SHINGLE bytes: Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900,
found by MinHash (https://ekzhu.com/datasketch) and then measured exactly.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from steps.contract import Findings, shown
from steps.schema import Contract

SHINGLE = 5             # bytes of UTF-8
PERMUTATIONS = 64      # of MinHash
MARGIN = 0.1            # by which MinHash looks further than asked, since it only estimates
EXAMPLES = 5            # shown of each kind

Key = tuple[str, ...]


def normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def keys(texts: Sequence[str]) -> list[Key]:
    """What stands for an example: its text, its pair in either order, the anchor of a triplet with each of the two."""
    first, *others = map(normal, texts)
    return [tuple(sorted((first, other))) for other in others] or [(first,)]


def shingles(key: Key) -> set[bytes]:
    """Every piece of SHINGLE bytes of each text, or the whole of a shorter one."""
    return {raw[i:i + SHINGLE] for raw in map(str.encode, key) for i in range(max(1, len(raw) - SHINGLE + 1))}


class Evaluation:
    """The examples of every evaluation split, against which those of train are held.

    Mined negatives and any other text that joins train later go through `without` like its own rows.
    """

    def __init__(self, contract: Contract, found: Findings):
        from datasketch import MinHash, MinHashLSH

        self.contract, self.found = contract, found
        self.exact: dict[Key, dict[str, tuple[str, ...]]] = {}      # the texts as they stand in each split
        self.rows: dict[str, Counter[tuple[Key, ...]]] = {}         # the keys of each row, or of each text of one
        self.letters: set[tuple[str, tuple[str, ...]]] = set()      # split and texts as they stand there
        self.near = MinHashLSH(contract.similarity - MARGIN, PERMUTATIONS)
        self.known: set[bytes] = set()
        self.blank = MinHash(PERMUTATIONS, seed=1)

    def add(self, split: str, rows: Iterable[Mapping], texts: Sequence[str], single: bool) -> None:
        """Takes in a split; `single` where train's examples are one text, so that each text counts for itself."""
        self.rows[split] = Counter()
        for row in rows:
            whole = tuple(row[t] for t in texts)
            self.letters |= {(split, (text,)) for text in whole} if single else {(split, whole)}
            own = tuple(dict.fromkeys(k for part in whole for k in keys([part])) if single else keys(whole))
            self.rows[split].update([(key,) for key in own] if single else [own])
            for key in own:
                new = key not in self.exact
                self.exact.setdefault(key, {}).setdefault(split, whole)
                if new:
                    self.known |= (pieces := shingles(key))
                    self.near.insert(key, self._minhash(pieces))

    def without(self, rows: Iterable[dict], texts: Sequence[str]) -> Iterator[dict]:
        """The rows that evaluation does not hold; the others are dropped and listed in overlaps.csv."""
        tally = {split: {"rows": 0, "distinct": set(), "letter": set(), "near": 0, "examples": [], "near_examples": []}
                 for split in self.rows}
        for row in rows:
            whole = tuple(row[t] for t in texts)
            own = dict.fromkeys([*keys(whole), *(key for text in whole for key in keys([text]))])
            hit = {split: [key for key in own if split in self.exact.get(key, ())] for split in self.rows}
            if any(hit.values()):
                for split, shared in hit.items():
                    if shared:
                        self._exact(tally[split], split, shared, whole)
                continue
            close = self._closest(keys(whole))
            if close:
                similarity, key = close
                for split, theirs in self.exact[key].items():
                    self.found.overlap(split, "near", similarity, _text(whole), _text(theirs))
                    tally[split]["near"] += 1
                    if len(tally[split]["near_examples"]) < EXAMPLES:
                        tally[split]["near_examples"].append([_text(whole), _text(theirs), round(similarity, 3)])
                if self.contract.near_duplicates == "drop":
                    continue
            yield row
        self._settle(tally)

    def _exact(self, tally: dict, split: str, shared: list[Key], whole: tuple[str, ...]) -> None:
        theirs = self.exact[shared[0]][split]
        self.found.overlap(split, "exact", 1.0, _text(whole), _text(theirs))
        tally["rows"] += 1
        tally["distinct"].update(shared)
        if (split, whole) in self.letters:
            tally["letter"].add(whole)
        if len(tally["examples"]) < EXAMPLES:
            tally["examples"].append(_text(whole))

    def _closest(self, own: Iterable[Key]) -> tuple[float, Key] | None:
        """The example of evaluation most alike, and how much, where it is at least as alike as asked."""
        asked, best = self.contract.similarity, []
        for key in own:
            pieces = shingles(key)
            if len(pieces & self.known) < asked * len(pieces):      # then no set of pieces can be so alike
                continue
            for other in self.near.query(self._minhash(pieces)):
                theirs = shingles(other)
                if (similarity := len(pieces & theirs) / len(pieces | theirs)) >= asked:
                    best.append((similarity, other))
        return max(best, default=None)

    def _minhash(self, pieces: set[bytes]):
        found = self.blank.copy()
        found.update_batch(pieces)
        return found

    def _settle(self, tally: dict[str, dict]) -> None:
        for split, counts in tally.items():
            leaked = sum(n for own, n in self.rows[split].items() if not counts["distinct"].isdisjoint(own))
            share = leaked / max(1, sum(self.rows[split].values()))
            self.found.overlaps[f"train/{split}"] = {
                "dropped": counts["rows"], "distinct": len(counts["distinct"]), "letter": len(counts["letter"]),
                "leaked": round(share, 6), "examples": counts["examples"], "near": counts["near"],
                "near_dropped": self.contract.near_duplicates == "drop", "near_examples": counts["near_examples"]}
            if share > self.contract.leaked:
                self.found.stops.append(
                    f"{share:.1%} of {split} stands in train too, such as {shown(counts['examples'][0])!r}; more than "
                    f"the allowed {self.contract.leaked:.1%} (contract.leaked): the splits were not made apart; make "
                    "them anew, or allow more, and those rows of train are dropped")
        for one, other in combinations(self.rows, 2):
            if shared := [key for key, where in self.exact.items() if one in where and other in where]:
                self.found.overlaps.setdefault(f"{one}/{other}", {
                    "distinct": len(shared), "examples": [_text(self.exact[k][one]) for k in shared[:EXAMPLES]]})


def apart(dev: Sequence[dict], test: Iterable[Mapping], texts: Sequence[str], contract: Contract,
          found: Findings) -> list[dict]:
    """The rows of dev that test does not hold: no model is selected by rows on which it is reported."""
    known = {key for row in test for key in keys([row[t] for t in texts])}
    kept, shared = [], []
    for row in dev:
        (kept if known.isdisjoint(keys([row[t] for t in texts])) else shared).append(row)
    if shared:
        examples = [_text([row[t] for t in texts]) for row in shared[:EXAMPLES]]
        found.overlaps["dev/test"] = {"dropped": len(shared), "distinct": len(shared), "examples": examples}
        if len(shared) > contract.leaked * len(dev):
            found.stops.append(
                f"{len(shared) / len(dev):.1%} of dev stands in test too, such as {shown(examples[0])!r}; more than "
                f"the allowed {contract.leaked:.1%} (contract.leaked): a model would be selected by the rows on which "
                "it is reported; make the splits anew, or allow more, and those rows of dev are dropped")
    return kept


def repeats(rows: Sequence[Mapping], texts: Sequence[str]) -> dict:
    """How many examples stand in a split more than once, also letter for letter, and how many with two labels."""
    labels: dict[Key, set] = {}
    normals: Counter[Key] = Counter()
    letters: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        whole = tuple(row[t] for t in texts)
        key = tuple(sorted(map(normal, whole))) if len(whole) == 2 else tuple(map(normal, whole))
        normals[key] += 1
        letters[whole] += 1
        if isinstance(row.get("label"), int | float):
            labels.setdefault(key, set()).add(row["label"])
    conflicts = [key for key, found in labels.items() if len(found) > 1]
    return {"repeated": sum(n > 1 for n in normals.values()), "letter": sum(n > 1 for n in letters.values()),
            "conflicting": len(conflicts), "examples": [_text(key) for key in conflicts[:EXAMPLES]]}


def _text(texts: Sequence[str]) -> str:
    return " | ".join(texts)
