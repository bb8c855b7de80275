"""Layouts of the published test sets of ImageNet's classes, as their authors' archives unpack. There is nothing to train on.

Their authors' code resizes the shorter side to 256 and crops 224 in the centre, as networks of 224 see ImageNet here too. Of
ImageNet-A and -R the authors count the logits of 200 classes alone.
"""

from importlib.resources import files

from sanbench.data.imagenet import Layout, wnids


def listed_wnids(name: str) -> tuple[str, ...]:
    """The 200 WNIDs of `imagenet-a` or `imagenet-r`, as `eval.py` of their authors and timm 1.0 list them, which agree."""
    return tuple((files("sanbench.data") / f"wnids-{name}.txt").read_text().split())


def version_2(variant: str) -> Layout:
    """10 images in each of the folders 0 to 999, which are ImageNet's class indices."""
    folder = f"imagenetv2-{variant}-format-val"
    return Layout(tuple(map(str, range(1000))), {folder: 10_000}, others=(f"imagenetv2-{variant}",))


SHIFTED: dict[str, Layout] = {
    # Hendrycks et al., CVPR 2021: github.com/hendrycks/natural-adv-examples
    "imagenet-a": Layout(listed_wnids("imagenet-a"), {"imagenet-a": 7_500}),
    # Hendrycks et al., ICCV 2021: github.com/hendrycks/imagenet-r
    "imagenet-r": Layout(listed_wnids("imagenet-r"), {"imagenet-r": 30_000}),
    # Wang et al., NeurIPS 2019: github.com/HaohanWang/ImageNet-Sketch
    "imagenet-sketch": Layout(wnids(), {"sketch": 50_889}, others=("imagenet-sketch", "ImageNet-Sketch")),
    # Recht et al., ICML 2019: github.com/modestyachts/ImageNetV2
    "imagenet-v2": version_2("matched-frequency"),
    "imagenet-v2-threshold0.7": version_2("threshold0.7"),
    "imagenet-v2-top-images": version_2("top-images"),
}
