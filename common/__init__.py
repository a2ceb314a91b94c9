"""Plumbing and fixed mathematics shared by the algorithm scripts. Nothing of an algorithm is decided here."""
