"""`storydiffusion compare`: compare the jobs of a sweep in one table."""

from storydiffusion.config.command_line import command
from storydiffusion.evaluation.compare import CollectConfig, collect

main = command(CollectConfig)(collect)
