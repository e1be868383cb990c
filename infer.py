"""Generate a story's images and its video: python infer.py story=FILE run_dir=DIR [key=value …]; see --help."""

from storydiffusion.commands import run_script

if __name__ == "__main__":
    run_script("infer")
