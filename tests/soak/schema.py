"""What follows from the OpenAPI document, right and wrong, as schemathesis draws it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

from tests.soak.canary import Canary
from tests.soak.footprint import Footprint
from tests.soak.outcome import Outcome, Say
from tests.soak.overload import DOMAINS
from tests.soak.server_process import Server, metrics
from tests.tiny import VOCAB

MODELS = ("", ":base", ":chat", ":ungated")

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
    "ignored_auth",
)
STRICT = (*CHECKS, "negative_data_rejection")
"""For the document as it is; the sharpened one forbids also what is merely hard to get past."""
FIRST = 0.25
"""Share of the time for the document as it is."""
GRACE_SECONDS = 180.0
"""What a run may take beyond its time: one request more, and what there is to tell."""
TOLD = 4000
"""Most characters that are told of what it found."""


async def schema(server: Server, count: int, seconds: float, seed: int, say: Say) -> Outcome:
    """For `seconds` send what the document of a server of `overload.publish` allows and forbids, at most
    `count` of a kind and operation in one go.

    None is answered by a 5xx; status, content type, headers and body of every reply are what the document
    says; what it forbids is refused. Most of the time goes to requests that get past the names of models and
    domains. Afterwards, with the stacks and the router put back, every answer is the same, and the server
    holds nothing.
    """
    outcome = Outcome()
    async with server.client() as client:
        before = await Canary(client, server.model, MODELS).answers()
        document = (await client.get("/openapi.json")).json()
    say(f"  {seconds:g} s of requests")
    await _run(server, document, STRICT, count, seconds * FIRST, seed, outcome)
    footprint = Footprint.of(server)
    sharpened = _sharpened(document, server.model)
    await _run(server, sharpened, CHECKS, count, seconds * (1 - FIRST), seed, outcome)
    await _put_back(server, outcome)
    await footprint.compare(server, outcome)
    async with server.client() as client:
        after = await Canary(client, server.model, MODELS).answers()
        outcome.require(after == before, f"the canary has changed: {before} became {after}")
        for name, value in (await metrics(client)).items():
            if name.startswith("brainstacks_http_responses_total"):
                outcome.counts[name.removeprefix("brainstacks_http_responses_total")] = int(value)
    return outcome


async def _run(
    server: Server,
    document: dict[str, Any],
    checks: Sequence[str],
    count: int,
    seconds: float,
    seed: int,
    outcome: Outcome,
) -> None:
    """schemathesis as a process of its own; what it found goes into `outcome`."""
    path, report = (server.world.directory / name for name in ("openapi.json", "report.json"))
    path.write_text(json.dumps(document))
    options = {
        "--url": server.url,
        "--header": f"Authorization: Bearer {server.admin_key}",
        "--checks": ",".join(checks),
        "--max-time": str(max(1, round(seconds))),
        "--max-examples": str(count),
        "--seed": str(seed),
        "--request-timeout": "60",
        "--generation-database": "none",
        "--report": "json",
        "--report-json-path": str(report),
    }
    command = [
        str(path),
        "--continue-on-failure",
        "--no-color",
        *(x for pair in options.items() for x in pair),
    ]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", *command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=path.parent,
    )
    try:
        async with asyncio.timeout(seconds + GRACE_SECONDS):
            told, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        outcome.failures.append(f"not done {GRACE_SECONDS:g} s after its {seconds:g} s")
        return
    text = "\n".join(line[:400] for line in told.decode(errors="replace").splitlines())
    if process.returncode not in (0, 1):
        outcome.failures.append(f"schemathesis ended with {process.returncode}:\n{text[-TOLD:]}")
        return
    found = json.loads(report.read_text())
    failures = [*found["failures"], *found["errors"]]
    outcome.failures += [f"{failure['title']}: {failure.get('operations')}" for failure in failures]
    if failures:
        outcome.failures.append(text[text.find("= FAILURES =") :][:TOLD])
    outcome.counts["requests"] += found["test_cases"]["generated"]
    outcome.counts["operations"] = found["operations"]["tested"]
    outcome.require(
        found["operations"]["tested"] == found["operations"]["total"], "some operation was left out"
    )


async def _put_back(server: Server, outcome: Outcome) -> None:
    """The stacks and the router of `overload.publish`, in their order."""
    async with server.client(admin=True) as admin:
        for domain in DOMAINS:
            await admin.delete(f"/admin/stacks/{domain}")
        for seed, domain in enumerate(DOMAINS):
            file = server.world.file(domain, seed).path.read_bytes()
            answer = await admin.put(f"/admin/stacks/{domain}", content=file)
            outcome.require(answer.status_code in (200, 201), f"{domain} came back as {answer.text[:300]}")
        answer = await admin.put("/admin/router", content=server.world.router(0).path.read_bytes())
        outcome.require(answer.status_code in (200, 201), f"the router came back as {answer.text[:300]}")


def _sharpened(document: dict[str, Any], model: str) -> dict[str, Any]:
    """With what a client knows from elsewhere: names of models and domains, token ids, rules between fields.
    Hardly a request would get past them otherwise."""
    domains, models = {"enum": [*DOMAINS, "poetry"]}, {"enum": [model + name for name in MODELS]}
    parameters = {"domain": domains, "model_id": models}
    text, absent = {"type": "string"}, {"type": "null"}
    few = {"type": "integer", "minimum": 1, "maximum": 8}
    prompted = {"model": {"enum": [*models["enum"], None]}, "prompt": text, "messages": absent}
    generated = {"model": models, "max_tokens": few, "max_completion_tokens": absent, "n": few}
    spoken = {"role": {"enum": ["system", "user", "assistant"]}, "content": text}
    bodies: dict[str, dict[str, Any]] = {
        "CompletionRequest": {**generated, "truncate_prompt_tokens": few, "best_of": few},
        "ChatRequest": generated,
        "RouteRequest": prompted,
        "AttributionRequest": prompted,
        "TokenizeRequest": prompted,
        "DetokenizeRequest": {"model": prompted["model"]},
        "Message": {**spoken, "tool_calls": absent, "tool_call_id": absent},
    }
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation["parameters"]:
                if parameter.get("in") == "path" and parameter["name"] in parameters:
                    parameter["schema"] = parameters[parameter["name"]]
    for name, fields in bodies.items():
        body = document["components"]["schemas"][name]
        body["properties"] |= fields
        needed = fields.keys() & {"prompt", "content"}
        body["required"] = sorted({*body.get("required", ()), *needed})
    sharpened = json.dumps(document).replace(
        '"exclusiveMaximum": 2147483648.0', f'"exclusiveMaximum": {VOCAB}'
    )
    return dict(json.loads(sharpened))
