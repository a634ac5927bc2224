"""Methods that put demonstrations into an adapter, side by side: same support set, same budget, what they gain and what they cost."""

from kshot.comparison.agreement import Agreement, shift_agreement
from kshot.comparison.run import compare_methods
from kshot.comparison.table import MethodComparison, MethodRow

__all__ = ["Agreement", "MethodComparison", "MethodRow", "compare_methods", "shift_agreement"]
