"""Compares the code here with the recorded code of a workflow that is about to go on, and warns
once.

It runs nothing of the recorded code, and writes nothing. Code that can't be compared causes no
error and no warning.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import warnings
import zipfile
from collections.abc import Collection, Mapping
from io import BytesIO

from ray_workflows._capture.code_parts import (
    FunctionCode,
    Part,
    code_in_source,
    code_of_function,
    code_of_pickle,
    differing,
    differing_in_source,
)
from ray_workflows._capture.upgrade import present_version
from ray_workflows._client.environments import CURRENT, RecordedEnvironment, recorded_code
from ray_workflows._codec.envelope import unseal
from ray_workflows._environment.code import capture
from ray_workflows._environment.compare import changed_modules
from ray_workflows._model.plan import EnvironmentChange, Function
from ray_workflows._model.values import Blob
from ray_workflows.storage.base import Storage

logger = logging.getLogger(__name__)

#: The most functions, and workflows, that a warning names.
NAMED = 8

#: How to use the code here, in Python.
RESUME = (
    "resume({id}, code='current') takes the code here, once the workflow does not run any more."
)
FORK = "fork({id}, ..., code='current') takes the code here."

#: Parses a file once for all functions of a script.
in_source = functools.lru_cache(maxsize=8)(code_in_source)


#: Functions, each with the incarnation it is stored in.
Given = Collection[tuple[str, Function]]


class CodeChanges:
    """The differences found in one call of a verb.

    Args:
        storage: where the workflows are.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        #: Workflows whose code differs from that here.
        self.workflows: list[str] = []
        #: The names of different functions and modules, and their places here.
        self.places: dict[str, str] = {}
        #: Functions of scripts that were to be replaced and have no namesake here.
        self.not_found: list[str] = []
        #: Functions that ``code="current"`` can't find, because they are defined inside others.
        self.inner: list[str] = []
        #: The files of scripts that functions came from.
        self.scripts: list[str] = []
        self.codes: dict[str, FunctionCode | None] = {}
        self.modules: dict[str, dict[str, str]] = {}

    def look(
        self,
        found: RecordedEnvironment,
        change: EnvironmentChange,
        given: Given = (),
        functions: Mapping[str, Function] | None = None,
    ) -> None:
        """Compare the code with which a workflow goes on with the code here.

        Args:
            found: the workflow.
            change: the change with which it goes on.
            given: the functions of this call, each with the incarnation it is stored in.
            functions: the functions that will run, by the digests of the submitted ones; by
                default, those of unfinished tasks.
        """
        differs = False
        incarnation = found.row.incarnation
        functions = found.functions_to_run if functions is None else functions
        for digest, function in functions.items():
            if digest not in change.functions:
                namesakes = [each for each in given if each[1].name == function.name]
                differs |= self.look_at(incarnation, function, change, namesakes)
        if change.code != CURRENT:
            places = self.changed_in_modules(found)
            self.places.update(places)
            differs |= bool(places)
        if differs:
            self.workflows.append(found.row.workflow_id)

    def look_at(
        self, incarnation: str, function: Function, change: EnvironmentChange, given: Given
    ) -> bool:
        """Compare one function: with a given one of its name, else with that of this process's
        script, else with the file that it came from. Returns whether it differs."""
        then = self.code_of(incarnation, function)
        if then is None or not then.parts:
            return False
        own = then.parts.get(then.qualname)
        script = own[0].file if own and then.module == "__main__" else ""
        versions = [code for each in given if (code := self.code_of(*each)) is not None]
        if not versions and (present := present_code(then, script)) is not None:
            versions.append(present)
        if versions:
            found = min((differing(then.parts, each.parts) for each in versions), key=len)
            places = {name: place_of(part) for name, part in found.items()}
            if found and present_version(then.module, then.qualname) is None:
                self.inner.append(then.qualname)
        else:
            names = not_in_file(then, script)
            if change.code == CURRENT and script and names != []:
                self.not_found.append(then.qualname)
                return True
            places = dict.fromkeys(names or (), script)
        self.places.update(places)
        if places and script:
            self.scripts.append(script)
        return bool(places)

    def code_of(self, incarnation: str, function: Function) -> FunctionCode | None:
        """The code of a stored function; None if it can't be analyzed."""
        if function.digest not in self.codes:
            where = f"function {function.name}"
            data = function.data
            code = None
            try:
                view = self.storage.read_blob(incarnation, data) if isinstance(data, Blob) else data
                envelope = unseal(view, where=where, codecs=self.storage.codecs)
                code = code_of_pickle(envelope.pickle, envelope.buffers)
            except Exception:
                logger.debug("The %s can't be compared.", where, exc_info=True)
            self.codes[function.digest] = code
        return self.codes[function.digest]

    def changed_in_modules(self, found: RecordedEnvironment) -> dict[str, str]:
        """The user's functions and modules that differ, and their files here."""
        record, environment = found.record, found.state.environment
        if record is None:
            return {}
        if environment.record not in self.modules:
            directories = (*capture.import_directories(), capture.current_directory())
            changed = changed_modules(record, directories)
            paths = {name: path for name, path in changed.items() if path and name.endswith(".py")}
            places: dict[str, str] = {}
            code = recorded_code(self.storage, environment) if paths else None
            if code is not None:
                with zipfile.ZipFile(BytesIO(code)) as archive:
                    for name, path in paths.items():
                        places.update(changed_in_file(name, archive.read(name), path))
            self.modules[environment.record] = places
        return self.modules[environment.record]

    # -- telling -------------------------------------------------------------------------------

    def text(self, take: str) -> str:
        """The text of the warning; empty if nothing differs.

        Args:
            take: how to use the code here instead; ``{id}`` stands for a workflow.
        """
        if not self.workflows:
            return ""
        ids = listed([repr(each) for each in self.workflows])
        sentences = []
        if self.places:
            changed = listed([f"{name} ({place})" for name, place in self.places.items()])
            sentences.append(
                f"Workflow {ids}: the recorded code is used, and the code here differs from it: "
                f"{changed}. {take.format(id=repr(self.workflows[0]))}"
            )
        if self.inner:
            sentences.append(
                f"That can't find functions that are defined inside of others: "
                f"{listed(self.inner)}. Run these under another workflow_id."
            )
        if self.not_found:
            sentences.append(
                f"Workflow {ids}: this process has no script with {listed(self.not_found)} at its "
                f"top level, so the recorded code of that is used."
            )
        return " ".join(sentences)

    def warn(self, take: str = RESUME) -> None:
        """Warn at the line that called this package; see `text`."""
        text = self.text(take)
        if text:
            warnings.warn(text, stacklevel=users_level())


def listed(names: Collection[str]) -> str:
    """Names in a sentence."""
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def place_of(part: Part | None) -> str:
    """The file and line of a part here."""
    if part is None:
        return "which is not used any more"
    return f"{part.file}:{part.line}" if part.file else "a class"


def present_code(then: FunctionCode, script: str) -> FunctionCode | None:
    """The code of the function with the same name in this process's script. If the function's own
    script is another file that is here, None."""
    present = present_version(then.module, then.qualname)
    if present is None:
        return None
    try:
        now = code_of_function(present, "function")
    except Exception:
        logger.debug("%s can't be compared.", then.qualname, exc_info=True)
        return None
    files = [part.file for part in now.parts.get(then.qualname, ())]
    return now if script in files or not os.path.isfile(script) else None


def not_in_file(then: FunctionCode, script: str) -> list[str] | None:
    """The functions whose code is not in the file that they came from; None if it can't be read."""
    try:
        with open(script, encoding="utf-8") as file:
            return differing_in_source(then.parts, in_source(file.read()), script)
    except (OSError, SyntaxError, ValueError):
        return None


def changed_in_file(name: str, then: bytes, path: str) -> dict[str, str]:
    """The parts of a module's code that differ, and where; none if a version can't be read."""
    try:
        old = in_source(then.decode())
        with open(path, encoding="utf-8") as file:
            new = in_source(file.read())
    except (OSError, SyntaxError, ValueError):
        return {name: path}
    names = [each for each in {**new, **old} if old.get(each) != new.get(each)]
    return {each or name: path for each in names}


def users_level() -> int:
    """The ``stacklevel``, for the calling function, of the line that called this package."""
    level, frame = 0, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(capture.PACKAGE_DIRECTORY):
        level, frame = level + 1, frame.f_back
    return level
