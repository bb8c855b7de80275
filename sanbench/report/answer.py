"""The answer: which network is more robust, how sure that is, and what it says of the paper."""

from collections import Counter
from collections.abc import Iterable, Sequence

from sanbench.evaluation.comparing import Comparison
from sanbench.evaluation.kinds import budget, condition
from sanbench.evaluation.robust import Findings
from sanbench.report.attacks import protocol
from sanbench.report.cells import Footnotes, Images, Shown, cell, names, selection, shown, told_n
from sanbench.report.comparisons import comparisons
from sanbench.report.rendering import Block, Cell, Items, Table, Text
from sanbench.report.rotations import by_frame, sweep
from sanbench.store.schema import Record

Condition = tuple[str, str]  # kind and setting
QUARTERS = (90, 180, 270)
TOLD = 4  # pairs that are told in sentences
CLEAR = (
    "What the paired tests on the same images say; a difference is clear whose 95% interval excludes 0 and whose p, corrected "
    "(Holm) for all tests of its kind, is below 0.05. There are"
)
FINDINGS = {  # of Zhao et al., CVPR 2020: what its experiments found, without figures, and the tests that ask the same here
    "rotated images (table 9)": lambda record: exact(record) and record.setting["angle"] in (*QUARTERS, "flip"),
    "targeted attacks (table 10)": lambda record: record.kind == "attack" and record.setting["attack"] == "pgd-targeted",
}


def answer(group: Sequence[Record], findings: Findings) -> list[Block]:
    """A row a network; then what the paired tests allow to be said; then how far that speaks for the paper."""
    named, columns = names(group), chosen_columns(group)
    used = [record for conditions in columns.values() for own in measured(group, conditions).values() for record in own]
    notes = Footnotes(used, findings)
    first = {shown(record): record for record in reversed(group)}
    seeds = {key: str(first[key].training.get("seed", "—")) for key in named}
    shared = set(seeds.values()) if len(set(seeds.values())) == 1 else None
    lines = {key: {"network": name} | ({} if shared else {"seed": seeds[key]}) for key, name in named.items()}
    for title, conditions in columns.items():
        found = measured(group, conditions)
        sizes = {own[0].data.images for own in found.values()}
        head = f"{title}, n {min(sizes):,}" if len(sizes) == 1 else title
        for key, own in found.items():
            value = findings.mean(own)
            marks = dict.fromkeys(notes.marks[flag] for record in own for flag in findings.flags(record))
            n = [] if len(sizes) == 1 else [f"n {own[0].data.images:,}"]
            text = " ".join([cell(value), *n, *marks])
            lines[key][head] = Cell(text, interval=(value.value, value.low, value.high))
    text = " ".join([about(columns), *(f"Training seed {seed}." for seed in shared or ()), measured_on(group)])
    blocks: list[Block] = [Table(list(lines.values())), Text(text), *notes.blocks()]
    tests = comparisons(group, findings)
    return [*blocks, *said(tests, group, findings, named)] if tests else blocks


def measured_on(group: Sequence[Record]) -> str:
    devices = "; ".join(sorted({record.device for record in group}))
    days = sorted({record.created[:10] for record in group})
    return f"Measured on {devices}, {' to '.join(dict.fromkeys((days[0], days[-1])))}."


def condition_of(record: Record) -> Condition:
    return record.kind, str(sorted(record.setting.items()))


def measured(group: Sequence[Record], conditions: Sequence[Condition]) -> dict[Shown, list[Record]]:
    """The records of each network that was measured under all of the conditions; on several selections the largest."""
    wanted = set(conditions)
    found: dict[Shown, dict[Images, dict[Condition, Record]]] = {}
    for record in group:
        if condition_of(record) in wanted:
            found.setdefault(shown(record), {}).setdefault(selection(record), {})[condition_of(record)] = record
    kept = {}
    for key, selections in found.items():
        whole = [own for own in selections.values() if len(own) == len(wanted)]
        if whole:
            kept[key] = list(max(whole, key=lambda own: next(iter(own.values())).data.images).values())
    return kept


def chosen_columns(group: Sequence[Record]) -> dict[str, list[Condition]]:
    """What the table has a column for, and the conditions whose mean it shows."""

    def conditions(records: Iterable[Record]) -> list[Condition]:
        return list(dict.fromkeys(map(condition_of, records)))

    def common(sets: Iterable[list[Condition]]) -> list[Condition]:
        """Of several sets of conditions the one that most networks have, and of those the largest."""
        distinct: list[list[Condition]] = [list(own) for own in dict.fromkeys(map(tuple, sets))]
        return max(distinct, key=lambda own: (len(measured(group, own)), len(own)), default=[])

    found = {"upright": conditions(r for r in group if r.kind == "accuracy")}
    quarters = conditions(r for r in group if exact(r) and r.setting["angle"] in QUARTERS)
    found["rotated"] = quarters if len(quarters) == len(QUARTERS) else []
    sweeps = [records for frame, records in by_frame(group).items() if set(records[0].setting) != {"angle"}]
    found["angles"] = common(conditions(sweep(records, group)) for records in sweeps)
    corrupted: dict[tuple[Shown, Images], list[Record]] = {}
    for record in group:
        if record.kind == "corruption":
            corrupted.setdefault((shown(record), selection(record)), []).append(record)
    found["corrupted"] = common(sorted(conditions(records)) for records in corrupted.values())
    for attack in ("pgd", "standard"):
        own = [record for record in group if record.kind == "attack" and record.setting["attack"] == attack]
        protocols: dict[str, list[Record]] = {}
        for record in own:
            protocols.setdefault(protocol(record), []).append(record)
        records = max(protocols.values(), key=lambda records: len(conditions(records)), default=[])
        for record in sorted(records, key=lambda record: budget(record.setting)):
            found[f"{attack} {record.setting['eps']}"] = [condition_of(record)]
    return {title: own for title, own in found.items() if own and measured(group, own)}


def about(columns: dict[str, list[Condition]]) -> str:
    """What the columns are."""
    told = {
        "rotated": "rotated: mean of 90°, 180° and 270°",
        "angles": f"angles: mean of {len(columns.get('angles', ()))} angles",
        "corrupted": f"corrupted: mean of {len(columns.get('corrupted', ()))} corruptions and severities",
    }
    parts = [text for title, text in told.items() if title in columns]
    parts += (
        ["pgd and standard: robust accuracy within ε in L∞"] if any(c.startswith(("pgd", "standard")) for c in columns) else []
    )
    text = "Top-1 in percent with 95% Wilson intervals"
    text += f"; {'; '.join(parts)}." if parts else "."
    return text + (" The interval of a mean is that of one condition: the images are the same." if len(parts) > 1 else "")


def said(tests: Sequence[Comparison], group: Sequence[Record], findings: Findings, named: dict[Shown, str]) -> list[Block]:
    """Sentences made from the paired tests."""
    by_pair: dict[tuple[Shown, Shown], list[Comparison]] = {}
    for test in tests:
        by_pair.setdefault((shown(test.first), shown(test.second)), []).append(test)
    upright = {(shown(r), selection(r)): findings.top1(r).value for r in group if r.kind == "accuracy"}
    kinds = Counter(test.first.kind for test in tests)
    paper = Text("What this says of the paper (Zhao, Jia and Koltun, CVPR 2020):")
    clear = Text(f"{CLEAR} {', '.join(f'{number:,} of {kind}' for kind, number in kinds.items())}:")
    blocks: list[Block] = [paper, Items(of_the_paper(by_pair, named)), clear]
    for (san, resnet), own in list(by_pair.items())[:TOLD]:
        blocks += [Text(f"{named[san]} against {named[resnet]}:"), Items(sentences(own, upright, findings))]
    if len(by_pair) > TOLD:
        blocks.append(Text(f"The other {len(by_pair) - TOLD} pairs are in the tables of paired tests."))
    return blocks


def sentences(own: Sequence[Comparison], upright: dict[tuple[Shown, Images], float], findings: Findings) -> list[str]:
    """Upright, the quarter turns, and three attacks by budget; then of each kind how many tests are clear."""

    def attacked(attack: str) -> list[Comparison]:
        found = [test for test in own if test.first.kind == "attack" and test.first.setting["attack"] == attack]
        protocols = [protocol(test.first) for test in found]
        chosen = max(protocols, key=protocols.count, default="")  # the one with most budgets
        return sorted((t for t in found if protocol(t.first) == chosen), key=lambda test: budget(test.first.setting))

    quarters = [test for test in own if exact(test.first) and test.first.setting["angle"] in QUARTERS]
    subjects = [
        [test for test in own if test.first.kind == "accuracy"],
        quarters,
        *map(attacked, ("pgd-targeted", "pgd", "standard")),
    ]
    found = [sentence(tests, upright, findings) for tests in subjects if tests]
    kinds = dict.fromkeys(test.first.kind for test in own if test.first.kind != "accuracy")
    counted = []
    for kind in kinds:
        better, worse = signs(tests := [test for test in own if test.first.kind == kind])
        counted.append(f"{kind} {better} and {worse} of {len(tests)}")
    return [*found, f"Tests in which it is clearly better, and clearly worse: {'; '.join(counted)}."] if counted else found


def exact(record: Record) -> bool:
    return record.kind == "rotation" and set(record.setting) == {"angle"}


def sentence(tests: Sequence[Comparison], upright: dict[tuple[Shown, Images], float], findings: Findings) -> str:
    """`san10_pairwise keeps 27.2 of 85.9 at 90°, resnet26 9.7 of 86.1: difference 17.5 [15.6, 19.4]; at 180° ...`."""

    def top1(record: Record) -> str:
        return f"{100 * findings.top1(record).value:.1f}"

    def of(record: Record) -> str:
        counts, clean = record.counts, upright.get((shown(record), selection(record)))
        known = counts["right_before"] / counts["images"] if "right_before" in counts else clean
        return "" if record.kind == "accuracy" or known is None else f" of {100 * known:.1f}"

    first, *others = tests
    san, resnet = first.first, first.second
    told = f"{san.network.name} {'keeps' if of(san) else 'has'} {top1(san)}{of(san)} {where(san, True)}, "
    told += f"{resnet.network.name} {top1(resnet)}{of(resnet)}: difference {interval(first)}"
    more = [f"{where(test.first, False)} {top1(test.first)} and {top1(test.second)}: {interval(test)}" for test in others]
    return "; ".join([told, *more]) + "."


def where(record: Record, full: bool) -> str:
    """`at 90°`, `under pgd, L∞ ε = 2/255 (n 200)`; later in a sentence the budget alone."""
    if record.kind == "attack":
        return (
            f"under {condition(record.kind, record.setting)} (n {record.data.images:,})"
            if full
            else f"ε = {record.setting['eps']}"
        )
    return "upright" if record.kind == "accuracy" else f"at {condition(record.kind, record.setting)}"


def interval(test: Comparison) -> str:
    """`17.5 [15.6, 19.4]`, and whether the test, corrected for the others of its kind, finds it clear."""
    d = test.difference
    value, low, high = (f"{100 * each:.1f}".replace("-0.0", "0.0") for each in (d.value, d.low, d.high))
    unclear = " (not clear after correction)" if d.excludes_zero else " (no clear difference)"
    return f"{value} [{low}, {high}]{'' if test.clear else unclear}"


def signs(tests: Sequence[Comparison]) -> tuple[int, int]:
    """How many tests are clear, for the SAN and against it."""
    clear = [test.difference.value > 0 for test in tests if test.clear]
    return sum(clear), len(clear) - sum(clear)


def of_the_paper(by_pair: dict[tuple[Shown, Shown], list[Comparison]], named: dict[Shown, str]) -> list[str]:
    """Which tests are for the paper's findings and which against them, and how far such networks can speak for it."""
    found = []
    for finding, asks in FINDINGS.items():
        asked = {pair: [test for test in own if asks(test.first)] for pair, own in by_pair.items()}
        told = [f"{named[san]}: {verdict(own)}" for (san, _), own in asked.items() if own]
        if told:
            rest = [f"{len(told) - TOLD} more pairs are in the tables of paired tests"] if len(told) > TOLD else []
            found.append(f"It found SANs more robust than ResNets to {finding}. Here {'; '.join([*told[:TOLD], *rest])}.")
    sans = {shown(test.first): test.first for own in by_pair.values() for test in own}
    return [*found, *limits(list(sans.values()))]


def verdict(tests: Sequence[Comparison]) -> str:
    """`of 4 tests (n 200) 0 are clearly for it and 3 clearly against it; what is not clear lies in [-10.9, -1.4]`."""
    better, worse = signs(tests)
    n = told_n([test.first for test in tests])
    if len(tests) == 1:
        text = f"its one test ({n}) is {'clearly for it' if better else 'clearly against it' if worse else 'not clear'}"
    else:
        text = f"of {len(tests)} tests ({n}) {better} are clearly for it and {worse} clearly against it"
    unclear = [test.difference for test in tests if not test.clear]
    if not unclear:
        return text
    low, high = min(d.low for d in unclear), max(d.high for d in unclear)
    return f"{text}; what is not clear may be from {100 * low:+.1f} to {100 * high:+.1f} points"


def limits(sans: Sequence[Record]) -> list[str]:
    """How far the networks can speak for the paper's, which saw ImageNet at 224 pixels for 100 epochs."""
    data = sans[0].data.name
    labels = ", ".join(dict.fromkeys(record.network.label for record in sans[:TOLD]))
    trained = [record.training for record in sans if record.training.get("recipe")]
    epochs = " or ".join(f"{number:,}" for number in sorted({training["recipe"]["epochs"] for training in trained}))
    images = " or ".join(f"{number:,}" for number in sorted({training["train_images"] for training in trained}))
    how = f", trained for {epochs} epochs on {images} images" if trained else ""
    seeds: dict[str, set[object]] = {}
    for record in sans:
        seeds.setdefault(record.network.label, set()).add(record.training.get("seed"))
    found = []
    if data != "imagenet" or any(record.network.variation for record in sans):
        found.append(
            "The paper's networks have full width and were trained on ImageNet at 224 pixels for 100 epochs. These are "
            f"{labels}{how}, on {data}: what holds or fails for them is a hint for the paper's networks and no test of them. "
            "The cells of its tables 9 and 10 and the settings of its attack are not verified, so none is shown."
        )
    if any(len(own) == 1 for own in seeds.values()):
        found.append("Intervals are over images. A network of one seed says nothing of how far another training would differ.")
    return found
