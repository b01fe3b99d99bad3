"""iMAML: MAML with implicit gradients (Rajeswaran et al., 2019)."""

from collections.abc import Callable

import optax

from jmeta import losses
from jmeta.functional.fast_weights import descent, fast_weight_learner
from jmeta.functional.inner_rule import InnerOptimizer
from jmeta.types import Learner, Model


def imaml(
    model: Model,
    *,
    inner_optimizer: InnerOptimizer = optax.sgd(0.1),
    inner_steps: int = 16,
    test_steps: int | None = None,
    proximal: float = 2.0,
    cg_steps: int = 5,
    damping: float = 22.0,
    loss_fn: Callable = losses.cross_entropy,
) -> Learner:
    """Differentiates through where the inner loop ends, not through how it got there.

    Rajeswaran et al., 2019, "Meta-Learning with Implicit Gradients": the inner
    objective has the term lambda / 2 |params - start|^2, and the meta-gradient is that
    of its minimum, so memory does not depend on `inner_steps`. The gradient is right as
    far as the inner loop has converged. Number of steps, rate, lambda and `cg_steps`
    are those of the authors' command for 5-way 1-shot Omniglot, which adapts with
    lambda = 0 at test time; ours keeps it.

    The loss of a network is not convex: undamped, the system that conjugate gradient
    solves is not positive definite, and its solution may point anywhere. The authors'
    code solves 2 + H / (lambda + 10) where the paper has 1 + H / lambda, with H the
    Hessian of the support loss. At lambda = 2 the default damping, 22, gives half their
    system (lambda + 22 = 2 (lambda + 10)), and so twice their meta-gradient. The
    learner is `maml` with `meta_gradient="implicit"` and these values of optimizer,
    steps, `proximal`, `cg_steps` and `damping`.

    The meta-gradient can itself be differentiated in reverse mode only. Nothing in it
    keeps the inner loop from diverging in long training (docs/decisions/0011-imaml.md
    in the repository).

    Args:
        model: any network; its output width is the number of ways.
        inner_optimizer: any optax transformation, or a rule without parameters of its own.
        inner_steps: steps towards the minimum in meta-training.
        test_steps: steps in `adapt`; None for as many as in training.
        proximal: lambda, above 0.
        cg_steps: maximum number of conjugate gradient steps.
        damping: added to lambda in the meta-gradient, but not in the inner objective; 0
            for the paper's equations.
        loss_fn: as for `maml`.

    Returns:
        A `Learner`; its parameters are `MetaParams`, and `adapt` gives `FastWeights`.

    Raises:
        ValueError: for numbers out of range; from `init`, if the model's output
            width is not the number of ways, or for an inner rule with parameters of
            its own, on which the minimum does not depend.

    Example:
        >>> import jax
        >>> from jmeta import data, models
        >>> learner = imaml(models.mlp(outputs=5), inner_steps=2)
        >>> task = data.glyphs()(jax.random.key(0))
        >>> params, state = learner.init(jax.random.key(1), task)
        >>> learner.adapt(params, state, task.support).params["head"]["bias"].shape
        (5,)
    """
    objective = losses.objective(loss_fn)
    inner = descent(
        model,
        objective,
        rule=inner_optimizer,
        meta_gradient="implicit",
        proximal=proximal,
        cg_steps=cg_steps,
        damping=damping,
    )
    return fast_weight_learner(inner, objective, inner_steps=inner_steps, test_steps=test_steps)
