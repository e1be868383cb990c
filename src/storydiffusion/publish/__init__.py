"""Releases, model cards and exports."""
