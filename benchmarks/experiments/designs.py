"""The trainings that several studies share, described."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from benchmarks.experiments.settings import Settings
from benchmarks.experiments.trainings import Training
from brainstacks.config import Quantization
from training.recipe.settings import EarlierMode, StackRecipe


def alone(
    settings: Settings,
    domains: Sequence[str],
    seed: int,
    stack: StackRecipe | None = None,
    *,
    times: int = 1,
    scale: float = 1.0,
    quantization: Quantization | None = None,
) -> Training:
    """One stack on the base, without any other: what every comparison starts from.

    Args:
        domains: trained on together, for `settings.steps` each.
        stack: None for the MoE-LoRA of `settings`.
        times: so many times the steps.
        scale: of the learning rate.
    """
    return Training(
        domains=tuple(domains),
        stack=stack or settings.stack,
        steps=settings.steps * len(domains) * times,
        rate=settings.learning_rate * scale,
        seed=seed,
        quantization=quantization or settings.quantization,
    )


def independent(
    settings: Settings,
    seed: int,
    stack: StackRecipe | None = None,
    *,
    scale: float = 1.0,
    quantization: Quantization | None = None,
) -> dict[str, Training]:
    """Domain -> its stack, each trained alone."""
    return {
        d: alone(settings, [d], seed, stack, scale=scale, quantization=quantization) for d in settings.domains
    }


def curriculum(
    settings: Settings,
    seed: int,
    mode: EarlierMode,
    stack: StackRecipe | None = None,
    *,
    scale: float = 1.0,
    null_space: Literal["output", "input"] | None = None,
    orthogonality: float = 0.0,
) -> dict[str, Training]:
    """Domain -> its stack, each trained after, and where `mode` says on top of, those before it."""
    found: dict[str, Training] = {}
    for domain in settings.domains:
        found[domain] = Training(
            domains=(domain,),
            stack=stack or settings.stack,
            steps=settings.steps,
            rate=settings.learning_rate * scale,
            seed=seed,
            quantization=settings.quantization,
            earlier=tuple(found.values()),
            mode=mode,
            orthogonality=orthogonality,
            null_space=null_space,
        )
    return found


def sequence(settings: Settings, seed: int, stack: StackRecipe, scale: float = 1.0) -> list[Training]:
    """One adapter that goes from domain to domain, each training starting where the last one ended."""
    found: list[Training] = []
    for domain in settings.domains:
        found.append(
            Training(
                domains=(domain,),
                stack=stack,
                steps=settings.steps,
                rate=settings.learning_rate * scale,
                seed=seed,
                quantization=settings.quantization,
                initial=found[-1] if found else None,
            )
        )
    return found


def rounds(settings: Settings, domain: str, seed: int, count: int) -> list[Training]:
    """Residual rounds of one domain, each on top of those before it, with a data order of its own."""
    found: list[Training] = []
    for number in range(count):
        found.append(
            Training(
                domains=(domain,),
                stack=settings.stack,
                steps=settings.steps,
                rate=settings.learning_rate,
                seed=seed + 1000 * number,
                quantization=settings.quantization,
                own=tuple(found),
            )
        )
    return found
