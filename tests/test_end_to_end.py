"""The real server, as its users meet it: a process on the packaged base, the demo registry, stock clients."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2 as httpx
import openai
import pytest
import torch
from pydantic import BaseModel

from brainstacks.base_model import identify_base
from brainstacks.config import StackConfig
from brainstacks.stacks.artifact import StackMetadata, sha256_file, stack_shapes
from brainstacks.stacks.tensors import save_stack
from tests.documents import PAGES, commands, page_id, snippets

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
BASE = "smollm2-135m-instruct"
PROMPTS = {
    "chat": "What are some fun things to do on a rainy weekend?",
    "code": "Write a Python function to find the maximum of two numbers.",
    "math": "Tom has 3 boxes with 12 pencils each. He gives away 7 pencils. How many pencils are left?",
    "medical": "What are the symptoms of Asthma ?",
    "reasoning": "Could a penguin survive in the Sahara desert?",
}


@dataclass
class Server:
    url: str
    process: subprocess.Popen[str]

    def openai(self) -> Any:
        """The official client; untyped, because `routing` is an extra of ours."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="inference-key", max_retries=0)

    def admin(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": "Bearer admin-key"}, timeout=120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    registry = tmp_path_factory.mktemp("registry") / "stacks"
    shutil.copytree(ROOT / "stacks_registry", registry)
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "--port", "0", "--registry", str(registry)],
        env={**os.environ, "BRAINSTACKS_API_KEY": "inference-key", "BRAINSTACKS_ADMIN_KEY": "admin-key"},
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stderr is not None
    url = None
    log = []
    for line in process.stderr:
        log.append(line)
        found = re.search(r"running on (http://\S+:\d+)", line)
        if found:
            url = found[1]
            break
    if url is None:
        pytest.fail("the server did not start:\n" + "".join(log))
    drain = threading.Thread(target=process.stderr.read, daemon=True)  # a full pipe would stop the server
    drain.start()
    yield Server(url, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0, "SIGTERM drains and exits 0"
    drain.join()
    process.stderr.close()


def test_each_domains_prompt_is_answered_with_its_own_weights(server: Server) -> None:
    compositions = {}
    for domain, prompt in PROMPTS.items():
        answer = server.openai().chat.completions.create(
            model=BASE, messages=[{"role": "user", "content": prompt}], max_tokens=24, temperature=0
        )
        routing = answer.model_extra["routing"]
        assert answer.choices[0].message.content
        assert set(routing["probabilities"]) == set(PROMPTS)
        compositions[domain] = tuple(round(w, 4) for w in routing["weights"].values())
        assert domain in routing["active"], (domain, routing)
    assert len(set(compositions.values())) == len(PROMPTS), "five prompts, five compositions"


def test_the_official_client_lists_completes_chats_and_streams(server: Server) -> None:
    client = server.openai()
    names = [model.id for model in client.models.list()]
    assert [BASE, f"{BASE}:base", f"{BASE}:ungated"] == names[:3]
    assert {f"{BASE}:{domain}" for domain in PROMPTS} <= set(names)

    completion = client.completions.create(
        model=f"{BASE}:base", prompt="The capital of France is", max_tokens=4, temperature=0, logprobs=2
    )
    assert "Paris" in completion.choices[0].text
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 4
    assert completion.choices[0].logprobs is not None

    question = [{"role": "user", "content": PROMPTS["math"]}]
    whole = client.chat.completions.create(
        model=f"{BASE}:math", messages=question, max_tokens=32, temperature=0
    )
    stream = client.chat.completions.create(
        model=f"{BASE}:math",
        messages=question,
        max_tokens=32,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].model_extra["routing"]["active"] == ["math"]
    assert chunks[-1].usage == whole.usage


def test_the_official_client_responds_streams_parses_calls_and_takes_its_output_back(server: Server) -> None:
    client = server.openai()
    asked: dict[str, Any] = {"model": BASE, "temperature": 0, "max_output_tokens": 48}
    question = {"role": "user", "content": PROMPTS["math"]}
    whole = client.responses.create(input=[question], **asked)
    assert whole.output_text
    with client.responses.stream(input=[question], **asked) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == whole.output_text
    turns = [question, *whole.output, {"role": "user", "content": "And how many in two boxes?"}]
    again = client.responses.create(input=turns, **asked)
    assert again.usage.input_tokens > whole.usage.total_tokens

    class Total(BaseModel):
        pencils: Literal[29, 36]
        sure: bool

    held = client.responses.parse(input=PROMPTS["math"], text_format=Total, **asked)
    assert isinstance(held.output_parsed, Total)
    parameters = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    weather = {"type": "function", "name": "weather", "strict": True, "parameters": parameters}
    named = {"type": "function", "name": "weather"}
    calling = client.responses.create(input="Weather in Oslo?", tools=[weather], tool_choice=named, **asked)
    (call,) = calling.output
    assert (call.type, call.name) == ("function_call", "weather")
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    told = client.responses.create(
        input=[{"role": "user", "content": "Weather in Oslo?"}, *calling.output, result],
        tools=[weather],
        **asked,
    )
    assert told.output


def test_the_official_client_calls_functions_and_sends_their_results_back(server: Server) -> None:
    client = server.openai()
    city = {"enum": ["Paris", "Rome"]}
    days = {"type": "integer", "minimum": 1, "maximum": 7}
    schemas = {
        "weather": {
            "type": "object",
            "properties": {"city": city, "days": days},
            "required": ["city", "days"],
        },
        "clock": {"type": "object", "properties": {"city": city}, "required": ["city"]},
    }
    asked: dict[str, Any] = {
        "model": BASE,
        "tools": [
            {
                "type": "function",
                "function": {"name": name, "parameters": {**schema, "additionalProperties": False}},
            }
            for name, schema in schemas.items()
        ],
        "max_tokens": 120,
    }
    question = [{"role": "user", "content": "What is the weather in Paris, and what time is it in Rome?"}]
    first = client.chat.completions.create(messages=question, tool_choice="required", seed=1, n=4, **asked)
    for choice in first.choices:
        assert choice.finish_reason == "tool_calls"
        for call in choice.message.tool_calls:
            given = json.loads(call.function.arguments)
            assert given.keys() == set(schemas[call.function.name]["required"])
            assert given["city"] in city["enum"]
            assert 1 <= given.get("days", 1) <= 7

    stream = client.chat.completions.create(
        messages=question,
        tool_choice={"type": "function", "function": {"name": "clock"}},
        parallel_tool_calls=False,
        temperature=0,
        stream=True,
        **asked,
    )
    parts = [choice for chunk in stream for choice in chunk.choices]
    (call,) = [call for part in parts for call in part.delta.tool_calls or ()]
    assert (call.index, call.function.name) == (0, "clock")
    assert parts[-1].finish_reason == "tool_calls"

    made = first.choices[0].message
    results = [{"role": "tool", "tool_call_id": one.id, "content": "21"} for one in made.tool_calls]
    after = client.chat.completions.create(messages=[*question, made, *results], tool_choice="none", **asked)
    assert after.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="has a result already"):
        client.chat.completions.create(messages=[*question, made, *results, results[0]], **asked)


def test_extra_body_fixes_the_composition_and_the_record_can_be_looked_up(server: Server) -> None:
    client = server.openai()
    answer = client.chat.completions.create(
        model=BASE,
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=4,
        extra_body={"routing": {"mode": "fixed", "weights": {"chat": 0.85, "math": 0.9}}},
    )
    routing = answer.model_extra["routing"]
    assert routing["active"] == ["chat", "math"]
    assert routing["weights"]["math"] == 0.9
    record = httpx.get(
        f"{server.url}/v1/routing/{routing['request_id']}", headers={"Authorization": "Bearer inference-key"}
    ).json()
    assert record["weights"] == routing["weights"]


def test_unknown_models_and_missing_keys_are_refused(server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        server.openai().completions.create(model=f"{BASE}:poetry", prompt="x")
    assert missing.value.code == "model_not_found"
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert httpx.get(f"{server.url}/admin/stacks").status_code == 401


def test_a_domain_added_while_a_stream_runs_leaves_it_unchanged_and_serves_at_once(
    server: Server, tmp_path: Path
) -> None:
    file = random_stack(tmp_path, "poetry")
    client = server.openai()

    def stream() -> Iterator[str]:
        chunks = client.chat.completions.create(
            model=f"{BASE}:medical",
            messages=[{"role": "user", "content": PROMPTS["medical"]}],
            max_tokens=96,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for chunk in chunks:
            yield chunk.choices[0].delta.content or ""

    undisturbed = "".join(stream())
    running = stream()
    received = "".join(next(running) for _ in range(8))  # it is under way
    with server.admin() as admin:
        generation = admin.get("/admin/registry").json()["generation"]
        put = admin.put("/admin/stacks/poetry", content=file.read_bytes())
        assert put.status_code == 201, put.text
        assert put.json()["generation"] == generation + 1
        answer = client.completions.create(model=f"{BASE}:poetry", prompt="Roses are", max_tokens=4)
        assert answer.model_extra["routing"]["stacks"]["poetry"]["digest"] == put.json()["digest"]
        received += "".join(running)
        assert received == undisturbed
        again = admin.put("/admin/stacks/poetry", content=file.read_bytes())
        assert again.status_code == 200, "the same bytes change nothing"
        assert admin.get("/admin/stacks/poetry").json()["routable"] is False
        assert admin.delete("/admin/stacks/poetry?purge=true").status_code == 200
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model=f"{BASE}:poetry", prompt="Roses are")


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page, "curl")], ids=page_id)
def test_what_a_page_tells_to_curl_is_answered(server: Server, page: Path, tmp_path: Path) -> None:
    for domain in ("law", "orders"):
        with server.admin() as admin:
            file = random_stack(tmp_path, domain)
            assert admin.put(f"/admin/stacks/{domain}", content=file.read_bytes()).is_success
    for command in commands(page, "curl"):
        command = command.replace("localhost:8000", server.url).replace("Bearer secret", "Bearer admin-key")
        if "authorization" not in command:
            command += " -H 'authorization: Bearer inference-key'"
        shell = ["bash", "-c", f"{command} --fail-with-body"]
        answer = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert answer.returncode == 0, (command, answer.stdout, answer.stderr)
        assert json.loads(answer.stdout), command
    with server.admin() as admin:
        for domain in ("law", "orders"):
            assert admin.delete(f"/admin/stacks/{domain}?purge=true").is_success


def test_the_python_that_the_readme_shows_runs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = "\n".join(snippets(ROOT / "README.md"))
    code = shown.replace("http://localhost:8000", server.url).replace(
        'api_key="-"', 'api_key="inference-key"'
    )
    assert code.count(server.url) == code.count("inference-key") == 1
    names: dict[str, Any] = {"input_ids": [[1, 2, 3]]}
    exec(compile(code, "README.md", "exec"), names)
    assert names["answer"].choices[0].message.content
    assert set(names["model"].domains) == set(PROMPTS)


def test_a_stack_for_another_base_and_a_pickle_are_refused(server: Server, tmp_path: Path) -> None:
    with server.admin() as admin:
        other = random_stack(tmp_path, "poetry", fingerprint="0" * 64)
        refused = admin.put("/admin/stacks/poetry", content=other.read_bytes())
        assert refused.status_code == 409, refused.text
        torch.save({"x": torch.zeros(2)}, tmp_path / "x.pt")
        pickled = admin.put("/admin/stacks/poetry", content=(tmp_path / "x.pt").read_bytes())
        assert pickled.status_code == 400, pickled.text
        assert "Traceback" not in json.dumps(pickled.json())


def test_the_command_line_pushes_pulls_and_rolls_back(server: Server, tmp_path: Path) -> None:
    def brainstacks(*arguments: object) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "brainstacks.cli", *map(str, arguments), "--server", server.url, "--json"],
            env={**os.environ, "BRAINSTACKS_ADMIN_KEY": "admin-key"},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    file = random_stack(tmp_path, "poetry")
    pushed = brainstacks("push", file)
    assert pushed["not_routed"] == ["poetry"]
    again = brainstacks("push", random_stack(tmp_path, "poetry", seed=1), "--expect", pushed["generation"])
    assert again["version"] == pushed["version"] + 1
    back = brainstacks("activate", "poetry", "--version", pushed["version"])
    assert (back["digest"], back["generation"]) == (pushed["digest"], again["generation"] + 1)
    pulled = brainstacks("pull", "poetry", "--output", tmp_path / "pulled")
    assert sha256_file(tmp_path / "pulled") == pulled["digest"] == pushed["digest"]
    router = brainstacks("pull", "--router", "--output", tmp_path / "router")
    active = brainstacks("activate", "--router", "--version", router["version"])
    assert active["digest"] == sha256_file(tmp_path / "router")
    assert brainstacks("pin", "poetry")["residency"] == "device"
    assert brainstacks("unpin", "poetry")["pinned"] is False
    status = brainstacks("status")
    assert {stack["domain"]: stack["digest"] for stack in status["stacks"]}["poetry"] == pushed["digest"]
    answer = server.openai().completions.create(model=f"{BASE}:poetry", prompt="Roses are", max_tokens=4)
    assert answer.model_extra["routing"]["stacks"]["poetry"]["digest"] == pushed["digest"]
    with server.admin() as admin:
        assert admin.delete("/admin/stacks/poetry?purge=true").status_code == 200


def random_stack(folder: Path, domain: str, fingerprint: str | None = None, seed: int = 0) -> Path:
    """A small random stack for the packaged base."""
    identity = identify_base("packaged:smollm2-135m-instruct")
    base = identity.ref
    if fingerprint is not None:
        base = type(base)(base.id, fingerprint, base.architecture)
    config = StackConfig(rank=1, experts=2, top_k=1, layers=identity.layers)
    metadata = StackMetadata(domain=domain, rounds=1, config=config, dims=identity.dims, base=base)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: 0.01 * torch.randn(shape, generator=generator, dtype=torch.float32)
        for name, shape in stack_shapes(metadata)
    }
    path = folder / f"{domain}.safetensors"
    save_stack(path, metadata, tensors)
    return path
