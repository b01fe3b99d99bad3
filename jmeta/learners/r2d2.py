"""R2-D2: ridge regression differentiable discriminator (Bertinetto et al., 2019)."""

import math
from collections.abc import Callable

import jax.numpy as jnp

from jmeta import losses
from jmeta.checks import check_positive
from jmeta.functional.encoders import shared_encoder
from jmeta.functional.heads import head_learner, learned_regularisation, learned_scalars, plain_head
from jmeta.functional.ridge import ridge_regression
from jmeta.types import Learner, Model


def r2d2(
    model: Model, *, regularisation: float = 1.0, scale: float = 10.0, loss_fn: Callable = losses.cross_entropy
) -> Learner:
    """Ridge regression of the targets on the features, solved in closed form for each task.

    Bertinetto et al., 2019, "Meta-learning with Differentiable Closed-form Solvers". As
    in the paper's code, the features have a constant 1 beside them, whose weights are a
    bias that is regularised like the others, and squared errors are averaged over the
    support set, so that a regularisation means the same for any number of ways and
    shots. The regularisation and the outputs' scale and bias are learned, the
    regularisation through its logarithm, which keeps it positive. Their initial values
    are ours.

    Args:
        model: an encoder to features [K, D] (`outputs=None` in `jmeta.models`).
        regularisation: lambda, where learning starts.
        scale: the scale of the outputs, where learning starts; ridge regression gives
            numbers between 0 and 1, which are too small for logits. Use 1 for
            regression.
        loss_fn: the loss on the query set; `losses.squared_error` for regression.

    Returns:
        A `Learner` for any number of ways; its parameters are `HeadParams`, and
        `adapt` gives `Fitted` with weights [D + 1, N].

    Raises:
        ValueError: for a regularisation or scale that is not above 0; from `init`, as for
            `functional.head_learner`.

    Example:
        >>> import jax
        >>> from jmeta import data, models
        >>> learner = r2d2(models.mlp(outputs=None))
        >>> task = data.glyphs(ways=5, shots=1, queries=2)(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.adapt(params, state, task.support).head.shape
        (41, 5)
    """
    check_positive(regularisation=regularisation, scale=scale)

    def fit(params, support):
        x, y, mask = support
        return ridge_regression(_with_constant(x), y, mask, learned_regularisation(params, support))

    def score(params, weights, features):
        return params["scale"] * (_with_constant(features) @ weights) + params["bias"]

    start = learned_scalars(log_regularisation=math.log(regularisation), scale=scale, bias=0.0)
    return head_learner(shared_encoder(model), plain_head(start, fit, score), losses.objective(loss_fn))


def _with_constant(features):
    return jnp.pad(features, ((0, 0), (0, 1)), constant_values=1)
