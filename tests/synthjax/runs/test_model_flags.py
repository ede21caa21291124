"""Which flags have no effect on which run."""

from __future__ import annotations

import pytest
from absl import flags

from data_pipeline.console.cli import UserError
from synthjax.configs import important, k_osc, regression
from synthjax.runs.model_flags import refuse_ignored

CONFIGS = {
    "flow": important.get_config(),
    "regression": regression.get_config(),
    "k_osc": k_osc.get_config(),
    "k_osc_regression": k_osc.get_config("model=mse"),
}


def refuse(monkeypatch: pytest.MonkeyPatch, run: str, line: str) -> None:
    """What evaluate does that is called so on the run."""
    values = flags.FlagValues()
    for name, default in {
        "solver": None,
        "plugin": "",
        "preset": "",
        "targets": None,
        "data_root": None,
        "library": "",
    }.items():
        flags.DEFINE_string(name, default, "", flag_values=values)
    for name in ("steps", "rows", "report_sounds", "candidates", "refine", "refine_evaluations"):
        flags.DEFINE_integer(name, 9, "", flag_values=values)
    for name in ("tolerance", "guidance"):
        flags.DEFINE_float(name, None, "", flag_values=values)
    flags.DEFINE_list("guidance_interval", None, "", flag_values=values)
    flags.DEFINE_string("split", "test", "", flag_values=values)
    for name in ("render", "allow_external"):
        flags.DEFINE_bool(name, False, "", flag_values=values)
    values(["evaluate", *line.split()])
    monkeypatch.setattr(flags, "FLAGS", values)
    config = CONFIGS[run].copy_and_resolve_references()
    changed = {name: values[name].value for name in ("solver", "guidance") if values[name].present}
    config.sampling.update(changed)
    refuse_ignored(config)


@pytest.mark.parametrize(
    ("run", "line", "flag"),
    [
        ("flow", "--tolerance=0.1", "--tolerance=0.1"),
        ("flow", "--solver=heun --tolerance=0.1", "--tolerance=0.1"),
        ("flow", "--solver=dopri5 --steps=9", "--steps=9"),
        ("flow", "--guidance=1 --guidance_interval=0.2,0.8", "--guidance_interval=0.2,0.8"),
        ("flow", "--rows=9", "--rows=9"),
        ("flow", "--plugin=x.vst3", "--plugin=x.vst3"),
        ("flow", "--report_sounds=3", "--report_sounds=3"),
        ("flow", "--targets=here --split=test", "--split=test"),
        ("flow", "--targets=here --data_root=there", "--data_root=there"),
        ("flow", "--targets=here --render", "--render"),
        ("flow", "--candidates=3", "--candidates=3"),
        ("flow", "--library=here", "--library=here"),
        ("k_osc", "--render", "--render"),
        ("k_osc", "--plugin=x.vst3", "--plugin=x.vst3"),
        ("k_osc", "--data_root=here", "--data_root=here"),
        ("k_osc", "--tolerance=0.1", "--tolerance=0.1"),
        *(
            (run, flag, flag)
            for run in ("regression", "k_osc_regression")
            for flag in ("--solver=rk4", "--steps=5", "--tolerance=0.1", "--guidance=0.0", "--guidance_interval=0,1")
        ),
    ],
)
def test_a_flag_that_has_no_effect_is_refused(monkeypatch: pytest.MonkeyPatch, run: str, line: str, flag: str) -> None:
    with pytest.raises(UserError, match=f"^{flag} would be ignored: "):
        refuse(monkeypatch, run, line)


@pytest.mark.parametrize(
    ("run", "line"),
    [
        *((run, "") for run in CONFIGS),
        *((run, "--norender --preset=") for run in CONFIGS),
        ("flow", "--steps=9 --guidance=0 --guidance_interval=0.2,0.8"),
        ("flow", "--solver=dopri5 --tolerance=0.1"),
        ("flow", "--split=val --data_root=there --allow_external"),
        ("regression", "--targets=drawn --rows=3 --plugin=x.vst3 --preset=y --candidates=3 --refine=3"),
        ("k_osc", "--split=val --rows=3 --steps=9 --guidance=3"),
        ("k_osc_regression", "--split=val --rows=3"),
    ],
)
def test_a_flag_that_has_an_effect_is_not(monkeypatch: pytest.MonkeyPatch, run: str, line: str) -> None:
    refuse(monkeypatch, run, line)


def test_a_command_need_not_have_all_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """predict has no --rows, --split or --targets."""
    values = flags.FlagValues()
    flags.DEFINE_bool("render", True, "", flag_values=values)
    values(["predict"])
    monkeypatch.setattr(flags, "FLAGS", values)
    refuse_ignored(CONFIGS["flow"])
