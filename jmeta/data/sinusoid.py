"""Sinusoid regression (Finn et al., 2017, section 5.1)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jmeta.checks import check_counts
from jmeta.types import Array, Examples, Task

AMPLITUDES = (0.1, 5.0)
PHASES = (0.0, jnp.pi)
INPUTS = (-5.0, 5.0)


def sinusoid(*, shots: int = 10, queries: int = 10) -> Callable[[Array], Task]:
    """A sampler of regression tasks y = a sin(x - p), with an amplitude a and a phase p for each task.

    Finn et al., 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks": a in [0.1, 5], p in [0, pi], x in [-5, 5], all uniform, no noise.

    Args:
        shots: support points.
        queries: query points.

    Returns:
        `sample(key) -> Task`, compiled, with inputs and targets [K, 1]; an endless family.

    Raises:
        ValueError: for fewer than 1 shot or query.

    Example:
        >>> sinusoid(shots=5)(jax.random.key(0)).support.targets.shape
        (5, 1)
    """
    check_counts(least=1, shots=shots, queries=queries)
    return _Sampler(shots, queries)


@dataclass(frozen=True)
class _Sampler:  # compared by its sizes, so that what is compiled for one serves another of the same
    shots: int
    queries: int

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, key):
        # One call draws all numbers of a task: on a CPU a call costs more than the few numbers in it.
        fractions = jnp.split(jax.random.uniform(key, (2 + self.shots + self.queries, 1)), (1, 2))
        amplitude, phase, x = (
            low + (high - low) * fraction
            for (low, high), fraction in zip((AMPLITUDES, PHASES, INPUTS), fractions, strict=True)
        )
        points = Examples(x, amplitude * jnp.sin(x - phase), jnp.ones(len(x), x.dtype))
        return Task(Examples(*(a[: self.shots] for a in points)), Examples(*(a[self.shots :] for a in points)))
