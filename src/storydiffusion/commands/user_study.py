"""`storydiffusion user-study`: make a blind preference study as one offline HTML file."""

from storydiffusion.config.command_line import command
from storydiffusion.user_study.study import UserStudyConfig, user_study

main = command(UserStudyConfig)(user_study)
