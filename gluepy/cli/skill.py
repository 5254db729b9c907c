"""`gluepy skill`: a guide for coding agents that run experiments in the project."""

from __future__ import annotations

from pathlib import Path

from gluepy.cli.invocation import Invocation
from gluepy.cli.text import printable, say, tell
from gluepy.conf.dags import list_dags
from gluepy.errors import OptionError

_TEMPLATE = Path(__file__).with_name("templates") / "skill.md-tpl"


def write_skill(invocation: Invocation, name: str | None, *, force: bool) -> int:
    """Write the guide to the file `name`, which must not be there unless `force`, or to stdout."""
    settings = invocation.settings()
    dags = sorted(list_dags(settings), key=lambda each: each.label)
    rows = [f"- `gluepy run {printable(each.label)}`: {printable(each.about or each.name)}" for each in dags]
    files = [f"`{printable(name)}`" for name in settings.CONTEXT_FILES]
    text = _TEMPLATE.read_text(encoding="utf-8").format(
        project="\n".join(rows) or "No DAG is defined yet: `gluepy list` shows those there are.",
        storage=printable(settings.STORAGE_ROOT),
        runs=printable(settings.RUNS_ROOT),
        context=" and ".join(files) or "the context (there is no context file yet)",
    )
    if name is None:
        say(*text.splitlines())
        return 0
    file = Path(name)
    if file.exists() and not force:
        raise OptionError("FILE", f"{file} is there already", "write over it with --force, or give another")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptionError("FILE", f"cannot write {file}: {error.strerror}", "give another") from None
    tell(f"wrote {file}")
    return 0
