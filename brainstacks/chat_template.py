"""A base's chat template: what it reads, what requests may set of that, and what it makes of messages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from brainstacks.errors import InvalidRequest

_TRAINING_TAG = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
"""A block of transformers' own that marks what is trained on; jinja2 alone does not know it."""


class ChatTemplate:
    """The template of `tokenizer`, a transformers tokenizer; it may have none."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def variables(self) -> frozenset[str]:
        """What requests may set: the variables that the template reads and nobody else sets."""
        import jinja2.ext
        import jinja2.meta

        if not getattr(self._tokenizer, "chat_template", None):
            return frozenset()
        environment = jinja2.Environment(extensions=[jinja2.ext.loopcontrols])
        template = _TRAINING_TAG.sub("", self._tokenizer.get_chat_template())
        read = jinja2.meta.find_undeclared_variables(environment.parse(template))
        return frozenset(read - environment.globals.keys() - self._reserved)

    def chosen(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `given` that the template reads. Raises InvalidRequest: one is not a request's to set."""
        refused = sorted(self._reserved.intersection(given))
        if refused:
            raise InvalidRequest(
                f"chat_template_kwargs sets {', '.join(refused)}; that is not for requests to set",
                param="chat_template_kwargs",
            )
        return {name: value for name, value in given.items() if name in self.variables}

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, **options: Any
    ) -> str:
        """The text that it makes of `messages`.

        Args:
            options: `tools`, and variables of the template.

        Raises:
            InvalidRequest: there is no template, or it refuses the messages or options.
        """
        import jinja2

        if not getattr(self._tokenizer, "chat_template", None):
            raise InvalidRequest(
                "this base has no chat template; use /v1/completions with a plain prompt", param="messages"
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(m) for m in messages],
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **options,
                )
            )
        except (jinja2.TemplateError, RecursionError) as error:
            raise InvalidRequest(
                f"the chat template refuses the messages: {error}", param="messages"
            ) from error
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            if not options:
                raise
            param = "tools" if options.keys() == {"tools"} else "chat_template_kwargs"
            raise InvalidRequest(
                f"the chat template cannot use these {param}: {error}", param=param
            ) from error

    @cached_property
    def _reserved(self) -> frozenset[str]:
        """Names in a template that are ours, transformers' or the base's."""
        arguments = inspect.signature(self._tokenizer.apply_chat_template).parameters
        special = self._tokenizer.special_tokens_map
        tokens = {f"{kind}_token" for kind in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")}
        return frozenset({*arguments, *special, *tokens, "messages", "raise_exception", "strftime_now"})
