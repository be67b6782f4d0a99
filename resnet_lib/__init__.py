"""The small library behind the book: networks, data, training, measuring, statistics, verdicts.

Importing it has no effect: no device is chosen, no seed set, no backend flag touched, nothing downloaded.
Each module has one responsibility and imports only modules below it (see the table in README.md).
"""

__version__ = "0.1.0"
