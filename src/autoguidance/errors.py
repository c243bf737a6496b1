"""The one error that means "the user can mend this".

Everything that a user can get wrong (a path, an option, a damaged file, two models that do not fit) raises
`UserError` with ONE line that names the thing and the remedy. The command line prints that line and exits with 2;
from Python it is an ordinary `ValueError`. Any other exception is a bug of ours and shows its traceback.
"""


class UserError(ValueError):
    """A mistake that the caller can mend; its text is one line: what is wrong with what, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class NotFiniteError(UserError):
    """A computation gave NaN or infinity with these settings; with others it may not."""
