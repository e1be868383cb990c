"""One verb a file: each told from top to bottom."""
