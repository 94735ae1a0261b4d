"""Which way a metric is better, as its name tells."""

LOWER_IS_BETTER = {"ECE", "RMSE", "RMSE_log", "abs_rel", "MAE"}
"""Last parts of the names of metrics of which less is better."""


def lower_is_better(metric: str) -> bool:
    """Returns whether less of a metric (`task/metric`, or a part of one as `task/metric/class`) is better."""
    return bool(LOWER_IS_BETTER & set(metric.split("/")[1:]))
