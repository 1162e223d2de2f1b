"""Which blocks completions take, share, copy and give back."""

from __future__ import annotations

import pytest

from brainstacks.engine.block_manager import BlockManager
from tests.engine.completions import completion, siblings

ROOT = (("chat", 1, "digest", 0.8),)


def manager(tokens: int = 160, *, prefix_caching: bool = True, reserve: bool = False) -> BlockManager:
    return BlockManager(tokens, prefix_caching=prefix_caching, reserve=reserve)


def computed(blocks: BlockManager, one: object, tokens: int) -> None:
    """The model has run over the first `tokens` tokens."""
    one.computed = tokens  # type: ignore[attr-defined]
    blocks.remember(one)  # type: ignore[arg-type]


def test_admission_takes_blocks_for_what_is_known_and_growth_one_at_a_time() -> None:
    blocks = manager()
    one = completion(20, max_tokens=100)
    assert blocks.admit(one, 0)
    assert (len(one.blocks), blocks.pool.used) == (2, 2)
    one.computed = 31
    assert blocks.extend(one)
    assert len(one.blocks) == 2
    one.computed = 32
    assert blocks.extend(one)
    assert len(one.blocks) == 3
    blocks.release(one)
    assert (len(one.blocks), one.computed, blocks.pool.used) == (0, 0, 0)


def test_a_reserve_takes_the_longest_completion_at_once() -> None:
    blocks = manager(reserve=True)
    assert blocks.admit(completion(20, max_tokens=100), 0)
    assert blocks.pool.used == 8
    assert not blocks.fits(completion(20, max_tokens=13), 0)
    assert blocks.fits(completion(20, max_tokens=12), 0)


def test_nothing_is_taken_when_too_little_would_be_left() -> None:
    blocks = manager(tokens=48)
    one = completion(20)
    assert not blocks.admit(one, spare=2)
    assert (len(one.blocks), blocks.pool.used) == (0, 0)
    assert blocks.admit(one, spare=1)
    other = completion(16)
    assert blocks.admit(other, spare=0)
    other.computed = 16
    assert not blocks.extend(other)


def test_a_prefix_is_reused_up_to_the_last_token_but_one() -> None:
    blocks = manager()
    first = completion(48, root=ROOT)
    blocks.admit(first, 0)
    computed(blocks, first, 40)
    longer, equal, other = (
        completion(60, root=ROOT),
        completion(32, root=ROOT),
        completion([0] * 16 + [9] * 30, root=ROOT),
    )
    for one in (longer, equal, other):
        assert blocks.admit(one, 0)
    assert (longer.computed, longer.blocks[:2]) == (32, first.blocks[:2])
    assert (equal.computed, equal.blocks[:1]) == (16, first.blocks[:1]), "the 32nd token is to be computed"
    assert other.computed == 0
    assert (blocks.asked_tokens, blocks.reused_tokens) == (48 + 60 + 32 + 46, 48)


@pytest.mark.parametrize(
    "root",
    [
        (),
        (("chat", 1, "digest", 0.81),),
        (("chat", 2, "digest", 0.8),),
        (("chat", 1, "other", 0.8),),
        (("code", 1, "digest", 0.8),),
    ],
)
def test_a_prefix_is_never_reused_under_another_composition(root: tuple[object, ...]) -> None:
    blocks = manager()
    first, second = completion(40, root=ROOT), completion(40, root=root)
    blocks.admit(first, 0)
    computed(blocks, first, 40)
    blocks.admit(second, 0)
    assert second.computed == 0


def test_the_prefix_of_a_finished_sequence_and_its_answer_stays_until_the_room_is_needed() -> None:
    blocks = manager(tokens=64)
    first = completion(20)
    blocks.admit(first, 0)
    first.output_ids += [7] * 13
    blocks.extend(first)
    computed(blocks, first, 32)
    blocks.release(first)
    assert blocks.pool.used == 0
    turn = completion([*range(20), *[7] * 13, 5])
    assert blocks.admit(turn, 0)
    assert turn.computed == 32
    blocks.release(turn)
    large = completion([9] * 64)
    assert blocks.admit(large, 0)
    blocks.release(large)
    again = completion(20)
    blocks.admit(again, 0)
    assert again.computed == 0


def test_who_needs_the_prompts_logits_reuses_nothing() -> None:
    blocks = manager()
    first, scored = completion(40), completion(40)
    blocks.admit(first, 0)
    computed(blocks, first, 40)
    scored.scores_prompt = True
    blocks.admit(scored, 0)
    assert scored.computed == 0


def test_without_prefix_caching_nothing_is_remembered() -> None:
    blocks = manager(prefix_caching=False)
    first, second = completion(40), completion(40)
    blocks.admit(first, 0)
    computed(blocks, first, 40)
    blocks.admit(second, 0)
    assert (second.computed, len(blocks.prefixes)) == (0, 0)


@pytest.mark.parametrize("prompt", [5, 16, 40])
def test_a_fork_shares_full_blocks_and_copies_the_part(prompt: int) -> None:
    blocks = manager()
    leader, follower = siblings(prompt, 2)
    blocks.admit(leader, 0)
    computed(blocks, leader, prompt)
    full, part = divmod(prompt, 16)
    used = blocks.pool.used
    copies = blocks.fork(leader, follower)
    assert copies == ([(leader.blocks[full], follower.blocks[full])] if part else [])
    assert follower.blocks[:full] == leader.blocks[:full]
    assert follower.computed == prompt
    assert blocks.pool.used == used + (1 if part else 0)
    blocks.release(leader)
    blocks.release(follower)
    assert blocks.pool.used == 0


def test_a_fork_without_room_takes_nothing() -> None:
    blocks = manager(tokens=48)
    leader, follower = siblings(40, 2)
    blocks.admit(leader, 0)
    computed(blocks, leader, 40)
    assert blocks.fork(leader, follower) is None
    assert (len(follower.blocks), follower.computed) == (0, 0)


def test_a_forgotten_cache_reuses_nothing_and_loses_no_block() -> None:
    blocks = manager()
    first, running, second = completion(40), completion([3] * 40), completion(40)
    for one in (first, running):
        blocks.admit(one, 0)
        computed(blocks, one, 32)
    blocks.release(first)
    blocks.forget()
    computed(blocks, running, 40)
    blocks.admit(second, 0)
    assert second.computed == 0
    for one in (running, second):
        blocks.release(one)
    assert blocks.pool.used == 0


def test_who_waits_for_room_does_not_look_for_its_prefix_again_in_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = manager(tokens=112)
    first, other = completion(64, root=ROOT), completion(48, root=("other",))
    assert blocks.admit(first, 0)
    computed(blocks, first, 64)
    assert blocks.admit(other, 0)
    waiting = completion(81, root=ROOT)
    asked: list[object] = []
    find = blocks.prefixes.find

    def counted(*args: object) -> object:
        asked.append(args)
        return find(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(blocks.prefixes, "find", counted)
    for _ in range(5):
        assert not blocks.admit(waiting, 0)
    assert len(asked) == 4 + 5, "each block once, and what comes behind them each time"
    blocks.release(first)
    blocks.pool.forget(2)
    blocks.release(other)
    assert blocks.admit(waiting, 0)
    assert waiting.computed == 16, "what was dropped meanwhile is not reused"
