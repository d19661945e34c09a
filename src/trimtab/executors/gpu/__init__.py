"""The torch executor: imports torch and triton, so import it where it is used."""
