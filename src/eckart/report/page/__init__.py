"""One HTML file that holds results and lets a reader work with them, without a network."""

from eckart.report.page.page import page_html, write_page
from eckart.report.page.results import Results, read_results

__all__ = ["Results", "page_html", "read_results", "write_page"]
