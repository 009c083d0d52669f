"""`python -m apical` is `apical`."""

from apical.cli import main

if __name__ == "__main__":
    main()
