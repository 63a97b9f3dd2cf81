"""The report of `tilefuse compare`: one HTML file with everything in it."""

from tilefuse.report.page import render

__all__ = ["render"]
