"""The external memory against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from jmeta.functional.memory import access, empty_memory, least_used

SLOTS, WIDTH, HEADS, DECAY = 6, 3, 2, 0.9


def accesses(written, keys, strengths, gates):
    """What is read at each time [L, H, M], by the equations of the paper, slot by slot."""
    memory, usage = np.zeros((SLOTS, WIDTH)), np.zeros(SLOTS)
    reading, reads = np.zeros((HEADS, SLOTS)), []
    for value, key, strength, gate in zip(written, keys, strengths, gates, strict=True):
        least = sorted(range(SLOTS), key=lambda slot: (usage[slot], slot))[:HEADS]
        writing = np.array([[gate[h] * reading[h, i] + (1 - gate[h]) * (i in least) for i in range(SLOTS)]
                            for h in range(HEADS)])  # fmt: skip
        for slot in range(SLOTS):
            kept = 0 if slot in least else memory[slot]
            memory[slot] = kept + sum(writing[h, slot] * value[h] for h in range(HEADS))
        for h in range(HEADS):
            norms = np.linalg.norm(memory, axis=1) * np.linalg.norm(key[h])
            cosines = np.divide(memory @ key[h], norms, out=np.zeros(SLOTS), where=norms > 0)
            reading[h] = np.exp(strength[h] * cosines) / np.exp(strength[h] * cosines).sum()
        usage = DECAY * usage + reading.sum(0) + writing.sum(0)
        reads.append(reading @ memory)
    return np.array(reads), usage


def test_what_is_read_and_used_is_that_of_the_loop(x64):
    rng = np.random.default_rng(0)
    written, keys = rng.normal(size=(2, 9, HEADS, WIDTH))
    strengths, gates = rng.uniform(1, 5, size=(9, HEADS)), rng.uniform(size=(9, HEADS))

    def step(memory, token):
        read, memory = access(memory, *token, decay=DECAY)
        return memory, read

    memory, reads = jax.jit(lambda *tokens: jax.lax.scan(step, empty_memory(SLOTS, WIDTH, HEADS), tokens))(
        *map(jnp.asarray, (written, keys, strengths, gates))
    )
    expected, usage = accesses(written, keys, strengths, gates)
    np.testing.assert_allclose(reads, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(memory.usage, usage, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(memory.reading.sum(1), 1)


def test_a_gradient_through_an_empty_memory_is_finite(x64):
    def read(key):
        memory = empty_memory(SLOTS, WIDTH, HEADS)
        return access(memory, key, key, jnp.ones(HEADS), jnp.ones(HEADS), decay=DECAY)[0].sum()

    assert np.isfinite(jax.grad(read)(jnp.ones((HEADS, WIDTH)))).all()


def test_of_slots_used_alike_the_first_are_least_used():
    assert least_used(jnp.zeros(4), 2).tolist() == [1, 1, 0, 0]
