"""What differs from pycytominer 1.7.1 on purpose, and the switch that gives its results back."""

from cytominer_tools.errors import InputError

PEER = "pycytominer-1.7.1"


def as_peer(compat: str | None) -> bool:
    """Whether `compat` asks for pycytominer's results where ours differ (docs/migrating.md lists where).

    Raises
    ------
    InputError
        Neither None nor "pycytominer-1.7.1".
    """
    if compat not in (None, PEER):
        raise InputError(f"compat={compat!r}: expected {PEER!r}, or None for the corrected results")
    return compat == PEER
