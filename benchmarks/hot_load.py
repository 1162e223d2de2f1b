"""What a stack that is published under load costs the streams that run: their gaps between tokens.

    python -m benchmarks.hot_load --streams 8

Streams decode through a real server while a new r16 stack (41 MB for the demo base) is uploaded, checked,
stored, loaded and activated over HTTP.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import httpx2 as httpx
import typer

from benchmarks.instruments import options
from benchmarks.instruments.random_stacks import save_random_stack
from benchmarks.instruments.registries import served
from benchmarks.instruments.results import (
    RESULTS,
    Spread,
    machine,
    markdown_table,
    met,
    percentile,
    write_results,
)
from benchmarks.instruments.timing import Progress
from benchmarks.serving import traffic
from benchmarks.serving.http_client import Stream, completion, stream
from benchmarks.serving.server_process import ServerProcess, running
from brainstacks.base_model import identify_base

NAME = "hot_load"
MOST_GAP = 3.0
"""Target: no gap during the upload beyond this many times the median gap before it."""
DOMAIN = "hot"


@dataclass(frozen=True)
class Upload:
    """One upload under load.

    Attributes:
        seconds: from the request to its answer: the stack is active.
        before, during: milliseconds between two pieces of text of one stream; `during` are the gaps of
            which some part lies in the upload.
    """

    seconds: float
    before: tuple[float, ...]
    during: tuple[float, ...]

    @property
    def stretch(self) -> float:
        """The longest gap during the upload, in median gaps before it."""
        return max(self.during) / median(self.before)


class Pieces:
    """Counts the pieces of text of several streams, and waits for them."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self._arrived = asyncio.Event()

    def on_piece(self, stream: Stream) -> None:
        self.streams[id(stream)] = stream
        self._arrived.set()

    async def wait(self, streams: int, pieces: int) -> None:
        """Until each of so many streams has had `pieces` more."""
        counts = {key: len(each.times) for key, each in self.streams.items()}
        while len(self.streams) < streams or any(
            len(each.times) < counts.get(key, 0) + pieces for key, each in self.streams.items()
        ):
            self._arrived.clear()
            await self._arrived.wait()


async def upload_under_load(
    server: ServerProcess,
    file: Path,
    compositions: Sequence[traffic.Composition],
    pieces: int,
    tokens: int,
) -> Upload:
    """Publish `file` while one stream per composition runs, and take it away again.

    Args:
        pieces: of text that each stream gets before the upload, and after it.
        tokens: of each stream, so many that it outlasts the upload.

    Raises:
        RuntimeError: a stream failed, or ended before the upload did.
    """
    arrived = Pieces()
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        tasks = [
            asyncio.create_task(
                stream(
                    client,
                    completion(server.model, f"Stream {row}. {traffic.QUESTIONS[0]}", tokens, weights),
                    arrived.on_piece,
                )
            )
            for row, weights in enumerate(compositions)
        ]
        try:
            await _while_running(tasks, arrived.wait(len(tasks), pieces))
            start = perf_counter()
            # On a thread: writing 41 MB from the event loop would delay the streams' clocks.
            await _while_running(tasks, asyncio.to_thread(_put, server, file))
            end = perf_counter()
            await _while_running(tasks, arrived.wait(len(tasks), pieces))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(_delete, server)
    streams = list(arrived.streams.values())
    all_run = max(each.times[0] for each in streams)
    gaps = [gap for each in streams for gap in each.gaps]
    return Upload(
        end - start,
        tuple(1000 * (to - since) for since, to in gaps if all_run <= since and to <= start),
        tuple(1000 * (to - since) for since, to in gaps if since < end and to > start),
    )


async def _while_running(streams: Sequence[asyncio.Task[Stream]], work: Coroutine[Any, Any, None]) -> None:
    """Await `work`. Raises RuntimeError: a stream ended first."""
    task = asyncio.create_task(work)
    await asyncio.wait((task, *streams), return_when=asyncio.FIRST_COMPLETED)
    ended = next((each.result() for each in streams if each.done()), None)
    if ended is not None:
        task.cancel()
        raise RuntimeError(ended.error or "a stream ended before the upload did; raise --tokens")
    await task


def _put(server: ServerProcess, file: Path) -> None:
    with server.admin() as admin:
        admin.put(f"/admin/stacks/{DOMAIN}", content=file.read_bytes()).raise_for_status()


def _delete(server: ServerProcess) -> None:
    with server.admin() as admin:
        admin.delete(f"/admin/stacks/{DOMAIN}", params={"purge": "true"}).raise_for_status()


def measure(
    server: ServerProcess,
    files: Sequence[Path],
    compositions: Sequence[traffic.Composition],
    pieces: int,
    tokens: int,
) -> list[Upload]:
    """One upload per file; the first one is not counted."""
    progress = Progress(len(files))
    uploads = []
    for file in files:
        upload = asyncio.run(upload_under_load(server, file, compositions, pieces, tokens))
        uploads.append(upload)
        progress.done(f"upload in {upload.seconds:.2f} s, longest gap {upload.stretch:.1f} medians")
    return uploads[1:]


def main(
    streams: Annotated[int, typer.Option(min=1, help="Streams that decode meanwhile.")] = 8,
    rank: Annotated[int, typer.Option(min=1, help="Of the stack that is uploaded.")] = 16,
    pieces: Annotated[int, typer.Option(min=2, help="Pieces of text per stream before and after.")] = 24,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens per stream; enough to outlast it.")] = 1024,
    rounds: options.Rounds = 3,
    base: options.Base = options.DEFAULT_BASE,
    quantization: options.Quantize = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    output: options.Output = RESULTS,
) -> None:
    """The longest gap in running streams while a stack is uploaded and activated over HTTP.

    Every stream has a composition of four of ten random r16 stacks. One upload comes first and is not
    counted. Client and server share the machine.

    A quick look: python -m benchmarks.hot_load --streams 2 --rounds 1 --pieces 8
    """
    facts = machine()
    identity = identify_base(base)
    with served(identity, seed=seed) as stacks, tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / f"{number}.safetensors" for number in range(rounds + 1)]
        for number, file in enumerate(files):
            save_random_stack(file, identity, DOMAIN, rank=rank, seed=seed + len(stacks.random) + number)
        size = files[0].stat().st_size
        compositions = traffic.distinct(stacks.random, streams, seed)
        with running(stacks.path, options.flags(base, quantization, device)) as server:
            uploads = measure(server, files, compositions, pieces, tokens)
    stretch = Spread.of(upload.stretch for upload in uploads)
    figures = {
        "upload_s": Spread.of(upload.seconds for upload in uploads),
        "gap_before_ms_median": Spread.of(median(upload.before) for upload in uploads),
        "gap_before_ms_longest": Spread.of(max(upload.before) for upload in uploads),
        "gap_during_ms_median": Spread.of(median(upload.during) for upload in uploads),
        "gap_during_ms_p99": Spread.of(percentile(upload.during, 99) for upload in uploads),
        "gap_during_ms_longest": Spread.of(max(upload.during) for upload in uploads),
        "longest_during_in_medians_before": stretch,
    }
    text = (
        f"{streams} streams, a stack of {size / 1e6:.1f} MB; median (min..max) of {rounds} uploads.\n\n"
        f"{markdown_table(['', 'figure'], [[name, value] for name, value in figures.items()])}\n\n"
        f"Target: no gap beyond {MOST_GAP:g} median gaps: {met(stretch.max <= MOST_GAP)}."
    )
    chosen = options.asked(
        base, quantization, device, streams=streams, rank=rank, pieces=pieces, rounds=rounds, seed=seed
    )
    document = {"machine": facts, "settings": chosen, "stack_bytes": size, "target": MOST_GAP, **figures}
    write_results(NAME, document, text, output)


app = options.application(main)

if __name__ == "__main__":
    app()
