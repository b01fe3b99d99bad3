"""An external memory, addressed by content and written to where it was used least.

Santoro et al., 2016, "Meta-Learning with Memory-Augmented Neural Networks",
section 3.2. Shape letters in this file: `S` slots of width `M`, `H` heads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmeta.functional.prototypes import cosine_similarities
from jmeta.types import Array


class Memory(NamedTuple):
    """A memory, with the usage of its slots.

    Attributes:
        slots: [S, M].
        usage: [S] weights of reading and writing, summed over time with decay.
        reading: [H, S] the weights with which each head read last.
    """

    slots: Array
    usage: Array
    reading: Array


def empty_memory(slots: int, width: int, heads: int) -> Memory:
    """A memory of zeros that has never been used."""
    return Memory(jnp.zeros((slots, width)), jnp.zeros(slots), jnp.zeros((heads, slots)))


def least_used(usage: Array, count: int) -> Array:
    """The `count` slots [S] that are used least, as ones and zeros; of equals, the first.

    Example:
        >>> least_used(jnp.array([0.5, 0.0, 0.2, 0.2]), 2).tolist()
        [0.0, 1.0, 1.0, 0.0]
    """
    _, rows = jax.lax.top_k(-usage, count)
    return jnp.zeros_like(usage).at[rows].set(1)


def read_weights(slots: Array, keys: Array, strengths: Array) -> Array:
    """Weights [H, S] for reading by content: the softmax of cosines times strengths.

    Args:
        slots: [S, M].
        keys: [H, M].
        strengths: [H], above 0; the paper's are 1.
    """
    return jax.nn.softmax(strengths[:, None] * cosine_similarities(keys, slots))


def access(
    memory: Memory, written: Array, keys: Array, strengths: Array, gates: Array, *, decay: float
) -> tuple[Array, Memory]:
    """Writes, then reads by the keys.

    Each head writes one share where it read last, and the rest to the least used slots,
    as many as there are heads; these are wiped first (the paper wipes one). In the
    paper the content written is the key.

    Args:
        memory: the memory before.
        written: [H, M], what each head writes.
        keys: [H, M], the keys by which it reads.
        strengths: [H], see `read_weights`.
        gates: [H], the share written to where the head read last.
        decay: factor on the usage, per access.

    Returns:
        What each head reads [H, M], and the memory after.
    """
    least = least_used(memory.usage, len(keys))
    writing = gates[:, None] * memory.reading + (1 - gates)[:, None] * least[None]
    slots = memory.slots * (1 - least)[:, None] + writing.T @ written
    reading = read_weights(slots, keys, strengths)
    usage = decay * memory.usage + reading.sum(0) + writing.sum(0)
    return reading @ slots, Memory(slots, usage, reading)
