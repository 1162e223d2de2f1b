"""The step after the one in the air is foreseen: rightly where everybody goes on, else to no effect."""

from __future__ import annotations

from typing import Any

import pytest

from brainstacks.engine import output
from brainstacks.engine.runner import batch, model_runner
from brainstacks.engine.scheduler import Row
from tests.engine.completions import advance
from tests.engine.driving import Served, finish, fixed, idle, prompt_of, request, run, start
from tests.engine.scheduled import Scheduled, completions
from tests.engine.test_delivery import asynchronous, told

# --- by the scheduler ----------------------------------------------------------------------------


def fly(made: Scheduled) -> tuple[list[Row], list[Row]]:
    """A step, and what was foreseen before its tokens were there."""
    rows = made.schedule()
    for row in rows:
        row.completion.computed = row.start + row.count
    foreseen = made.foresee()
    advance(rows)
    return rows, foreseen


@pytest.mark.parametrize("deterministic", [False, True])
def test_while_all_go_on_the_next_step_is_foreseen_with_its_blocks(deterministic: bool) -> None:
    made = Scheduled(*completions(15, 3, 20, max_tokens=40), deterministic=deterministic)
    _, foreseen = fly(made)
    for _ in range(38):
        blocks = [list(row.completion.blocks) for row in foreseen]
        rows, next_ = fly(made)
        assert rows == foreseen != []
        assert [list(row.completion.blocks[: len(b)]) for row, b in zip(rows, blocks, strict=True)] == blocks
        foreseen = next_
    assert fly(made)[1] == [], "all get their last token"


def test_who_is_paused_or_gets_the_last_token_is_not_foreseen() -> None:
    first, short, paused = completions(4, 4, 4)
    made = Scheduled(first, short, paused)
    made.step()
    short.output_ids += [0] * (short.request.sampling.max_tokens - 2)
    short.computed = short.length - 1
    paused.paused = True
    _, foreseen = fly(made)
    assert [row.completion for row in foreseen] == [first]


def test_nothing_is_foreseen_while_a_prompt_is_read() -> None:
    first, long = completions(4, 40)
    made = Scheduled(first, long, max_prefill_tokens=16)
    assert [bool(fly(made)[1]) for _ in range(3)] == [False, False, True], "16, 28 and 40 are read"


def test_foreseeing_takes_no_blocks_from_anybody() -> None:
    first, second = completions(16, 16, max_tokens=40)
    made = Scheduled(first, second, kv_cache_tokens=64)
    for _ in range(16):
        made.step()
    assert made.manager.pool.available == 0
    rows, foreseen = fly(made)
    assert [row.completion for row in rows] == [first, second]
    assert foreseen == []
    assert made.preemptions == 0
    assert [row.completion for row in made.schedule()] == [first]


# --- and laid out --------------------------------------------------------------------------------


def anew(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each step that had to be laid out when its tokens were there."""
    found: list[int] = []
    build = batch.build

    def built(rows: Any, *padding: int) -> Any:
        found.append(len(rows))
        return build(rows, *padding)

    monkeypatch.setattr(model_runner, "build", built)
    return found


def test_the_steps_of_those_that_go_on_are_laid_out_before_their_tokens_are_there(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        request(f"r{tokens}", prompt_of(5), fixed(chat=1.0), max_tokens=tokens, ignore_eos=True, n=2)
        for tokens in (6, 9, 20)
    ]
    plain = run(served.engine, *requests)
    built = anew(monkeypatch)
    late = run(asynchronous(served), *requests)
    assert built == [3], "their prompts; forks, and ends that max_tokens names, are foreseen"
    assert [told(answer, 2) for answer in late] == [told(answer, 2) for answer in plain]


def test_a_step_is_laid_out_anew_where_somebody_ended_came_or_was_told_to_wait(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = asynchronous(served)
    start(engine, *(request(f"r{i}", prompt_of(5), max_tokens=90, ignore_eos=True) for i in range(3)))
    engine.step()
    engine.step()
    built = anew(monkeypatch)

    def end_in_the_air() -> None:
        with monkeypatch.context() as ending:
            ending.setattr(output, "accept", lambda *args: "stop")
            engine.step()

    engine.step()
    assert built == []
    start(engine, request("new", prompt_of(7), max_tokens=90, ignore_eos=True))
    engine.step()
    assert built == [4], "a prompt beside three rows"
    engine.pause("r0")
    engine.step()
    assert built == [4], "who waits is known before"
    engine.abort("r1")
    engine.step()
    assert built == [4]
    end_in_the_air()
    assert built == [4], "nobody is left to compute"
    engine.resume("r0")
    finish(engine)
    assert idle(served)
