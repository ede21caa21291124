"""A study: its plan, what it runs, how it resumes, and its tables."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from data_pipeline.console.cli import UserError, run_command
from synthjax import study as study_module
from synthjax.configs.studies import k_osc
from synthjax.evaluation.study_table import Finished, collect, draw, markdown, write_tables
from synthjax.evaluation.table import PREDICTION, RANDOM, Table, write_table
from synthjax.metrics.parameters import Summary
from synthjax.study import StudyRun, execute, finished, load_study, plan, read_metrics
from synthjax.study import commands as commands_of
from tests.helpers import REPOSITORY, assert_usage_error, run_cli, started, wait_until

CONFIG = REPOSITORY / "configs" / "studies" / "k_osc.py"


@pytest.fixture
def study() -> ml_collections.ConfigDict:
    config = k_osc.get_config("cpu")
    config.grid.update({"model": ("param2tok", "mse"), "k": (2, 4)})
    config.figure.metrics = ("lsd",)
    return config


def metrics(lsd: float, steps: int, count: int = 1_024, random: float = 20.0) -> Table:
    def figures(value: float) -> dict[str, Summary]:
        return {"lsd": Summary(value, value - 1, value + 1, value, count)}

    return Table({"checkpoint": steps}, count, {PREDICTION: figures(lsd), RANDOM: figures(random)})


def measured(folder: Path, run: StudyRun, found: Table) -> None:
    output = folder / run.name / "evaluation" / "test"
    output.mkdir(parents=True)
    write_table(output / "metrics.json", found)


# The plan.


def test_the_whole_grid_is_planned_seed_by_seed(study: ml_collections.ConfigDict) -> None:
    runs = list(plan(study))
    assert len({run.name for run in runs}) == len(runs) == 2 * 2 * 2 * 2
    assert [run.seed for run in runs] == [0] * 8 + [1] * 8
    assert runs[0].argument == "symmetric,k=2,model=param2tok"
    assert runs[0].name == "task=symmetric-k=2-model=param2tok-seed=0"


def test_commands_are_those_that_a_person_would_type(study: ml_collections.ConfigDict, tmp_path: Path) -> None:
    run = next(plan(study))
    train, evaluate = commands_of(study, tmp_path, run)
    assert train[:2] == ["synthjax.train", "--config=configs/k_osc.py:symmetric,k=2,model=param2tok"]
    assert f"--workdir={tmp_path / run.name}" in train
    assert {"--config.seed=0", "--config.data.batch_size=64", "--config.train.steps=1200"} <= set(train)
    assert evaluate[0] == "synthjax.evaluate"
    assert {"--split=test", "--rows=1024", "--checkpoint=latest"} <= set(evaluate)


@pytest.mark.parametrize("arg", ["", "cpu"])
def test_every_override_is_a_key_of_the_experiments(arg: str) -> None:
    from synthjax.configs.k_osc import get_config

    for key, value in study_module._flat(k_osc.get_config(arg).overrides):
        config = get_config("model=mse")
        for name in key.split("."):
            config = config[name]
        assert isinstance(config, type(value)), key


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no get_config"), ("import ml_collections\nget_config = lambda arg: ml_collections.ConfigDict()", "no grid")],
)
def test_files_that_are_no_studies_are_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "study.py").write_text(text)
    with pytest.raises(UserError, match=said):
        load_study(str(tmp_path / "study.py"))


def test_usage_is_told(tmp_path: Path) -> None:
    assert_usage_error(run_cli("synthjax.study", f"--workdir={tmp_path}"), "usage:")
    missing = run_cli("synthjax.study", tmp_path / "none.py", f"--workdir={tmp_path}")
    assert_usage_error(missing, "there is no study")
    variant = run_cli("synthjax.study", f"{CONFIG}:gpu", f"--workdir={tmp_path}")
    assert_usage_error(variant, "unknown variant 'gpu'", "cpu")


# Running and resuming.


def test_a_run_is_done_when_all_its_steps_are_measured(study: ml_collections.ConfigDict, tmp_path: Path) -> None:
    runs = list(plan(study))
    steps = study.overrides.train.steps
    measured(tmp_path, runs[0], metrics(3.0, steps))
    measured(tmp_path, runs[1], metrics(3.0, steps - 1))
    measured(tmp_path, runs[2], metrics(3.0, steps, count=7))
    (tmp_path / runs[3].name / "evaluation" / "test").mkdir(parents=True)
    (tmp_path / runs[3].name / "evaluation" / "test" / "metrics.json").write_text("{")
    assert [one.choices for one in finished(study, tmp_path, runs)] == [runs[0].choices]


def test_only_what_is_not_done_is_run(
    study: ml_collections.ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, ran = list(plan(study)), []
    for run in runs[:-1]:
        measured(tmp_path, run, metrics(3.0, study.overrides.train.steps))

    def fake(target: str, arguments: list[str]) -> int:
        ran.append(target)
        if target == "synthjax.evaluate":
            measured(tmp_path, runs[-1], metrics(2.0, study.overrides.train.steps))
        return 0

    monkeypatch.setattr(study_module, "run_command", fake)
    monkeypatch.setattr(study_module, "load_study", lambda name: study)
    monkeypatch.setattr(study_module.flags, "FLAGS", ml_collections.ConfigDict({"workdir": str(tmp_path)}))
    assert study_module.main(["study", "configs"]) == 0
    assert ran == ["synthjax.train", "synthjax.evaluate"]
    with (tmp_path / "table.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + len(runs)


@pytest.mark.parametrize("code", [1, 130])
def test_a_command_that_fails_ends_the_study_with_its_code(
    study: ml_collections.ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(study_module, "run_command", lambda target, arguments: code)
    assert execute(study, tmp_path, next(plan(study))) == code


def test_training_that_stopped_in_order_is_not_taken_for_done(
    study: ml_collections.ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "run_command", lambda target, arguments: 0)
    with pytest.raises(UserError, match="stopped short of 1200 steps: run the study again"):
        execute(study, tmp_path, next(plan(study)))
    assert read_metrics(study, tmp_path, next(plan(study))) is None


def test_ctrl_c_is_left_to_the_command(tmp_path: Path) -> None:
    """The command sees the signal, takes its time, and its exit code comes back."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: (time.sleep(1), sys.exit(7)))\n"
        "print('ready', file=sys.stderr, flush=True)\n"
        "time.sleep(300)\n"
    )
    run = "from data_pipeline.console.cli import run_command"
    program = f"import sys; {run}; sys.exit(run_command({str(script)!r}, []))"
    stderr = tmp_path / "stderr"
    with started(["-c", program], stderr, start_new_session=True) as process:
        wait_until(lambda: "ready" in stderr.read_text(), process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=300) == 7


def test_the_handler_of_before_is_put_back(tmp_path: Path) -> None:
    script = tmp_path / "quick.py"
    script.write_text("raise SystemExit(3)")
    before = signal.getsignal(signal.SIGINT)
    assert run_command(str(script), []) == 3
    assert signal.getsignal(signal.SIGINT) is before


# Tables and figure.


def some_runs() -> list[Finished]:
    return [
        Finished({"task": task, "k": k, "model": model}, seed, metrics(lsd + k + seed, 10, random=20.0 + k + seed))
        for seed in (0, 1)
        for task in ("symmetric", "asymmetric")
        for k in (2, 4)
        for model, lsd in (("param2tok", 1.0), ("mse", 5.0))
    ]


def test_seeds_are_collected_and_random_answers_counted_once_a_seed() -> None:
    experiments = {tuple(one.choices.values()): one.means for one in collect(some_runs(), "model")}
    assert experiments["symmetric", 4, "mse"] == {"lsd": [9.0, 10.0]}
    assert experiments["asymmetric", 2, "random"] == {"lsd": [22.0, 23.0]}
    assert len(experiments) == 2 * 2 * 3


def test_the_markdown_table_has_means_and_spreads(study: ml_collections.ConfigDict) -> None:
    text = markdown(study, list(collect(some_runs(), "model")))
    assert "1,200 steps a run, 1,024 held-out rows a seed" in text
    assert "| task | k | model | seeds | lsd |" in text
    assert "| symmetric | 4 | mse | 2 | 9.5 ± 0.5 |" in text
    assert markdown(study, []) == ""


def test_the_csv_has_a_line_a_run_with_its_interval(study: ml_collections.ConfigDict, tmp_path: Path) -> None:
    write_tables(tmp_path, study, some_runs())
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 16
    assert lines[0] == {
        "task": "symmetric", "k": "2", "model": "param2tok", "seed": "0", "steps": "10", "rows": "1024",
        "lsd": "3.0", "lsd_low": "2.0", "lsd_high": "4.0",
    }  # fmt: skip


def test_the_figure_has_a_panel_a_task_and_a_line_a_model(study: ml_collections.ConfigDict, tmp_path: Path) -> None:
    figure = draw(study, list(collect(some_runs(), "model")))
    panels = figure.axes
    assert [axes.get_title() for axes in panels] == ["symmetric", "asymmetric"]
    for axes in panels:
        lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
        assert list(lines) == ["param2tok", "mse", "random"]
        np.testing.assert_allclose(lines["mse"], [[2, 7.5], [4, 9.5]])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["param2tok", "mse", "random"]
    write_tables(tmp_path, study, [])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


# A real one.


@pytest.mark.slow
def test_a_small_study_runs_resumes_and_is_tabled(tmp_path: Path) -> None:
    text = CONFIG.read_text() + (
        "\n_whole = get_config\n\n\ndef get_config(arg=''):\n    c = _whole('cpu')\n"
        "    c.grid.update({'model': ('equivariant', 'mse'), 'k': (2,), 'task': ('symmetric',)})\n    c.seeds = (0,)\n"
        "    c.rows = 40\n    c.overrides.train.steps, c.overrides.data.batch_size = 4, 16\n"
        "    c.overrides.optim.warmup_steps, c.overrides.sampling.steps = 1, 2\n"
        "    c.overrides.model = {'encoder': {'channels': 4, 'stages': 1}}\n    return c\n"
    )
    (tmp_path / "study.py").write_text(text)
    arguments = ("synthjax.study", tmp_path / "study.py", f"--workdir={tmp_path / 'runs'}")
    first = run_cli(*arguments, cwd=REPOSITORY)
    assert first.returncode == 0, first.stderr
    table = (tmp_path / "runs" / "table.md").read_text()
    assert all(f"| symmetric | 2 | {model} | 1 |" in table for model in ("equivariant", "mse", "random"))
    again = run_cli(*arguments, cwd=REPOSITORY)
    assert again.returncode == 0
    assert "$ python" in first.stdout
    assert "$ python" not in again.stdout
