"""The report as one HTML file that needs nothing else: no network, no other file."""

from ifloo.report.html.page import write_html

__all__ = ["write_html"]
