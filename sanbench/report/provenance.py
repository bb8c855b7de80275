"""How the networks came about and where they were measured."""

from collections.abc import Sequence

from sanbench.evaluation.robust import Findings
from sanbench.report.cells import names, short, shown
from sanbench.report.rendering import Block, Heading, Table, Text
from sanbench.store.schema import Record


def trained(record: Record) -> dict[str, str]:
    """How the weights came about; of networks from elsewhere what their file tells, which may be nothing."""
    training, recipe = record.training, record.training.get("recipe")
    evaluated = {"evaluated": f"epoch {training['epoch']} ({record.selection})"} if training.get("epoch") is not None else {}
    if recipe is None:
        return {"recipe": "not told", **evaluated}
    return {
        "recipe": f"{recipe['optimizer']}, lr {recipe['lr']}, batch {recipe['batch_size']}, {recipe['epochs']} epochs",
        "images": f"{training['train_images']:,}",
        **evaluated,
        "minutes": f"{training['train_seconds'] / 60:.1f}",
    }


def preprocessed(record: Record) -> str:
    """`shorter side 256, centre crop 224, mean 0.5 0.5 0.5, std ...`."""
    numbers = [f"{name} {' '.join(map(str, getattr(record.network, name)))}" for name in ("mean", "std")]
    return ", ".join([*filter(None, [record.data.preprocessing]), *numbers])


def section(group: Sequence[Record], findings: Findings) -> list[Block]:
    """How each network was trained, how it was shown the images, and where it was measured."""
    named, first = names(group), {shown(record): record for record in reversed(group)}
    lines = []
    for key, name in named.items():
        record = first[key]
        seed_and_weights = {"seed": str(record.training.get("seed", "—")), "weights": short(record.network)}
        shown_as = {"decoder": record.data.decoder, "preprocessing": preprocessed(record)}
        lines.append({"network": name, "run": record.run, **seed_and_weights, **trained(record), **shown_as})
    devices = ", ".join(sorted({record.device for record in group}))
    made = ", ".join(f"{name} {value}" for name, value in group[-1].versions.items())
    measured = sum(record.seconds for record in group) / 60
    tail = f"Measured in {measured:.1f} minutes on {devices}, the latest with {made}."
    blocks: list[Block] = [Heading("How the networks came about", 3), Table(lines, "Networks"), Text(tail)]
    lists = sorted({(record.data.listed, record.image_list) for record in group if record.data.listed})
    named_lists = "; ".join(f"{name}, SHA-256 {listed}" for listed, name in lists)
    if among := group[0].data.among:
        blocks.append(Text(f"Logits of {among.partition(',')[0]} alone count, in predictions, top-5 and confidence."))
    return [*blocks, Text(f"Images by list: {named_lists}.")] if named_lists else blocks
