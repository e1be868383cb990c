"""The paper's baselines for images: methods that keep a character by a picture of it."""
