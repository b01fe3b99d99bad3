"""Pure mathematics on arrays, and the builders that make learners from it."""

from jmeta.functional.attention import class_attention
from jmeta.functional.classes import present_in
from jmeta.functional.conv import conv
from jmeta.functional.encoders import Encoder, separate_encoders, shared_encoder
from jmeta.functional.fast_weights import Descent, descent, fast_weight_learner, FastWeights, MetaParams
from jmeta.functional.heads import Fitted, Head, head_learner, HeadParams, plain_head
from jmeta.functional.implicit import implicit_minimum, proximal_objective
from jmeta.functional.inner_loop import constant_gradient, descent_step, inner_loop, MetaGradientOptions
from jmeta.functional.inner_rule import InnerRule
from jmeta.functional.linear import linear
from jmeta.functional.logistic import logistic_regression
from jmeta.functional.mixed import mixed_gradient
from jmeta.functional.moments import conv_moments, moments
from jmeta.functional.partition import in_layer
from jmeta.functional.pooling import max_pool
from jmeta.functional.prototypes import (
    cosine_similarities,
    Gaussians,
    gaussians,
    prototypes,
    squared_distances,
    squared_mahalanobis_distances,
)
from jmeta.functional.ridge import ridge_regression
from jmeta.functional.sequences import Past, prompted, recurrent
from jmeta.functional.svm import crammer_singer
from jmeta.functional.transfer import Classifier, transfer_learner

__all__ = [
    "Classifier",
    "Descent",
    "Encoder",
    "FastWeights",
    "Fitted",
    "Gaussians",
    "Head",
    "HeadParams",
    "InnerRule",
    "MetaGradientOptions",
    "MetaParams",
    "Past",
    "class_attention",
    "constant_gradient",
    "conv",
    "conv_moments",
    "cosine_similarities",
    "crammer_singer",
    "descent",
    "descent_step",
    "fast_weight_learner",
    "gaussians",
    "head_learner",
    "implicit_minimum",
    "in_layer",
    "inner_loop",
    "linear",
    "logistic_regression",
    "max_pool",
    "mixed_gradient",
    "moments",
    "plain_head",
    "present_in",
    "prompted",
    "proximal_objective",
    "prototypes",
    "recurrent",
    "ridge_regression",
    "separate_encoders",
    "shared_encoder",
    "squared_distances",
    "squared_mahalanobis_distances",
    "transfer_learner",
]
