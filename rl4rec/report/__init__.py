"""The comparison of the policies and the report about it."""

from rl4rec.evaluation.compare import compare_policies
from rl4rec.report.table import comparison_table
from rl4rec.report.write import write_report

__all__ = ["compare_policies", "comparison_table", "write_report"]
