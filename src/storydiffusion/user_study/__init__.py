"""Blind pairwise preference studies: page, answers, statistics."""
