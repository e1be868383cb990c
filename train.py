"""Train the video model or a part of the miniature: python train.py [key=value …]; see --help."""

from storydiffusion.commands import run_script

if __name__ == "__main__":
    run_script("train")
