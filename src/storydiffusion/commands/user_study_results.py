"""`storydiffusion user-study-results`: count the answers to a user study."""

from storydiffusion.config.command_line import command
from storydiffusion.user_study.results import UserStudyResultsConfig, user_study_results

main = command(UserStudyResultsConfig)(user_study_results)
