"""Story writers: from an idea, a text or an emotion to a story script for a given image model."""
