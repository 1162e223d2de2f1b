"""The clients of the table, each with its script and what it is installed from.

Versions are pinned: a table is of these, and a new one is a line here and a run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal


@dataclass(frozen=True)
class Client:
    """One row of the table.

    Attributes:
        name: of the row, and of the folder it is installed in.
        script: the file in `scripts/`, without its ending.
        packages: requirements for pip or npm; the first is the client's own.
        home: a virtual environment of its own, a folder for node, or beside what the project itself has
            installed (what needs torch would install it once more).
        replayed: whether the tests replay what it sends; what is drawn at random they do not.
    """

    name: str
    script: str
    packages: tuple[str, ...]
    home: Literal["python", "node", "project"] = "python"
    replayed: bool = True

    @property
    def version(self) -> str:
        if self.home == "project":
            return version("lm-eval")
        return re.split("==|(?<=.)@", self.packages[0])[-1]


TENACITY = "tenacity==9.2.1"
"""What lm-eval's clients of servers need, and the trainer does not."""

CLIENTS = (
    Client("openai", "openai_python", ("openai==3.57.0",)),
    Client("openai-node", "openai_node", ("openai@6.49.0", "zod@4.6.7"), "node"),
    Client("langchain-openai", "langchain_chat", ("langchain-openai==1.7.4",)),
    Client("litellm", "litellm_sdk", ("litellm[proxy]==1.108.7",)),
    Client("litellm-proxy", "litellm_proxy", ("litellm[proxy]==1.108.7",)),
    Client("instructor", "instructor_client", ("instructor==1.17.0",)),
    Client("llama-index-openai-like", "llama_index_chat", ("llama-index-llms-openai-like==0.8.1",)),
    Client("pydantic-ai", "pydantic_ai_agent", ("pydantic-ai-slim[openai]==2.68.0",)),
    Client("llm", "llm_cli", ("llm==0.36",)),
    Client("ai-sdk", "vercel_ai", ("@ai-sdk/openai-compatible@2.0.92", "ai@6.0.326", "zod@4.6.7"), "node"),
    Client("lm-eval-completions", "lm_eval_completions", (TENACITY,), "project"),
    Client("lm-eval-chat", "lm_eval_chat", (TENACITY,), "project"),
    Client("schemathesis", "schemathesis_cases", ("schemathesis==4.32.5",), replayed=False),
)
