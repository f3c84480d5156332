"""The report as one self-contained HTML file: it needs no network and no other file."""

from ifloo.report.html.page import write_html

__all__ = ["write_html"]
