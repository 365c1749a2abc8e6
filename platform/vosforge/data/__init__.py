"""Data: layouts on disk, image files, shards, pseudo-video, rendering, clip sampling."""
