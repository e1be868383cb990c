"""Networks and the encoders of text and images. They handle no files but those of their own formats."""
