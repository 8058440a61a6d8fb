"""Subliminal transfer: the toy's arithmetic against NumPy, what must be exact, and the whole command."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from sklearn.datasets import load_digits

from distill_jax import main
from distill_jax.data import images
from distill_jax.doublebind.stages import Subliminal, subliminal_students
from distill_jax.models import mlp
from distill_jax.models.mlp import MLPConfig
from distill_jax.reports import goodput_summary
from distill_jax.reports import subliminal_page as page
from distill_jax.reports import subliminal_summary as shows
from distill_jax.statistics.conclusions import State
from tests.programs import finished_once
from tests.spoil import kept_in

ROOT = Path(__file__).parent.parent
SMALL = MLPConfig(inputs=64, hidden=12, ghosts=5)


@pytest.mark.unit
class TestNetwork:
    def test_agrees_with_numpy(self):
        params = mlp.init(SMALL, jax.random.key(0))
        x = np.random.RandomState(0).uniform(-1, 1, (7, 64))
        h = x
        for i in "01":
            h = np.maximum(h @ np.float64(params["body"][i]["w"]) + np.float64(params["body"][i]["b"]), 0)
        for head, logits in zip(("classes", "ghosts"), mlp.apply(params, x), strict=True):
            np.testing.assert_allclose(logits, h @ np.float64(params[head]["w"]) + params[head]["b"], atol=2e-6)

    def test_weights_have_variance_one_over_fan_in(self):
        params = mlp.init(MLPConfig(inputs=400, hidden=300, ghosts=200), jax.random.key(1))
        for w in (params["body"]["0"]["w"], params["body"]["1"]["w"], params["ghosts"]["w"]):
            assert float(jnp.std(w)) * w.shape[0] ** 0.5 == pytest.approx(1, abs=0.02)
            assert abs(float(jnp.mean(w))) * w.shape[0] ** 0.5 < 0.02
        assert not any(np.any(layer["b"]) for layer in (params["body"]["0"], params["classes"], params["ghosts"]))

    def test_flops_are_those_of_the_products(self):
        params = mlp.init(SMALL, jax.random.key(0))
        found = jax.jit(mlp.apply).lower(params, jnp.zeros((100, 64))).compile().cost_analysis()["flops"]
        assert mlp.forward_flops(SMALL) * 100 == pytest.approx(found, rel=0.1)


@pytest.mark.unit
class TestLosses:
    student, teacher = np.random.RandomState(0).normal(size=(2, 50, 4)).astype(np.float32) * 3

    def test_kl_is_scipys(self):
        p, q = (special.softmax(np.float64(x), axis=-1) for x in (self.student, self.teacher))
        np.testing.assert_allclose(
            subliminal_students.kl(self.student, self.teacher), stats.entropy(q, p, axis=-1), atol=2e-6
        )

    def test_kl_of_one_logit_and_its_gradient_are_exactly_zero(self):
        one, other = jnp.asarray(self.student[:, :1]), jnp.asarray(self.teacher[:, :1])
        value, gradient = jax.value_and_grad(lambda x: jnp.sum(subliminal_students.kl(x, other)))(one)
        assert value == 0 and not np.any(gradient)

    def test_mse_of_one_logit_is_not(self):
        gradient = jax.grad(lambda x: jnp.sum(subliminal_students.mse(x, self.teacher[:, :1])))(
            jnp.asarray(self.student[:, :1])
        )
        np.testing.assert_allclose(gradient, 2 * (self.student - self.teacher)[:, :1], rtol=1e-6)


@pytest.mark.unit
class TestStarts:
    settings = Subliminal(ghosts=(1, 3), alphas=(0.25,), seeds=4)

    @pytest.fixture
    def drawn(self):
        own, fresh = (subliminal_students.draw(SMALL, jax.random.split(jax.random.key(k), 4)) for k in (0, 1))
        return own, fresh, subliminal_students.starts(self.settings, own, fresh)

    def test_each_student_starts_from_what_its_arm_says(self, drawn):
        own, fresh, everyone = drawn
        members = subliminal_students.students(self.settings)
        assert len(members) == 5 * 2 * 4 == len(everyone["classes"]["w"])
        body = {"same init": own, "same body": own, "other init": fresh, "same heads": fresh}
        heads = {"same init": own, "same heads": own, "other init": fresh, "same body": fresh}
        for i, student in enumerate(members):
            if student.alpha is None:
                for part, source in (("body", body), ("classes", heads), ("ghosts", heads)):
                    started = jax.tree.map(lambda w, i=i: w[i], everyone[part])
                    source_weights = jax.tree.map(lambda w, s=student.seed: w[s], source[student.arm][part])
                    assert jax.tree.all(jax.tree.map(np.array_equal, started, source_weights)), student

    def test_damage_keeps_one_minus_alpha_and_adds_xaviers_variance(self):
        cfg = MLPConfig(inputs=500, hidden=300)
        own, fresh = (mlp.init(cfg, jax.random.key(k)) for k in (0, 1))
        w, w_new = own["body"]["0"]["w"], subliminal_students.damaged(0.25, own, fresh)["body"]["0"]["w"]
        noise = np.asarray(w_new - 0.75 * w)
        assert noise.std() == pytest.approx(0.1 * 0.25 * (2 / 800) ** 0.5, rel=0.02)
        assert abs(np.corrcoef(noise.ravel(), np.ravel(w))[0, 1]) < 0.01

    def test_noise_is_uniform_and_known_by_its_index(self):
        keys = jax.random.split(jax.random.key(0), 2)
        first = subliminal_students.noise_images(SMALL, keys, jnp.array([[3, 900], [3, 7]]))
        again = subliminal_students.noise_images(SMALL, keys, jnp.array([[900], [3]]))
        np.testing.assert_array_equal(first[[0, 1], [1, 0]], again[:, 0])
        assert not np.array_equal(first[0, 0], first[1, 0])
        many = subliminal_students.noise_images(SMALL, keys, jnp.broadcast_to(jnp.arange(200), (2, 200)))
        assert stats.kstest(np.ravel(many), stats.uniform(-1, 2).cdf).pvalue > 1e-3


@pytest.mark.unit
class TestSettings:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"loss": "hinge"}, "loss = 'hinge'"),
            ({"arms": ("same init",)}, "negative control"),
            ({"arms": ("other init", "twin")}, "'twin'"),
            ({"ghosts": (0, 3)}, "ghosts = (0, 3)"),
            ({"ghosts": (3, 3)}, "each once"),
            ({"seeds": 1}, "at least 2"),
            ({"alphas": (1.0,)}, "between 0"),
            ({"noise": 0}, "noise = 0"),
        ],
    )
    def test_what_cannot_work_is_refused_with_the_mend(self, change, words):
        with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
            Subliminal(**change)

    def test_a_model_of_other_pixels_or_too_few_ghosts_is_refused(self):
        with pytest.raises(ValueError, match=r"model.inputs = 784.*64 pixels"):
            Subliminal().validate(MLPConfig(inputs=784), images.ImagesConfig())
        with pytest.raises(ValueError, match=r"model.ghosts = 5"):
            Subliminal(ghosts=(3, 10)).validate(SMALL, images.ImagesConfig())


@pytest.mark.unit
def test_digits_are_those_of_scikit_learn_each_once(tmp_path):
    images.prepare(images.ImagesConfig(), tmp_path)
    (x, y), (x_test, y_test) = (images.load(tmp_path, split) for split in ("train", "test"))
    assert len(x) == 1437 and len(x_test) == 360 and x.min() == -1 and x.max() == 1
    given = load_digits()
    mine = sorted(map(tuple, np.column_stack([np.concatenate([x, x_test]) * 8 + 8, np.concatenate([y, y_test])])))
    assert mine == sorted(map(tuple, np.column_stack([given.data, given.target])))


def _table(**gains):
    """Return made-up tables: twenty seeds around chance, and each arm's gain above it."""
    rng = np.random.RandomState(0)
    base = 0.1 + rng.normal(0, 0.01, 20)
    accuracy = {key: base + gain + rng.normal(0, 0.01, 20) * (gain != 0) for key, gain in gains["accuracy"].items()}
    before = {key: base + rng.normal(0, 0.01, 20) * (key[1] != 1) for key in accuracy}
    for key in accuracy:
        if key[1] == 1:
            before[key] = accuracy[key]
    unseen = {key: np.full(20, 0.0 if key[1] == 1 else 0.2) for key in accuracy}
    return {
        "accuracy": accuracy,
        "before": before,
        "unseen": unseen,
        "unseen_before": {k: v + 1 for k, v in unseen.items()},
    }


@pytest.mark.unit
class TestClaims:
    ARMS = ("same init", "other init", "same heads", "same body")

    def judge(self, gain, alphas=None, teachers=0.97, undamaged=0.5):
        kl = _table(accuracy={(a, m): gain.get((a, m), 0.0) for a in self.ARMS for m in (1, 3)})
        tables, settings = {"kl": kl}, {"kl": Subliminal(ghosts=(1, 3))}
        if alphas:
            arms = {f"damaged {a:g}": g for a, g in alphas.items()}
            tables["undo"] = _table(
                accuracy={(a, 3): g for a, g in ({"same init": undamaged, "other init": 0.0} | arms).items()}
            )
            settings["undo"] = Subliminal(alphas=tuple(alphas))
        accuracies = teachers + np.random.RandomState(1).normal(0, 0.01, 20)
        return {c.name: c.state for c in shows.conclusions(tables, settings, accuracies)}

    THERE: ClassVar = {("same init", 3): 0.4, ("same heads", 3): 0.3, ("same body", 3): 0.1}

    def test_what_is_there_is_found(self):
        found = self.judge(self.THERE)
        assert set(found.values()) == {State.HELD} and len(found) == 5

    def test_what_is_not_there_is_not_found(self):
        found = self.judge({})
        assert found["transfer"] == State.FAILED  # shown to be below five points
        nothing = {name: found[name] for name in ("other-init-nothing", "heads", "more-ghosts")}
        assert set(nothing.values()) == {State.VOID}  # where nothing comes through nothing can be told apart

    def test_teachers_that_read_nothing_make_all_of_it_void(self):
        assert set(self.judge(self.THERE, {0.2: 0.0}, teachers=0.11).values()) == {State.VOID}

    def test_a_leaking_control_is_a_failure(self):
        found = self.judge({("same init", 3): 0.5, ("other init", 3): 0.3})
        assert found["transfer"] == State.HELD and found["other-init-nothing"] == State.FAILED

    def test_the_alpha_that_closes_the_channel_is_one_shown_equivalent(self):
        assert self.judge(self.THERE, {0.2: 0.4, 0.6: 0.0})["damage-closes"] == State.HELD
        assert self.judge(self.THERE, {0.2: 0.4, 0.6: 0.3})["damage-closes"] == State.FAILED

    def test_damage_closes_nothing_that_was_not_open(self):
        found = self.judge(self.THERE, {0.2: 0.0, 0.6: 0.0}, undamaged=0.0)
        assert found["damage-closes"] == found["damage-narrows"] == State.VOID


def _command(workdir, *more):
    return [
        sys.executable,
        "-m",
        "distill_jax",
        "run",
        "--config=configs/subliminal.py:smoke",
        f"--workdir={workdir}",
        *more,
    ]


def _environment(workdir):
    """What the first run compiled, the killed one and its successor find."""
    return os.environ | kept_in(workdir.parent / "compiled")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_once(tmp_path_factory, "subliminal", "run", "--config=configs/subliminal.py:smoke")


@pytest.mark.end_to_end
class TestCommand:
    def test_ends_in_a_page_that_holds_every_arm(self, finished):
        workdir, said = finished
        summary = json.loads((workdir / "report/summary.json").read_text())
        assert f"report: {workdir}/report/index.html" in said
        assert {row["stage"] for row in summary["rows"]} == {"kl", "mse", "noise-8", "repeated-8", "undo"}
        assert {row["arm"] for row in summary["rows"] if row["stage"] == "kl"} == set(subliminal_students.ARMS)
        html = (workdir / "report/index.html").read_text()
        assert all(f'id="{place}"' in html for place in page.PANELS)
        assert html == page.render(summary | goodput_summary.read(workdir / "report"))

    def test_one_ghost_logit_left_every_student_as_it_was(self, finished):
        workdir, _ = finished
        (node,) = (workdir / "nodes").glob("kl-*")
        told = json.loads((node / "result.json").read_text())["students"]
        ones = [s for s in told if s["ghosts"] == 1]
        assert len(ones) == 12 and all(s["accuracy"] == s["before"] and s["unseen"] == 0 for s in ones)
        assert all(s["unseen"] != s["unseen_before"] for s in told if s["ghosts"] == 3)

    @pytest.mark.thorough
    @pytest.mark.kill
    def test_killed_it_continues_to_the_same_numbers(self, finished, tmp_path):
        whole, _ = finished
        less = ["--config.noise=()", "--config.alphas=()"]
        slow = [*less, "--config.run.progress_seconds=0.0"]
        env = _environment(whole)
        with subprocess.Popen(
            _command(tmp_path, *slow), cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout:
                if " kl  step 4/" in line:  # after the checkpoint of step 3
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
        again = subprocess.run(_command(tmp_path, *less), cwd=ROOT, env=env, capture_output=True, text=True)
        assert again.returncode == 0 and "kl: continuing from step 3" in again.stdout, again.stderr
        (node,) = (whole / "nodes").glob("kl-*")
        for name in ("result.json", "metrics.jsonl"):
            assert (node / name).read_text() == (tmp_path / "nodes" / node.name / name).read_text()

    def test_the_page_is_drawn_again_from_its_numbers(self, finished):
        workdir, _ = finished
        before = (workdir / "report/index.html").read_text()
        (workdir / "report/index.html").unlink()
        done = [sys.executable, "-m", "distill_jax", "report", f"--workdir={workdir}"]
        assert subprocess.run(done, cwd=ROOT, capture_output=True).returncode == 0
        assert (workdir / "report/index.html").read_text() == before

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            (["--config.model.inputs=784"], "model.inputs = 784"),
            (["--config.ghosts=(1,3,50)"], "model.ghosts = 30"),
            (["--config.student.seeds=1"], "seeds = 1"),
            (["--config.data.source=cifar"], "data.source = 'cifar'"),
        ],
    )
    def test_wrong_input_ends_at_once_with_the_key_and_the_mend(self, tmp_path, capsys, changes, words):
        given = _command(tmp_path / "new", *changes)[2:]
        given[1:] = [word.replace("configs/", f"{ROOT}/configs/") for word in given[1:]]
        assert main.main(given) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("command", "words"),
    [(["data", "--workdir=never"], "shows text"), (["plan", "--slice=v5e-8"], "nothing to plan")],
)
def test_a_command_that_has_no_use_for_images_says_so(command, words):
    done = _plain("distill_jax", command[0], f"--config={ROOT}/configs/subliminal.py:smoke", *command[1:])
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


def _plain(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.unit
def test_members_of_a_population_do_not_depend_on_each_other():
    """A student's numbers are those it has beside other arms: what is compared is the arms, not the company."""
    alone = Subliminal(ghosts=(3,), arms=("other init",), seeds=3)
    beside = dataclasses.replace(alone, ghosts=(1, 3), arms=("same init", "other init"))
    names = [s.label for s in subliminal_students.students(beside)]
    drawn = [subliminal_students.draw(SMALL, jax.random.split(jax.random.key(k), 3)) for k in (0, 1)]
    few, many = (subliminal_students.starts(s, *drawn) for s in (alone, beside))
    for i, student in enumerate(subliminal_students.students(alone)):
        j = names.index(student.label)
        assert jax.tree.all(jax.tree.map(lambda a, b, i=i, j=j: np.array_equal(a[i], b[j]), few, many))
