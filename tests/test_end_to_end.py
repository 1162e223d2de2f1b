"""The real server, as its users meet it: a process on the packaged base, the demo registry, stock clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
import torch

from brainstacks.stacks.artifact import sha256_file
from tests.documents import PAGES, ROOT, commands, page_id, snippets
from tests.packaged_server import BASE, PROMPTS, Server, random_stack

pytestmark = pytest.mark.slow


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
    names: dict[str, Any] = {"input_ids": [list(range(1, 17))]}
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
