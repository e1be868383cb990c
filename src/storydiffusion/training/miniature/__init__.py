"""The recipes of the miniature: each trains one of its parts on StoryWorld."""
