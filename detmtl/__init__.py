"""Multi-task object detection from gold, silver and electrum labels."""

__version__ = "0.1.0"
