from __future__ import annotations

import re
from pathlib import Path

import httpx2
import pytest

from server.app import INSPECTOR
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio


async def test_the_page_and_its_parts_are_served(client: httpx2.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    parts = re.findall(r'(?:src|href)="(/[^"]+)"', page.text)
    assert sorted(parts) == ["/inspector/inspector.css", "/inspector/inspector.js"]
    scripts = {file.name: file.read_text() for file in INSPECTOR.glob("*.js") if file.name != "docs.js"}
    modules = {path for script in scripts.values() for path in re.findall(r'from "(/[^"]+)"', script)}
    assert {Path(path).name for path in modules} == scripts.keys() - {"inspector.js"}
    for part in (*parts, *modules):
        assert (await client.get(part)).status_code == 200, part


def test_nothing_on_the_page_comes_from_elsewhere() -> None:
    for file in INSPECTOR.iterdir():
        text = file.read_text()
        assert "http://" not in text
        assert "https://" not in text
        assert "//cdn" not in text
        assert "innerHTML" not in text  # a model's text must not become markup


async def test_the_page_may_load_and_run_only_its_own_files(client: httpx2.AsyncClient) -> None:
    policy = (await client.get("/")).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_every_control_has_a_label_and_every_id_that_the_script_uses_exists() -> None:
    page = (INSPECTOR / "index.html").read_text()
    script = "".join(file.read_text() for file in INSPECTOR.glob("*.js") if file.name != "docs.js")
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    controls = re.findall(r'<(?:input|select|textarea)[^>]*\bid="([^"]+)"', page)
    assert controls
    assert set(controls) <= set(re.findall(r'<label for="([^"]+)"', page))
    used = set(re.findall(r'\$\("([^"]+)"\)', script)) | set(re.findall(r'(?<!\.)\bfill\("([^"]+)"', script))
    assert used <= ids


@pytest.mark.parametrize(
    "path", ["/inspector/../settings.py", "/inspector/%2e%2e/settings.py", "/inspector/"]
)
async def test_only_the_pages_own_files_are_served(
    client: httpx2.AsyncClient, engine: FakeEngine, path: str
) -> None:
    assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("path", ["/", "/docs", "/inspector/index.html", "/inspector/docs.html"])
async def test_every_page_is_held_to_this_origin_and_loads_nothing_from_elsewhere(
    client: httpx2.AsyncClient, path: str
) -> None:
    page = await client.get(path)
    assert page.status_code == 200
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    for found in re.findall(r'(?:src|href)="([^"]*)"', page.text):
        assert found.startswith(("/", "data:,", "#")), found
        if found.startswith("/inspector/"):
            loaded = await client.get(found)
            assert loaded.status_code == 200
            assert "://" not in loaded.text


async def test_the_page_of_the_api_reads_the_document_that_tools_read(client: httpx2.AsyncClient) -> None:
    script = (await client.get("/inspector/docs.js")).text
    assert 'fetch("/openapi.json")' in script
    assert "innerHTML" not in script
    assert "/v1/completions" in (await client.get("/openapi.json")).json()["paths"]
