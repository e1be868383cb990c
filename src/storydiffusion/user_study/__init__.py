"""A blind pairwise study with people: its page, its answers, its figures."""
