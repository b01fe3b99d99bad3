"""The command line, as a user meets it: every command in a process of its own, or nearly so."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest

from jmeta import checkpoints, cli, data, runs
from jmeta.configuration import Configuration, LEARNERS, Protocol, Source, SOURCES
from jmeta.metrics import read_metrics

SINUSOID = [
    *("train", "--data", "sinusoid", "--shots", "5", "--queries", "5", "--batch-size", "2"),
    *("--inner-rate", "0.01", "--log-every", "5", "--save-every", "20", "--episodes", "5"),
]


def jmeta(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "jmeta", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def succeeded(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run on sinusoids, begun and ended by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    out = succeeded(jmeta(*SINUSOID, "--steps", 400, "--out", folder))
    *validations, end = out.splitlines()
    assert end == f"trained for 400 meta-steps; evaluate with: jmeta evaluate {folder}"
    assert len(validations) == 20  # where there is no terminal for a progress bar
    assert re.fullmatch(r"step 400: validation mean squared error \S+ ± \S+ \(95 % CI, 5 episodes\)", validations[-1])
    return folder


@pytest.mark.parametrize("arguments", [["learners"], ["--help"]])
def test_a_closed_pipe_ends_a_command_quietly_with_the_code_of_its_signal(arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = jmeta(*arguments, env=environment)
    process.stdout.close()
    _, told = process.communicate()
    assert (told, process.returncode) == ("", 141)


def test_a_run_killed_again_and_again_ends_with_the_parameters_of_one_that_was_not(run_folder, tmp_path):
    folder = tmp_path / "killed"
    process = jmeta(*SINUSOID, "--steps", 400, "--out", folder)

    def has_reached(step):
        lines = read_metrics(folder)
        return lines and lines[-1]["step"] >= step

    def is_saving():
        return has_reached(200) and any((folder / "checkpoints").glob("*tmp*"))

    for moment in (lambda: has_reached(30), lambda: has_reached(150), is_saving):
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and not moment():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        process = jmeta("train", "--resume", folder)
    succeeded(process)
    _, killed = runs.load(folder)
    _, whole = runs.load(run_folder)
    assert killed.step == whole.step == 400
    jax.tree.map(np.testing.assert_array_equal, (killed.params, killed.opt_state), (whole.params, whole.opt_state))
    np.testing.assert_array_equal(jax.random.key_data(killed.key), jax.random.key_data(whole.key))
    assert [line["step"] for line in read_metrics(folder)] == [line["step"] for line in read_metrics(run_folder)]


def test_a_half_written_checkpoint_is_not_taken_for_a_whole_one(run_folder, tmp_path):
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", run_folder, folder], check=True)
    newest = folder / "checkpoints" / "400"
    half = folder / "checkpoints" / "420.orbax-checkpoint-tmp"
    subprocess.run(["cp", "-r", newest, half], check=True)
    for file in half.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    assert checkpoints.latest_step(folder / "checkpoints") == 400
    assert runs.load(folder)[1].step == 400
    assert cli.main(["train", "--resume", str(folder), "--steps", "420"]) == 0  # and it is written anew
    assert runs.load(folder)[1].step == 420


def test_evaluate_prints_one_line_and_writes_the_whole_report(run_folder, tmp_path, capsys):
    path = tmp_path / "report.json"
    assert cli.main(["evaluate", str(run_folder), "--episodes", "20", "--out", str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("step 400: mean squared error ")
    assert printed.endswith("(95 % CI, 20 episodes)\n")
    report = json.loads(path.read_text())
    assert (report["episodes"], report["shots"]) == (20, 5)
    assert (report["run"], report["step"], report["data"], report["seed"]) == (str(run_folder), 400, "sinusoid", 0)


def test_a_report_that_cannot_be_written_is_printed(run_folder, tmp_path, capsys):
    out = tmp_path / ("x" * 254)  # too long with the ending of a file that is not whole
    assert cli.main(["evaluate", str(run_folder), "--episodes", "5", "--out", str(out)]) == 2
    assert capsys.readouterr().out.endswith("(95 % CI, 5 episodes)\n")


def test_shots_may_differ_in_evaluation(run_folder, tmp_path, capsys):
    path = tmp_path / "report.json"
    assert cli.main(["evaluate", str(run_folder), "--shots", "7", "--episodes", "5", "--out", str(path)]) == 0
    assert json.loads(path.read_text())["shots"] == 7


def test_tasks_are_divided_over_all_devices_and_options_are_passed_on(run_folder, tmp_path, monkeypatch):
    used, state = [], runs.load(run_folder)[1]
    monkeypatch.setattr(cli, "fit", lambda *_, **options: used.append(options) or state)
    monkeypatch.setattr(cli, "evaluate", lambda *_, **options: used.append(options))
    options = "--steps 400 --seed 7 --nonfinite raise --max-task-norm 5 --batch-size 3 --episodes 4 --save-every 40"
    assert cli.main([*SINUSOID, *options.split(), "--out", str(tmp_path / "run")]) == 0
    assert cli.main(["evaluate", str(run_folder), "--seed", "8", "--episodes", "9"]) == 0
    trained, evaluated = used
    assert trained["devices"] == evaluated["devices"] == jax.devices()
    assert (trained.pop("key"), evaluated.pop("key")) == (jax.random.key(7), jax.random.key(8))
    expected = {"steps": 400, "nonfinite": "raise", "max_task_norm": 5.0, "batch_size": 3, "episodes": 4}
    assert {**expected, "save_every": 40}.items() <= trained.items()
    assert evaluated["episodes"] == 9


def test_a_run_is_trained_validated_and_tested_each_on_its_own_split(run_folder, tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Sampler:
        split: str

        def __call__(self, key):
            return data.sinusoid()(key)

    used, state = {}, runs.load(run_folder)[1]
    source = SOURCES["sinusoid"]._replace(sampler=lambda sizes, split, data_dir: Sampler(split))
    monkeypatch.setitem(SOURCES, "sinusoid", source)
    monkeypatch.setattr(
        cli, "fit", lambda *given, validation, **_: used.update(train=given[2], val=validation) or state
    )
    monkeypatch.setattr(cli, "evaluate", lambda *given, **_: used.update(test=given[2]))
    assert cli.main([*SINUSOID, "--steps", "400", "--out", str(tmp_path / "run")]) == 0
    assert cli.main(["evaluate", str(run_folder)]) == 0
    assert {use: sampler.split for use, sampler in used.items()} == {"train": "train", "val": "val", "test": "test"}


@pytest.fixture(scope="module")
def protonet_folder(tmp_path_factory):
    """A prototypical network on glyphs, hardly trained."""
    folder = tmp_path_factory.mktemp("runs") / "protonet"
    options = "train --learner protonet --model mlp --ways 3 --queries 2 --batch-size 1 --steps 2 --log-every 1"
    assert cli.main([*options.split(), "--save-every", "1", "--episodes", "2", "--out", str(folder)]) == 0
    return folder


def test_a_metric_learner_is_evaluated_at_other_ways(protonet_folder, tmp_path):
    path = tmp_path / "report.json"
    arguments = f"evaluate {protonet_folder} --ways 7 --shots 2 --episodes 5 --out {path}"
    assert cli.main(arguments.split()) == 0
    report = json.loads(path.read_text())
    assert (report["ways"], report["shots"]) == (7, 2)


def test_a_baseline_is_trained_and_evaluated(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (24, 28, 28, 1), dtype=np.uint8)
    table = data.class_table(images, np.repeat(np.arange(6), 4))

    def sampler(sizes, split, data_dir):
        return data.episodes(table, **sizes)

    monkeypatch.setitem(SOURCES, "table", Source("six classes", sampler, classes=6))
    options = "--data table --queries 2 --width 4 --strided True --steps 2 --batch-size 2 --episodes 2"
    options += " --max-task-norm None"
    folder = str(tmp_path / "run")
    assert cli.main(["train", "--learner", "baseline", *options.split(), "--out", folder]) == 0
    assert cli.main(["evaluate", folder, "--episodes", "2"]) == 0
    assert runs.load(folder)[1].step == 2


def test_a_run_goes_on_from_another_folder_and_after_its_data_moved(tmp_path, monkeypatch):
    read = []

    def sampler(sizes, split, data_dir):
        read.append(data_dir)
        return data.glyphs(**sizes)

    monkeypatch.setitem(SOURCES, "moved", Source("glyphs read from a folder", sampler, files=True))
    monkeypatch.chdir(tmp_path)
    options = "--learner protonet --model mlp --ways 2 --shots 1 --queries 1 --batch-size 1 --episodes 2"
    assert cli.main(["train", "--data", "moved", "--data-dir", "here", *options.split(), "--steps=1", "--out=run"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli.main(["train", "--resume", "../run", "--steps", "2"]) == 0
    assert cli.main(["train", "--resume", "../run", "--steps", "3", "--data-dir", "there"]) == 0
    assert cli.main(["evaluate", "../run", "--episodes", "2"]) == 0
    there = tmp_path / "elsewhere" / "there"
    assert list(dict.fromkeys(read)) == [str(tmp_path / "here"), str(there)]
    assert read[-1] == str(there)


def test_the_rate_of_a_run_falls_to_zero_if_it_is_told_to(tmp_path):
    options = "--steps 20 --decay-steps 20 --batch-size 2 --log-every 1 --save-every 1 --episodes 2"
    assert cli.main(["train", "--data", "sinusoid", *options.split(), "--out", str(tmp_path)]) == 0
    last, before = (runs.load(tmp_path, step=step)[1].params for step in (20, 19))
    moved = max(abs(leaf).max() for leaf in jax.tree.leaves(optax.tree.sub(last, before)))
    assert 0 < moved < 1e-5  # of a rate of 1e-3


def test_what_fit_saved_is_not_taken_for_a_run_of_the_command(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"what fit saved there is read by jmeta\.checkpoints\.restore"):
        runs.load(tmp_path)


def test_a_run_of_other_ways_is_told_of_the_inputs_alone(protonet_folder, capsys):
    assert cli.main(["evaluate", str(protonet_folder), "--data", "sinusoid"]) == 2
    assert "was trained on inputs of shape (28, 28, 1), but sinusoid has" in capsys.readouterr().err


@pytest.mark.long
def test_a_run_is_evaluated_on_other_data_of_its_shape(protonet_folder, omniglot_files, capsys):
    arguments = f"evaluate {protonet_folder} --data omniglot --data-dir {omniglot_files / 'tfds'} --episodes 5"
    assert cli.main(arguments.split()) == 0
    assert "5 episodes" in capsys.readouterr().out


def test_lists_name_every_learner_and_source(capsys):
    assert cli.main(["learners"]) == 0
    assert cli.main(["data", "list"]) == 0
    printed = capsys.readouterr().out
    for name in (*LEARNERS, *SOURCES):
        assert f"\n{name} " in f"\n{printed}"
    assert "Finn et al., 2017" in printed


def test_help_documents_every_field(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "--help"])
    out = capsys.readouterr().out
    told = {field.name for of in (cli.Train, Configuration, Protocol) for field in dataclasses.fields(of)}
    for name in told - {"configuration", "protocol"}:
        assert f"--{name.replace('_', '-')} " in out
    assert "Classes in a task." in out


MISTAKES = {
    "train --learner mamml --out {new}": "learner 'mamml' is unknown; did you mean 'maml'?",
    "train --data omniglott --out {new}": "data 'omniglott' is unknown; did you mean 'omniglot'?",
    "train --model conv5 --out {new}": "model 'conv5' is unknown; did you mean 'conv4'?",
    "train --out {new} --ways 1": "ways is 1; it must be a whole number, at least 2",
    "train --out {new} --shots 0": "shots is 0",
    "train --out {new} --steps -5": "steps is -5",
    "train --out {new} --ways five": "Error parsing --ways: no type matching {{None}}|INT could be instantiated",
    "train --out {new} --leaner maml": "Unrecognized options: --leaner",
    "train --learner baseline --data omniglot --classes 4000 --out {new}": "classes is 4000, but omniglot has 4112",
    "train --learner protonet --context 4 --out {new}": "context was given, but protonet adapts none; cavia does",
    "train --learner baseline --classes 9 --out {new}": "but glyphs has new ones in every task; use --data om",
    "train --learner protonet --data sinusoid --out {new}": "protonet classifies",
    "train --data sinusoid --model conv4 --out {new}": "inputs have shape (10, 1); a convolutional network needs",
    "train --model conv4 --width 0 --out {new}": "width is 0; a layer's width",
    "train --learning-rate nan --out {new}": "learning_rate is nan; it must be a finite number",
    "train --steps 30 --decay-steps 20 --out {new}": "steps is 30, but after decay_steps, 20, the rate is zero",
    "evaluate {unvalidated} --best": "--best was given, but no checkpoint in {unvalidated} was validated",
    "train --resume {run} --data_dir {new}": "--data-dir {new} was given, but sinusoid reads no files",
    "train --decay-steps 0 --out {new}": "decay_steps is 0; it must be a whole number, at least 1",
    "train --learning-rate 0 --out {new}": "learning_rate is 0.0; it must be above 0",
    "train --max-task-norm -1 --out {new}": "max_task_norm is -1.0; it must be above 0, or infinite for no bound",
    "train --out {run}/run.json": "run.json",
    "evaluate {run} --out {new}/x.json": "is in a folder that does not exist",
    "train --learner protonet --inner-rate 0.1 --out {new}": "inner_rate was given, but protonet has no such option",
    "train": "train needs --out",
    "train --out {run}": "already holds a run; continue it with: jmeta train --resume {run}",
    "train --resume {run} --ways 6": "only --steps and --data-dir may be given with it, not --ways",
    "train --resume {run} --seed=0": "only --steps and --data-dir may be given with it, not --seed",
    "train --resume {run} --steps 3": "steps is 3, but the run in {run} has already taken 400; it must be at least 400",
    "train --data sinusoid --ways 5 --out {new}": "--ways 5 was given, but sinusoid has no classes",
    "train --data-dir {new} --out {new}": "--data-dir {new} was given, but glyphs reads no files",
    "evaluate {run} --data-dir {new}": "--data-dir {new} was given, but sinusoid reads no files",
    "train --resume {run} --data-dir {new}": "--data-dir {new} was given, but sinusoid reads no files",
    "train --seed 99999999999999999999 --out {new}": "it must be a whole number of 64 bits",
    "evaluate {run} --seed 99999999999999999999": "it must be a whole number of 64 bits",
    "evaluate {run} --ways 3": "--ways 3 was given, but sinusoid has no classes",
    "evaluate {run} --out {run}": "is not a regular file; it must be one, or not exist yet",
    "evaluate {run} --out /dev/null": "--out /dev/null is not a regular file; it must be one, or not exist yet",
    "demo --out {new}/demo.png": "its folder does not exist",
    "demo --out demo.xyz": "it must end in one of",
    "train --resume {new}": "there is no run of jmeta train in {new}",
    "evaluate {new}": "run.json is missing; start one: jmeta train --out {new}",
    "evaluate {run} --episodes 1": "episodes is 1",
    "evaluate {run} --data glyphs": "was trained on inputs of shape (1,), but glyphs has inputs of shape (28, 28, 1)",
    "data prepare omniglot --archives {new} --data-dir {new}": "images_background.zip",
    "": "Expected one of",
}


@pytest.mark.filterwarnings("ignore")  # TFDS warns on import
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line_with_exit_code_2(mistake, run_folder, tmp_path, capsys):
    names = {"new": tmp_path / "new", "run": run_folder, "unvalidated": tmp_path / "unvalidated"}
    (tmp_path / "unvalidated").mkdir()
    shutil.copy(run_folder / "run.json", tmp_path / "unvalidated")
    assert cli.main(mistake.format(**names).split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jmeta: ")
    assert err.count("\n") == 1
    assert MISTAKES[mistake].format(**names) in err


def test_a_link_that_leads_nowhere_is_told_before_anything_is_evaluated(run_folder, tmp_path, capsys):
    gone, circle = tmp_path / "gone.json", tmp_path / "circle.json"
    gone.symlink_to(tmp_path / "missing" / "report.json")
    circle.symlink_to(circle)
    for out, told in ((gone, "is in a folder that does not exist"), (circle, "leads nowhere")):
        assert cli.main(["evaluate", str(run_folder), "--out", str(out)]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("mistake", ["--ways 1", "--width 0", "--data sinusoid --model conv4", "--steps -1"])
def test_a_mistake_leaves_no_folder_behind(tmp_path, mistake):
    assert cli.main(["train", *mistake.split(), "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_of_another_network_is_refused(run_folder):
    _, state = runs.load(run_folder)
    wider = state._replace(params=jax.tree.map(lambda leaf: np.zeros((*leaf.shape, 2)), state.params))
    with pytest.raises(ValueError, match=r"is of another learner, model or optimizer: its .* is float32"):
        checkpoints.restore(run_folder / "checkpoints", wider)


def test_a_log_that_cannot_be_written_does_not_end_a_run(tmp_path):
    options = [*SINUSOID, "--steps", "20", "--out", str(tmp_path / "run")]
    with open("/dev/full", "w") as full:
        process = subprocess.run([sys.executable, "-m", "jmeta", *options], stdout=full, stderr=subprocess.DEVNULL)
    assert process.returncode == 2  # as its last line cannot be written either
    assert checkpoints.latest_step(tmp_path / "run" / "checkpoints") == 20


def test_the_two_newest_checkpoints_are_kept_and_the_best(run_folder, capsys):
    folder = run_folder / "checkpoints"
    losses = {line["step"]: line["validation_loss"] for line in read_metrics(run_folder) if "validation_loss" in line}
    best = min(losses, key=losses.get)
    assert checkpoints.best_step(folder) == best
    assert {int(path.name) for path in folder.iterdir()} == {380, 400, best}
    assert runs.load(run_folder, step=best)[1].step == best
    assert cli.main(["evaluate", str(run_folder), "--best", "--episodes", "20"]) == 0
    assert capsys.readouterr().out.startswith(f"step {best}: mean squared error ")


def test_a_run_is_evaluated_after_other_inner_steps(run_folder, tmp_path):
    losses = []
    for steps in (0, 1, 3):
        path = tmp_path / f"{steps}.json"
        arguments = ["evaluate", str(run_folder), "--test-steps", str(steps), "--episodes", "200", "--out", str(path)]
        assert cli.main(arguments) == 0
        losses.append(json.loads(path.read_text())["loss"])
    assert losses[1] < losses[0]  # after one, as it was trained; from a start so poor three overshoot on some tasks
    assert losses[2] not in losses[:2]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [(FloatingPointError("not finite"), 1, "jmeta: not finite\n"), (KeyboardInterrupt(), 130, "jmeta: interrupted\n")],
)
def test_a_run_that_diverged_and_an_interrupt_have_codes_of_their_own(monkeypatch, capsys, error, code, told):
    def run(command):
        raise error

    monkeypatch.setattr(cli, "run", run)
    assert cli.main(["learners"]) == code
    assert capsys.readouterr().err == told


def test_a_training_that_a_signal_stops_ends_with_a_code_of_its_own(tmp_path):
    process = jmeta(*SINUSOID, "--steps", 10**7, "--save-every", 10**6, "--out", tmp_path)
    while process.poll() is None and len(read_metrics(tmp_path)) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert (process.returncode, err) == (130, "jmeta: interrupted\n")
    assert out.endswith(f"continue with: jmeta train --resume {tmp_path}\n")


def test_a_folder_with_metrics_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert cli.main([*SINUSOID, "--out", str(tmp_path)]) == 2
    assert "holds metrics.jsonl that jmeta train did not write" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("text", ["{", "[]", '{"configuration": {}}'])
def test_a_damaged_run_is_told_by_the_name_of_its_file(tmp_path, capsys, text):
    (tmp_path / "run.json").write_text(text)
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert f"{tmp_path}/run.json is not what `jmeta train` writes" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_told_by_the_name_of_its_folder(run_folder, tmp_path):
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", run_folder, folder], check=True)
    for file in (folder / "checkpoints" / "400" / "state").rglob("*"):
        if file.is_file():
            os.truncate(file, 0)
    with pytest.raises(ValueError, match=f"{folder}/checkpoints/400 cannot be read"):
        runs.load(folder)
    subprocess.run(["rm", "-r", folder / "checkpoints" / "400"], check=True)
    assert runs.load(folder)[1].step == 380


def test_another_configuration_in_a_runs_folder_is_refused(run_folder, tmp_path, capsys):
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", run_folder, folder], check=True)
    path = folder / "run.json"
    path.write_text(path.read_text().replace('"sinusoid"', '"glyphs"'))
    assert cli.main(["evaluate", str(folder)]) == 2
    assert "are of another run: its data is 'sinusoid', not 'glyphs'" in capsys.readouterr().err


def test_a_mistake_in_a_process_of_its_own_has_no_traceback():
    process = jmeta("train", "--learner", "protonets", "--out", "/nowhere")
    _, err = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in err
    assert "did you mean 'protonet'" in err


def test_an_infinite_bound_is_none_in_the_run_s_file_which_goes_on_with_it(tmp_path):
    begin = (*SINUSOID, "--model", "mlp", "--max-task-norm", "inf", "--steps", "0", "--out", str(tmp_path / "run"))
    assert cli.main(list(begin)) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["configuration"]["max_task_norm"] is None
    assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 0
