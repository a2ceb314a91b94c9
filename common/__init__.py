"""Plumbing and fixed mathematics shared by the algorithm scripts. Nothing of an algorithm is decided here."""


class UserError(Exception):
    """Something the user can put right. The scripts print it as one line and exit with status 2."""
