"""Adversarial training (Madry et al. 2018): a network learns from what the attack of the evaluation makes of each batch."""

from sanbench.evaluation.attacks.attack import run_round
from sanbench.evaluation.attacks.queried_model import Aim, QueriedModel
from sanbench.evaluation.attacks.table import Round, parse_attacks
from sanbench.evaluation.loop import evaluating
from sanbench.models import Classifier
from sanbench.runs.config import Recipe
from sanbench.training.augment import TrainBatch


def adversarial(model: Classifier, part: TrainBatch, recipe: Recipe, seed: int, epoch: int) -> TrainBatch:
    """`part` with the last step of `recipe.adversary` on every image; steps are those of the evaluation, a quarter of eps.

    The network is attacked in float32 and in evaluation mode, so that its running statistics stay as they are and an image's
    example depends on no other image. The starting point belongs to (seed, image, epoch).
    """
    ((name, config),) = parse_attacks(recipe.adversary, recipe.adversary_eps, recipe.adversary_steps, seed=seed)
    aim = Aim(config.norm, float(config.eps), leaves=False)
    logits = part.pixels.new_zeros(len(part.labels), model.outputs)  # of the clean images: no step asks for them
    queried = QueriedModel(model, part.pixels, part.labels, logits, aim, len(part.labels))
    with evaluating(model):
        made = run_round(queried, Round(name, config, restart=epoch), part.indices)
    return part._replace(pixels=made)
