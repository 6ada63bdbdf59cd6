"""Table of torchvision's classification builders by family: head, blocks and input sizes.

Imports no torch, so that a misspelt model name is reported at once. A test compares this table with
torchvision's registry and with the networks.
"""

from __future__ import annotations

from dataclasses import dataclass

# The backbone whose weights are part of this package: see benchmarks/bundled_weights/.
BUNDLED_MODEL = "shufflenet_v2_x0_5"


@dataclass(frozen=True)
class Family:
    """Builders that share one architecture.

    Attributes:
        name: Name of the family.
        builders: Names of the builders.
        head: Module path of the last layer, which is replaced for the user's classes.
        block: Regular expression for the module paths of the network's blocks.
        sizes: Supported input sizes, worded for an error message.
        aux_heads: Module paths of the auxiliary classifier layers, each the last of its branch.
        aux_modules: Module paths of the auxiliary branches; removed unless ``model.aux_heads``.
        aux_weight: Weight of each auxiliary loss.
        fixed_size: Whether the network is built for one input size (``image_size`` of the builder).
    """

    name: str
    builders: tuple[str, ...]
    head: str
    block: str
    sizes: str
    aux_heads: tuple[str, ...] = ()
    aux_modules: tuple[str, ...] = ()
    aux_weight: float = 0.0
    fixed_size: bool = False


FAMILIES: tuple[Family, ...] = (
    Family(
        "alexnet", ("alexnet",), "classifier.6", r"(?:features|classifier)\.\d+", "63 px or more"
    ),
    Family(
        "vgg",
        ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
        "classifier.6",
        r"(?:features|classifier)\.\d+",
        "32 px or more",
    ),
    Family(
        "resnet",
        (
            *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
            *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
            *("wide_resnet50_2", "wide_resnet101_2"),
        ),
        "fc",
        r"layer\d\.\d+",
        "any size",
    ),
    Family(
        "regnet",
        (
            *("regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf", "regnet_x_3_2gf"),
            *("regnet_x_8gf", "regnet_x_16gf", "regnet_x_32gf"),
            *("regnet_y_400mf", "regnet_y_800mf", "regnet_y_1_6gf", "regnet_y_3_2gf"),
            *("regnet_y_8gf", "regnet_y_16gf", "regnet_y_32gf", "regnet_y_128gf"),
        ),
        "fc",
        r"trunk_output\.block\d\.block\d-\d+",
        "any size",
    ),
    Family(
        "shufflenet_v2",
        ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
        "fc",
        r"stage\d\.\d+",
        "any size",
    ),
    Family(
        "googlenet",
        ("googlenet",),
        "fc",
        r"inception\d\w",
        "15 px or more",
        aux_heads=("aux1.fc2", "aux2.fc2"),
        aux_modules=("aux1", "aux2"),
        aux_weight=0.3,  # Szegedy et al. 2014, section 5
    ),
    Family(
        "inception_v3",
        ("inception_v3",),
        "fc",
        r"Mixed_\d\w",
        "75 px or more (299 px is what its weights were trained for)",
        aux_heads=("AuxLogits.fc",),
        aux_modules=("AuxLogits",),
        aux_weight=0.4,  # the share that the original implementation used
    ),
    Family(
        "densenet",
        ("densenet121", "densenet161", "densenet169", "densenet201"),
        "classifier",
        r"features\.denseblock\d",
        "29 px or more",
    ),
    Family("squeezenet", ("squeezenet1_0",), "classifier.1", r"features\.\d+", "21 px or more"),
    Family("squeezenet", ("squeezenet1_1",), "classifier.1", r"features\.\d+", "17 px or more"),
    Family("mobilenet_v2", ("mobilenet_v2",), "classifier.1", r"features\.\d+", "any size"),
    Family(
        "mobilenet_v3",
        ("mobilenet_v3_small", "mobilenet_v3_large"),
        "classifier.3",
        r"features\.\d+",
        "any size",
    ),
    Family(
        "mnasnet",
        ("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
        "classifier.1",
        r"layers\.\d+\.\d+",
        "any size",
    ),
    Family(
        "efficientnet",
        (
            *("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3"),
            *("efficientnet_b4", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7"),
            *("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"),
        ),
        "classifier.1",
        r"features\.\d\.\d+(?=\.block)",
        "any size",
    ),
    Family(
        "convnext",
        ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
        "classifier.2",
        r"features\.[1357]\.\d+",
        "32 px or more",
    ),
    Family(
        "vit",
        ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"),
        "heads.head",
        r"encoder\.layers\.encoder_layer_\d+",
        "one size, fixed by the weights' position embedding",
        fixed_size=True,
    ),
    Family(
        "swin", ("swin_t", "swin_s", "swin_b"), "head", r"features\.[1357]\.\d+", "32 px or more"
    ),
    Family(
        "swin_v2",
        ("swin_v2_t", "swin_v2_s", "swin_v2_b"),
        "head",
        r"features\.[1357]\.\d+",
        "32 px or more",
    ),
    Family(
        "maxvit",
        ("maxvit_t",),
        "classifier.5",
        r"blocks\.\d\.layers\.\d+",
        "224 px or another multiple of 224 (every block divides into windows of 7 by 7)",
    ),
)

_BY_BUILDER = {builder: family for family in FAMILIES for builder in family.builders}
BUILDERS: tuple[str, ...] = tuple(sorted(_BY_BUILDER))


def family_of(builder: str) -> Family:
    """Return the family of a valid builder name."""
    return _BY_BUILDER[builder]
