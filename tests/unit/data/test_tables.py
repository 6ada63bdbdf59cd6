"""Tests of tables from other tools: delimiters, quotes, split flags, ids, hints."""

from __future__ import annotations

import csv
import io
import itertools
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.messages import fails
from helpers.photo_folders import file_names, find, put, refusal

from finetune.cli import app
from finetune.config.load import data_of, load_config
from finetune.config.schema import DataConfig
from finetune.core.reporter import SilentReporter
from finetune.data.checks.survey import survey
from finetune.data.images import TrainVal
from finetune.data.sources.open import find_split, find_train_val


def table(root: Path, text: str | bytes, *, name: str = "photos.csv") -> Path:
    """A table with this text; a picture for every path ``img/…`` in it."""
    content = text.encode() if isinstance(text, str) else text
    put(root, *re.findall(r"img/\w[\w.]*", content.decode("utf-8", "ignore")))
    (root / name).write_bytes(content)
    return root / name


def rows(line: str = "img/{c}{i}.png,{c}", *, head: str = "path,label", each: int = 5) -> str:
    """A table of five pictures of ``a`` and of ``b``; ``{n}`` numbers the rows."""
    places = itertools.product("ab", range(each))
    lines = [line.format(c=c, i=i, n=n) for n, (c, i) in enumerate(places)]
    return "\n".join([head, *lines, ""])


def all_of(found: TrainVal) -> dict[str, str]:
    """The class of each picture by its name."""
    return {
        path.name: part.class_names[label]
        for part in (found.train, found.val)
        for path, label in zip(part.paths, part.labels, strict=True)
    }


EXPECTED = {f"{c}{i}.png": c for c in "ab" for i in range(5)}


# What surrounds a value


@pytest.mark.parametrize(
    "line",
    [
        '"img/{c}{i}.png", "{c}"',
        '"img/{c}{i}.png" , "{c}" ',
        '"img/{c}{i}.png",\t"{c}"\t',
        '"img/{c}{i}.png",\xa0"{c}"\xa0',
        " img/{c}{i}.png ,{c} ",
        "\timg/{c}{i}.png\t, {c}",
        "\xa0img/{c}{i}.png\xa0,{c}\u3000",
        "'img/{c}{i}.png', '{c}'",
        "“img/{c}{i}.png”,“{c}”",
        "„img/{c}{i}.png“,«{c}»",
        "\u2018img/{c}{i}.png\u2019,`{c}`",
        "img/{c}{i}.png,'{c}'",
        '" img/{c}{i}.png "," {c} "',
        '"img/{c}{i}.png","\'{c}\'"',
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_spaces_and_quotes_around_a_value_are_no_part_of_it(
    tmp_path: Path, line: str, end: str
) -> None:
    path = table(tmp_path, rows(line).replace("\n", end))
    assert all_of(find(path)) == EXPECTED


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("head", ['"path", "label"', " path , 'label' ", "\tpath,\xa0label"])
def test_spaces_and_quotes_around_a_column_s_name_are_no_part_of_it(
    tmp_path: Path, head: str, mark: str
) -> None:
    assert all_of(find(table(tmp_path, mark + rows(head=head)))) == EXPECTED


def test_spaces_and_quotes_around_splits_and_groups_are_no_part_of_them(tmp_path: Path) -> None:
    splits = ['"train"', "'train' ", ' "train"', "\xa0train"]
    groups = ['"g"', "'g'", ' "g" ', "g\xa0"]
    lines = [
        f"img/{c}{i}.png,{c}, {splits[i]},{groups[i]}" for c, i in itertools.product("ab", range(4))
    ]
    held = ["img/a9.png,a,“val”,h", "img/b9.png,b,'val',h"]
    found = find(table(tmp_path, "\n".join(["path,label,split,group", *lines, *held])))
    assert file_names(found.val) == ["a9.png", "b9.png"]
    assert set(found.train.groups) == {"g"}


def test_a_file_whose_name_has_spaces_or_quotes_at_its_ends_is_found(tmp_path: Path) -> None:
    odd = ["' x.png'", " y.png "]
    put(tmp_path, *odd, "x.png", "y.png")
    text = rows() + "".join(f'"{name}",a\n' for name in odd)
    found = all_of(find(table(tmp_path, text)))
    assert {"' x.png'", " y.png "} <= found.keys()
    assert "y.png" not in found


def test_quotes_within_a_label_stay(tmp_path: Path) -> None:
    found = find(table(tmp_path, rows("img/{c}{i}.png,\"'{c}' or 'c'\"")))
    assert found.train.class_names == ("'a' or 'c'", "'b' or 'c'")


def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path: Path) -> None:
    lines = rows("img/{c}{i}.png,{c},x", head="path,label,note").splitlines()
    lines[3] = lines[3][:-1] + '"nice'
    lines[7] = lines[7][:-1] + '"odd" one'
    path = table(tmp_path, "\n".join(lines))
    assert f"{path}:4: " in str(refusal(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_table_that_is_not_in_utf_8_is_refused(tmp_path: Path, encoding: str) -> None:
    assert refusal(table(tmp_path, rows().encode(encoding))).kind == "data.not_text"


# Delimiters


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["photos.csv", "photos.tsv"])
def test_the_delimiter_is_seen_in_the_first_line(tmp_path: Path, delimiter: str, name: str) -> None:
    text = rows().replace(",", delimiter)
    assert all_of(find(table(tmp_path, text, name=name))) == EXPECTED


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_the_delimiter_that_excel_declares_is_used(
    tmp_path: Path, delimiter: str, quote: str
) -> None:
    text = f"{quote}sep={delimiter}{quote}\r\n" + rows().replace(",", delimiter)
    assert all_of(find(table(tmp_path, text))) == EXPECTED
    path = table(tmp_path, f"{text}gone.png{delimiter}a\n")
    assert f"{path}:13: " in str(refusal(path))


def test_other_delimiters_within_values_do_not_mislead(tmp_path: Path) -> None:
    text = rows("img/{c}{i}.png;{c};1,2,3|4,5", head='path;label;"x,y|z,w"')
    assert all_of(find(table(tmp_path, text))) == EXPECTED


@pytest.mark.parametrize(
    ("word", "delimiter"), [(";", ";"), ("semicolon", ";"), ("tab", "\t"), ("|", "|"), (",", ",")]
)
def test_a_delimiter_that_is_given_is_used(tmp_path: Path, word: str, delimiter: str) -> None:
    path = table(tmp_path, rows().replace(",", delimiter))
    assert all_of(find(path, table={"delimiter": word})) == EXPECTED
    other = "comma" if delimiter != "," else "tab"
    assert refusal(path, table={"delimiter": other}).problems[0].kind == "data.no_such_column"


def test_a_delimiter_that_is_none_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: {name: resnet18}\ndata: {root: x.csv, table: {delimiter: xx}}\n")
    with fails("config.invalid_value", key="data.table.delimiter"):
        load_config(path)


@pytest.mark.parametrize("key", ["delimiter", "folder", "suffix"])
def test_an_option_of_a_table_without_a_table_is_refused(key: str) -> None:
    value = ";" if key == "delimiter" else "x"
    with pytest.raises(ValueError, match=rf"table\.{key}: has no effect unless root is"):
        DataConfig.model_validate({"root": "photos", "table": {key: value}})


def test_random_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Against Python's own writer, over every way of quoting, and fields full of delimiters."""
    draw = random.Random(0)
    put(tmp_path, *(f"{i}.png" for i in range(8)))
    for number in range(60):
        delimiter = draw.choice(",;\t|")
        letters = ["".join(draw.choices('ab ,;|\t"', k=draw.randint(1, 5))) for _ in "abcd"]
        labels = [f"{c}{text}{c}" for c, text in zip("wxyz", letters, strict=True)]
        labels = [label.replace("\t", " ") for label in labels]
        extra = ["".join(draw.choices(',;|\t"\n x', k=4)) for _ in range(8)]
        header = draw.sample(["path", "label", "note, a|b;c\td"], 3)
        buffer = io.StringIO()
        writer = csv.writer(
            buffer,
            delimiter=delimiter,
            quoting=draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
            lineterminator=draw.choice(["\n", "\r\n"]),
        )
        writer.writerow(header)
        expected = {}
        for i in range(8):
            values = {"path": f"{i}.png", "label": labels[i % 4], header[0]: extra[i]}
            values |= {"path": f"{i}.png", "label": labels[i % 4]}
            writer.writerow([values.get(title, extra[i]) for title in header])
            expected[f"{i}.png"] = labels[i % 4]
        (tmp_path / "photos.csv").write_text(buffer.getvalue(), encoding="utf-8", newline="")
        assert all_of(find(tmp_path / "photos.csv")) == expected, number


# Which rows are of which split


@pytest.mark.parametrize(
    "words", [("True", "False"), ("TRUE", "FALSE"), ("1", "0"), ("yes", "no"), ("1.0", "0.0")]
)
@pytest.mark.parametrize(
    "column",
    [
        *("is_valid", "is_val", "isValid", "Is Validation", "valid", "val", "validation"),
        *("in_val", "valid_set", "validation_flag"),
    ],
)
def test_a_flag_of_validation_is_the_split(
    tmp_path: Path, column: str, words: tuple[str, str]
) -> None:
    text = rows("img/{c}{i}.png,{c},{n}", head=f"path,label,{column}")
    text = re.sub(r",(\d)$", lambda m: f",{words[int(m[1]) % 5 != 0]}", text, flags=re.MULTILINE)
    found = find(table(tmp_path, text))
    assert (file_names(found.val), len(found.train)) == (["a0.png", "b0.png"], 8)
    assert not found.held_out
    assert any(repr(column) in note for note in found.notes)


def flags(root: Path, column: str, *values: str) -> Path:
    """A table whose rows have these values in turn in further columns."""
    text = rows("img/{c}{i}.png,{c},#", head=f"path,label,{column}")
    given = itertools.cycle(values)
    return table(root, re.sub("#", lambda _: next(given), text))


def test_a_flag_of_testing_is_never_trained_on(tmp_path: Path) -> None:
    path = flags(tmp_path, "is_test", "1", "0", "0", "0", "0")
    found = find(path)
    assert not {"a0.png", "b0.png"} & all_of(found).keys()
    assert found.held_out
    config = DataConfig(root=str(path))
    tested = find_split(config, "test", class_names=("a", "b"), seed=0, root=None)
    assert file_names(tested) == ["a0.png", "b0.png"]


def test_flags_of_several_splits_are_read_together(tmp_path: Path) -> None:
    path = flags(tmp_path, "is_test,is_valid", "1,0", "0,1", "0,0", "0,0", "0,0")
    found = find(path)
    assert (file_names(found.val), len(found.train)) == (["a1.png", "b1.png"], 6)


def test_a_row_in_two_splits_at_once_is_refused(tmp_path: Path) -> None:
    path = flags(tmp_path, "is_test,is_valid", "1,1", "0,1", "0,0", "0,0", "0,0")
    assert f"{path}:2: " in str(refusal(path))


def test_rows_that_are_not_for_training_are_for_validation(tmp_path: Path) -> None:
    found = find(flags(tmp_path, "is_train", "0", "1", "1", "1", "1"))
    assert (file_names(found.val), len(found.train)) == (["a0.png", "b0.png"], 8)


def test_a_flag_that_is_neither_true_nor_false_is_refused(tmp_path: Path) -> None:
    path = flags(tmp_path, "is_valid", "True", "", "Flase", "False", "False")
    problem = refusal(path).problems[0]
    assert (problem.kind, problem.line) == ("data.unknown_split", 3)


@pytest.mark.parametrize("values", [("1", "1", "1", "0", "1"), ("ok", "0", "1", "0", "0")])
def test_a_column_named_valid_that_says_something_else_is_no_split(
    tmp_path: Path, values: tuple[str, ...]
) -> None:
    found = find(flags(tmp_path, "valid", *values))
    assert found.held_out
    assert any("'valid'" in note for note in found.notes)


@pytest.mark.parametrize("column", ["Split", "SPLIT", "set", "subset", "phase", "Dataset"])
def test_a_column_of_splits_by_another_name_is_followed(tmp_path: Path, column: str) -> None:
    found = find(flags(tmp_path, column, "test", "valid", "train", "train", "train"))
    assert (file_names(found.val), len(found.train)) == (["a1.png", "b1.png"], 6)


def test_two_columns_of_splits_are_refused(tmp_path: Path) -> None:
    path = flags(tmp_path, "set,subset", "val,train", "train,val", *["train,train"] * 3)
    assert refusal(path).kind == "data.table_columns"
    assert len(find(path, split_column="set").val) == 2


def test_a_split_column_of_true_and_false_is_followed(tmp_path: Path) -> None:
    found = find(flags(tmp_path, "fold", "1", "0", "0", "0", "0"), split_column="fold")
    assert (file_names(found.val), len(found.train)) == (["a0.png", "b0.png"], 8)


def test_folds_that_are_not_used_are_said(tmp_path: Path) -> None:
    found = find(flags(tmp_path, "fold", "0", "1", "2", "3", "4"))
    assert found.held_out
    assert any("'fold'" in note for note in found.notes)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("is_holdout", "10000"),
        ("is_eval", "10000"),
        ("subset", ["eval", *["train"] * 4]),
        ("set", ["holdout", *["train"] * 4]),
        ("partition", "00012"),
        ("Usage", ["PublicTest", "PrivateTest", *["Training"] * 3]),
    ],
)
def test_a_column_that_may_be_the_split_and_is_not_read_is_said(
    tmp_path: Path, column: str, values: Sequence[str]
) -> None:
    found = find(flags(tmp_path, column, *values))
    assert found.held_out
    assert any(f"data.split_column: {column} reads it" in note for note in found.notes)


@pytest.mark.parametrize(
    ("column", "values"), [("site", "00012"), ("usage", "00000"), ("source", ["web", "book"])]
)
def test_a_column_of_something_else_is_not_taken_for_the_split(
    tmp_path: Path, column: str, values: Sequence[str]
) -> None:
    assert find(flags(tmp_path, column, *values)).notes == find(table(tmp_path, rows())).notes


# From what is written to a file


def test_a_folder_and_a_suffix_make_a_path_of_an_id(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{name}" for name in EXPECTED))
    path = table(tmp_path, rows("{c}{i},{c}", head="id,breed"))
    options = {"path_column": "id", "label_column": "breed"}
    place = {"folder": "train", "suffix": ".png"}
    assert all_of(find(path, **options, table=place)) == EXPECTED
    absolute = {"folder": str(tmp_path / "train"), "suffix": ".png"}
    assert all_of(find(path, **options, table=absolute)) == EXPECTED
    error = refusal(path, **options)
    assert error.kind == "data.table_rows"


def test_a_suffix_that_is_there_is_not_added_again(tmp_path: Path) -> None:
    path = table(tmp_path, rows())
    assert all_of(find(path, table={"suffix": ".png"})) == EXPECTED


def test_a_suffix_that_is_there_in_another_case_is_not_added_again(tmp_path: Path) -> None:
    put(tmp_path, *(f"photos/{c}{i}.PNG" for c in "ab" for i in range(5)))
    path = table(tmp_path, rows("photos/{c}{i}.PNG,{c}"))
    found = all_of(find(path, table={"suffix": ".png"}))
    assert found == {name.replace("png", "PNG"): label for name, label in EXPECTED.items()}


def test_paths_that_need_no_folder_and_no_suffix_are_said_to_need_none(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    error = refusal(table(tmp_path, rows()), table={"folder": "train"})
    assert error.kind == "data.table_rows"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("https://a.example/{c}{i}.png,{c}", "is a URL, not a path; download the file first"),
        ("file:///data/{c}{i}.png,{c}", "is a URL, not a path; give /data/a0.png"),
        ("C:\\data\\{c}{i}.png,{c}", "the path is absolute"),
        ("/gone/{c}{i}.png,{c}", "the path is absolute"),
        ("photos/{c}{i}.PNG,{c}", "The file of a0.PNG is called a0.png"),
    ],
)
def test_paths_that_name_no_file_are_explained(tmp_path: Path, line: str, hint: str) -> None:
    put(tmp_path, *(f"photos/{name}" for name in EXPECTED))
    assert refusal(table(tmp_path, rows(line))).kind == "data.table_rows"


def test_one_missing_file_hides_no_hint_at_the_others(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{name}" for name in EXPECTED if name != "a3.png"))
    error = refusal(table(tmp_path, rows("{c}{i},{c}")))
    assert error.kind == "data.table_rows"


def test_a_folder_that_is_absent_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    error = refusal(table(tmp_path, rows()), table={"folder": "trian"})
    assert error.kind == "data.not_found"
    assert "Did you mean 'train'?" in (error.to_do or "")
    assert len(str(error).splitlines()) == 1


def test_backslashes_in_paths_are_those_of_windows(tmp_path: Path) -> None:
    put(tmp_path, *(f"img/{name}" for name in EXPECTED))
    assert all_of(find(table(tmp_path, rows("img\\{c}{i}.png,{c}")))) == EXPECTED
    assert all_of(find(table(tmp_path, rows(".\\img\\{c}{i}.png,{c}")))) == EXPECTED


def test_groups_by_pattern_see_the_paths_below_the_folder(tmp_path: Path) -> None:
    put(tmp_path, *(f"p1/{name}" for name in EXPECTED))
    path = table(tmp_path, rows("{c}{i}.png,{c}"))
    found = find(path, group_pattern=r"\d", table={"folder": "p1"})
    assert set(found.train.groups) | set(found.val.groups) == set("01234")


# Labels that are no classes


def doubt(root: Path, labels: list[str], *, delimiter: str = ",") -> str:
    """What training warns about labels, two images of each."""
    root.mkdir(exist_ok=True)
    lines = [
        f'img/x{n}.png{delimiter}"{label}"'
        for n, label in enumerate(label for label in labels for _ in range(2))
    ]
    found = find(table(root, "\n".join([f"path{delimiter}label", *lines])))
    return "\n".join(found.warnings)


@pytest.mark.parametrize(
    "labels",
    [
        ["a b", "a", "b"],
        ["a,b", "a", "c"],
        ["a, b", "b, c", "a"],
        ["a|b", "c"],
        ["a;b", "c;d"],
        ["clear primary", "haze primary", "clear primary water", "haze primary water", "cloudy"],
        ["['cat', 'dog']", "['cat']"],
        ["{cat, dog}", "{cat}"],
        ["0 1 1", "1 0 0"],
        ["[0, 1]", "[1, 0]"],
        ["cat+dog", "cat", "dog"],
        ["cat/dog", "cat", "dog"],
    ],
)
def test_several_labels_in_one_are_doubted(tmp_path: Path, labels: list[str]) -> None:
    assert "multi-label" in doubt(tmp_path, labels)


@pytest.mark.parametrize(
    "labels",
    [
        [f"{n / 7:.4f}" for n in range(30)],
        [f"{n}.{n}e-3" for n in range(1, 20)],
        [f"{n},{n}" for n in range(20, 40)],
        [*(f"{n / 7:.4f}" for n in range(30)), "NA"],
        [f"{n / 7:.2f} kg" for n in range(12)],
        [f"{n}%" for n in range(0, 60, 5)],
        [f"${n}.50" for n in range(8)],
        [f"{n / 8}" for n in range(8)],
        [str(n) for n in range(18, 58)],
        [str(n) for n in range(-6, 6)],
        [str(n) for n in range(1000, 1600, 37)],
        [f"2024-01-{n}" for n in range(10, 30)],
        [f"{n}.01.2024" for n in range(10, 30)],
        [f"1.{n}00,5" for n in range(1, 9)],
        [f"1,{n}00.5" for n in range(1, 9)],
    ],
)
def test_measurements_are_doubted(tmp_path: Path, labels: list[str]) -> None:
    assert "regression" in doubt(tmp_path, labels)


@pytest.mark.parametrize(
    "labels",
    [
        ["golden retriever", "labrador retriever", "poodle"],
        ["red apple", "green apple", "red pear", "green pear"],
        ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane, bird"],
        ["ripe apple", "apple", "ripe pear", "pear"],
        [str(n) for n in range(100)],
        [f"{n}.0" for n in range(30)],
        ["1.0", "1.5", "2.0", "2.5", "3.0"],
        ["2019-01", "2020-01"],
        [str(n) for n in range(10)],
        [str(n) for n in range(1, 103)],
        [str(n) for n in range(1, 103) if n not in {7, 50}],
        [f"{n:03}" for n in range(200)],
        [f"{n:03}" for n in range(0, 200, 7)],
        [str(n) for n in range(2015, 2025)],
        [f"class {n}" for n in range(20, 40)],
        [f"{n}a" for n in range(20, 40)],
        ["10x", "20x", "40x"],
        ["none", "scratch"],
        ["a (b, c)", "d"],
        ["cat/dog", "bird"],
        ["c", "c++"],
    ],
)
def test_names_of_classes_are_not_doubted(tmp_path: Path, labels: list[str]) -> None:
    assert doubt(tmp_path, labels) == ""


@pytest.mark.parametrize("label", ["nan", "NA", "n/a"])
def test_a_missing_value_as_a_class_is_doubted(tmp_path: Path, label: str) -> None:
    said = doubt(tmp_path, ["cat", "dog", label])
    assert f"2 rows have the label {label!r}, which other tools write for a missing value" in said


def test_a_doubt_is_said_with_the_refusal_that_it_explains(tmp_path: Path) -> None:
    lines = [f"img/{n}.png,{n / 7}" for n in range(20)]
    error = refusal(table(tmp_path, "\n".join(["path,label", *lines])))
    assert error.kind == "data.too_few_images"


def test_a_column_for_each_class_is_named_so(tmp_path: Path) -> None:
    one = "img/{c}{i}.png,1,0,0"
    path = table(tmp_path, rows(one, head="path,cat,dog,owl"))
    assert refusal(path).kind == "data.no_such_column"
    several = table(tmp_path, rows(one.replace("0,0", "1,0"), head="path,cat,dog,owl"))
    assert refusal(several).kind == "data.no_such_column"


@pytest.mark.parametrize("marks", [("True", "False"), ("1", "-1")])
def test_a_column_for_each_class_may_hold_other_marks(
    tmp_path: Path, marks: tuple[str, str]
) -> None:
    yes, no = marks
    one = table(tmp_path, rows(f"img/{{c}}{{i}}.png,{yes},{no}", head="path,cat,dog"))
    assert refusal(one).kind == "data.no_such_column"
    both = table(tmp_path, rows(f"img/{{c}}{{i}}.png,{yes},{yes}", head="path,cat,dog"))
    assert refusal(both).kind == "data.no_such_column"


def test_one_row_for_each_label_of_an_image_is_named_multi_label(tmp_path: Path) -> None:
    error = refusal(table(tmp_path, rows() + "img/a0.png,b\nimg/a1.png,b\n"))
    assert error.kind == "data.table_rows"


def test_check_data_reports_a_doubt(tmp_path: Path) -> None:
    path = table(tmp_path, rows("img/{c}{i}.png,a|{c}"))
    found = survey(DataConfig(root=str(path)), seed=0)
    assert found.doubt is not None
    assert "multi-label" in f"{found.doubt.what} {found.doubt.todo}"


# Numbers as labels


@pytest.mark.parametrize("pair", [("1", "01"), ("7", "7.0"), ("5", "+5")])
def test_two_spellings_of_one_number_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    text = rows().replace(",a\n", f",{pair[0]}\n").replace(",b\n", f",{pair[1]}\n")
    error = refusal(table(tmp_path, text))
    assert repr(pair[0]) in str(error)
    assert repr(pair[1]) in str(error)


def test_leading_zeros_stay(tmp_path: Path) -> None:
    text = rows().replace(",a\n", ",007\n").replace(",b\n", ",010\n")
    assert find(table(tmp_path, text)).train.class_names == ("007", "010")


# Commands


def test_eval_of_another_table_takes_its_own_delimiter(tmp_path: Path) -> None:
    path = table(tmp_path, rows().replace(",", "|"))
    config = DataConfig.model_validate({"root": "gone.csv", "table": {"delimiter": ";"}})
    whole = find_split(config, "val", class_names=("b", "a"), seed=0, root=str(path))
    assert len(whole) == 10


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_init_finds_columns_folder_and_suffix(tmp_path: Path, delimiter: str) -> None:
    from finetune.data.sources.table_guess import guess_table

    put(tmp_path, *(f"train/{name}" for name in EXPECTED))
    text = rows("{c}{i},{c}", head="id,breed").replace(",", delimiter)
    path = table(tmp_path, text)
    config = guess_table(data_of(str(path)), SilentReporter())
    assert (config.path_column, config.label_column) == ("id", "breed")
    assert (config.table.folder, config.table.suffix) == ("train", ".png")
    assert all_of(find_train_val(config, seed=0)) == EXPECTED


def test_init_leaves_a_table_as_it_is_where_nothing_has_to_be_said(tmp_path: Path) -> None:
    from finetune.data.sources.table_guess import guess_table

    config = data_of(str(table(tmp_path, rows())))
    assert guess_table(config, SilentReporter()) == config


def test_init_does_not_choose_among_folders(tmp_path: Path) -> None:
    from finetune.data.sources.table_guess import guess_table

    put(tmp_path, *(f"{place}/{name}" for name in EXPECTED for place in ("train", "test")))
    config = data_of(str(table(tmp_path, rows("{c}{i}.png,{c}"))))
    assert guess_table(config, SilentReporter()) == config


@pytest.mark.parametrize("options", [{}, {"path_column": "file", "split_column": "is_valid"}])
def test_eval_finds_the_columns_of_another_table(tmp_path: Path, options: dict[str, str]) -> None:
    put(tmp_path, *(f"new/{name}" for name in EXPECTED))
    path = table(tmp_path, rows("{c}{i};{c}", head="id;breed"))
    config = DataConfig.model_validate({"root": "gone.csv", **options, "table": {"folder": "old"}})
    whole = find_split(config, "val", class_names=("a", "b"), seed=0, root=str(path))
    assert file_names(whole) == list(EXPECTED)


def test_eval_of_a_table_with_test_rows_alone_names_the_split_that_it_has(tmp_path: Path) -> None:
    path = flags(tmp_path, "is_test", "1")
    with fails("data.no_such_split", path="photos.csv"):
        find_split(DataConfig(root="x"), "val", class_names=("a", "b"), seed=0, root=str(path))


def test_what_init_writes_for_a_table_trains_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *(f"train/{name}" for name in EXPECTED))
    path = table(tmp_path, rows("{c}{i};{c}", head="id;breed"))
    out = str(tmp_path / "pets.yaml")
    command = ["finetune", "init", str(path), "--weights", "bundled", "--output", out]
    monkeypatch.setattr("sys.argv", command)
    assert app._run() == 0
    config = load_config(tmp_path / "pets.yaml")
    assert all_of(find_train_val(config.data, seed=0)) == EXPECTED
