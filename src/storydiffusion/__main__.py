"""`python -m storydiffusion VERB key=value …`."""

from storydiffusion.commands import main

if __name__ == "__main__":
    main()
