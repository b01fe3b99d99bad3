"""The memory-augmented network (Santoro et al., 2016)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jmeta.checks import check_counts
from jmeta.functional.memory import access, empty_memory, Memory
from jmeta.functional.varying import vary_over, varying
from jmeta.models.layers import check_widths, Dense
from jmeta.types import Array, Model, PyTree

# Heads then multiply cosines by about 9 at first. A slot equal to the key, among 127 orthogonal to it, would have
# nearly all of the weight, where bare cosines give it a fiftieth. (Slots not yet used are not orthogonal to it: until
# training closes the gates, each takes a little of what is written.)
SHARPNESS = 8.0


class Carry(NamedTuple):
    """What the network carries from one token to the next.

    Attributes:
        controller: the LSTM's cell and hidden state.
        memory: its memory.
        read: [H, M] what the heads read last.
    """

    controller: PyTree
    memory: Memory
    read: Array


def mann(
    outputs: int, *, controller: int = 200, slots: int = 128, width: int = 40, heads: int = 4, decay: float = 0.99
) -> Model:
    """An LSTM that writes to and reads from a memory by least recently used access.

    Santoro et al., 2016, "Meta-Learning with Memory-Augmented Neural Networks", whose
    sizes are the defaults. As in the neural Turing machine (Graves et al., 2014) the
    controller sees what was last read, and learns how sharply each head reads: the
    paper's softmax of bare cosines is nearly uniform over 128 slots. Since a label
    arrives one token after its example, a head writes the previous token's key, by
    which that example will be looked up, plus content from this token; the paper writes
    this token's key. The share written to the slots last read is computed per token
    (one learned number in the paper), and as many slots are wiped as there are heads
    (one in the paper). A token's target and features are embedded separately, so that a
    few numbers are not lost among hundreds. Memory starts at zero.

    Args:
        outputs: width of the linear output layer, and of the target in a token.
        controller: width of the LSTM.
        slots: number of memory slots.
        width: size of a slot.
        heads: number of heads that read and write.
        decay: factor on the slots' usage, per token.

    Returns:
        A recurrent `Model` from tokens [L, outputs + D] to [L, outputs]. Its state is a
        `Carry`, or None for an empty one; `apply` returns that after the last token.
        Masked tokens leave it as it is.

    Raises:
        ValueError: for a width below 1, fewer slots than heads, or a decay that is
            not between 0 and 1.

    Example:
        >>> model, tokens = mann(3, controller=8, slots=8, width=4, heads=2), jnp.zeros((4, 8))
        >>> params, carry = model.init(jax.random.key(0), tokens)
        >>> model.apply(params, carry, tokens)[0].shape
        (4, 3)
    """
    check_widths(outputs=outputs, controller=controller, width=width)
    check_counts(least=1, slots=slots, heads=heads)
    if slots < heads:
        raise ValueError(f"slots is {slots}; it must be at least the number of heads, {heads}.")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is {decay}; it must be between 0 and 1.")
    module = MANN(outputs, controller, decay)

    @jax.jit  # or each operation of the network would be compiled and run by itself
    def init(key, tokens):
        carry = vary_over(empty(), varying((key, tokens)))
        return module.init(key, carry, tokens, jnp.ones(len(tokens)))["params"], None

    def empty():
        zeros = jnp.zeros(controller)
        return Carry((zeros, zeros), empty_memory(slots, width, heads), jnp.zeros((heads, width)))

    def apply(params, carry, tokens, *, train=False, key=None, mask=None):
        mask = jnp.ones(len(tokens)) if mask is None else mask
        carry = vary_over(empty() if carry is None else carry, varying((params, tokens, mask)))
        carry, values = module.apply({"params": params}, carry, tokens, mask)
        return values, carry

    return Model(init, apply)


class MANN(nn.Module):
    """The module behind `mann`."""

    outputs: int
    controller: int
    decay: float

    @nn.compact
    def __call__(self, carry: Carry, x: Array, mask: Array) -> tuple[Carry, Array]:
        """The carry after the tokens [L, D], and their outputs."""
        over_tokens = nn.scan(Access, variable_broadcast="params", split_rngs={"params": False})
        carry, seen = over_tokens(self.outputs, self.controller, self.decay)(carry, (x, mask))
        return carry, Dense(self.outputs, name="head")(seen)


class Access(nn.Module):
    """One token: the controller's step, and its access to the memory."""

    outputs: int
    controller: int
    decay: float

    @nn.compact
    def __call__(self, carry: Carry, token: tuple[Array, Array]) -> tuple[Carry, Array]:
        """The carry afterwards, and the controller's output beside what was read."""
        x, real = token
        embedded = Dense(self.controller, name="target")(x[: self.outputs])
        embedded += Dense(self.controller, name="features")(x[self.outputs :])
        cell = nn.OptimizedLSTMCell(self.controller, param_dtype=jnp.result_type(float))
        controller, hidden = cell(carry.controller, jnp.concatenate([embedded, carry.read.reshape(-1)]))
        heads, width = carry.read.shape
        address = Dense(heads * width, name="keys")
        content = Dense(heads * width, use_bias=False, name="content")(hidden)
        written = jnp.tanh(address(carry.controller[1]) + content).reshape(heads, width)
        keys = jnp.tanh(address(hidden)).reshape(heads, width)
        strengths = 1 + nn.softplus(SHARPNESS + Dense(heads, name="strengths")(hidden))
        gates = nn.sigmoid(Dense(heads, name="gates")(hidden))
        read, memory = access(carry.memory, written, keys, strengths, gates, decay=self.decay)
        after = jax.tree.map(lambda new, old: jnp.where(real > 0, new, old), Carry(controller, memory, read), carry)
        return after, jnp.concatenate([hidden, read.reshape(-1)])
