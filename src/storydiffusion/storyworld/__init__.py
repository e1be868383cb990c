"""StoryWorld: a small drawn world whose pictures come with the full truth about what they show."""
