"""What is told while a command works: task, condition, member, how far all of it is, and the time left."""

import io

import pytest
import torch

from sanbench.evaluation import parts
from sanbench.evaluation.attacks import attack as attacks
from sanbench.evaluation.attacks.options import bind
from sanbench.evaluation.attacks.table import ATTACKS, Search, parse_attacks
from sanbench.evaluation.evaluate import FEWEST, MOST, PART, by_part, evaluate
from sanbench.evaluation.loop import Identity
from sanbench.evaluation.parts import Condition, EvaluationOptions
from sanbench.evaluation.rotations import Rotation
from sanbench.progress import Progress, within
from sanbench.store.files import Store
from sanbench_cli.bars import Bar, Pace, lines
from sanbench_cli.console import PlainConsole
from tests.support.quick_measurements import config

CPU = torch.device("cpu")
LONG = Progress(
    "san10_patchwise width=0.375 (a-run-of-a-long-name) fashion10k",
    3,
    24,
    {"robust": 0.375},
    detail="standard, L∞ ε = 8/255, apgd-targeted 3 of 9, 96 of 256 images done, 12 of 32 stand",
    share=0.25,
)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def drawn(bar, width):
    text = io.StringIO()
    PlainConsole(file=text, force_terminal=True, color_system=None, width=width).print(bar)
    return text.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_at_any_width_all_that_is_told_is_shown(width):
    clock = Clock()
    bar = Bar(clock)
    bar.show(LONG._replace(share=0.0))
    clock.now = 30.0
    bar.show(LONG)
    text = drawn(bar, width)
    assert all(len(line) <= width for line in text.splitlines())
    words = " ".join(text.split())
    for told in (LONG.task, LONG.detail, "25%", "about 0:01:30 left", "robust accuracy so far 37.5%"):
        assert told in words


def test_a_training_shows_epoch_step_and_time_left():
    clock = Clock()
    bar = Bar(clock)
    figures = {"loss": 0.612, "top1": 0.79, "lr": 0.004, "images_per_second": 412, "data_wait": 0.01, "memory_mib": 512}
    for step in (0, 200):
        bar.show(Progress("train san15_pairwise width=0.375: epoch 2 of 5", step, 800, figures, detail=f"step {step} of 300"))
        clock.now = 100.0
    words = " ".join(drawn(bar, 80).split())
    for told in ("epoch 2 of 5", "step 200 of 300", "25%", "about 0:05:00 left", "loss 0.612", "512 MiB"):
        assert told in words


def test_what_was_done_before_sets_no_pace():
    clock = Clock()
    pace = Pace(clock)
    pace.tell(Progress("b", 0, 1, share=0.5))  # the first half was measured yesterday
    assert pace.left is None
    clock.now = 10.0
    pace.tell(Progress("b", 0, 1, share=0.6))
    assert pace.left == pytest.approx(40)
    clock.now = 15.0  # nothing new is told, and time goes on
    assert pace.left == pytest.approx(35)
    pace.tell(Progress("c", 0, 1, share=0.9))  # most of the next task was there
    assert pace.left == pytest.approx(10)


def test_a_log_has_a_line_a_minute_and_one_at_the_end():
    clock, written = Clock(), []
    show = lines(written.append, clock)
    for second in range(0, 150, 2):
        clock.now = float(second)
        show(LONG._replace(share=second / 300))
    assert len(written) == 2
    assert written[0].startswith(LONG.task) and "20% of all, about 0:04:00 left robust" in written[0]
    show(LONG._replace(done=24))
    show(LONG._replace(done=24, detail="again"))
    assert [line for line in written if " done " in line.replace("images done", "")] == written[2:] and len(written) == 3


def test_tasks_within_tasks_are_shares_of_the_whole():
    told = []
    second_of_four = within(told.append, 0.25, 0.5)
    within(second_of_four, 0.5, 1.0)(Progress("x", 1, 2))
    assert told[0].whole == pytest.approx(0.25 + 0.25 * 0.75)
    assert Progress("x", 1, 4).whole == 0.25 and Progress("x", 0, 0).whole == 0


def test_an_attack_tells_member_share_and_images_that_stand(network, batch, monkeypatch):
    monkeypatch.setattr(attacks, "TELL", 0.0)
    seen = []
    settings = config("pgd", "1/2550", steps=4, restarts=2)
    (one,) = [each.with_options(watch=seen.append) for each in bind(network, [("pgd", settings)])]
    one(*batch)
    assert [each.about for each in seen] == sorted(each.about for each in seen)
    assert {each.about for each in seen} == {"pgd, restart 1 of 2", "pgd, restart 2 of 2"}
    shares = [each.share for each in seen]
    assert shares == sorted(shares) and 0 < shares[0] < 0.2 and shares[-1] == 1
    standing = [each.standing for each in seen]
    assert standing == sorted(standing, reverse=True) and 0 < standing[0] <= len(batch[0])


TOLD = {
    "pgd": ("pgd", {}),
    "apgd-targeted": ("apgd-targeted, target 2 of 3", {"targets": 3}),
    "fab": ("fab, target 2 of 2, restart 2 of 2", {"targets": 2, "restarts": 2}),
    "pgd-targeted": ("pgd-targeted, attempt 4 of 4", {"search": Search(3)}),
    "square": ("square, restart 2 of 3", {"max_passes": 10, "restarts": 3, "steps": 6}),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_is_told_is_the_target_the_start_and_all_images_that_stand(name, network, batch, monkeypatch):
    """Also those that are not tried any more, for want of passes or as nothing was found at the bracket."""
    monkeypatch.setattr(attacks, "TELL", 0.0)
    about, changes = TOLD[name]
    seen = []
    (one,) = bind(network, [(name, config(name, "3/255", **{"steps": 3} | changes))])
    images = one.with_options(watch=seen.append)(*batch).images
    assert about in {each.about for each in seen}
    shares, standing = [each.share for each in seen], [each.standing for each in seen]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] <= 1
    assert standing == sorted(standing, reverse=True)
    stand = int((network(images).argmax(1) == batch[1]).sum())
    assert stand <= standing[-1] <= stand + 1  # what falls at the last query is not told any more
    assert standing[0] == int((network(batch[0]).argmax(1) == batch[1]).sum())


def test_progress_goes_up_to_all_of_it_and_names_conditions(evaluated, images, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "TELL", 0.0)
    monkeypatch.setattr(attacks, "TELL", 0.0)
    told = []
    conditions = [Identity(), Rotation(90), *bind(evaluated.model, parse_attacks("pgd", "4/255", 3))]
    store = Store(tmp_path)
    records = evaluate(evaluated, images, conditions, store, CPU, EvaluationOptions(batch_size=4), told.append)
    shares = [now.whole for now in told]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    details = " ".join(now.detail for now in told)
    for words in ("upright", "90°", "pgd, L∞ ε = 4/255, pgd, 0 of 18 images done, "):
        assert words in details
    robust = [now.figures["robust"] for now in told if "robust" in now.figures]
    assert robust == sorted(robust, reverse=True)
    assert robust[-1] >= records[-1].counts["correct"] / records[-1].counts["images"]


def test_parts_shrink_with_the_declared_cost_and_memory_alone(evaluated):
    def size(name, side=32, **options):
        ((attack, settings),) = parse_attacks(name, "8/255", **options)
        (found,) = by_part([Condition(None, *bind(evaluated.model, [(attack, settings)]))], side)
        return found

    assert by_part([Condition(None, Identity()), Condition(None, Rotation(90))], 224).keys() == {PART}
    assert [size("pgd"), size("pgd", 224), size("standard")] == [256, 32, FEWEST]
    assert [size("fgsm"), size("fgsm", 224)] == [256, 32]  # few passes, large images
    assert size("pgd", restarts=10) < size("pgd")
    assert size("apgd-targeted", targets=2) > size("apgd-targeted")
    for name in ATTACKS:
        own = Condition(None, *bind(evaluated.model, parse_attacks(name, "8/255")))
        (chosen,) = by_part([own], 32)
        assert chosen == FEWEST or chosen * own.perturbation.passes <= MOST
