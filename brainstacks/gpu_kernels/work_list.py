"""What the programs of `attention.py` work through in a step, as the host writes it: no tensors.

An item is `FIELDS` integers: where the table of its completion's blocks begins; its first packed token, how
many tokens it has, and the position of the first in the completion; the first position whose key they look
at, and the one after the last. Arrays are the caller's, of a fixed size: a step changes what they hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Integers = np.ndarray[Any, np.dtype[np.int64]]
Table = np.ndarray[Any, np.dtype[np.int32]]

FIELDS = 6

CHUNK = 256
"""Keys of an item of decode, at the least: so many that to add up partial outputs is no work beside them."""

MOST_CHUNKS = 64
"""Of one decode row: enough to fill a GPU with it. In longer rows chunks are longer, so that partial outputs
take no more room."""

UNIT = 64
"""Chunks are whole multiples of this many keys."""


def decode_capacity(rows: int, longest: int) -> int:
    """Most items of a step that decodes `rows` completions of `longest` tokens and fewer."""
    return rows * min(MOST_CHUNKS, -(-longest // CHUNK))


def prefill_capacity(rows: int, tokens: int, tile: int) -> int:
    """Most items of a step that reads `tokens` tokens of `rows` completions, `tile` at a time."""
    return min(tokens, tokens // tile + rows)


def write_decode_items(
    tables: Integers, starts: Integers, items: Table, ends: Table, window: int | None = None
) -> None:
    """List the chunks of decode rows. How a row is cut depends on its own length alone.

    Args:
        tables: [R], where the table of each row's blocks begins.
        starts: [R], the position of each row's new token, which is packed token r.
        items: [decode_capacity(...), FIELDS], written from the front.
        ends: [rows at the most + 1]; row r has items ends[r] to ends[r + 1], and there are ends[-1].
        window: tokens that the layers look back, the new one included; None for all.

    Raises:
        ValueError: `items` or `ends` is too short.
    """
    rows, last = len(starts), starts + 1
    first = np.zeros_like(last) if window is None else np.maximum(0, last - window)
    size = np.maximum(CHUNK, UNIT * _quotient(last - first, UNIT * MOST_CHUNKS))
    chunks = _quotient(last - first, size)
    if rows >= len(ends):
        raise ValueError(f"{rows} decode rows, and room for {len(ends) - 1}")
    ends[0] = 0
    ends[1 : rows + 1] = np.cumsum(chunks)
    ends[rows + 1 :] = ends[rows]
    row = np.repeat(np.arange(rows), chunks)
    begin = first[row] + size[row] * (np.arange(len(row)) - ends[row])
    end = np.minimum(begin + size[row], last[row])
    _write(items, tables[row], row, np.ones_like(row), starts[row], begin, end)


def write_prefill_items(
    tables: Integers,
    tokens: Integers,
    counts: Integers,
    starts: Integers,
    tile: int,
    items: Table,
    total: Table,
    window: int | None = None,
) -> None:
    """List the tiles of runs of tokens, those with the most keys first: what is begun last should be short.

    Args:
        tables: [S], where the table of each run's blocks begins.
        tokens, counts, starts: [S], its first packed token; how many; the first one's position.
        tile: tokens of an item; see `attention.prefill_tile`.
        items: [prefill_capacity(...), FIELDS], written from the front.
        total: [1], how many there are.
        window: tokens that the layers look back, themselves included; None for all.

    Raises:
        ValueError: `items` is too short.
    """
    tiles = _quotient(counts, tile)
    run = np.repeat(np.arange(len(tiles)), tiles)
    skipped = tile * (np.arange(len(run)) - np.repeat(np.cumsum(tiles) - tiles, tiles))
    count = np.minimum(tile, counts[run] - skipped)
    start = starts[run] + skipped
    begin = np.zeros_like(start) if window is None else np.maximum(0, start - window + 1)
    order = np.argsort(begin - start - count, kind="stable")
    columns = (tables[run], tokens[run] + skipped, count, start, begin, start + count)
    _write(items, *(column[order] for column in columns))
    total[0] = len(run)


def _quotient(a: Any, b: Any) -> Any:
    """Rounded up."""
    return -(-a // b)


def _write(items: Table, *columns: Integers) -> None:
    count = len(columns[0])
    if count > len(items):
        raise ValueError(f"a work list of {count} items, and room for {len(items)}")
    for field, column in enumerate(columns):
        items[:count, field] = column
