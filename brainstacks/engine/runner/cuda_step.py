"""One step of the `cuda` backend: a fixed program over tensors that each step fills in again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainstacks.base_model import BaseModel
from brainstacks.engine.block_manager import BLOCK_TOKENS, SCRATCH
from brainstacks.engine.runner.attention import PagedAttention, Rules
from brainstacks.engine.runner.batch import Integers, StepBatch
from brainstacks.engine.runner.kv_cache import PagedCache
from brainstacks.engine.runner.staging import Section, Staging
from brainstacks.gpu_kernels import attention, kv_store, work_list
from brainstacks.gpu_kernels.delta_kernels import RECORD
from brainstacks.gpu_kernels.deltas import Tile
from brainstacks.gpu_kernels.launch import programs
from brainstacks.gpu_kernels.partials import Partials
from brainstacks.layers.delta_plan import DeltaPlan, pieces
from brainstacks.layers.group_hooks import GroupHooks
from brainstacks.layers.projections import INPUT_GROUPS
from brainstacks.layers.staged_deltas import Beside, StagedDeltas, room
from brainstacks.routing.features import decoder_states


@dataclass(frozen=True)
class Decoder:
    """What all steps have in common.

    Attributes:
        heads: of the attention's queries.
        context: tokens of the longest row.
        partials: for the longest rows that a step may decode; steps use them one after the other.
        windows: tokens that some layers look back; None for those that look at all.
        widths: inputs of each input group.
        hooks: attached.
        no_mask: a 4-d attention mask, which transformers takes as it is: paged attention makes its own.
    """

    base: BaseModel
    cache: PagedCache
    hooks: GroupHooks
    heads: int
    context: int
    partials: Partials
    windows: tuple[int | None, ...]
    widths: tuple[int, ...]
    no_mask: Tensor

    @staticmethod
    def of(base: BaseModel, cache: PagedCache, hooks: GroupHooks, rows: int, context: int) -> Decoder:
        """For steps that decode so many rows of so many tokens at most."""
        config = base.model.config.get_text_config()
        heads = int(config.num_attention_heads)
        window = getattr(config, "sliding_window", None)
        items = work_list.decode_capacity(rows, context)
        return Decoder(
            base,
            cache,
            hooks,
            heads,
            context,
            Partials.empty(items, heads, cache.head_dim, base.device),
            (None,) if window is None else (None, int(window)),
            tuple(base.sites[0, names[0]].d_in for names in INPUT_GROUPS),
            torch.empty(1, 1, 0, 0, device=base.device),
        )


@dataclass(frozen=True)
class Room:
    """For what a step may bring.

    Attributes:
        decode: each row is one token; else runs of tokens.
        rows, tokens, wanted: at most.
        table: KV blocks of all rows together.
        blocks, pairs, tile, gates: of the deltas; no pairs for the base alone.
        fixed: a token's inputs are always cut into as many pieces, so that nothing depends on other rows.
    """

    decode: bool
    rows: int
    tokens: int
    wanted: int
    table: int
    tile: Tile
    blocks: int = 0
    pairs: int = 0
    gates: int = 0
    fixed: bool = False


class CudaStep:
    """Tensors for a step, and what is computed from them.

    Args:
        beside: where the first launches of deltas run.
    """

    def __init__(self, decoder: Decoder, room: Room, beside: Beside) -> None:
        self._decoder, self.room = decoder, room
        device = decoder.base.device
        cache = decoder.cache
        self._tile = attention.prefill_tile(
            decoder.heads // cache.kv_heads, cache.head_dim, decoder.base.dtype
        )
        self._items = (
            work_list.decode_capacity(room.rows, decoder.context)
            if room.decode
            else work_list.prefill_capacity(room.rows, room.tokens, self._tile)
        )
        self._staging = Staging(device, self._sections())
        self._used = 0  # of the tables
        self._deltas = self._staged(beside) if room.pairs else None

    def _sections(self) -> dict[str, Section]:
        room, int32 = self.room, torch.int32
        sections: dict[str, Section] = {
            "ids": (int32, (room.tokens,)),
            "positions": (int32, (room.tokens,)),
            "places": (int32, (room.tokens,)),
            "offsets": (int32, (room.tokens,)),
            "wanted": (torch.int64, (room.wanted,)),
        }
        for at in range(len(self._decoder.windows)):
            sections[f"items {at}"] = int32, (self._items, work_list.FIELDS)
            sections[f"ends {at}"] = int32, (room.rows + 1 if room.decode else 1,)
        if room.pairs:
            sections |= {
                "counts": (int32, (2 + len(INPUT_GROUPS),)),
                "tokens": (int32, (room.blocks, room.tile.tokens)),
                "block_first": (int32, (room.blocks + 1,)),
                "pair_block": (int32, (room.pairs,)),
                "pair_weight": (torch.float32, (room.pairs, room.tile.tokens)),
                "records": (torch.int64, (room.pairs, RECORD)),
            }
        return sections | {"tables": (int32, (room.table,))}

    def _staged(self, beside: Beside) -> StagedDeltas:
        device, there = self._decoder.base.device, self._staging.there
        most = max(len(names) for names in INPUT_GROUPS)
        splits = self.room.tile.splits if self.room.fixed else 1
        hidden, chosen = room(
            max(self.room.pairs * most * splits, programs(device)), self.room.tile.tokens, device
        )
        return StagedDeltas(
            records=there["records"],
            tokens=there["tokens"],
            block_first=there["block_first"],
            pair_block=there["pair_block"],
            pair_weight=there["pair_weight"],
            counts=there["counts"],
            hidden=hidden,
            chosen=chosen,
            gates=self.room.gates,
            beside=beside,
        )

    # --- a step -----------------------------------------------------------------------------------

    def fill(self, batch: StepBatch, plan: DeltaPlan | None) -> None:
        """Write down what `batch` has to compute, but for its ids. There is room for it."""
        host, room = self._staging.open(), self.room
        rows, tokens, wanted = len(batch.spans), len(batch.ids), len(batch.wanted)
        starts = np.array([span.start for span in batch.spans], np.int64)
        if room.decode:  # the rows beyond are of one token at the start of nobody's block
            starts = np.concatenate([starts, np.zeros(room.rows - rows, np.int64)])
        blocks = -(-(starts[:rows] + [span.count for span in batch.spans]) // BLOCK_TOKENS)
        first = np.concatenate([[0], np.cumsum(blocks)])
        table, used = host["tables"], int(first[-1])
        table[:used] = batch.blocks[np.arange(batch.blocks.shape[1]) < blocks[:, None]]
        table[used] = SCRATCH
        tables = np.concatenate([first[:-1], np.full(len(starts) - rows, used)])

        for name, values, rest in (
            ("positions", batch.positions, 0),
            ("places", batch.places, SCRATCH),
            ("offsets", batch.positions % BLOCK_TOKENS, 0),
        ):
            host[name][:tokens], host[name][tokens:] = values, rest
        host["wanted"][:wanted] = batch.wanted
        for at, window in enumerate(self._decoder.windows):
            items, ends = host[f"items {at}"], host[f"ends {at}"]
            if room.decode:
                work_list.write_decode_items(tables, starts, items, ends, window)
            else:
                firsts = np.array([span.first for span in batch.spans])
                counts = np.array([span.count for span in batch.spans])
                work_list.write_prefill_items(tables, firsts, counts, starts, self._tile, items, ends, window)
        if plan is not None:
            self._fill_deltas(host, plan)
        self._used = used + 1

    def send(self, ids: Integers) -> None:
        """Take what was filled in to the device, and these ids with it."""
        host = self._staging.host["ids"]
        host[: len(ids)], host[len(ids) :] = ids, 0
        self._staging.send(self._used)

    def _fill_deltas(self, host: Mapping[str, np.ndarray[Any, Any]], plan: DeltaPlan) -> None:
        tile, device = self.room.tile, self._decoder.base.device
        widths = self._decoder.widths
        if self.room.fixed:
            cut = pieces(widths, tile, None)
        else:
            cut = pieces(widths, tile, programs(device) // max(1, plan.pairs), plan.blocks)
        host["counts"][:] = [plan.pairs, plan.blocks, *cut]
        for name in ("tokens", "block_first", "pair_block", "pair_weight", "records"):
            values = getattr(plan, name)
            host[name][: len(values)] = values

    def compute(self) -> Tensor:
        """Returns logits [rows of decode, or wanted, V] float32."""
        with self._decoder.hooks.adding(self._deltas):
            hidden = self._decoder.base.model.get_decoder()(use_cache=False, **self._inputs())
        last = hidden.last_hidden_state[0]
        kept = last if self.room.decode else last[self._staging.there["wanted"]]
        logits: Tensor = self._decoder.base.model.get_output_embeddings()(kept).float()
        return logits

    def states(self) -> tuple[Tensor, Tensor]:
        """Returns the middle and the last hidden state [T, d] float32."""
        mid, last = decoder_states(self._decoder.base.model, **self._inputs())
        return mid[0].float(), last[0].float()

    def _inputs(self) -> dict[str, Any]:
        there = self._staging.there
        return {
            "input_ids": there["ids"][None],
            "position_ids": there["positions"][None],
            "attention_mask": self._decoder.no_mask,
            "paged": _Attention(self._decoder, there, self.room.decode),
        }


@dataclass(frozen=True)
class _Attention(PagedAttention):
    """Of a step's tokens, by the kernels of `gpu_kernels`."""

    decoder: Decoder
    there: Mapping[str, Tensor]
    decode: bool

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        there, cache = self.there, self.decoder.cache
        q, k, v = (states.transpose(0, 1) for states in (query, key, value))
        kv_store.store(k, v, there["places"], there["offsets"], cache.keys[layer], cache.values[layer])
        at = self.decoder.windows.index(rules.window)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        shared = (q, cache.keys[layer], cache.values[layer], there["tables"], there[f"items {at}"])
        options = asdict(rules)
        if self.decode:
            attention.decode(*shared, there[f"ends {at}"], self.decoder.partials, out, **options)
        else:
            attention.prefill(*shared, there[f"ends {at}"], out, **options)
        return out
