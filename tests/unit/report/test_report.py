"""Tests of ``finetune report``: one self-contained page that escapes all names."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers.hostile_names import HOSTILE
from helpers.messages import fails
from helpers.page_facts import facts_of, freeze_report, map_of
from PIL import Image
from torch import nn

import finetune
from finetune.cli import app
from finetune.commands import report as command
from finetune.commands.check_data import check_data
from finetune.commands.evaluate import EvalOptions, compute
from finetune.commands.report import evaluate_and_report, report
from finetune.commands.train import train
from finetune.config.load import to_yaml
from finetune.config.schema import Config, DataConfig, PreprocessingConfig
from finetune.core.reporter import SilentReporter
from finetune.data.loading.transforms import build_fit
from finetune.inference.grad_cam import grad_cam
from finetune.inference.thumbnails import data_url, looked_at, seen_part, thumbnail
from finetune.report.layout import plain
from finetune.report.page import MapPoint, render_page
from finetune.report.page.build import build_page
from finetune.report.page.charts import line_chart, nice_ticks
from finetune.report.page.confusion import MOST_CLASSES, matrix_of, shown_classes
from finetune.report.page.embedding_map import MOST_COLOURS, choose_method, lay_out
from finetune.report.page.network_bars import MOST_BARS, strip_of
from finetune.report.plots import draw_confusion
from finetune.report.prediction import render_page_result
from finetune.results.caveats import Caveat
from finetune.results.evaluation import ClassScore, ConfusedPair, Interval, PageResult
from finetune.results.freeze import FreezeReport

Make = Callable[..., Config]


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids |= {value or "" for name, value in attrs if name == "id"}

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    @property
    def links(self) -> list[str]:
        """Whatever a browser would fetch or follow."""
        places = {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}
        return [value for _, name, value in self.attributes if name in places]


def assert_harmless(page: Page) -> None:
    assert page.tags.count("script") == 1
    assert page.tags.count("style") == 1
    assert not {"iframe", "object", "embed", "base", "link", "form"} & set(page.tags)
    names = {name for _, name, _ in page.attributes}
    assert not {name for name in names if name.startswith("on")}
    # The content security policy would refuse them: a length drawn by one would be missing.
    assert "style" not in names
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link[0] == "#"} <= page.ids


@pytest.fixture(scope="module")
def freeze(tmp_path_factory: pytest.TempPathFactory) -> FreezeReport:
    return freeze_report(["*", "!conv5.*"])


# What the page holds


@pytest.fixture
def run(make_config: Make) -> str:
    """The folder of a short run."""
    config = make_config(freeze={"patterns": ["*", "!conv5.*"]})
    train(config)
    return config.output_dir


def test_every_part_is_on_the_page(run: str) -> None:
    result = report(run)
    assert result.files == (str(Path(run) / "report.html"),)
    text = Path(run, "report.html").read_text()
    page = Page(text)
    assert_harmless(page)
    assert page.ids >= {
        *("figures", "network", "curves", "classes", "confusion", "mistakes", "uncertain"),
        *("calibration", "data", "rerun"),
    }
    policy = next(v for tag, name, v in page.attributes if tag == "meta" and "default-src" in v)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "up to the split" in text
    assert f"finetune train --config {run}/config.yaml --set output_dir={run}-rerun" in text
    assert "18 training and 10 validation images of 2 classes." in text
    assert "name: shufflenet_v2_x0_5" in text
    assert f"torch {torch.__version__}" in text
    assert page.tags.count("polyline") == 4
    # All mistakes are in the list, and the network's input is too small for a heat map.
    wrong = int(re.search(r"All (\d+) mistakes? and", text)[1])
    assert text.count('data-kinds="mistake') == wrong
    assert 'class="heat"' not in text
    assert "Copies, look-alikes and wrong labels have not been looked for" in text
    assert f"finetune check-data --config {run}/config.yaml --report" in text


def test_a_page_says_what_check_data_has_found(
    run: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "HEAT_FROM", 32)
    check_data(DataConfig(root=str(photos)), workers=1)
    report(run, output=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "have not been looked for" not in text
    assert "What check-data found" in text or "check-data found nothing wrong" in text
    page = Page(text)
    assert_harmless(page)
    assert ("img", "class", "heat") in page.attributes


def test_caveats_stand_beside_the_accuracy(freeze: FreezeReport) -> None:
    facts = facts_of(freeze, ["ants", "bees"])
    assert 'class="caveats"' not in render_page(facts)
    caveats = (Caveat("leak", "All of it is known."), Caveat("selection", "Little of it."))
    object.__setattr__(facts.result, "caveats", caveats)
    text = render_page(facts)
    assert text.index("All of it is known.") < text.index("Little of it.") < text.index("Top-1")


def test_a_figure_has_one_unit_and_a_scale_that_shows_its_interval(freeze: FreezeReport) -> None:
    facts = facts_of(freeze, ["ants", "bees", "wasps"])
    intervals = facts.result.intervals | {"top1": Interval(0.931, 0.953)}
    result = replace(facts.result, top1=0.942, balanced_accuracy=0.94, intervals=intervals)
    figures = {one.name: one for one in build_page(replace(facts, result=result))["figures"]}
    assert figures["AUROC"].text == f"{result.auroc:.4f}"
    assert figures["Top-1"].text == "94.20%"
    for figure in figures.values():
        if figure.at is not None:
            assert 0 <= figure.low <= figure.low + figure.width <= 100.01
    assert figures["Loss"].ends[1] != "100%"


def test_of_many_classes_the_most_confused_pairs_are_in_the_matrix(freeze: FreezeReport) -> None:
    names = [f"class {at}" for at in range(95)]
    classes = [ClassScore(name, 50, 30, 50, 0.6, 0.6, 0.6, None) for name in names]
    pairs = [ConfusedPair(names[at], names[94 - at], 7, 0.14) for at in (3, 10, 40)] + [
        ConfusedPair(name, names[(at + 1) % 95], 1, 0.02) for at, name in enumerate(names)
    ]
    shown = shown_classes(classes, pairs)
    assert len(shown) == MOST_CLASSES
    for at in (3, 10, 40):
        places = [shown.index(names[at]), shown.index(names[94 - at])]
        assert abs(places[0] - places[1]) == 1, "the most confused classes are neighbours"
    matrix = matrix_of(classes, pairs, shown, names.index)
    assert matrix.columns == MOST_CLASSES + 1
    mistakes = {name: sum(pair.count for pair in pairs if pair.true == name) for name in shown}
    drawn: dict[str, int] = dict.fromkeys(shown, 0)
    for cell in matrix.cells:
        drawn[names[cell.true]] += cell.count * (not cell.right)
    assert drawn == mistakes, "no mistake of a shown class is lost"


def test_few_classes_keep_their_order(freeze: FreezeReport) -> None:
    names = ["ants", "bees", "cats"]
    result = facts_of(freeze, names).result
    assert shown_classes(result.per_class, result.confused) == names


@pytest.mark.parametrize(
    ("fit", "seen"),
    [("crop", (0.34375, 0.1875, 0.3125, 0.625)), ("pad", (0, 0, 1, 1)), ("stretch", (0, 0, 1, 1))],
)
def test_the_part_that_the_network_sees_is_that_of_the_transform(
    fit: str, seen: tuple[float, ...]
) -> None:
    preprocessing = PreprocessingConfig(resize=64, crop=40, fit=fit)
    photo = torch.zeros(3, 200, 400).byte()
    assert seen_part(photo, preprocessing) == pytest.approx(seen)
    if fit == "crop":
        left, top, width, height = seen
        photo[:, int(200 * top) : int(200 * (top + height)), int(400 * left) :][
            :, :, : int(400 * width)
        ] = 255
        assert build_fit(preprocessing)(photo).float().mean() > 250


def test_a_page_reads_the_same_the_second_time(run: str, tmp_path: Path) -> None:
    pages = []
    for name in ("one.html", "two.html"):
        report(run, output=tmp_path / name)
        text = (tmp_path / name).read_text()
        pages.append(re.sub(r"in [\d.]+ s| \(\d+ for the first time\)", "", text))
    assert pages[0] == pages[1]


def test_a_checkpoint_alone_has_a_page_without_curves(run: str, tmp_path: Path) -> None:
    alone = tmp_path / "alone.pt"
    alone.write_bytes(Path(run, "best.pt").read_bytes())
    report(str(alone), output=tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert_harmless(page)
    assert "curves" not in page.ids
    assert "confusion" in page.ids


def test_eval_writes_its_files_and_the_page_of_the_same_evaluation(run: str) -> None:
    result = evaluate_and_report(Path(run) / "best.pt")
    names = [Path(file).name for file in result.files]
    assert names == ["predictions.csv", "metrics.json", "report.html"]
    assert f"{result.top1:.2%}" in Path(run, "report.html").read_text()


def test_curves_and_confusion_as_pictures(run: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    result = report(run, output=tmp_path / "pictures", as_pictures=True)
    assert [Path(file).name for file in result.files] == [
        "report-curves.png",
        "report-confusion.png",
    ]
    for file in result.files:
        with Image.open(file) as image:
            image.load()
            assert image.width > 400


@pytest.mark.parametrize("name", ["new/", "there"])
def test_a_page_goes_into_the_folder_that_output_names(run: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    result = report(run, output=f"{tmp_path}/{name}")
    assert result.files == (str(tmp_path / name / "report.html"),)


def test_a_page_without_the_runs_config_file_says_how_to_train_from_its_own(
    run: str, tmp_path: Path
) -> None:
    Path(run, "config.yaml").unlink()
    report(run, output=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert f"{run}/config.yaml" not in text
    assert "with the config below saved as config.yaml" in text


def test_only_the_images_that_chose_the_epoch_flatter_it(freeze: FreezeReport) -> None:
    facts = facts_of(freeze, ["ants", "bees"])
    assert "slightly optimistic" in render_page(facts)
    assert "slightly optimistic" not in render_page(replace(facts, chosen_on_these=False))


@pytest.mark.parametrize(("file", "browser"), [("report.html", True), ("report-curves.png", False)])
def test_only_a_page_opens_in_a_browser(file: str, browser: bool) -> None:
    text = plain(render_page_result(PageResult("runs/x", (f"runs/x/{file}",), 5000, 1.0, None)))
    assert ("opens in any browser" in text) is browser


class Told(SilentReporter):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize(
    ("name", "lines"), [("蜜蜂和蚂蚁", 1), ("a very long name " * 8, 0), ("bees", 0)]
)
@pytest.mark.filterwarnings("error")
def test_a_picture_of_odd_names_gives_one_plain_line_at_most(
    freeze: FreezeReport, tmp_path: Path, name: str, lines: int
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    result = facts_of(freeze, ["ants", name]).result
    told = Told()
    draw_confusion(result.per_class, result.confused, tmp_path / "one.png", reporter=told)
    assert len(told.warnings) == lines


def test_train_with_its_page_does_not_say_to_write_it(
    make_config: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "pets.yaml"
    config.write_text(to_yaml(make_config(train={"epochs": 1})))
    monkeypatch.setattr(sys, "argv", ["finetune", "train", "--config", str(config), "--report"])
    assert app._run() == 0
    out = capsys.readouterr().out
    assert "finetune eval" in out
    assert "finetune report" not in out


# The map


def points_of(page: Page) -> int:
    return sum(name == "data-photo" for _, name, _ in page.attributes)


def test_a_map_shows_all_images_at_the_cost_of_no_feature(run: str, tmp_path: Path) -> None:
    plain = report(run, output=tmp_path / "plain.html")
    mapped = report(run, output=tmp_path / "mapped.html", map_method="pca")
    assert (plain.map_method, mapped.map_method) == (None, "pca")
    assert plain.features is not None
    assert mapped.features is not None
    assert (mapped.features.computed, mapped.features.reused) == (0, plain.features.reused)
    page = Page((tmp_path / "mapped.html").read_text())
    assert_harmless(page)
    assert "map" in page.ids
    assert points_of(page) == 10
    assert {"title", "desc"} <= set(page.tags)
    [said] = [text for text in page.texts if text.startswith("PCA of") and "Each" not in text]
    assert "1,024 values" in said
    assert "All 10 images are shown." in said
    assert re.search(r"\d% of their variance is along the horizontal axis, [\d.]+% along", said)


def test_a_map_changes_nothing_else_on_the_page(run: str, tmp_path: Path) -> None:
    for name, method in (("plain", None), ("mapped", "pca"), ("again", "pca")):
        report(run, output=tmp_path / f"{name}.html", map_method=method)
    plain, mapped, again = (
        re.sub(
            r"in [\d.]+ s| \(\d+ for the first time\)", "", (tmp_path / f"{name}.html").read_text()
        )
        for name in ("plain", "mapped", "again")
    )
    assert mapped == again
    assert "embedding" not in plain
    without = re.sub(r'<section id="map">.*?</section>\n', "", mapped, flags=re.DOTALL)
    without = without.replace('<a href="#map">Map</a>', "")
    body = without.partition("<body>")[2].partition("<script>")[0]
    assert body == plain.partition("<body>")[2].partition("<script>")[0]


@pytest.mark.parametrize("cache", ["off", "memory"])
@pytest.mark.parametrize("patterns", [["*"], []])
def test_the_evaluation_is_that_without_a_map_bit_for_bit(
    make_config: Make, cache: str, patterns: list[str]
) -> None:
    config = make_config(
        freeze={"patterns": patterns},
        features={"cache": cache},
        train={"epochs": 1},
        runtime={"precision": "float32", "memory_format": "contiguous"},
    )
    train(config)
    path = Path(config.output_dir) / "best.pt"
    plain = compute(path, EvalOptions(), reporter=SilentReporter())
    mapped = compute(path, EvalOptions(embeddings=True), reporter=SilentReporter())
    assert plain.embeddings is None
    assert mapped.embeddings is not None
    assert torch.equal(plain.logits, mapped.logits)
    assert plain.result.loss == mapped.result.loss
    files = [str(file) for file in mapped.images.paths]
    embedded = torch.from_numpy(finetune.load(config.output_dir).embed(files))
    assert torch.allclose(mapped.embeddings, embedded, atol=1e-5)


def test_mistakes_are_drawn_first_of_too_many_images(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = compute(Path(run) / "best.pt", EvalOptions(), reporter=SilentReporter())
    wrong = int((evaluated.predicted != evaluated.labels).sum())
    for most in (max(wrong, 1) + 1, max(wrong - 1, 1)):
        monkeypatch.setattr(command, "MAPPED", most)
        report(run, output=tmp_path / "page.html", map_method="pca")
        text = (tmp_path / "page.html").read_text()
        assert points_of(Page(text)) == most
        assert text.count('class="point wrong') == min(wrong, most)
        assert f"{most} of 10 images are shown" in text


def test_a_map_of_too_few_images_says_why_there_is_none(
    run: str, photos: Path, tmp_path: Path
) -> None:
    for folder in (photos / "val").iterdir():
        for file in sorted(folder.iterdir())[1:]:
            file.unlink()
    report(run, output=tmp_path / "page.html", map_method="pca")
    page = Page((tmp_path / "page.html").read_text())
    assert any("There is no map: fewer than 3 images" in text for text in page.texts)
    assert points_of(page) == 0


def test_only_the_classes_with_the_most_mistakes_are_coloured(freeze: FreezeReport) -> None:
    names = [f"class {at}" for at in range(100)]
    facts = facts_of(freeze, names, images=400)
    laid = lay_out(map_of(names), facts.result, names.index)
    assert len(laid["legend"]) == MOST_COLOURS + 1
    assert laid["legend"][-1] == {"name": "90 other classes", "kind": "other"}
    assert "10 classes of the most confused pairs are coloured" in laid["classes_text"]
    few = lay_out(map_of(names[:10]), facts_of(freeze, names[:10]).result, names.index)
    assert [entry["name"] for entry in few["legend"]] == names[:10]
    assert few["classes_text"] == ""


@pytest.mark.parametrize(
    "places",
    [[(0.0, 0.0), (1.0, 0.0), (2.0, 0.0)], [(0.0, 0.0), (0.0, 9e30)], [(5.0, 5.0)] * 3],
    ids=["flat", "tall", "one place"],
)
def test_a_map_stays_within_its_frame(
    freeze: FreezeReport, places: list[tuple[float, float]]
) -> None:
    names = ["ants", "bees"]
    points = [MapPoint(x, y, "a.jpg", "ants", "ants", "data:") for x, y in places]
    drawn = replace(map_of(names), points=points)
    laid = lay_out(drawn, facts_of(freeze, names).result, names.index)
    assert 100 <= laid["height"] <= 600
    for point in laid["points"]:
        assert 0 < point["x"] < laid["width"]
        assert 0 < point["y"] < laid["height"]


def test_hostile_names_stay_text_on_a_map(freeze: FreezeReport) -> None:
    names = list(HOSTILE)
    drawn = map_of(names)
    page = Page(render_page(replace(facts_of(freeze, names), embedding_map=drawn)))
    assert_harmless(page)
    paths = [value for _, name, value in page.attributes if name == "data-path"]
    assert sorted(paths) == sorted(point.path for point in drawn.points)


def test_a_page_with_the_largest_map_stays_below_ten_megabytes(freeze: FreezeReport) -> None:
    names = [f"{at:04d}{'wide class name ' * 15}"[:250] for at in range(1000)]
    for points, side in (
        (command.MAPPED, command.MAP_SIDE),
        (command.MAPPED_LARGE, command.MAP_SIDE_LARGE),
    ):
        noise = torch.randint(0, 256, (3, side, side)).byte()
        photo = data_url(noise, side=side, quality=command.MAP_QUALITY)
        facts = facts_of(freeze, names, images=5000, pictures=96)
        drawn = map_of(names, points=points, photo=photo)
        assert len(render_page(replace(facts, embedding_map=drawn)).encode()) < 10_000_000


def test_a_map_by_umap_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    assert choose_method("pca") == "pca"
    assert choose_method("auto") == "pca"
    with fails("config.missing_package", key="--map", source="report"):
        choose_method("umap")
    module = ModuleType("umap")  # another package of the same name
    monkeypatch.setitem(sys.modules, "umap", module)
    assert choose_method("auto") == "pca"
    with fails("config.missing_package", key="--map", source="report"):
        choose_method("umap")
    module.UMAP = object  # type: ignore[attr-defined]
    assert choose_method("auto") == choose_method("umap") == "umap"


def test_the_output_says_which_map_it_is() -> None:
    files = ("runs/x/report.html",)
    assert "Map" not in plain(render_page_result(PageResult("runs/x", files, 5000, 1.0, None)))
    text = plain(render_page_result(PageResult("runs/x", files, 5000, 1.0, None, "umap")))
    assert re.search(r"Map +UMAP of the embeddings", text)


# Names that would do harm


def test_a_page_says_which_loss_is_without_temperature(freeze: FreezeReport) -> None:
    facts = facts_of(freeze, ["ants", "bees"])
    assert "without temperature" not in render_page(facts)
    calibration = replace(facts.result.calibration, temperature=2.0, error_before=0.1, loss=0.25)
    text = render_page(replace(facts, result=replace(facts.result, calibration=calibration)))
    assert "Loss, without temperature" in text
    assert "The loss with it is 0.2500." in text


def test_hostile_names_stay_text(freeze: FreezeReport) -> None:
    assert len(set(HOSTILE)) == 20
    text = render_page(facts_of(freeze, list(HOSTILE)))
    page = Page(text)
    assert_harmless(page)
    for name in HOSTILE:
        assert name in page.texts, name
        assert any(name in value for _, attribute, value in page.attributes if attribute == "alt")


def test_hostile_class_folders_and_file_names_stay_text(
    make_config: Make, photos: Path, tmp_path: Path
) -> None:
    folder_names = [name for name in HOSTILE if "/" not in name][:2]
    for split in ("train", "val"):
        for label, name in enumerate(folder_names):
            (photos / split / f"class_{label}").rename(photos / split / name)
            for at, file in enumerate(sorted((photos / split / name).iterdir())):
                file.rename(file.with_name(f'"><img src=x onerror=alert({at})>.png'))
    config = make_config(train={"epochs": 1})
    train(config)
    report(config.output_dir, output=tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert_harmless(page)
    assert set(folder_names) <= set(page.texts)
    assert page.tags.count("img") > 0
    assert "x" not in page.links


# Its size


def test_a_page_stays_below_ten_megabytes(freeze: FreezeReport) -> None:
    names = [f"{at:04d}{'wide class name ' * 15}"[:250] for at in range(1000)]
    facts = facts_of(freeze, names, images=5000, pictures=96)
    records = [{**facts.records[0], "epoch": n} for n in range(1, 301)]
    text = render_page(replace(facts, records=records))
    assert len(text.encode()) < 10_000_000
    page = Page(text)
    cells = [1 for _, name, value in page.attributes if name == "class" and "cell" in value]
    assert 0 < len(cells) <= MOST_CLASSES**2


def test_a_thumbnail_is_small_whatever_the_photo_was() -> None:
    for shape in ((3, 4000, 1000), (3, 1000, 1000)):
        assert len(thumbnail(torch.randint(0, 256, shape).byte())) < 30_000


# What is drawn


@pytest.mark.parametrize(
    ("name", "patterns", "before", "behind"),
    [
        ("shufflenet_v2_x0_5", ["*"], "conv5.1", "fc"),
        ("shufflenet_v2_x0_5", ["*", "!conv5.*"], "stage4.3", "conv5.0"),
        ("mobilenet_v2", ["*", "!features.17.*", "!features.18.*"], "features.16", "features.17"),
        ("resnet18", ["*", "!layer4.1.*"], "layer4.0", "layer4.1"),
    ],
)
def test_the_network_is_cut_where_training_cuts_it(
    name: str, patterns: list[str], before: str, behind: str
) -> None:
    found = freeze_report(patterns, name)
    strip = strip_of(found.parameters, found.cut.after)
    assert sum(bar.parameters for bar in strip.bars) == found.totals.parameters
    assert sum(bar.trainable for bar in strip.bars) == found.totals.trainable
    assert strip.bars[-1].head
    assert len(strip.bars) <= MOST_BARS
    assert strip.cut is not None
    assert strip.cut == int(strip.cut)
    assert strip.bars[int(strip.cut) - 1].name == before
    assert strip.bars[int(strip.cut)].name == behind
    assert all(bar.state == "frozen" for bar in strip.bars[: int(strip.cut)])


def test_a_cut_within_a_bar_stands_in_its_middle() -> None:
    found = freeze_report(["*", "!features.denseblock4.denselayer16.*"], "densenet121")
    strip = strip_of(found.parameters, found.cut.after)
    assert strip.cut is not None
    assert strip.cut % 1 == 0.5
    assert strip.bars[int(strip.cut)].name == "features.denseblock4"
    assert strip.bars[int(strip.cut)].state == "partly"


def test_a_network_that_trains_whole_has_no_cut() -> None:
    found = freeze_report([], "mobilenet_v2")
    strip = strip_of(found.parameters, found.cut.after)
    assert strip.cut is None
    assert {bar.state for bar in strip.bars} == {"trained"}


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.913, 0.987), (3.0, 3.0), (1e-6, 2e-6)])
def test_ticks_span_the_values_in_round_steps(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 9
    steps = {f"{b - a:.3g}" for a, b in pairwise(ticks)}
    assert len(steps) == 1


def test_a_single_epoch_can_be_drawn() -> None:
    chart = line_chart("Loss", [1], [("training", "train", [0.5])])
    (dot,) = chart.dots
    assert 0 < dot.x < 480
    assert 0 < dot.y < 230
    assert dot.text == "epoch 1: training 0.5"


class Corner(nn.Module):
    """Says class 1 as far as the upper left is bright, class 0 otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 8, stride=8, bias=False)
        self.features.weight.data.fill_(1 / 192)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.features(images)
        return torch.stack([maps[:, 0].mean(dim=(1, 2)), maps[:, 1, 0, 0]], dim=1)


def test_heat_stands_where_the_class_comes_from() -> None:
    images = torch.zeros(2, 3, 64, 64)
    images[:, :, :8, :8] = 1.0
    images[:, :, 40:48, 40:48] = 0.5
    model = Corner().requires_grad_(False)
    heat = grad_cam(model, images, torch.tensor([1, 1]))
    assert heat is not None
    assert heat.shape == (2, 8, 8)
    assert int(heat[0].argmax()) == 0
    assert float(heat[0].max()) == pytest.approx(1.0)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_network_without_a_spatial_feature_has_no_heat() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert grad_cam(model, torch.rand(1, 3, 2, 2), torch.tensor([0])) is None


class Biased(nn.Module):
    """A network whose last grid is a table of position biases, as in swin_v2: it speaks for the
    class, and the image has no say in it."""

    def __init__(self) -> None:
        super().__init__()
        self.corner = Corner()
        self.biases = nn.Conv2d(1, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        positions = torch.ones(1, 1, 3, 3, device=images.device)
        logits: torch.Tensor = self.corner(images)
        spoken: torch.Tensor = self.biases(positions).mean(dim=(2, 3))
        return logits + spoken


@pytest.mark.parametrize("frozen", [True, False])
def test_heat_is_of_what_depends_on_the_image(frozen: bool) -> None:
    images = torch.rand(2, 3, 64, 64)
    model = Biased().requires_grad_(not frozen)
    heat = grad_cam(model, images, torch.tensor([1, 1]))
    assert heat is not None
    assert heat.shape == (2, 8, 8)
    assert all(parameter.requires_grad is not frozen for parameter in model.parameters())


def test_heat_is_drawn_over_what_the_network_sees() -> None:
    preprocessing = PreprocessingConfig(resize=36, crop=32)
    photo = torch.randint(0, 256, (3, 50, 70)).byte()
    (url,) = looked_at(Corner(), [photo], [1], preprocessing)
    assert url is not None
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        assert image.size == (32, 32)
