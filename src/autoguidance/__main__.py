"""`python -m autoguidance …` is `autoguidance …`; the form that torchrun takes."""

from autoguidance.cli import entry

if __name__ == "__main__":
    entry()
