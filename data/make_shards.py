"""Write shards of captioned videos: python data/make_shards.py source=NAME out=DIR [key=value …]; see --help."""

from storydiffusion.commands import run_script

if __name__ == "__main__":
    run_script("make-shards")
