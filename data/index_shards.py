"""Index shards for training: python data/index_shards.py shards=FOLDER [key=value …]; see --help."""

from storydiffusion.commands import run_script

if __name__ == "__main__":
    run_script("index-shards")
