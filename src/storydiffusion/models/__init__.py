"""Networks, and what encodes text and images for them. They know nothing of files, but for their own formats."""
