"""The stage ``dynamight analyse``: tables, maps and the report of a finished run."""

from pathlib import Path

from dynamight_core.analysis.agreement import write_agreement
from dynamight_core.analysis.bodies import write_bodies
from dynamight_core.analysis.clusters import write_clusters
from dynamight_core.analysis.distribution import write_distributions
from dynamight_core.analysis.domain_files import write_domains, write_errors
from dynamight_core.analysis.domains import find_domains
from dynamight_core.analysis.exports import write_arrows, write_exports
from dynamight_core.analysis.report import write_report
from dynamight_core.judging.conclusion import record_conclusion
from dynamight_core.options import AnalyseOptions
from dynamight_core.reporter import PRINT, Reporter
from dynamight_core.run import Run, record_stage, whole_set


@whole_set("analyse")
def analyse_run(run: Run, options: AnalyseOptions | None = None, reporter: Reporter = PRINT) -> Path:
    """Write motion maps, arrows, domains, distributions, clusters and agreement of the half-sets, then the report.

    Parameters
    ----------
    run
        finished and summarised; reconstructed or not.
    options
        of the analysis.
    reporter
        takes lines for the user.

    Returns
    -------
    Path
        of the report.

    Raises
    ------
    InputError
        if an option cannot be used.
    """
    options = options or AnalyseOptions()
    write_exports(run, options.embedding, reporter)
    write_arrows(run, reporter=reporter)
    write_agreement(run, reporter)
    domains = find_domains(run.motions, options.domains)
    write_domains(run, domains, reporter)
    if options.particle_errors:
        write_errors(run, domains, reporter)
    write_distributions(run, domains, reporter)
    write_bodies(run, reporter)
    write_clusters(run, reporter)
    report = write_report(run, options.out, reporter)
    record_stage(run, "analyse", options)
    record_conclusion(run, reporter)
    return report
