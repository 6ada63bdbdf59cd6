"""Facts for the HTML page without a run: a freeze report and random results."""

from __future__ import annotations

import torch

from finetune.config.schema import Config
from finetune.freezing.freeze_report import make_freeze_report
from finetune.freezing.plan import make_plan
from finetune.inference.scoring import score
from finetune.inference.thumbnails import data_url, thumbnail
from finetune.report.page import (
    CheckFacts,
    DataFacts,
    EmbeddingMap,
    Facts,
    Listed,
    MapPoint,
    OddPhotos,
    Pair,
    Photo,
    Picture,
    SuspectsFacts,
)
from finetune.report.page.suspects_page import drawn_paths
from finetune.results.check import CheckReport, ClassRow, Finding, SizeRow, SplitRow
from finetune.results.evaluation import EvalResult
from finetune.results.freeze import FreezeReport
from finetune.results.learning_curve import (
    ClassProjection,
    CurvePoint,
    LearningCurve,
    PowerLaw,
    Projected,
)
from finetune.results.suspects import (
    Accuracy,
    Leak,
    LeakAccuracy,
    Neighbour,
    Outlier,
    QualityFinding,
    SuspectedLabel,
    SuspectsReport,
)


def freeze_report(patterns: list[str], name: str = "shufflenet_v2_x0_5") -> FreezeReport:
    config = Config.model_validate(
        {
            "model": {"name": name, "weights": "none"},
            "freeze": {"patterns": patterns},
            "data": {"root": "unread"},
            "output_dir": "unwritten",
        }
    )
    return make_freeze_report(make_plan(config, 3), config, config.optimizer)


def facts_of(
    freeze: FreezeReport, names: list[str], *, images: int = 300, pictures: int = 24
) -> Facts:
    """A page's facts with these names wherever a name can stand."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(len(names), (images,), generator=generator)
    logits = torch.randn(images, len(names), generator=generator)
    scored = score(logits, labels, names)
    result = EvalResult(
        checkpoint=names[0],
        model=names[-1],
        data=names[1],
        split="val",
        num_images=images,
        top1=0.5,
        balanced_accuracy=0.5,
        top5=None,
        loss=1.0,
        macro=scored.macro,
        auroc=scored.auroc,
        intervals=scored.intervals,
        interval_method=scored.interval_method,
        calibration=scored.calibration,
        per_class=scored.per_class,
        confused=scored.confused,
        confusion=None,
        images_per_s=1.0,
        features_from_earlier_run=False,
        features=None,
        ignored=0,
        files=(),
    )
    noise = thumbnail(torch.randint(0, 256, (3, 256, 256), generator=generator).byte())
    heat = thumbnail(torch.randint(0, 256, (3, 224, 224), generator=generator).byte())
    drawn = [
        Picture(
            path=f"val/{at}{names[at % len(names)]}.jpg",
            true=names[at % len(names)],
            predicted=names[(at + 1) % len(names)],
            probability=0.9,
            photo=noise,
            size=(256, 256),
            seen=(0.0625, 0.0625, 0.875, 0.875),
            top=[(name, 0.9 / 2**rank) for rank, name in enumerate(names[at % 3 :][:5])],
            heat=heat if at < 16 else None,
        )
        for at in range(pictures)
    ]
    listed = [
        Listed(one.path, one.true, one.predicted, one.probability, uncertain=at < 24)
        for at, one in enumerate(drawn)
    ]
    listed += [
        Listed(f"val/more{at}.jpg", names[0], names[1], 0.8, uncertain=False)
        for at in range(150 - pictures)
    ]
    figures = {"loss": 0.5, "top1": 0.5, "balanced_accuracy": 0.5}
    return Facts(
        run=names[0],
        result=result,
        freeze=freeze,
        epoch=1,
        records=[{"epoch": n, "loss": 1 / n, "val": figures} for n in (1, 2, 3)],
        mistakes=drawn,
        uncertain=drawn[:24],
        num_mistakes=150,
        listed=listed,
        written="28 November 2026",
        data=DataFacts(
            text=names[2 % len(names)],
            splits=("train", "val"),
            classes=[ClassRow(name, 30, (20, 10)) for name in names],
            findings=[Finding("leak", "error", names[0], "Why.", "What to do.", 1, (names[-1],))],
            notes=[names[0]],
            command="finetune check-data",
        ),
        config=f"model: {names[0]}",
        rerun=f"finetune train --config {names[0]}",
        versions={"torch": names[0]},
    )


def check_facts(names: tuple[str, str] = ("ants", "bees")) -> CheckFacts:
    """Facts of the page of check-data: two pairs that are drawn, and an odd image."""
    noise = thumbnail(torch.zeros(3, 64, 96).byte())
    first, second = names
    pairs = [
        Pair(
            Photo(f"{first}/a.jpg", first, "train", noise),
            Photo(f"{second}/b.jpg", second, "val", noise),
            ("classes", "splits"),
            None,
        ),
        Pair(
            Photo(f"{second}/c.jpg", second, "train", noise),
            Photo(f"{second}/d.jpg", second, "train", noise),
            ("same",),
            3,
            0.021,
        ),
    ]
    classes = tuple(ClassRow(name, 30, (20, 10)) for name in names)
    report = CheckReport(
        data=f"data/{first}",
        num_images=60,
        num_readable=59,
        splits=(SplitRow("train", 40, 2, False), SplitRow("val", 20, 2, False)),
        classes=classes,
        sizes=SizeRow((64, 96), (64, 96), (640, 96)),
        formats={"JPEG": 60},
        modes={"RGB": 60},
        findings=(Finding("leak", "error", first, "Why.", "What to do.", 1, (second,)),),
        num_remembered=0,
        elapsed_s=1.0,
        images_per_s=60.0,
        ok=False,
    )
    return CheckFacts(
        report=report,
        verdict="1 error",
        pairs=pairs,
        num_pairs={"classes": 1, "splits": 0, "same": 1},
        complete=True,
        odd=[OddPhotos("1 GIF", 1, [Photo(f"{first}/odd.gif", first, "train", noise)])],
        sizes=[((64, 96), 59)],
        table="data-pairs.csv",
        written="28 November 2026",
    )


def map_of(
    names: list[str], *, points: int = 60, images: int = 300, photo: str | None = None
) -> EmbeddingMap:
    """A map of random positions, on which every third image is a mistake."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 48, 48), generator=generator).byte()
    photo = photo or data_url(noise, side=48, quality=72)
    places = torch.randn(points, 2, generator=generator, dtype=torch.float64).tolist()
    return EmbeddingMap(
        method="pca",
        dimensions=1024,
        shares=(0.4, 0.2),
        points=[
            MapPoint(
                x=x,
                y=y,
                path=f"val/{at}{names[at % len(names)]}.jpg",
                true=names[at % len(names)],
                predicted=names[(at + (at % 3 == 0)) % len(names)],
                photo=photo,
            )
            for at, (x, y) in enumerate(places)
        ],
        num_mistakes=sum(at % 3 == 0 for at in range(points)),
        num_positions=images,
    )


def curve_of(names: list[str]) -> LearningCurve:
    """A learning curve of eight sizes."""

    def projected(count: int, now: float) -> Projected:
        return Projected(2 * count, now + 0.02, now, now + 0.04, 0.02, 0.001, 0.04)

    sizes = [50, 74, 110, 164, 243, 361, 538, 800]
    return LearningCurve(
        model="mobilenet_v2",
        weights="IMAGENET1K_V1",
        num_classes=len(names),
        num_train=800,
        num_val=200,
        num_draws=5,
        penalty=0.1,
        points=tuple(
            CurvePoint(size, 0.8 + at / 100, 0.78, 0.9, (0.8,)) for at, size in enumerate(sizes)
        ),
        law=PowerLaw(0.0, 0.5, 0.2),
        projected=projected(800, 0.87),
        per_class=tuple(ClassProjection(name, 100, 25, 0.9, projected(100, 0.9)) for name in names),
        picture=None,
        elapsed_s=1.0,
        features=None,
    )


def suspects_report(
    names: list[str], *, labels: int = 30, paths: str = "{name}/{at}.jpg"
) -> SuspectsReport:
    """A report on photos of these classes, which has entries of each kind."""

    def place(at: int, name: str) -> str:
        return paths.format(name=name, at=at)

    def near(at: int, name: str) -> Neighbour:
        return Neighbour(place(at, name), "train", name, 0.91)

    count = len(names)
    found = tuple(
        SuspectedLabel(
            path=place(at, names[at % count]),
            split="val" if at % 3 else "train",
            given=names[at % count],
            suggested=names[(at + 1) % count],
            score=0.99 - at / 100,
            probability_given=0.01,
            probability_suggested=0.98,
            neighbours=tuple(near(1000 + at + k, names[(at + 1) % count]) for k in range(3)),
        )
        for at in range(labels)
    )
    every, leaked, without = (Accuracy(n, n - 2, (n - 2) / n, None) for n in (40, 10, 30))
    return SuspectsReport(
        source="pets.yaml",
        data=f"photos/{names[0]}",
        base="photos",
        model="mobilenet_v2",
        classes=tuple(names),
        num_train=160,
        num_val=40,
        num_folds=5,
        accuracy=0.9,
        num_not_judged=0,
        labels=found,
        leaks=tuple(
            Leak(
                place(2000 + at, names[0]),
                place(3000 + at, names[1]),
                0.98,
                names[0],
                names[at % 2],
                "both",
            )
            for at in range(3)
        ),
        leak_accuracy=LeakAccuracy(every, leaked, without),
        outliers=(
            Outlier(place(4000, names[0]), "train", names[0], "class", 0.2, 0.3, near(1, names[1])),
        ),
        quality=(
            QualityFinding(place(5000, names[1]), "train", names[1], "dark", "mean 6 of 255"),
        ),
        features=None,
        elapsed_s=1.0,
        decided=(("earlier/1.jpg", "drop", ""),) if names[0] == "daisy" else (),
    )


def suspects_facts(names: list[str]) -> SuspectsFacts:
    """Facts of the page of suspects, whose photos are noise."""
    report = suspects_report(names)
    large, small = drawn_paths(report)
    generator = torch.Generator().manual_seed(0)

    def noise(side: int) -> str:
        return data_url(
            torch.randint(0, 256, (3, side, side), generator=generator).byte(),
            side=side,
            quality=60,
        )

    return SuspectsFacts(
        report=report,
        photos={path: noise(64) for path in large},
        small={path: noise(32) for path in small},
        table="suspects.csv",
        written="28 November 2026",
    )
