"""`python -m marginkit`, for launchers that start modules."""

from marginkit.cli import main

if __name__ == "__main__":
    main()
