"""StoryDiffusion: consistent stories in pictures and transition video (arXiv 2405.01434)."""
