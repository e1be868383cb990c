"""The paper's baselines for images: methods that keep a character consistent by reference images of it."""
