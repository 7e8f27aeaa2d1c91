"""`python -m models.media decode IN OUT`."""

import sys

from models.media.decoding import main

if __name__ == "__main__":
    sys.exit(main())
