"""Who sees what in which order: a reader's items, only from the study's seed."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass, replace

PAIRED, SCALE = "paired", "scale"
REPEAT_GAP = 5  # at least so many items between a comparison and its repeat, if the study is long enough
# How often each (kind, case, method, method) was handed out, so that readers with a share get equal shares.
Used = Counter[tuple[str, int, int, int]]


@dataclass(frozen=True)
class Item:
    """The question of one page. position: 0 is the training item, which never counts. left, right: indices of
    methods; right is None for a scale. repeat_of: position of the first showing, or None."""

    position: int
    kind: str
    case: int
    left: int
    right: int | None
    repeat_of: int | None = None


def reader_items(
    seed: int,
    reader: int,
    *,
    cases: int,
    methods: int,
    kinds: tuple[str, ...],
    repeats: float,
    most: int | None = None,
    used: Used | None = None,
) -> list[Item]:
    """The items of one reader, training item first: all comparisons (and all ratings, after them), shuffled.

    The sides are drawn independently for every item: the randomisation test of the analysis rests on that.
    repeats: share of the items of a kind that are repeated, with new random sides. most: limit of items of a
    kind, starting with those least handed out so far (counted in `used`, which grows).
    """
    draw = random.Random(f"mmif-trt study {seed} reader {reader}")
    used = Counter() if used is None else used
    ordered: list[Item] = []
    for kind in kinds:
        asked = [
            Item(0, kind, case, left, right) for case in range(cases) for left, right in _of(kind, methods)
        ]
        draw.shuffle(asked)
        asked.sort(key=lambda item: used[_key(item)])  # stable sort: the shuffle decides among equals
        asked = asked[:most]
        used.update(map(_key, asked))
        draw.shuffle(asked)
        ordered += _with_repeats([_swapped(item, draw) for item in asked], repeats, draw, 1 + len(ordered))
    first = [item for item in ordered if item.kind == kinds[0]]
    training = _swapped(replace(draw.choice(first), repeat_of=None), draw)
    return [replace(training, position=0), *ordered]


def _of(kind: str, methods: int) -> list[tuple[int, int | None]]:
    if kind == PAIRED:
        return list(itertools.combinations(range(methods), 2))
    return [(method, None) for method in range(methods)]


def _key(item: Item) -> tuple[str, int, int, int]:
    return item.kind, item.case, item.left, -1 if item.right is None else item.right


def _swapped(item: Item, draw: random.Random) -> Item:
    if item.right is not None and draw.random() < 0.5:
        return replace(item, left=item.right, right=item.left)
    return item


def _with_repeats(asked: list[Item], share: float, draw: random.Random, first: int) -> list[Item]:
    """Positions from `first` on; a repeat is at a random place at least the gap after its first showing."""
    count = round(share * len(asked))
    gap = min(REPEAT_GAP, len(asked) - 1)
    # (place, 1 for a repeat, index in asked): sorted, a repeat follows the item it was drawn to follow.
    places = [(float(i), 0, i) for i in range(len(asked))]
    for index in draw.sample(range(len(asked) - gap), min(count, len(asked) - gap)):
        places.append((draw.uniform(index + gap, len(asked)), 1, index))
    at: dict[int, int] = {}
    ordered = []
    for position, (_, again, index) in enumerate(sorted(places), first):
        item = replace(asked[index], position=position)
        if again:
            item = replace(_swapped(item, draw), repeat_of=at[index])
        else:
            at[index] = position
        ordered.append(item)
    return ordered
