"""The one error that its reader can mend, and the one warning about profiles."""


class InputError(ValueError):
    """Something that was given is wrong, and the message says what came, what was wanted and what to do.

    The command line prints the message alone and exits with 2. Any other exception is a bug and keeps its traceback.
    """


class NoFileError(InputError, FileNotFoundError):
    """There is no such file; also a FileNotFoundError, which scripts written for pycytominer expect."""


class ProfileWarning(UserWarning):
    """The result is defined but may mislead; the message says why and what to do."""
