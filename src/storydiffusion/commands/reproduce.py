"""`storydiffusion reproduce`: measure every claim of RESULTS.md on the miniature."""

from storydiffusion.config.command_line import command
from storydiffusion.experiments.reproduce import ResultsConfig, results

main = command(ResultsConfig)(results)
