"""kshot: visual in-context learning. Make vision models learn from a handful of examples."""

from kshot.version import __version__

__all__ = ["__version__"]
