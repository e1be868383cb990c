"""`storydiffusion export-vistorybench`: lay out generated stories for ViStoryBench."""

from storydiffusion.config.command_line import command
from storydiffusion.publish.vistorybench import ExportConfig, export

main = command(ExportConfig)(export)
