"""Prints the catalogue as the README shows it: `python -m jaxdist.catalogue`."""

from jaxdist.catalogue import table

if __name__ == "__main__":
    print(table())
