"""New projects and modules, from the templates beside this file."""

from __future__ import annotations

import ast
import importlib.util
import keyword
import os
import re
import shutil
import stat
import sys
from pathlib import Path

from gluepy.conf.project import DEFAULT_MODULE, SETTINGS_VARIABLE, module_file
from gluepy.errors import OptionError, UsageError

_TEMPLATES = Path(__file__).parent / "templates"
_SUFFIX = "-tpl"  # so that nothing takes a template for a module
_EXECUTABLE = ("run.py",)


def start_project(name: str, parent: Path) -> Path:
    """Make a project in the new (or empty) folder `name` in `parent` and return the folder.

    It runs at once: `cd NAME && ./run.py dag sample`. Raises `OptionError` for a name that cannot be used, or a folder
    that is not empty: nothing is overwritten.
    """
    _check_name(name, "startproject", parent)
    return _fill("project", parent / name, name, "startproject")


def start_module(name: str, project: Path) -> Path:
    """Make a module with a task and a DAG in the new (or empty) folder `name` of `project` and return the folder.

    `install_module` makes it one of INSTALLED_MODULES. Raises `OptionError` as `start_project` does.
    """
    if not project.is_dir():
        raise OptionError("startmodule", f"there is no folder {project}", "`gluepy startproject NAME` makes a project")
    _check_name(name, "startmodule", project)
    return _fill("module", project / name, name, "startmodule")


def install_module(name: str, project: Path) -> bool:
    """Add `name` to INSTALLED_MODULES in the project's settings module; False where that takes a person.

    It is done where INSTALLED_MODULES is assigned once, as a list or tuple of plain strings; the rest of the file stays
    as it is, to the byte.
    """
    file = module_file(os.environ.get(SETTINGS_VARIABLE) or DEFAULT_MODULE, project)
    if file is None:
        return False
    try:
        before = file.read_bytes().decode("utf-8")
        after = _with_module(before, name)
        if after is None:
            return False
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        draft.write_bytes(after.encode("utf-8"))
        shutil.copymode(file, draft)
        draft.replace(file.resolve())
    except (OSError, UnicodeDecodeError):
        return False
    return True


def _check_name(name: str, command: str, folder: Path) -> None:
    option = f"{command} {name}"
    if not name.isidentifier():
        usable = re.sub(r"\W+", "_", name).strip("_").lower()
        hint = f"use letters, digits and _, as in {usable!r}" if usable.isidentifier() else "use letters, digits and _"
        raise OptionError(option, f"{name!r} cannot be the name of a Python module", hint)
    if keyword.iskeyword(name):
        raise OptionError(
            option, f"{name!r} is a word of the Python language", f"take another name, such as {name}_flow"
        )
    if not name[0].isalpha():
        raise OptionError(option, "a name that begins with _ is private in Python", "begin with a letter")
    if name in sys.stdlib_module_names:
        raise OptionError(
            option, f"{name!r} is a module of Python's standard library", f"take another name, such as {name}_flow"
        )
    file = folder / f"{name}.py"
    if file.exists():
        raise OptionError(option, f"{file} has that name already", "take another name")
    spec = None if name in _folders(folder) else importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:  # a mere folder has no origin
        hint = f"take another name, such as my_{name}"
        raise OptionError(option, f"an installed module has the name {name!r} ({spec.origin})", hint)


def _folders(folder: Path) -> list[str]:
    """Folders that are there already: whether they may be filled is asked later, of their contents."""
    return [each.name for each in folder.iterdir() if each.is_dir()] if folder.is_dir() else []


def _fill(template: str, target: Path, name: str, command: str) -> Path:
    words = {"name": name, "Name": "".join(part[:1].upper() + part[1:] for part in name.split("_"))}
    source = _TEMPLATES / template
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            problem = f"{target} is there already" + (" and is not empty" if target.is_dir() else ", a file")
            raise OptionError(f"{command} {name}", problem, "nothing was changed; take another name")
        for file in sorted(source.rglob(f"*{_SUFFIX}")):
            made = target / file.relative_to(source).with_name(file.name.removesuffix(_SUFFIX))
            made = made.with_name(made.name.replace("dot_", "."))
            made.parent.mkdir(parents=True, exist_ok=True)
            text = file.read_text("utf-8")
            for word, value in words.items():
                text = text.replace("{{ " + word + " }}", value)
            made.write_text(text, "utf-8")
            if made.name in _EXECUTABLE:
                made.chmod(made.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    except OSError as error:
        raise UsageError(f"{command} {name}: cannot write {error.filename or target}: {error.strerror}") from None
    return target


def _with_module(text: str, name: str) -> str | None:
    """The source `text` of a settings module with `name` in INSTALLED_MODULES, or None where it is not plain."""
    listed = _listed(text)
    if listed is None:
        return None
    node, names = listed
    if name in names:
        return text
    lines = text.splitlines(keepends=True)

    def offset(line: int, column: int) -> int:  # the syntax tree counts columns in bytes
        return sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())

    end = offset(node.end_lineno or 0, node.end_col_offset or 0)
    close = end - 1 if text[end - 1] in ")]" else end
    quoted = f'"{name}"'
    if not node.elts:
        changed = text[:close] + quoted + ("," if isinstance(node, ast.Tuple) else "") + text[close:]
    else:
        last = node.elts[-1]
        after = offset(last.end_lineno or 0, last.end_col_offset or 0)
        line_start = text.rfind("\n", 0, close) + 1
        if after < line_start and not text[line_start:close].strip():  # one name a line, the bracket on its own
            comma = "" if "," in re.sub(r"#.*", "", text[after:close]) else ","
            first = lines[last.lineno - 1]
            indent = first[: len(first) - len(first.lstrip())]
            newline = "\r\n" if first.endswith("\r\n") else "\n"
            added = f"{indent}{quoted},{newline}"
            changed = text[:after] + comma + text[after:line_start] + added + text[line_start:]
        else:
            changed = text[:after] + f", {quoted}" + text[after:]
    again = _listed(changed)
    return changed if again is not None and again[1] == [*names, name] else None


def _listed(text: str) -> tuple[ast.List | ast.Tuple, list[str]] | None:
    """The one list of names that the module assigns to INSTALLED_MODULES."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "INSTALLED_MODULES"]
    for statement in tree.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id="INSTALLED_MODULES")], value=ast.List() | ast.Tuple() as node)
                | ast.AnnAssign(target=ast.Name(id="INSTALLED_MODULES"), value=ast.List() | ast.Tuple() as node)
            ) if len(uses) == 1:
                names = [each.value for each in node.elts if isinstance(each, ast.Constant)]
                if len(names) == len(node.elts) and all(isinstance(each, str) for each in names):
                    return node, [str(each) for each in names]
    return None
