"""Grammars: which tokens may come next, so that a text is what was asked for. llguidance computes them."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark
from llguidance.hf import from_tokenizer
from torch import Tensor

from brainstacks.engine.request import MAX_GRAMMAR, Grammar
from brainstacks.errors import InvalidRequest, Overloaded

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SECONDS = 10.0
"""Most time that one may take to compile, waiting for its turn included."""
CACHED = 128
"""Compiled grammars that are kept, those used last."""

_LIMITS = LLParserLimits(
    max_items_in_row=1_000,
    step_max_items=10_000,
    step_lexer_fuel=100_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""Of compilation, and of one token: a mask takes well under a millisecond, and at the limit some ten."""

_JSON: JsonCompileOptions = {"whitespace_pattern": r" |\n[ \t]{0,40}"}
"""A gap in JSON is nothing, a space, or a new line with its indentation: a small model that may write any
number of spaces writes nothing else."""

_MOST_TRIES = 64
_LARK = re.compile(r"\s*(?:%llguidance\b|start\s*:(?!:=))")
_BAD_REGEX = re.compile(r"regex parse error:\n {4}[^\n]*\n {4}( *)\^+\nerror: ([^\n]*)")
_BAD_LARK = re.compile(r"(?:at )?(\d+)\((\d+)\): ([^\n]*)")


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
        self._mask: Future[Tensor] = pool.submit(self._compute)

    def mask(self) -> Tensor:
        """[V] bool: the tokens that may come next, with the end of the sequence exactly where it may end;
        none where the grammar cannot be followed any further."""
        return self._mask.result()

    def advance(self, token: int) -> bool:
        """Go on with `token`, which `mask` allows; whether the text is complete and nothing can follow."""
        self._mask.result()  # nobody else uses the matcher now
        self._matcher.consume_token(token)
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return True
        self._mask = self._pool.submit(self._compute)
        return False

    def dead_end(self) -> InvalidRequest:
        """Why no token can be chosen."""
        reason = (
            _tidy(self._matcher.get_error()) or "together with other options it leaves no token to choose"
        )
        return InvalidRequest(
            f"{self._param} cannot be followed any further: {reason}; relax it", param=self._param
        )

    def _compute(self) -> Tensor:
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(packed, count=self._vocab, bitorder="little")
        allowed[self._ends] = 0
        if self._matcher.is_error():
            allowed[:] = 0
        elif self._matcher.is_accepting() and not (self._ignore_eos and allowed.any()):
            allowed[self._ends] = 1
        return torch.from_numpy(allowed.view(np.bool_))


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
        self._ends = tuple(ends)
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
            source = _source(grammar)
        except (ValueError, RecursionError) as error:
            raise refused(_tidy(str(error))) from None
        matcher = LLMatcher(self._llguidance_tokenizer(grammar), source, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            reason = _tidy(matcher.get_error())
            place = _place(json.loads(grammar.text), reason) if grammar.kind == "json" else ""
            raise refused(f"{reason} (at {place})" if place else reason)
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
                    self._base_tokenizer, n_vocab=self._vocab, eos_token=list(self._ends) or None
                )
            return self._tokenizer


def _source(grammar: Grammar) -> str:
    """As llguidance takes it. Raises ValueError."""
    if grammar.kind == "json":
        return LLMatcher.grammar_from_json_schema(grammar.text, overrides=_JSON)
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "choice":
        choices = json.loads(grammar.text)
        return _lark("start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices))
    # llguidance's own test for Lark is a regex that takes quadratic time.
    if any(_LARK.match(line) for line in grammar.text.splitlines()):
        return _lark(grammar.text)
    try:
        return _lark(gbnf_to_lark(grammar.text))
    except Exception as error:
        raise ValueError(str(error)) from error


def _place(schema: Any, reason: str) -> str:
    """Where in `schema` the smallest part is that llguidance refuses for `reason`, as a JSON pointer.

    llguidance does not tell, so parts are tried alone, each with the root's definitions.
    """
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    tries, place, inside = _MOST_TRIES, "", True
    while inside:
        inside = False
        for path, part in _parts(schema):
            if tries == 0:
                return place
            tries -= 1
            source = LLMatcher.grammar_from_json_schema({**definitions, **part}, overrides=_JSON)
            if _tidy(LLMatcher.validate_grammar(source, limits=_LIMITS)) == reason:
                place, schema, inside = place + path, part, True
                break
    return place


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas that stand in `schema`, or in a list or an object of it, and their JSON pointers."""
    for key, value in schema.items():
        if isinstance(value, dict):
            yield f"/{key}", value
        inner = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        yield from ((f"/{key}/{name}", part) for name, part in inner if isinstance(part, dict))


def _lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def _tidy(error: str) -> str:
    """llguidance's words, on one line, with the place."""
    if found := _BAD_REGEX.search(error):
        return f"regex, character {len(found[1]) + 1}: {found[2]}"
    if found := _BAD_LARK.match(error):
        return f"line {found[1]}, column {found[2]}: {found[3]}"
    return " ".join(error.replace("<non-verbose/>", "").split())[:400]
