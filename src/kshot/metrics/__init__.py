"""Metrics: pure functions of predictions and references.

Every metric is entered in the registry :data:`metrics` and called as ``metric(predictions, queries)``. Optional packages (NLTK,
pycocoevalcap) are imported only when a metric that needs them runs.
"""

from kshot.metrics.base import Metric, MetricResult, metrics
from kshot.metrics.captions import cider
from kshot.metrics.stats import bootstrap_interval, standard_error
from kshot.metrics.vqa import vqa_accuracy

__all__ = ["Metric", "MetricResult", "bootstrap_interval", "cider", "metrics", "standard_error", "vqa_accuracy"]
