"""`python -m upslope.cli`."""

from upslope.cli.main import main

if __name__ == "__main__":
    main()
