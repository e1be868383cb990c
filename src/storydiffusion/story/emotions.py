"""Mikels' eight emotions (Behavior Research Methods 37, 2005)."""

EMOTIONS = ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")
"""In the order of EmoSet's classes, which the rows of a probe follow: four positive, then four negative."""

POSITIVE = EMOTIONS[:4]
