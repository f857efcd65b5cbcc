"""Simulated readers with known preferences, noise and side bias, to see what the analysis finds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmif_trt.image import InputError
from mmif_trt.study.config import SCALES
from mmif_trt.study.plan import PAIRED, Item, reader_items
from mmif_trt.study.store import Store

ROLE = "simulated"
STEPS = (-1.5, -0.5, 0.5, 1.5)  # of the latent rating between 1 and 2, ... 4 and 5


@dataclass(frozen=True)
class Planted:
    """The simulated effects. strengths: method -> log-odds (Bradley-Terry). side_bias: log-odds for left.

    equal: latent difference under which a reader says equal. reader_sd, case_sd: how much a method's strength
    varies from reader to reader and from case to case (normal). The rest is logistic noise of scale 1.
    """

    strengths: Mapping[str, float] = field(default_factory=dict)
    side_bias: float = 0.0
    equal: float = 0.0
    reader_sd: float = 0.0
    case_sd: float = 0.0


class Readers:
    """Simulated readers of one study, who answer item by item."""

    def __init__(self, planted: Planted, methods: Sequence[str], readers: int, cases: int, seed: int) -> None:
        if unknown := planted.strengths.keys() - set(methods):
            raise InputError(f"strength of {min(unknown)}: no such method; expected {', '.join(methods)}")
        self.rng = np.random.default_rng(seed)
        self.planted = planted
        base = np.array([planted.strengths.get(name, 0.0) for name in methods])
        by_reader = self.rng.normal(0, 1, (readers, 1, len(methods))) * planted.reader_sd
        by_case = self.rng.normal(0, 1, (1, cases, len(methods))) * planted.case_sd
        self.strength = base + by_reader + by_case  # [readers, cases, methods]

    def answer(self, reader: int, item: Item, scales: Sequence[str]) -> str:
        """reader from 0. left, right or equal, or the scales' steps as JSON, as the server stores them."""
        own = self.strength[reader, item.case]
        if item.kind == PAIRED:
            assert item.right is not None
            latent = own[item.left] - own[item.right] + self.planted.side_bias + self.rng.logistic()
            return "equal" if abs(latent) < self.planted.equal else "left" if latent > 0 else "right"
        steps = own[item.left] + self.rng.logistic(0, 0.6, len(scales))
        return json.dumps(
            {s: 1 + int(np.searchsorted(STEPS, step)) for s, step in zip(scales, steps, strict=True)}
        )


def simulate(store: Store, planted: Planted, seed: int) -> int:
    """Answers the whole study through the server's own path; returns the answers. Their role is "simulated".

    Raises InputError if a reader has begun: real and simulated answers must never mix.
    """
    if store.profiles():
        raise InputError(f"{store.path}: readers have begun; expected a study that nobody has opened")
    methods, cases = store.methods(), store.cases()
    simulated = Readers(planted, methods, len(store.readers()), len(cases), seed)
    count = 0
    for reader in store.readers():
        store.begin(reader, ROLE, None)
        for item in store.items(reader):
            answer = simulated.answer(reader - 1, item, store.meta["scales"])
            nonce = store.show(reader, item.position)
            store.answer(reader, item.position, nonce, answer, visible_s=None, view="{}", revise=False)
            count += 1
    return count


def rows(
    planted: Planted,
    methods: list[str],
    *,
    readers: int,
    cases: int,
    seed: int,
    kinds: tuple[str, ...] = (PAIRED,),
) -> list[dict[str, Any]]:
    """The same without a database, in the columns of `export.rows` that the statistics use."""
    simulated = Readers(planted, methods, readers, cases, seed)
    scales = list(SCALES)[:1]
    out = []
    for reader in range(readers):
        items = reader_items(seed, reader, cases=cases, methods=len(methods), kinds=kinds, repeats=0.1)
        for item in items:
            said = simulated.answer(reader, item, scales)
            left, right = methods[item.left], None if item.right is None else methods[item.right]
            row = {
                "kind": item.kind,
                "final": 1,
                "training": int(item.position == 0),
                "repeat_of": item.repeat_of,
                "reader": reader,
                "position": item.position,
                "case": f"case {item.case}",
                "method_left": left,
                "method_right": right,
            }
            if item.kind == PAIRED:
                row |= {"answer": said, "preferred": {"left": left, "right": right}.get(said, "equal")}
            else:
                row |= json.loads(said)
            out.append(row)
    return out
