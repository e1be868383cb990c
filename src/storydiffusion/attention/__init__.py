"""Consistent self-attention (section 3.1 of arXiv 2405.01434): its mathematics, variants and token samplers, and the
plug-in for diffusers pipelines."""
