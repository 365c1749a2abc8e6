"""vosforge: train space-time memory networks for video object segmentation and take them to production."""

__version__ = "0.1.0"
