"""The paper's mathematics and pure pytrees: nothing of an algorithm is decided here."""
