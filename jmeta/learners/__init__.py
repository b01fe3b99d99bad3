"""The learners, one algorithm per file."""

from jmeta.learners.anil import anil
from jmeta.learners.baseline import baseline
from jmeta.learners.baseline_pp import baseline_pp
from jmeta.learners.boil import boil
from jmeta.learners.cavia import cavia
from jmeta.learners.cnp import cnp
from jmeta.learners.fomaml import fomaml
from jmeta.learners.imaml import imaml
from jmeta.learners.in_context import in_context
from jmeta.learners.logistic import logistic
from jmeta.learners.maml import maml
from jmeta.learners.mamlpp import mamlpp
from jmeta.learners.mann import mann
from jmeta.learners.matching import matching
from jmeta.learners.meta_curvature import meta_curvature
from jmeta.learners.meta_sgd import meta_sgd
from jmeta.learners.metaoptnet import metaoptnet
from jmeta.learners.proto_maml import proto_maml
from jmeta.learners.protonet import protonet
from jmeta.learners.r2d2 import r2d2
from jmeta.learners.relation import relation
from jmeta.learners.reptile import reptile
from jmeta.learners.siamese import siamese
from jmeta.learners.snail import snail

__all__ = [
    "anil",
    "baseline",
    "baseline_pp",
    "boil",
    "cavia",
    "cnp",
    "fomaml",
    "imaml",
    "in_context",
    "logistic",
    "maml",
    "mamlpp",
    "mann",
    "matching",
    "meta_curvature",
    "meta_sgd",
    "metaoptnet",
    "proto_maml",
    "protonet",
    "r2d2",
    "relation",
    "reptile",
    "siamese",
    "snail",
]
