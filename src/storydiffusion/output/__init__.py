"""Outputs of a run: comic page, video, HTML report, manifest, and atomic file writes."""
