"""Consistent self-attention (section 3.1 of arXiv 2405.01434): the mathematics, and what puts it into a U-Net."""
