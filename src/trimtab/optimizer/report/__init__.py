"""The report of a search: one offline HTML file, and a summary for the terminal."""

from trimtab.optimizer.report.check import check_results, read_document
from trimtab.optimizer.report.page import write_report
from trimtab.optimizer.report.summary import summary_lines

__all__ = ["check_results", "read_document", "summary_lines", "write_report"]
