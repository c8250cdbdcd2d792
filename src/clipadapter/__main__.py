"""``python -m clipadapter``."""

from clipadapter.cli.app import main

if __name__ == "__main__":
    main()
