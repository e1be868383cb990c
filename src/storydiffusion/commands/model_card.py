"""`storydiffusion model-card`: write the model card of the miniature, with sample sheets."""

from storydiffusion.config.command_line import command
from storydiffusion.publish.model_card import ModelCardConfig, create_card

main = command(ModelCardConfig)(create_card)
