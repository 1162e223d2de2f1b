"""How Python users say what rows are composed of, and where the response of each begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from brainstacks.errors import InvalidRequest

Whole = Literal["ungated", "routed"]
Row = Mapping[str, float] | Whole
"""Domain -> weight; all at 1.0; or the meta-router's choice. No weights are the base alone."""

Weights = Row | Sequence[Mapping[str, float]] | None
"""Of all rows, or a mapping for each; None, the base only."""


def each(weights: Weights, count: int) -> list[Row]:
    """What each of `count` rows is composed of. Raises InvalidRequest: another word, or number of rows."""
    if isinstance(weights, str):
        if weights not in get_args(Whole):
            raise InvalidRequest(
                f"weights is {weights!r}; it is a mapping, a list, 'ungated', 'routed' or None"
            )
        return [weights] * count
    if weights is None or isinstance(weights, Mapping):
        return [weights or {}] * count
    if len(weights) != count:
        raise InvalidRequest(f"weights has {len(weights)} entries for {count} rows; give one per row")
    return list(weights)


def responses(rows: int, tokens: int, start: int | Sequence[int] | None) -> NDArray[np.bool_]:
    """Which tokens [rows, tokens] predict one of the response, which begins at `start`, of all rows or of
    each; None: behind the row. Raises InvalidRequest."""
    starts = [tokens if start is None else start] * rows if not isinstance(start, Sequence) else start
    if len(starts) != rows or not all(1 <= one <= tokens for one in starts):
        raise InvalidRequest(
            f"response_start is {start}; give an index in 1..{tokens}, for all rows or for each of the {rows}"
        )
    found: NDArray[np.bool_] = np.arange(tokens) >= np.array(starts)[:, None] - 1
    return found
