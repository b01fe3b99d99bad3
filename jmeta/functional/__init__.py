"""Pure mathematics on arrays, from which the learners are built."""

from jmeta.functional.conv import conv
from jmeta.functional.inner_loop import inner_loop
from jmeta.functional.pooling import max_pool
from jmeta.functional.prototypes import cosine_similarities, prototypes, squared_distances

__all__ = ["conv", "cosine_similarities", "inner_loop", "max_pool", "prototypes", "squared_distances"]
