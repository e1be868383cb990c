"""`storydiffusion release`: turn a trained run into a folder to load, check and publish."""

from storydiffusion.config.command_line import command
from storydiffusion.publish.release import ReleaseConfig, release

main = command(ReleaseConfig)(release)
