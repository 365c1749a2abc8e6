"""Serving: clips and sessions over HTTP, their limits, journal and batches, and the Ray Serve application."""
