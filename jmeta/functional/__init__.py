"""Pure mathematics on arrays, from which the learners are built."""

from jmeta.functional.conv import conv
from jmeta.functional.fast_weights import Descent, descent, fast_weight_learner, FastWeights, MetaParams
from jmeta.functional.inner_loop import constant_gradient, descent_step, inner_loop, MetaGradientOptions
from jmeta.functional.inner_rule import InnerRule
from jmeta.functional.mixed import mixed_gradient
from jmeta.functional.pooling import max_pool
from jmeta.functional.prototypes import cosine_similarities, prototypes, squared_distances

__all__ = [
    "Descent",
    "FastWeights",
    "InnerRule",
    "MetaGradientOptions",
    "MetaParams",
    "constant_gradient",
    "conv",
    "cosine_similarities",
    "descent",
    "descent_step",
    "fast_weight_learner",
    "inner_loop",
    "max_pool",
    "mixed_gradient",
    "prototypes",
    "squared_distances",
]
