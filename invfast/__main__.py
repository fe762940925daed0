"""python -m invfast: the command line."""

from invfast.cli import main

if __name__ == "__main__":
    main()
