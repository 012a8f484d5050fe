"""The command line: it parses, calls one function and prints; heavy imports wait for their command."""

from deepprofile.cli.commands import main

__all__ = ["main"]
