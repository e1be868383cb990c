"""From prompts to panels, from two images to a transition, from panels to a video."""
