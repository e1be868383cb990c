"""The studio: stories made and changed in a browser, each of them a run folder and nothing else."""
