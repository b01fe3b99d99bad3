"""The learners, one algorithm per file."""

from jmeta.learners.anil import anil
from jmeta.learners.boil import boil
from jmeta.learners.cavia import cavia
from jmeta.learners.fomaml import fomaml
from jmeta.learners.imaml import imaml
from jmeta.learners.maml import maml
from jmeta.learners.mamlpp import mamlpp
from jmeta.learners.matching import matching
from jmeta.learners.meta_curvature import meta_curvature
from jmeta.learners.meta_sgd import meta_sgd
from jmeta.learners.proto_maml import proto_maml
from jmeta.learners.protonet import protonet
from jmeta.learners.relation import relation
from jmeta.learners.reptile import reptile
from jmeta.learners.siamese import siamese

__all__ = [
    "anil",
    "boil",
    "cavia",
    "fomaml",
    "imaml",
    "maml",
    "mamlpp",
    "matching",
    "meta_curvature",
    "meta_sgd",
    "proto_maml",
    "protonet",
    "relation",
    "reptile",
    "siamese",
]
