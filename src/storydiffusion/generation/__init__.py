"""Generate a story into a run folder, and change it there: what the commands and the studio share.

generate_story(config) generates what the folder lacks; with `config.retake` or `config.extend` it adds images.
"""
