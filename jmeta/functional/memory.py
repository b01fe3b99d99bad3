"""An external memory, addressed by content and written where it was used least.

Santoro et al., 2016, "Meta-Learning with Memory-Augmented Neural Networks",
section 3.2. Shape letters of this file: `S` slots, `M` numbers in a slot, `H` heads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta.functional.prototypes import cosine_similarities
from jmeta.types import Array


class Memory(NamedTuple):
    """A memory, and how its slots have been used.

    Attributes:
        slots: [S, M].
        usage: [S] weights of reading and writing, summed over time with decay.
        reading: [H, S] with which each head last read.
    """

    slots: Array
    usage: Array
    reading: Array


def empty_memory(slots: int, width: int, heads: int) -> Memory:
    """A memory of zeros that has never been used."""
    return Memory(jnp.zeros((slots, width)), jnp.zeros(slots), jnp.zeros((heads, slots)))


def least_used(usage: Array, count: int) -> Array:
    """Which `count` slots [S] are used least, as ones and zeros; of equals, the first.

    Example:
        >>> least_used(jnp.array([0.5, 0.0, 0.2, 0.2]), 2).tolist()
        [0.0, 1.0, 1.0, 0.0]
    """
    _, rows = jax.lax.top_k(-usage, count)
    return jnp.zeros_like(usage).at[rows].set(1)


def read_weights(slots: Array, keys: Array, strengths: Array) -> Array:
    """Weights [H, S] of reading by content: the softmax of cosines times strengths.

    Args:
        slots: [S, M].
        keys: [H, M].
        strengths: [H], above 0. Ones are the paper's.
    """
    return jax.nn.softmax(strengths[:, None] * cosine_similarities(keys, slots))


def access(
    memory: Memory, written: Array, keys: Array, strengths: Array, gates: Array, *, decay: float
) -> tuple[Array, Memory]:
    """Writes, then reads by the keys.

    Each head writes partly where it last read, and for the rest to the slots that
    are used least, as many as there are heads; these are wiped before (the paper
    wipes one). In the paper what is written is the key.

    Args:
        memory: before.
        written: [H, M], what each head writes.
        keys: [H, M], by which it reads.
        strengths: [H], see `read_weights`.
        gates: [H] share that goes to where the head last read.
        decay: of the usage, per access.

    Returns:
        What each head reads [H, M], and the memory after.
    """
    least = least_used(memory.usage, len(keys))
    writing = gates[:, None] * memory.reading + (1 - gates)[:, None] * least[None]
    slots = memory.slots * (1 - least)[:, None] + writing.T @ written
    reading = read_weights(slots, keys, strengths)
    usage = decay * memory.usage + reading.sum(0) + writing.sum(0)
    return reading @ slots, Memory(slots, usage, reading)
