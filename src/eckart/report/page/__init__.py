"""One HTML file that holds results and lets a reader work with them, without a network."""

from eckart.report.page.page import FILE, page_html, write_page
from eckart.report.page.results import Results, read_results

__all__ = ["FILE", "Results", "page_html", "read_results", "write_page"]
