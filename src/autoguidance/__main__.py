"""`python -m autoguidance …` is `autoguidance …`; the form that torchrun takes."""

import sys

from autoguidance.cli import main

if __name__ == "__main__":
    sys.exit(main())
