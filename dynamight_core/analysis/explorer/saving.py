"""Files that the explorer writes, with the functions behind `dynamight states`, `select` and `displace`.

The commands that would have written the same are kept in RUN/analysis/explored.sh.
"""

import json
import threading
from pathlib import Path

from dynamight_core.analysis.displace import displace
from dynamight_core.analysis.explorer.answer import Answer
from dynamight_core.analysis.explorer.commands import check_name, options_from
from dynamight_core.analysis.select import select_particles, write_selection
from dynamight_core.analysis.state_maps import write_states
from dynamight_core.analysis.states import choose_states
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.lock import writing
from dynamight_core.options import DisplaceOptions, SelectOptions, StatesOptions
from dynamight_core.options.words import command_line
from dynamight_core.reporter import Reporter
from dynamight_core.run import Run


class Saver:
    """Writes subsets, states and views of a run to RUN/analysis, one at a time. Its `reporter` shows the progress.

    Parameters
    ----------
    run
        finished and summarised.
    model
        atomic model that is saved at every state, or None.
    origin
        of its coordinates, see `displace.read_points`.
    reporter
        takes lines for the user.
    """

    def __init__(self, run: Run, model: Path | None, origin: str, reporter: Reporter):
        self._run, self._model, self._origin = run, model, origin
        self.reporter = Reporter(reporter.say, self._show_progress)
        self._folder = run.path / "analysis"
        self._writing = threading.Lock()
        self._progress = ("", 0, 0)

    def save_selection(self, options: dict, name: str) -> Answer:
        """Write RUN/analysis/selections/NAME.star as `dynamight select` does with these options."""
        chosen = options_from(SelectOptions, options)
        path = self._new("selections", f"{check_name(name)}.star")
        with self._writing:
            write_selection(self._run, chosen, name, reporter=self.reporter)
        kept = int(select_particles(self._run, chosen)[0].sum())
        return self._saved([path], [self._command("select", chosen, name=name)], {"particles": kept})

    def save_states(self, options: dict, name: str) -> Answer:
        """Write maps, a table and a movie of states to RUN/analysis/states/NAME as `dynamight states` does.

        With an atomic model, also the model at every state.
        """
        chosen = options_from(StatesOptions, options)
        out = self._new("states", check_name(name))
        with self._writing:
            states = choose_states(self._run, chosen)
            write_states(self._run, states, chosen, out, self.reporter)
            commands = [self._command("states", chosen, out=out)]
            if self._model is not None and states.latents is None:
                moved = DisplaceOptions(states=str(out / "states.csv"), origin=self._origin)
                moved.use_unsupported_motion = chosen.use_unsupported_motion
                target = out / "model.npz"
                displace(self._run, self._model, target, moved, self.reporter)
                commands.append(self._command("displace", moved, points=self._model, out=target))
            self._progress = ("", 0, 0)
        return self._saved(sorted(out.iterdir()), commands, {"states": len(states)})

    def save_view(self, view: dict, name: str) -> Answer:
        """Write what the page shows now, as the page describes it, to RUN/analysis/views/NAME.json."""
        path = self._new("views", f"{check_name(name)}.json")
        with self._writing, writing(self._run.path), atomic_path(path) as temporary:
            temporary.write_text(json.dumps(view, indent=1))
        return Answer({"files": [path.relative_to(self._folder).as_posix()]})

    def views(self) -> Answer:
        """Return the saved views by name.

        Raises
        ------
        InputError
            naming a file that cannot be read.
        """
        found = {}
        for path in sorted((self._folder / "views").glob("*.json")):
            try:
                found[path.stem] = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                raise InputError(f"the view {path} cannot be read ({error}); remove it") from error
        return Answer({"views": found})

    def progress(self) -> Answer:
        """Return the stage of what is being written, and how much of it is done."""
        stage, done, total = self._progress
        return Answer({"stage": stage, "done": done, "total": total})

    def file(self, name: str) -> Path:
        """Return the path of a file of RUN/analysis, for download.

        Raises
        ------
        InputError
            if there is no file of this name.
        """
        folder = self._folder.resolve()
        path = (folder / name).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            raise InputError(f"there is no file {name} in {folder}; save it first")
        return path

    def exists(self, kind: str, name: str) -> bool:
        """Return whether there is something of this name in RUN/analysis/KIND ("selections" or "states")."""
        return (self._folder / kind / name).exists()

    def _new(self, kind: str, name: str) -> Path:
        path = self._folder / kind / name
        if path.exists():
            raise InputError(f"{path} already exists; choose another name")
        return path

    def _show_progress(self, stage: str, done: int, total: int) -> None:
        self._progress = (stage, done, total)

    def _command(self, command: str, options, **more) -> str:
        return command_line(command, [self._run.path], options, **more)

    def _saved(self, files: list[Path], commands: list[str], values: dict) -> Answer:
        """Keep the commands, and return the names of the files inside RUN/analysis."""
        log = self._folder / "explored.sh"
        with self._writing, writing(self._run.path):
            before = log.read_text() if log.exists() else "# Commands that write what was saved in dynamight explore\n"
            with atomic_path(log) as temporary:
                temporary.write_text(before + "\n".join(commands) + "\n")
        names = [path.relative_to(self._folder).as_posix() for path in files]
        return Answer(values | {"files": names, "commands": commands, "folder": str(self._folder)})
