"""Grammars: which tokens may come next, so that a text is what was asked for. llguidance computes them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from numpy.typing import NDArray
from torch import Tensor

from brainstacks.engine.request import MAX_GRAMMAR, Grammar
from brainstacks.engine.sampling.grammar_source import LIMITS, place_of, source_of, tidy
from brainstacks.errors import InvalidRequest, Overloaded

MAX_SECONDS = 10.0
"""Most time that one may take to compile, waiting for its turn included."""
CACHED = 128
"""Compiled grammars that are kept, those used last."""

MASK_SECONDS = 0.05
"""Most CPU time for one token; usual ones take less than a thousandth, and a step waits for all of its masks.
An ambiguous grammar reaches it long before llguidance's own limits."""


class Matcher:
    """The place of one completion in its grammar. Its masks are computed on a thread while the step runs.

    Args:
        matcher: llguidance's, at the grammar's beginning, of this completion alone.
        vocab: columns of the logits.
        ends: the base's end-of-sequence tokens.
        ignore_eos: they are allowed only where nothing else is.
        param: the request field that the grammar came from.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocab: int,
        ends: Sequence[int],
        ignore_eos: bool,
        param: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self._ends = list(ends)
        self._ignore_eos = ignore_eos
        self._param = param
        self._pool = pool
        self._slow = False
        self._mask: Future[Tensor] = pool.submit(self._compute)

    def mask(self) -> Tensor:
        """[V] bool: the tokens that may come next, with the end of the sequence exactly where it may end;
        none where the grammar cannot be followed any further."""
        return self._mask.result()

    def advance(self, token: int) -> bool:
        """Go on with `token`, which `mask` allows; whether the text is complete and nothing can follow."""
        self._mask.result()  # nobody else uses the matcher now
        began = time.thread_time()
        self._matcher.consume_token(token)
        self._slow |= time.thread_time() - began > MASK_SECONDS
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return True
        self._mask = self._pool.submit(self._compute)
        return False

    def dead_end(self) -> InvalidRequest:
        """Why no token can be chosen."""
        reason = tidy(self._matcher.get_error()) or (
            "it takes too long to find the tokens that may come next"
            if self._slow
            else "together with other options it leaves no token to choose"
        )
        return InvalidRequest(
            f"{self._param} cannot be followed any further: {reason}; relax it", param=self._param
        )

    def _compute(self) -> Tensor:
        began = time.thread_time()
        allowed = _allowed(self._matcher, self._vocab, self._ends, self._ignore_eos)
        self._slow |= time.thread_time() - began > MASK_SECONDS
        if self._slow:
            allowed[:] = 0
        return torch.from_numpy(allowed.view(np.bool_))


def _allowed(matcher: LLMatcher, vocab: int, ends: list[int], ignore_eos: bool) -> NDArray[np.uint8]:
    """[V] of 0 and 1: see `Matcher.mask`."""
    packed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    allowed = np.unpackbits(packed, count=vocab, bitorder="little")
    allowed[ends] = 0  # a grammar may name tokens, these too
    if matcher.is_error():
        allowed[:] = 0
    elif matcher.is_accepting() and not (ignore_eos and allowed.any()):
        allowed[ends] = 1
    return allowed


class CompiledGrammar:
    """A grammar, of which every completion gets its own `Matcher`."""

    def __init__(
        self, matcher: LLMatcher, vocab: int, ends: Sequence[int], pool: ThreadPoolExecutor, param: str
    ) -> None:
        self._matcher, self._vocab, self._ends, self._pool, self._param = matcher, vocab, ends, pool, param

    def matcher(self, *, ignore_eos: bool) -> Matcher:
        """At the beginning."""
        copy = self._matcher.deep_copy()
        return Matcher(copy, self._vocab, self._ends, ignore_eos, self._param, self._pool)


class Grammars:
    """Compiles grammars for one base, on any thread, and keeps those used last.

    Args:
        tokenizer: transformers' fast tokenizer of the base, or None; what llguidance makes of it is made when
            the first grammar comes (about a second).
        vocab: columns of the logits; those beyond the tokenizer's are never allowed.
        ends: the base's end-of-sequence tokens.
    """

    def __init__(self, tokenizer: Any, vocab: int, ends: Sequence[int]) -> None:
        self._base_tokenizer = tokenizer
        self._vocab = vocab
        self._ends = list(ends)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._making = threading.Lock()
        self._keeping = threading.Lock()
        self._compilers = ThreadPoolExecutor(2, "grammars")
        self._masks = ThreadPoolExecutor(2, "masks")

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Raises InvalidRequest: it is malformed, too large or not supported; with the place and reason."""
        key = (grammar.kind, grammar.text)
        with self._keeping:
            found = self._compiled.get(key)
        if found is None:
            found = self._compile(grammar)
        with self._keeping:
            self._compiled[key] = found
            self._compiled.move_to_end(key)
            while len(self._compiled) > CACHED:
                self._compiled.popitem(last=False)
        return CompiledGrammar(found, self._vocab, self._ends, self._masks, grammar.param)

    async def prepare(self, grammar: Grammar | None) -> CompiledGrammar | None:
        """`compile`, off the event loop, within `MAX_SECONDS`.

        Raises:
            InvalidRequest: see `compile`; or it takes too long.
            Overloaded: others are being compiled.
        """
        if grammar is None:
            return None
        making = self._compilers.submit(self.compile, grammar)
        waiting = asyncio.wrap_future(making)
        try:
            done, _ = await asyncio.wait([waiting], timeout=MAX_SECONDS)
            if done:
                return waiting.result()
        finally:
            never_began = making.cancel()
            waiting.cancel()
        if never_began:
            raise Overloaded("other grammars are being compiled; retry later", param=grammar.param)
        raise InvalidRequest(
            f"{grammar.param} takes more than {MAX_SECONDS:.0f} s to compile; make it simpler",
            param=grammar.param,
        )

    def _compile(self, grammar: Grammar) -> LLMatcher:
        def refused(reason: str) -> InvalidRequest:
            return InvalidRequest(f"{grammar.param} cannot be used: {reason}", param=grammar.param)

        if len(grammar.text) > MAX_GRAMMAR:
            raise refused(f"it has {len(grammar.text)} characters, and at most {MAX_GRAMMAR} are compiled")
        try:
            source = source_of(grammar)
        except (ValueError, RecursionError) as error:
            raise refused(tidy(str(error))) from None
        matcher = LLMatcher(self._llguidance_tokenizer(grammar), source, log_level=0, limits=LIMITS)
        if matcher.is_error():
            reason = tidy(matcher.get_error())
            place = place_of(grammar, reason)
            raise refused(f"{reason} (at {place})" if place else reason)
        began = time.thread_time()
        nothing = not _allowed(matcher, self._vocab, self._ends, ignore_eos=False).any()
        if time.thread_time() - began > MASK_SECONDS:
            raise refused("it takes too long to find the tokens that may come first; make it simpler")
        if nothing:
            raise refused(tidy(matcher.get_error()) or "no text can satisfy it")
        return matcher

    def _llguidance_tokenizer(self, grammar: Grammar) -> LLTokenizer:
        with self._making:
            if self._tokenizer is None:
                if not getattr(self._base_tokenizer, "is_fast", False):
                    raise InvalidRequest(
                        f"{grammar.param} needs a base with a fast tokenizer, which this one has not; "
                        "leave it out",
                        param=grammar.param,
                    )
                self._tokenizer = from_tokenizer(
                    self._base_tokenizer, n_vocab=self._vocab, eos_token=self._ends or None
                )
            return self._tokenizer
