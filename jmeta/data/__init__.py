"""Where tasks come from: tables of classes, the episode sampler, and the sources."""

from jmeta.data.episodes import episodes
from jmeta.data.glyphs import glyphs
from jmeta.data.omniglot import omniglot, prepare_omniglot
from jmeta.data.sinusoid import sinusoid
from jmeta.data.table import class_table, ClassTable

__all__ = ["ClassTable", "class_table", "episodes", "glyphs", "omniglot", "prepare_omniglot", "sinusoid"]
