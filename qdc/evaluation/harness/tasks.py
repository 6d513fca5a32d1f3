"""Find tasks, offline where they are local, and run them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from fnmatch import fnmatchcase
from functools import partialmethod
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdc.errors import QdcError, UnknownName, nearest
from qdc.evaluation.harness.offline import hub_is_out_of_reach, switched_off
from qdc.version import install

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

SEED = 1234
"""Of the harness: which examples stand in a prompt."""
LOUD = ("lm_eval", "datasets", "huggingface_hub")


class Tasks:
    """Tasks by name, to be run on one model after the other."""

    def __init__(self, names: Sequence[str], include: Path | None = None) -> None:
        """Find the tasks in ``include``, then among the harness's own. Raises ``QdcError``.

        Names may be patterns, as in ``mmlu_*``. If all are found in ``include``, nothing is ever
        fetched, and the harness's own thousands of tasks are not read.
        """
        require_lm_eval()
        if include is not None and not include.is_dir():
            raise QdcError(
                "there is no such folder of tasks", where=[str(include)],
                help="--include takes a folder of yaml files",
            )  # fmt: skip
        self.include = None if include is None else include.resolve()
        self.manager, self.names, self.local = self._find([n for n in names if n])
        self._unused: dict[str, Any] | None = None

    def _find(self, wanted: list[str]) -> tuple["TaskManager", list[str], bool]:
        """Who knows the tasks, their names without patterns, and whether all are local."""
        if not wanted:
            raise QdcError("--tasks names no task", help="--tasks arc_easy,gsm8k")
        for own in (True, False) if self.include else (False,):
            with _quiet(), switched_off(own):
                from lm_eval.tasks import TaskManager

                folder = None if self.include is None else str(self.include)
                manager = TaskManager(include_path=folder, include_defaults=not own)
            found = [[n for n in manager.all_tasks if fnmatchcase(n, each)] for each in wanted]
            if all(found):
                return manager, list(dict.fromkeys(name for names in found for name in names)), own
        missing = [each for each, names in zip(wanted, found, strict=True) if not names]
        raise UnknownName(
            f"no task is called {', '.join(map(repr, missing))}",
            help=nearest(missing[0], manager.all_tasks),
        )

    def load(self) -> dict[str, Any]:
        """Read the tasks and their data, anew. Raises ``QdcError`` where data cannot be had.

        Data files of local tasks are found relative to ``include``.
        """
        place = self.include if self.local and self.include else Path.cwd()
        off = self.local or hub_is_out_of_reach()
        try:
            with _quiet(), switched_off(off), chdir(place):
                found: dict[str, Any] = dict(self.manager.load(self.names))
        except ConnectionError as error:
            raise QdcError(
                f"the data of a task are not on this machine: {_line(error)}",
                where=self.names,
                help="run once where the hub can be reached, or give local tasks with --include",
            ) from error
        except (OSError, LookupError, ValueError, TypeError, ImportError) as error:
            raise QdcError(
                f"a task cannot be loaded: {_line(error)}",
                where=self.names,
                help="data files of tasks of --include are relative to that folder"
                if self.local
                else "see the task's own documentation in lm-eval",
            ) from error
        return found

    def wants_greedy(self) -> bool:
        """Whether a metric asks if greedy decoding gives the answer."""
        return any(
            task.OUTPUT_TYPE == "loglikelihood"
            or "exact_match" in getattr(task, "_metric_fn_list", {})
            for task in self._seen()
            if task.OUTPUT_TYPE in ("loglikelihood", "multiple_choice")
        )

    def kinds(self) -> set[str]:
        """What the tasks ask of a model: ``generate_until``, or kinds of likelihoods."""
        return {str(task.OUTPUT_TYPE) for task in self._seen()}

    def _seen(self) -> list[Any]:
        """The tasks as the next run will find them."""
        self._unused = self._unused or self.load()
        return list(self._unused["tasks"].values())

    def run(self, model: "LM", limit: int | None, shots: int | None, *, chat: bool) -> Any:
        """Ask the model. Gives the harness's results, with samples. Raises ``QdcError``."""
        from lm_eval import simple_evaluate

        # Given as objects, the harness loads nothing itself.
        tasks = list(self._loaded(shots))
        try:
            with _quiet(), switched_off(True):
                return simple_evaluate(
                    model=model,
                    tasks=tasks,
                    task_manager=self.manager,
                    num_fewshot=shots,
                    limit=limit,
                    bootstrap_iters=0,
                    apply_chat_template=chat,
                    random_seed=SEED,
                    numpy_random_seed=SEED,
                    torch_random_seed=SEED,
                    fewshot_random_seed=SEED,
                )
        except QdcError:
            raise
        except (ValueError, KeyError, NotImplementedError) as error:
            raise QdcError(
                f"the harness refuses the tasks: {_line(error)}",
                where=self.names,
                help="tasks that run code or read images are not evaluated here",
            ) from error

    def _loaded(self, shots: int | None) -> Iterator[Any]:
        """Groups and tasks as asked for, none of them used before."""
        loaded, self._unused = self._unused or self.load(), None
        fixed = [n for n, task in loaded["tasks"].items() if task.get_config("num_fewshot") == 0]
        if shots and fixed:
            raise QdcError(
                "the tasks are defined without examples in the prompt", where=fixed,
                help="leave out --shots, or evaluate other tasks by themselves",
            )  # fmt: skip
        groups = loaded.get("groups", {})
        inside = {t.task_name for group in groups.values() for t in group.get_all_tasks()}
        below = {g.name for group in groups.values() for g in group.get_all_groups()}
        yield from (group for name, group in groups.items() if name not in below)
        yield from (task for name, task in loaded["tasks"].items() if name not in inside)


def require_lm_eval() -> None:
    """Raise ``QdcError`` without the harness."""
    if find_spec("lm_eval") is None:
        raise QdcError("tasks need lm-eval, which is not installed", help=install("eval"))


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave the terminal to our own progress bar; the harness warns of every default it takes."""
    import datasets
    from tqdm import tqdm

    levels = {name: logging.getLogger(name).level for name in LOUD}
    shown, bar = datasets.are_progress_bars_disabled(), tqdm.__init__
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    tqdm.__init__ = partialmethod(bar, disable=True)
    try:
        yield
    finally:
        tqdm.__init__ = bar
        if not shown:
            datasets.enable_progress_bars()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
