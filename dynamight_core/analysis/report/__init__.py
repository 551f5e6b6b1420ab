"""The report of a run: one HTML file that opens offline, and the numbers behind its figures as CSV.

Each part of a section is a function of the page that returns tables, figures and values; the template of the same name
holds its words. Figures are drawn by plotly.js, which is embedded once; maps are drawn by matplotlib and embedded as
PNG. What grows with the number of particles is binned or thinned above `page.MAX_POINTS`, so that the file's size
does not.
"""

from dynamight_core.analysis.report.write import write_report

__all__ = ["write_report"]
