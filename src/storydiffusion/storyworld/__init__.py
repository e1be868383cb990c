"""StoryWorld: a small drawn world whose images come with the full truth about their content."""
