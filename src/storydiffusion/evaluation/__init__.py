"""Metrics, statistics and tables: pure functions over readings, images and numbers."""
