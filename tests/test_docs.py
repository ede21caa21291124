"""README and docs name commands, flags, config keys, files and headings that exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache

import ml_collections
import pytest

from synthjax.configs import important, k_osc, render_surge_simple
from tests.helpers import REPOSITORY

PAGES = {
    str(file.relative_to(REPOSITORY)): file.read_text(encoding="utf-8")
    for file in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
}
# Programs of others, whose arguments are not checked.
OTHERS = {".", "cp", "curl", "docker", "eval", "gcloud", "git", "ldd", "mpirun", "ovhai", "scancel", "sky", "sreport"}
OTHERS |= {"squeue", "srun", "ssh-add", "ssh-keygen", "tail", "tensorboard"}
# Options of these programs that pages name alone.
OTHERS_OPTIONS = {"--ntasks-per-node", "--signal", "--array"}
# The Python command that a shell script starts, and the flags that the script adds.
STARTED = {
    "scripts/launch.sh": ("synthjax.train", "--workdir=DIR"),
    "scripts/slurm/render.sbatch": ("data_pipeline.render_shards", "--shards=0"),
    "scripts/render_to_bucket.sh": ("data_pipeline.render_shards", "--shards=0", "--output=DIR"),
}
OUR_FOLDERS = "configs|data_pipeline|docs|scripts|synthjax|tests"
# Texts with a fault, and words that name it.
WRONG = [
    ("```sh\npython -m synthjax.train --config=configs/flow_100k.py --workdir=DIR --stepz=3\n```", "stepz"),
    ("```sh\npython -m synthjax.train --config=configs/k_osc.py \\\n --workdir=DIR --config.optim.rl=3\n```", "rl"),
    ("```sh\npython -m synthjax.evaluate --workdir=DIR --split=all\n```", "--split"),
    ("```sh\npython -m synthjax.train --config=configs/flow_100k.py:lr_lower --workdir=DIR\n```", "lr_lower"),
    ("the config `configs/flow_100k.py:lr_lower`", "lr_lower"),
    ("```sh\npython scripts/nothing.py --workdir=DIR\n```", "there is no scripts/nothing.py"),
    ("Run `python -m data_pipeline.nothing DATA`.", "there is no data_pipeline.nothing"),
    ("```sh\nmake quickstop\n```", "make quickstop"),
    ("```sh\nmake bench SPEED=1\n```", "make SPEED"),
    ("`pip install 'synthjax[gpu]'`", "synthjax[gpu]"),
    ("```sh\nfrobnicate DATA\n```", "unknown program frobnicate"),
    ("`scripts/launch.sh configs/flow_100k.py --moon`", "scripts/launch.sh --moon"),
    ("`scripts/launch.sh configs/flow_100k.py --slurm -- --config.train.stops=1`", "stops"),
    ("`sbatch scripts/slurm/render.sbatch --config=configs/render_surge_simple.py --outputs=DIR`", "outputs"),
    ("`scripts/nothing.sh start`", "scripts/nothing.sh"),
    ("the flag `--frobnicate=3`", "flag --frobnicate=3"),
    ("`--config.optim.rl=3`", "flag --config.optim.rl=3"),
    ("`train.stops=3`", "config key train.stops=3"),
    ("[text](docs/nothing.md)", "link docs/nothing.md"),
    ("[text](docs/data.md#nothing)", "link docs/data.md#nothing"),
    ("see `synthjax/nothing.py`", "path synthjax/nothing.py"),
]


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and body of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """The pieces of code within the prose of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a page, as words: its shell blocks, and the pieces of code that begin like a command."""
    shell = "".join(body for language, body in blocks(text) if language == "sh")
    lines = shell.replace("\\\n", " ").splitlines()
    begins = r"([A-Z_]+=\S+ )?(python|make|pip|sbatch|sh|scripts/\w+\.sh) "
    lines += [span for span in spans(text) if re.match(begins, span)]
    for line in lines:
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
                continue
            while words and re.match(r"[A-Z_]+=", words[0]):  # Sets a variable of the environment.
                words.pop(0)
            if words:
                yield words
            words = []


def python_commands(text: str) -> Iterator[list[str]]:
    """The Python commands of a page, each a module or script and its arguments; also those that shell scripts start."""
    for words in commands(text):
        script = next((word for word in words if word in STARTED), "")
        if words[0] == "python":
            yield words[2:] if words[1] == "-m" else words[1:]
        elif any(word.startswith(("configs/", "--config=")) for word in words) and script:
            given = words[words.index(script) + 1 :]
            if script == "scripts/launch.sh":
                given = [f"--config={given[0]}", *(given[given.index("--") + 1 :] if "--" in given else [])]
            yield [STARTED[script][0], *(word for word in given if word.startswith("--")), *STARTED[script][1:]]
    for span in spans(text):
        if re.fullmatch(r"configs/(?!render_)\w+\.py(:\S+)?", span) and span != "synthjax/runs/variants.py":
            yield ["synthjax.train", f"--config={span}", "--workdir=DIR"]


@cache
def answers() -> dict[str, tuple[str | None, list[str]]]:
    """By Python command of the pages and of the wrong texts: its error (None if it parses), and its flags' names."""
    asked = [command for text in [*PAGES.values(), *(text for text, _ in WRONG)] for command in python_commands(text)]
    result = subprocess.run(
        [sys.executable, "-m", "tests.parse_commands"],
        input=json.dumps(asked),
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return dict(zip(map(shlex.join, asked), json.loads(result.stdout), strict=True))


def python_faults(text: str) -> Iterator[str]:
    for command in map(shlex.join, python_commands(text)):
        if error := answers()[command][0]:
            yield f"{command}: {error}"


def shell_faults(text: str) -> Iterator[str]:
    """Commands other than Python's: targets and variables of make, extras of pip, options of our scripts."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for words in commands(text):
        program, *arguments = words
        if program == "make":
            for name, is_variable, _ in (word.partition("=") for word in arguments):
                if not re.search(rf"^{re.escape(name)}{' [?]=' if is_variable else ':'}", makefile, re.MULTILINE):
                    yield f"make {name}"
        elif program == "pip":
            for extra in re.findall(r"(?:synthjax|\.)\[(\w+)\]", shlex.join(arguments)):
                if extra not in project["optional-dependencies"]:
                    yield f"pip install synthjax[{extra}]"
        elif program in ("sh", "sbatch") or program.endswith(".sh"):
            script = next((word for word in words if word.startswith("scripts/")), "a script")
            if not (REPOSITORY / script).is_file():
                yield f"{program} {script}"
            elif script not in STARTED or script == "scripts/launch.sh":
                usage = (REPOSITORY / script).read_text(encoding="utf-8")
                for option in arguments[: arguments.index("--")] if "--" in arguments else arguments:
                    if option.startswith("--") and option not in usage:
                        yield f"{script} {option}"
        elif program not in (*OTHERS, "python"):
            yield f"unknown program {program}"


@cache
def config_keys() -> set[str]:
    """All config keys, their sections too."""

    def keys(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
        for name, value in config.items():
            yield prefix + name
            if isinstance(value, ml_collections.ConfigDict):
                yield from keys(value, f"{prefix}{name}.")

    return {key for module in (important, k_osc, render_surge_simple) for key in keys(module.get_config())}


def name_faults(text: str) -> Iterator[str]:
    """Flags and config keys that stand alone in prose."""
    keys, flags = config_keys(), {name for _, names in answers().values() for name in names}
    scripts = "".join(file.read_text(encoding="utf-8") for file in (REPOSITORY / "scripts").rglob("*.sh"))
    for span in spans(text):
        for word in span.split() if span.startswith("--") else []:
            flag = word.split("=")[0]
            if flag.startswith("--config."):
                known = flag.removeprefix("--config.") in keys
            else:
                known = flag.removeprefix("--") in flags or flag in OTHERS_OPTIONS or flag in scripts
            if not known:
                yield f"flag {word}"
        key = re.fullmatch(r"(\w+)\.(?!h5|json|npz)[\w.]+(?:=\S+)?", span)
        if key and key[1] in keys and span.split("=")[0] not in keys:
            yield f"config key {span}"


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def path_faults(page: str, text: str) -> Iterator[str]:
    """Links, anchors and paths that lead nowhere."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match("https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / page).parent / path
        if not file.exists():
            yield f"link {target}"
        elif anchor:
            headings = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8") if path else text, re.MULTILINE)
            if anchor not in map(slug, headings):
                yield f"link {target}"
    for span in spans(text):
        path = span.split(":")[0]
        if re.fullmatch(rf"({OUR_FOLDERS})/[\w./*-]+", path) and not any(REPOSITORY.glob(path)):
            yield f"path {path}"


def faults(page: str, text: str) -> list[str]:
    return [*python_faults(text), *shell_faults(text), *name_faults(text), *path_faults(page, text)]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_right(page: str) -> None:
    assert faults(page, PAGES[page]) == []


@pytest.mark.parametrize(("text", "fault"), WRONG)
def test_a_fault_is_found(text: str, fault: str) -> None:
    found = faults("README.md", text)
    assert any(fault in one for one in found), found


def test_the_map_names_every_folder_and_command() -> None:
    (tree,) = [body for language, body in blocks(PAGES["README.md"]) if not language]
    for package in ("synthjax", "data_pipeline"):
        for path in (REPOSITORY / package).iterdir():
            name = f"{path.name}/" if path.is_dir() else path.name
            if not name.startswith("__"):
                assert re.search(rf"(^|\s){re.escape(name)}\s", tree), f"{package}/{name}"
    for name in re.findall(r"^  (\w+)/ ", tree, re.MULTILINE):
        assert any((REPOSITORY / package / name).is_dir() for package in ("synthjax", "data_pipeline")), name


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_messages_in_the_table_of_symptoms_are_those_of_the_code() -> None:
    code = "\n".join(
        file.read_text(encoding="utf-8")
        for package in ("synthjax", "data_pipeline")
        for file in (REPOSITORY / package).rglob("*.py")
    )
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # Strings over several lines.
    rows = [line.split("|")[1] for line in PAGES["docs/troubleshooting.md"].splitlines() if line.startswith("|")]
    quoted = [message for cell in rows for message in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 10
    for message in quoted:
        for part in re.split("…| N ", message):
            assert part.strip(" ,") in code, message
