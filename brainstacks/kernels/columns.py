"""The inner loop of a stack's B: some of its columns for one token, in vector code.

    y[row] += sum_k w[row, k] h[k]        for the rows of some panels and the k of one unit of columns

Which columns a token uses is its gates' choice, so a token is computed alone; what it shares with others is
in the cache. `h` is short, so it stays in registers while the panels pass. They lie one behind the other:

    fast    [panels, k / 4, 16, 4] int8, and scales [panels, 16] bfloat16
    exact   [panels, k, 16] float32 or bfloat16
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache
from typing import Any

from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic

from brainstacks.kernels import generic
from brainstacks.kernels.tiles import PANEL
from brainstacks.kernels.vectors import F32, I32, I64, ISA, Vectors

COLUMNS = types.void(*(types.int64,) * 8)
"""f(weights, scales, panels, h, scale, zero, fours, out): the addresses of the first panel and its scales (0
where products are exact), and how many; of h, its scale and its zero, see `activations.round_block` (0 where
products are exact); a quarter of the number of columns; of out [16 * panels] float32."""

LINE = 4 * PANEL
"""Bytes of a panel's codes for four columns, and of its outputs."""


class _Columns(Vectors, ABC):
    """Args, as the intrinsic gets them: those of `COLUMNS`; `known` fours, 0 where it is not known."""

    ARGUMENTS = ("weights", "scales", "panels", "h", "scale", "zero", "fours", "out")

    def __init__(self, builder: Any, arguments: tuple[Any, ...], known: int) -> None:
        super().__init__(builder)
        self.known = known
        self.args = dict(zip(self.ARGUMENTS, arguments, strict=True))
        self.size = self.bytes_of_panel()

    def emit(self) -> None:
        b, a = self.b, self.args
        self.prepare()
        with cgutils.for_range(b, a["panels"], intp=I64) as panel:
            weights = b.add(a["weights"], b.mul(panel.index, self.size))
            for half in range(PANEL // self.lanes):
                self.half = 4 * half * self.lanes
                at = self.plus(b.add(a["out"], b.mul(panel.index, I64(LINE))), self.half)
                out = b.inttoptr(at, self.f32.as_pointer())
                scales = b.add(a["scales"], b.mul(panel.index, I64(2 * PANEL)))
                b.store(self.added(weights, scales, b.load(out, align=1)), out, align=1)

    def each(self, body: Any) -> None:
        """body(i) for each four columns."""
        if self.known:
            for i in range(self.known):
                body(I64(i))
        else:
            with cgutils.for_range(self.b, self.args["fours"], intp=I64) as four:
                body(four.index)

    @abstractmethod
    def bytes_of_panel(self) -> Any: ...

    def prepare(self) -> None:
        """What is loaded once."""

    @abstractmethod
    def added(self, weights: Any, scales: Any, total: Any) -> Any:
        """total + the products of a panel's half."""


class Fast(_Columns):
    """int8 x int8."""

    def bytes_of_panel(self) -> Any:
        return self.b.mul(self.args["fours"], I64(LINE))

    def prepare(self) -> None:
        self.scale = self.spread(self.load(self.args["scale"], F32), self.f32)
        zero = self.all(self.i32, 0)
        # Unsigned weights are too large by ZERO_POINT.
        self.zero = self.spread(self.load(self.args["zero"], I32), self.i32) if ISA.vnni else zero
        self.held = [self.four(I64(i)) for i in range(self.known)]

    def four(self, i: Any) -> Any:
        at = self.b.add(self.args["h"], self.b.mul(i, I64(4)))
        return self.b.bitcast(self.spread(self.load(at, I32), self.i32), self.bytes)

    def added(self, weights: Any, scales: Any, total: Any) -> Any:
        b = self.b
        found = cgutils.alloca_once(b, self.i32)
        b.store(self.zero, found)

        def one(i: Any) -> None:
            at = self.plus(b.add(weights, b.mul(i, I64(LINE))), self.half)
            four = self.held[i.constant] if self.known else self.four(i)
            codes = self.signed(self.load(at, self.bytes))
            b.store(self.product(b.load(found), codes, four), found)

        self.each(one)
        scale = self.load_halves(self.plus(scales, self.half // 2))
        return self.fma(b.sitofp(b.load(found), self.f32), b.fmul(scale, self.scale), total)


class Floats(_Columns):
    """float32 x float32."""

    itemsize = 4

    def bytes_of_panel(self) -> Any:
        return self.b.mul(self.args["fours"], I64(4 * PANEL * self.itemsize))

    def weight(self, at: Any) -> Any:
        return self.load(at, self.f32)

    def added(self, weights: Any, scales: Any, total: Any) -> Any:
        b = self.b
        found = cgutils.alloca_once(b, self.f32)
        b.store(self.all(self.f32, 0.0), found)

        def one(i: Any) -> None:
            for k, h in self.ones(i):
                at = self.plus(
                    b.add(weights, b.mul(k, I64(PANEL * self.itemsize))), self.half * self.itemsize // 4
                )
                b.store(self.fma(self.weight(at), h, b.load(found)), found)

        self.each(one)
        return b.fadd(total, b.load(found))

    def ones(self, i: Any) -> Iterator[tuple[Any, Any]]:
        """Each of four columns, and h there in every lane."""
        for j in range(4):
            k = self.b.add(self.b.mul(i, I64(4)), I64(j))
            h = self.load(self.b.add(self.args["h"], self.b.mul(k, I64(4))), F32)
            yield k, self.spread(h, self.f32)


class Halves(Floats):
    """bfloat16 weights, as `Floats`."""

    itemsize = 2

    def weight(self, at: Any) -> Any:
        return self.load_halves(at)


KINDS: tuple[tuple[str, type[_Columns]], ...] = (
    ("fast_bytes", Fast),
    ("floats", Floats),
    ("halves", Halves),
)


@intrinsic(prefer_literal=True)
def _columns(typing_context: Any, kind: Any, known: Any, *arguments: Any) -> Any:
    """`_columns(kind, known, weights, ..., out)`: an index into `KINDS`, the fours or 0, both constants."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = tuple(cgutils.unpack_tuple(builder, args[2]))
        KINDS[kind.literal_value][1](builder, values, known.literal_value).emit()
        return context.get_dummy_value()

    plain = tuple(types.int64 for _ in arguments)
    return types.void(kind, known, types.StarArgTuple(plain)), generate


def columns_address(kind: str) -> int:
    """Of the `COLUMNS` for weights of that kind; it is compiled when it is first asked for."""
    return int(_compiled(kind).address)


@cache  # which keeps what is compiled alive: an address does not
def _compiled(kind: str) -> Any:
    if ISA.lanes:
        return _vectors([name for name, _ in KINDS].index(kind))
    return cfunc(COLUMNS)(generic.columns(kind).py_func)


def _vectors(kind: int) -> Any:
    @cfunc(COLUMNS, cache=True)
    def columns(weights, scales, panels, h, scale, zero, fours, out):
        if fours == 4:
            _columns(kind, 4, weights, scales, panels, h, scale, zero, fours, out)
        elif fours == 2:
            _columns(kind, 2, weights, scales, panels, h, scale, zero, fours, out)
        else:
            _columns(kind, 0, weights, scales, panels, h, scale, zero, fours, out)

    return columns
