"""Train fastai's `Learner` with a frozen body, fastai's head and the one-cycle schedule.

The head has two layers on average and maximum pooling. The code repeats the two steps of
`vision_learner`, which has no argument for the layer at which to cut this network. By default,
fastai trains the norm layers of a frozen body; `--freeze-norms` freezes them too.
"""

from __future__ import annotations

from pathlib import Path

from common import BATCH_SIZE, FREEZE_NORMS, WORKERS, Epochs, arguments, network, report
from fastai.vision.all import (
    Callback,
    CategoryBlock,
    DataBlock,
    Flip,
    GrandparentSplitter,
    ImageBlock,
    Learner,
    Normalize,
    RandomResizedCrop,
    accuracy,
    create_vision_model,
    default_split,
    get_image_files,
    imagenet_stats,
    parent_label,
    set_seed,
)
from torch import nn


class Clock(Callback):
    order = 60  # after fastai's Recorder (50), which computes the epoch's accuracy

    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs

    def after_train(self) -> None:
        self.epochs.trained()

    def after_epoch(self) -> None:
        self.epochs.evaluated(float(self.learn.recorder.values[-1][-1]))


def photos(root: Path) -> list[Path]:
    """Leave out the GIF, which the other programs do not read."""
    return [path for path in get_image_files(root) if path.suffix.lower() != ".gif"]


def main() -> None:
    options = arguments(__doc__, freeze_norms=FREEZE_NORMS)

    def body(**_: bool) -> nn.Module:  # fastai passes pretrained=True
        return network(options.weights)

    def train(epochs: Epochs) -> str:
        set_seed(0)
        block = DataBlock(
            blocks=(ImageBlock, CategoryBlock),
            get_items=photos,
            get_y=parent_label,
            splitter=GrandparentSplitter(valid_name="val"),
            item_tfms=RandomResizedCrop(224, min_scale=0.08),
            batch_tfms=[Flip(), Normalize.from_stats(*imagenet_stats)],
        )
        loaders = block.dataloaders(options.data, bs=BATCH_SIZE, num_workers=WORKERS)
        learner = Learner(
            loaders,
            create_vision_model(body, loaders.c, cut=1),  # after the first child, `features`
            splitter=default_split,
            metrics=accuracy,
            train_bn=not options.freeze_norms,
            cbs=[Clock(epochs)],
        )
        learner.freeze()
        learner.fit_one_cycle(options.epochs, lr_max=options.lr)
        return "crop_flip"

    report(train)


if __name__ == "__main__":
    main()
