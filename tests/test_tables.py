"""Tables of texts and labels: what two programs read differently is not read, and the line says which row; nothing is
read differently from what stands there, or dropped, without a word."""

import csv
import io
import json
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from hpt_nb import class_labels, predicting, table_files
from hpt_nb.prompts import Prompt
from hpt_nb.store import InputError
from hpt_nb.tasks import Split, Task, load_task
from tiny import tiny_lm

MANY = settings(max_examples=100, deadline=None)
HEAD = 'suffix = " It was"\nlabels = [" bad", " great"]\nholdout = 4\n'
TRAIN = "text,label\n" + "".join(f"film {i},{i % 2}\n" for i in range(12))


def task_of(folder, name, content, head=HEAD, data=""):
    "A task whose validation texts stand in a file of this content."
    (folder / "train.csv").write_text(TRAIN)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "t.toml").write_text(f'{head}[data]\ntrain = "train.csv"\nvalidation = "{name}"\n{data}')
    return load_task(folder / "t.toml")


def refused(work):
    "The line with which it is refused."
    with pytest.raises(InputError) as e:
        work()
    assert "\n" not in str(e.value) and str(e.value).isprintable()
    return str(e.value)


# ---- csv and tsv ----


def ours(text):
    return [fields for _, fields in table_files.csv_rows(text)]


def by_csv(text):
    return [r for r in csv.reader(io.StringIO(text, newline=""), strict=True) if len(r) > 1 or r and r[0].strip()]


def by_pandas(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return pd.read_csv(
            io.StringIO(text, newline=""), header=None, dtype=str, keep_default_na=False, index_col=False
        ).values.tolist()


FIELD = st.text(alphabet=st.sampled_from(list('ab ,"\n\t;é')), max_size=6)
TABLE = st.integers(2, 4).flatmap(lambda n: st.lists(st.lists(FIELD, min_size=n, max_size=n), min_size=1, max_size=5))


def written(rows, quoting=csv.QUOTE_MINIMAL, end="\n"):
    out = io.StringIO(newline="")
    csv.writer(out, quoting=quoting, lineterminator=end).writerows(rows)
    return out.getvalue()


@MANY
@given(
    TABLE,
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
)
def test_what_a_program_writes_is_read_as_it_is(rows, quoting, end, last):
    text = written(
        rows, csv.QUOTE_ALL if end == "\r" else quoting, end
    )  # a line break other than the writer's own is not quoted by it
    assert ours(text if last else text.removesuffix(end)) == rows


@MANY
@given(TABLE, st.data())
def test_what_two_programs_read_differently_is_refused(rows, data):
    "A table with one slip in it: read as Python's csv and pandas both read it, or refused in a line with the row."
    text = written([[f"c{i}" for i in range(len(rows[0]))], *rows])
    at = data.draw(st.integers(0, len(text)))
    text = (
        text[:at]
        + data.draw(st.sampled_from(['"', ",", "\n", '""', ',"', ""]))
        + text[at + data.draw(st.integers(0, 2)) :]
    )
    try:
        frame = table_files.table_of(table_files.csv_rows(text))
    except InputError as e:
        assert "\n" not in str(e) and any(word in str(e) for word in ("row ", "head", "two columns", "empty"))
        return
    got = [list(frame.columns), *frame.values.tolist()]
    assert got == by_csv(text) == by_pandas(text)


@pytest.mark.parametrize(
    "text, row",
    [
        ("text,label\nfine,1\na great, moving film,0\n", "row 2 (line 3) has 3 fields"),
        ("text,label\ngood,1,1\nbad,0,1\n", "row 1 (line 2) has 3 fields"),
        ("id,text,label\n1,x,y,0\n", "row 1 (line 2) has 4 fields"),
        ("text,label\na,1\nb\n", "row 2 (line 3) has 1 fields"),
        ("id,text,label\n1,x\n", "row 1 (line 2) has 2 fields"),
        ('text,label\n"two\nlines",1\nshort\n', "row 2 (line 4) has 1 fields"),
        ("text,label,label\na,1,0\n", "two columns are called 'label'"),
        ("text,text,label\na,b,0\n", "two columns are called 'text'"),
        ("id,id,text,label\n1,2,a,0\n", "two columns are called 'id'"),
        ('text,label\nfine,1\n"open,0\n', "row 2 (line 3) has a quotation mark that is never closed"),
        ('text,label\n"he said "yes" to me",1\n', "row 1 (line 2) has more after a closing quotation mark"),
        ('text,label\n"a" ,1\n', "more after a closing"),
        ('text,label\na 5" disk,1\n', "inside a field that is not quoted"),
        ('text,label\n "a, b",1\n', "inside a field that is not quoted"),
        ('"text,label\na,1\n', "its head has a quotation mark"),
    ],
)
def test_a_csv_that_can_be_read_in_two_ways(tmp_path, text, row):
    assert row in refused(lambda: task_of(tmp_path, "val.csv", text))


@pytest.mark.parametrize(
    "text, row",
    [
        ("text\tlabel\ngreat\tfilm\t1\n", "row 1 (line 2) has 3 fields"),
        ("text\tlabel\nfine\t1\nshort\n", "row 2 (line 3) has 1 fields"),
        ("text\tlabel\tlabel\na\t1\t0\n", "two columns are called 'label'"),
        ('text\tlabel\n"he said ""yes"""\t1\n', "row 1 (line 2) is quoted as in csv"),
        ('"text"\t"label"\na\t1\n', "no column 'text'"),
        ("text\tlabel\na\u2028b\t1\nc\rd\t1\n", "row 2 (line 3) has 1 fields"),
    ],
)
def test_a_tsv_that_can_be_read_in_two_ways(tmp_path, text, row):
    assert row in refused(lambda: task_of(tmp_path, "val.tsv", text))


@MANY
@given(
    st.lists(
        st.tuples(
            st.text(alphabet=st.sampled_from(list("ab \u2028'\"")), min_size=1, max_size=8).filter(str.strip),
            st.sampled_from("01"),
        ),
        min_size=2,
        max_size=6,
    )
)
def test_tsv_is_read_letter_for_letter(rows):
    text = "text\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in rows)
    try:
        got = table_files.table_of(table_files.tsv_rows(text)).values.tolist()
    except InputError as e:
        assert "quoted as in csv" in str(e) and any(t[0] == t[-1] == '"' and '""' in t[1:-1] for t, _ in rows)
    else:
        assert got == [list(r) for r in rows]


def test_a_column_without_a_name_and_blank_lines_do_no_harm(tmp_path):
    "As pandas writes them with an index, and as editors leave them."
    assert task_of(tmp_path, "val.csv", ",text,label,\n0,fine,1,\n\n1,poor,0,\n   \n").validation == Split(
        ("fine", "poor"), (1, 0)
    )


# ---- jsonl ----


@pytest.mark.parametrize(
    "text, says",
    [
        (
            '{"text": "a", "label": 0}\n{"text": "b", "label": 1, "label": 0}\n',
            "val.jsonl: line 2 holds the key 'label' twice",
        ),
        ('{"text": "a", "te\\u0078t": "b", "label": 0}\n', "holds the key 'text' twice"),
        ('{"text": "a", "label": 0} {"text": "b", "label": 1}\n', "line 1 is not JSON"),
        ('{"text": "a", "label": 0}\n{"label": 1}\n', "row 2 has no text (nan)"),
        ('{"text": "a", "label": 0}\n{"text": "b"}\n', "row 2 has the unknown label nan"),
        ('[{"text": "a", "label": 0}]', "line 1 is not a JSON object"),
        ('{"text": ["a"], "label": 0}\n', "row 1 has no text (['a'])"),
        ('{"text": "a", "label": [0]}\n', "unknown label [0]"),
        ('{"text": "a", "label": NaN}\n', "unknown label nan"),
        ('{"text": 5, "label": 0}\n', "row 1 has no text (5): a number"),
        ('{"text": "a", "label": true}\n', "unknown label True (true or false, neither a word nor a number)"),
    ],
)
def test_a_jsonl_that_is_wrong(tmp_path, text, says):
    assert says in refused(lambda: task_of(tmp_path, "val.jsonl", text))


@MANY
@given(st.lists(st.tuples(st.sampled_from(["text", "label", "id"]), st.sampled_from(["a", 0, 1, None])), max_size=5))
def test_no_key_of_an_object_is_lost(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("j") / "a.jsonl"
    path.write_text("{" + ", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in pairs) + "}\n")
    twice = len({k for k, _ in pairs}) < len(pairs)
    if twice:
        assert "twice" in refused(lambda: table_files.read_file(path))
    else:
        assert table_files.read_file(path).to_dict("records") == [dict(pairs)] or not pairs


# ---- parquet ----


def parquet(path, metadata=None, **columns):
    pq.write_table(
        pa.table(
            {k: v if isinstance(v, (pa.Array, pa.ChunkedArray)) else pa.array(v) for k, v in columns.items()}
        ).replace_schema_metadata(metadata),
        path,
    )
    return path


def test_parquet_of_two_columns_of_one_name(tmp_path):
    table = pa.table([pa.array(["a", "b"]), pa.array([0, 1]), pa.array([1, 0])], names=["text", "label", "label"])
    pq.write_table(table, tmp_path / "val.parquet")
    assert "two columns are called 'label'" in refused(lambda: table_files.read_file(tmp_path / "val.parquet"))


def test_parquet_gives_its_own_columns_alone(tmp_path):
    "None from a folder's name, and none made an index."
    there = tmp_path / "label=1"
    there.mkdir()
    assert list(table_files.read_file(parquet(there / "a.parquet", text=["a"]))) == ["text"]
    pd.DataFrame({"label": [0, 1]}, index=pd.Index(["a", "b"], name="text")).to_parquet(tmp_path / "i.parquet")
    assert set(table_files.read_file(tmp_path / "i.parquet")) == {"text", "label"}


@pytest.mark.parametrize(
    "column, says",
    [
        (dict(text=[b"good", b"bad"]), "row 1 has bytes instead of a text (b'good')"),
        (dict(text=[1, 2]), "row 1 has no text (1): a number"),
        (dict(text=["a", None]), "row 2 has no text"),
        (dict(label=[b"0", b"1"]), "unknown label b'0' (bytes, neither a word nor a number)"),
        (dict(label=[True, False]), "unknown label True (true or false"),
        (dict(label=[0.0, 0.5]), "row 2 has the unknown label 0.5"),
        (dict(label=[0, None]), "row 2 has the unknown label nan"),
        (dict(label=[[0], [1]]), "unknown label"),
    ],
)
def test_parquet_columns_of_other_kinds(tmp_path, column, says):
    parquet(tmp_path / "v.parquet", **{**dict(text=["good", "bad"], label=[0, 1]), **column})
    assert says in refused(lambda: task_of(tmp_path, "val.parquet", (tmp_path / "v.parquet").read_bytes()))


# ---- labels ----


def in_memory(labels, **how):
    return Task.from_lists([f"text {i}" for i in range(len(labels))], labels, **how)


@pytest.mark.parametrize(
    "made, says",
    [
        (lambda: Task.from_lists({"a", "b"}, ["x", "y"]), "need a list"),
        (lambda: Task.from_lists("ab", ["x", "y"]), "texts='ab'; need a list"),
        (lambda: Task.from_lists(["a", "b"], None), "labels=None; need a list"),
        (lambda: Task.from_dataset(None), "a NoneType for a data set; need a datasets.Dataset"),
        (lambda: Task.from_dataset(pd.DataFrame()), "(Task.from_pandas takes a DataFrame)"),
    ],
)
def test_what_holds_no_texts_in_order_is_no_task(made, says):
    "Texts of a set would meet the labels by chance."
    assert says in refused(made)


def test_true_and_false_are_classes_where_they_are_named():
    "A column of true and false is read by the names of the classes, never as 1 and 0."
    for words in ({True: " great", False: " bad"}, None):
        task = in_memory([True, False] * 15, words=words)
        first = task.info["classes"].index("True")
        assert {y for s in (task.train, task.validation) for t, y in zip(s.texts, s.labels) if int(t[5:]) % 2 == 0} == {
            first
        }
    assert "true or false, neither" in refused(lambda: in_memory([True, False] * 15, words=[" bad", " great"]))


@pytest.mark.parametrize(
    "labels, how, says",
    [
        ([0, 1] * 15, dict(words={" bad", " great"}), "need a list of label words, one for each class, in order"),
        (["a", "b"] * 15, dict(classes={"a", "b"}), "classes is {"),
        (["a", "b"] * 15, dict(classes="ab"), "classes is 'ab'"),
        ([["a"], ["b"]] * 15, {}, "has no label that is a word or a number"),
        ([["a"], "b", "c"] * 10, {}, "(a list, neither a word nor a number)"),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else type(v).__name__,  # a set has no order
)
def test_labels_without_an_order_or_a_name(labels, how, says):
    "A set of label words would give each class a word by chance."
    assert says in refused(lambda: in_memory(labels, **how))


@pytest.mark.parametrize(
    "classes, column, want",
    [
        (None, ["bad", "great"], (0, 1)),
        (None, ["0", "1"], (0, 1)),
        (None, [0, 1], (0, 1)),
        (None, [0.0, 1.0], (0, 1)),
        (None, ["0.0", "1.00"], (0, 1)),
        ([1, 5], [1.0, 5.0], (0, 1)),
        ([1.0, 5.0], ["1.0", "5"], (0, 1)),
        (["1.0", "5.0"], [1, 5], (0, 1)),
        (["caf\u00e9", "bar"], ["cafe\u0301", "bar "], (0, 1)),
        (["cafe\u0301", "bar"], ["caf\u00e9", " bar"], (0, 1)),
        ([-1, 1], ["-1.0", "1"], (0, 1)),
        ([0.5, 1.5], [0.5, 1.5], (0, 1)),
        (["007", "7"], ["7", "007"], (1, 0)),
    ],
)
def test_two_spellings_of_a_label_are_one(classes, column, want):
    names = class_labels.label_names((" bad", " great"), classes, "x")
    assert (
        class_labels.to_split(
            pd.DataFrame({"text": ["a", "b"], "label": pd.Series(column, dtype=object)}),
            "text",
            "label",
            names,
            True,
            "x",
        ).labels
        == want
    )


@pytest.mark.parametrize("classes", [["1", "1.0"], [1, 1.0], ["caf\u00e9", "cafe\u0301"], ["a", " a"]])
def test_classes_that_are_one(classes):
    assert "need 2 different names" in refused(lambda: class_labels.label_names((" bad", " great"), classes, "x"))


@MANY
@given(
    st.one_of(
        st.integers(-3, 5),
        st.floats(),
        st.booleans(),
        st.text(max_size=2),
        st.none(),
        st.floats(width=32).map(np.float32),
        st.integers(-3, 5).map(np.int64),
        st.binary(max_size=2),
        st.complex_numbers(),
    )
)
@example(0.9)
@example(float("inf"))
def test_a_label_is_a_whole_number_or_named(y):
    whole = (
        not isinstance(y, (str, bytes, type(None)))
        and y == y
        and abs(y) != float("inf")
        and not (isinstance(y, complex))
        and y == int(y)
    )
    if whole:
        assert Split(("a",), (y,)).labels == (int(y),)
    else:
        assert "label" in refused(lambda: Split(("a",), (y,)))


# ---- what a data set says of its own classes ----


def stated(path, names, column=(0, 1, 1, 0)):
    meta = {
        "huggingface": json.dumps(
            {
                "info": {
                    "features": {
                        "text": {"dtype": "string", "_type": "Value"},
                        "label": {"names": names, "_type": "ClassLabel"},
                    }
                }
            }
        )
    }
    return parquet(
        path, meta, text=[f"text {i} of {path.stem}" for i in range(len(column))], label=list(column)
    ).read_bytes()


@pytest.mark.parametrize(
    "names, labels, classes, want, says",
    [
        (["negative", "positive"], [" negative", " positive"], None, (0, 1, 1, 0), ""),
        (["negative", "positive"], [" positive", " negative"], None, (1, 0, 0, 1), "read by the names"),
        (["Negative", "Positive"], [" positive", " negative"], None, (1, 0, 0, 1), "read by the names"),
        (["neg", "pos"], [" good", " bad"], ["pos", "neg"], (1, 0, 0, 1), "read by the names"),
        (["neg", "pos"], [" bad", " good"], ["neg", "pos"], (0, 1, 1, 0), ""),
        (["neg", "pos"], [" bad", " good"], None, (0, 1, 1, 0), "in the order of the label words: 'neg' is ' bad'"),
        (["1", "2"], [" bad", " good"], [1, 2], (0, 1, 1, 0), ""),
        (["neg", "pos"], [" good", " bad"], [1, 0], (1, 0, 0, 1), ""),
        (["a", "A"], [" A", " a"], None, (1, 0, 0, 1), "read by the names"),
        (["neg", "neutral", "pos"], [" bad", " good"], ["neg", "pos"], "unknown label 'neutral'", ""),
        (["sports", "world", "tech"], [" world", " sports", " science"], None, "'sports' is number 1 in the task", ""),
        (["neg", "pos"], [" bad", " good"], ["no", "yes"], "unknown label 0", ""),
    ],
)
def test_numbers_mean_what_the_data_set_says(tmp_path, capsys, names, labels, classes, want, says):
    head, data = (
        HEAD.replace('[" bad", " great"]', json.dumps(labels)),
        f"classes = {json.dumps(classes)}\n" if classes else "",
    )
    for stem in ("train", "val"):
        stated(tmp_path / f"{stem}.parquet", names, (0, 1, 1, 0) * 3 if stem == "train" else (0, 1, 1, 0))
    (tmp_path / "t.toml").write_text(f'{head}[data]\ntrain = "train.parquet"\nvalidation = "val.parquet"\n{data}')
    if isinstance(want, str):
        assert want in refused(lambda: load_task(tmp_path / "t.toml"))
    else:
        assert load_task(tmp_path / "t.toml").validation.labels == want
        err = capsys.readouterr().err
        assert says in err and bool(err) == bool(says)


def test_a_hub_data_set_states_its_names_too(tmp_path, monkeypatch, capsys):
    from datasets import ClassLabel, Dataset, Features, Value

    made = Dataset.from_dict(
        dict(text=[f"text {i}" for i in range(8)], label=[0, 1] * 4),
        features=Features(dict(text=Value("string"), label=ClassLabel(names=["no", "yes"]))),
    )
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *a, split=None, **k: made.map(lambda r: dict(text=f"{split} {r['text']}"))
    )
    (tmp_path / "t.toml").write_text(
        'suffix = "?"\nlabels = [" yes", " no"]\nholdout = 2\n[data]\ntrain = "org/x"\nvalidation = "org/x"\n'
    )
    assert (
        load_task(tmp_path / "t.toml").validation.labels == (1, 0) * 4
        and "not the order of the label words" in capsys.readouterr().err
    )


# ---- said, not silent ----


def test_texts_that_are_dropped_are_counted_with_a_reason(tmp_path, capsys):
    rows = [("it rains.", 0), ("it rains?", 1), ("fine", 1), ("Fine!", 1), ("seen", 0)] + [
        (f"text {i}", i % 2) for i in range(20)
    ]
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in rows))
    (tmp_path / "val.csv").write_text("text,label\nSEEN!,0\nother,1\n")
    (tmp_path / "t.toml").write_text(HEAD + '[data]\ntrain = "train.csv"\nvalidation = "val.csv"\n')
    task, err = load_task(tmp_path / "t.toml"), capsys.readouterr().err
    assert (
        "3 of 25 training texts are dropped: 2 appear with two labels, such as 'it rains.' as ' bad' and "
        "'it rains?' as ' great', and 1 also appear in another split, such as 'seen'"
        in err
        and err.count("\n") == 1
    )
    assert len(task.train) + len(task.holdout) == 22


@pytest.mark.parametrize(
    "train, holdout, says",
    [
        ("".join(f"t {i}.,0\nt {i}?,1\n" for i in range(5)), 2, "two labels, such as 't 0.' as ' bad'"),
        (
            "a?,0\na.,1\nb,0\nc,1\n",
            3,
            "3 texts to hold out of the 2 that are left: of 4 training texts 2 appear with two labels",
        ),
        ("x,0\ny,1\nz,0\n", 1, "3 of 3 training texts are dropped: 3 also appear in another split, such as 'x'"),
        (
            "a?,0\na.,1\nb,0\nc,0\nd,0\n",
            1,
            "have the label ' bad' (2 of 5 training texts are dropped: 2 appear with two labels",
        ),
    ],
)
def test_where_too_few_texts_are_left_the_reason_is_said(tmp_path, train, holdout, says):
    (tmp_path / "train.csv").write_text("text,label\n" + train)
    (tmp_path / "val.csv").write_text("text,label\nx,0\ny,1\nz,0\n")
    (tmp_path / "t.toml").write_text(
        HEAD.replace("holdout = 4", f"holdout = {holdout}") + '[data]\ntrain = "train.csv"\nvalidation = "val.csv"\n'
    )
    assert says in refused(lambda: load_task(tmp_path / "t.toml"))


def test_labels_of_two_kinds_in_one_column_are_said(tmp_path, capsys):
    task = task_of(tmp_path, "val.csv", "text,label\nfine,great\npoor,0\nodd,1\n")
    assert (
        "1 labels are words and 2 are numbers, which count the label words from 0: 0 is 'bad', 1 is 'great'"
        in capsys.readouterr().err
    )
    assert task.validation.labels == (1, 0, 1) and task.info["labels as numbers"] == 2
    task_of(tmp_path, "val.csv", "text,label\nfine,great\npoor,bad\n")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ext", ["csv", "tsv", "jsonl"])
def test_a_byte_order_mark_is_no_text(tmp_path, capsys, bom, ext):
    rows = {
        "csv": "text,label\nfine,1\npoor,0\n",
        "tsv": "text\tlabel\nfine\t1\npoor\t0\n",
        "jsonl": '{"text": "fine", "label": 1}\n{"text": "poor", "label": 0}\n',
    }[ext]
    (tmp_path / "t.toml").write_bytes(b"")
    task_of(tmp_path, f"val.{ext}", bom + rows.encode())
    (tmp_path / "t.toml").write_bytes(bom + (tmp_path / "t.toml").read_bytes())
    assert load_task(tmp_path / "t.toml").validation.texts == ("fine", "poor") and capsys.readouterr().err == ""
    task_of(tmp_path, f"val.{ext}", rows.replace("poor", "\ufeffpoor").encode())  # two files joined into one
    assert "1 texts hold a byte order mark (U+FEFF), the first in row 2" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_other_encodings_are_named(tmp_path, encoding):
    says = refused(lambda: task_of(tmp_path, "val.csv", "text,label\ncaf\u00e9,1\npoor,0\n".encode(encoding)))
    assert "UTF-8" in says or "no column" in says
    if encoding == "utf-16":
        assert "UTF-16, by its byte order mark" in says


def test_a_folder_is_no_missing_file(tmp_path):
    (tmp_path / "val.csv").mkdir()
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "t.toml").write_text(HEAD + '[data]\ntrain = "train.csv"\nvalidation = "val.csv"\n')
    assert "val.csv: a folder; need a file" in refused(lambda: load_task(tmp_path / "t.toml"))
    assert "a folder; need a task file" in refused(lambda: load_task(tmp_path))


# ---- one table that is split, tables in memory, and tables that are written ----

N = 20
FILMS = [f"a great film {i}" if i % 2 else f"a bad plot {i}" for i in range(N)]
FRAME = pd.DataFrame(dict(text=FILMS, label=[i % 2 for i in range(N)]))


def named(names, table=FRAME):
    table = table.copy()
    table.attrs["names"] = {"label": names}
    return table


@pytest.mark.parametrize(
    "table, says",
    [
        (FRAME.text, "a Series for a table"),
        (FRAME.to_dict("list"), "a dict for a table"),
        (FRAME.set_index("label"), "no column 'label' (columns: text)"),
        (pd.concat([FRAME, 1 - FRAME[["label"]]], axis=1), "2 columns are called 'label'"),
        (pd.concat([FRAME, FRAME[["text"]]], axis=1), "2 columns are called 'text'"),
        (FRAME.assign(label=FRAME.label.map({0: 0.1, 1: 0.9})), "unknown label 0.1"),
        (pd.concat([FRAME, FRAME.assign(label=1 - FRAME.label)]), "0 texts are left (40 of 40 texts are dropped: they"),
        (FRAME[:2], "2 texts; need more"),
        (FRAME[:0], "no rows"),
    ],
    ids=str,
)
def test_tables_in_memory_that_cannot_be_read(table, says):
    said = refused(lambda: Task.from_pandas(table, words=[" bad", " great"]))
    assert says in said and "set holdout" not in said


@pytest.mark.parametrize(
    "texts, says", [("ab", "a single text"), ([b"a", "b"], "text 1"), (["a", None], "text 2 is 'None'")]
)
def test_texts_are_strings(texts, says):
    assert says in refused(lambda: Split(texts, (0, 1)))


@pytest.mark.parametrize("made", [np.array, torch.tensor, pd.Series, tuple])
def test_labels_of_any_array(made):
    "The labels of a tensor are the numbers in it."
    task = Task.from_lists(FILMS, made(FRAME.label.tolist()), words=[" bad", " great"])
    assert {t.split()[1]: y for t, y in zip(task.train.texts, task.train.labels)} == dict(bad=0, great=1)


@pytest.mark.parametrize(
    "words, of_great, says",
    [
        ([" positive", " negative"], " positive", ""),
        ([" negative", " positive"], " positive", "read by the names"),
        ([" bad", " great"], " bad", "'positive' is ' bad'"),
        ({"negative": " bad", "positive": " great"}, " great", "read by the names"),
        (None, " positive", "the label words are the names of the classes"),
        ([" negative", " great"], "'negative' is number 0 in the task", ""),
    ],
    ids=str,
)
def test_a_table_in_memory_means_what_its_names_say(capsys, words, of_great, says):
    "Number 0 is called positive."
    table = named(["positive", "negative"], FRAME.assign(label=1 - FRAME.label))
    if "number" in of_great:
        assert of_great in refused(lambda: Task.from_pandas(table, words=words))
        return
    task = Task.from_pandas(table, words=words)
    split = task.train
    assert {task.labels[y] for t, y in zip(split.texts, split.labels) if "great" in t} == {of_great}
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("labels, fine", [('[" bad", " great"]', False), ('[" neg", " pos"]', True)])
def test_files_that_count_their_classes_in_two_orders(tmp_path, labels, fine):
    stated(tmp_path / "train.parquet", ["neg", "pos"], (0, 1, 1, 0) * 3)
    stated(tmp_path / "val.parquet", ["pos", "neg"])
    data = '[data]\ntrain = "train.parquet"\nvalidation = "val.parquet"\n'
    (tmp_path / "t.toml").write_text(HEAD.replace('[" bad", " great"]', labels) + data)
    if fine:  # by the names
        assert load_task(tmp_path / "t.toml").validation.labels == (1, 0, 0, 1)
    else:
        assert "says that 0 is 'pos', and that of" in refused(lambda: load_task(tmp_path / "t.toml"))


def test_what_is_dropped_of_one_file_is_said(tmp_path, capsys):
    rows = [*zip(FILMS, FRAME.label), ("Odd!", 0), ("odd", 1)]
    (tmp_path / "all.csv").write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in rows))
    (tmp_path / "t.toml").write_text(HEAD.replace('" great"]', '" great", " x"]') + '[data]\nfile = "all.csv"\n')
    load_task(tmp_path / "t.toml")
    err = capsys.readouterr().err
    assert "2 of 22 texts are dropped: they appear with two labels, such as 'Odd!' as ' bad'" in err
    assert "no text has the label ' x'" in err
    same = HEAD + '[data]\nfile = "all.csv"\ntext = "label"\n'
    (tmp_path / "t.toml").write_text(same)
    assert "both read from the column 'label'" in refused(lambda: load_task(tmp_path / "t.toml"))


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".tsv", ".parquet"])
def test_a_table_that_is_written_comes_back(tmp_path, kind):
    "Each field letter for letter, or a refusal: a carriage return, digits of a number, an index that names rows twice."
    for n, value in enumerate(["a\rb", "a\nb", "a\tb", 'say "yes"', "a\u2028b", 0.1 + 0.2, 10**25, "\ud800", None]):
        table = pd.DataFrame(
            dict(text=["one", "two"], more=[value, "x" if isinstance(value, str) else value]), dtype=object
        )
        path = tmp_path / f"{n}{kind}"
        try:
            predicting.check_kept(table, path)
        except InputError as e:
            assert "\n" not in str(e) and kind in (".tsv", ".parquet") or value == "\ud800", (kind, value)
            continue
        predicting.write_predictions(table, path)
        back = table_files.read_file(path).more.tolist()[0]
        assert back == value or kind in (".csv", ".tsv") and str(back) in (str(value), "") or value is None, (
            kind,
            value,
        )


def test_answers_stand_beside_their_rows_whatever_the_index():
    lm = tiny_lm("gpt2", 1)
    split = Split(FILMS, FRAME.label)
    prompt = Prompt(" the", Task("t", " It was", (" bad", " great"), split, split, split))
    plain, facts = predicting.predict(prompt, lm, FRAME, label="label")
    for index in ([0] * N, [*range(10)] * 2, FRAME.label):
        table, again = predicting.predict(prompt, lm, FRAME.set_axis(index), label="label")
        assert again == facts and table.reset_index(drop=True).equals(plain)
    turned, other = predicting.predict(prompt, lm, named(["great", "bad"]), label="label")
    assert other["correct"] == N - facts["correct"] and turned.equals(plain)


# ---- what a task writes and nobody sees, and sources that are no data set's name ----


@pytest.mark.parametrize(
    "suffix, labels, says",
    [
        ("\ufeff It was", [" bad", " great"], "suffix '\\ufeff It was' holds a byte order mark"),
        (" It was", [" bad", "\ufeff great"], "holds a byte order mark (U+FEFF)"),
        (" It was", [" bad\ufeff", " great"], "holds a byte order mark (U+FEFF)"),
        (" It was", [" bad", " \u200bgreat"], "begins with U+200B"),
        (" It was", ["\u00adbad", " great"], "begins with U+00AD"),
        (" It was", ["\u202ebad", " great"], "begins with U+202E"),
        (" \u0645\u06cc\u200c\u062e\u0648\u0627\u0646\u0645", [" \u0628\u0646\u200c\u062f", " x"], ""),
    ],
)
def test_signs_that_nobody_sees(suffix, labels, says):
    split = Split(("a", "b"), (0, 1))
    make = lambda: Task("t", suffix, labels, split, split, split)
    if says:
        assert says in refused(make)
    else:
        make()


@pytest.mark.parametrize(
    "source, says",
    [
        ("https://host/train.csv", "https://host/train.csv: a web address; download the file"),
        ("s3://bucket/train.parquet", "a web address"),
        ("train.csv.gz", "no such file, and this kind of file cannot be read"),
        ("train.json", "no such file, and this kind of file cannot be read"),
        ("data.xlsx", "no such file"),
        ("~/no-such-folder/train.csv", "no-such-folder/train.csv: no such file"),
        ("gone.csv", "gone.csv: no such file"),
    ],
)
def test_a_source_that_is_no_data_set(tmp_path, monkeypatch, source, says):
    "Known at once: no hub is asked."
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: pytest.fail("the hub was asked"))
    (tmp_path / "t.toml").write_text(f'{HEAD}[data]\ntrain = "{source}"\nvalidation = "{source}"\n')
    assert says in refused(lambda: load_task(tmp_path / "t.toml"))


@pytest.mark.parametrize("twin, one", [("label ", True), (" label", True), ("Label", False), ("labels", False)])
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_columns_that_differ_in_white_space_alone_are_one(tmp_path, kind, twin, one):
    table = pd.DataFrame({"text": FILMS[:4], "label": [0, 1, 0, 1], twin: [1, 0, 1, 0]})
    predicting.write_predictions(table, tmp_path / f"val{kind}")
    if one:
        assert "two columns are called 'label'" in refused(lambda: table_files.read_file(tmp_path / f"val{kind}"))
    else:
        assert len(table_files.read_file(tmp_path / f"val{kind}").columns) == 3


@pytest.mark.parametrize("there, asked", [("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9")])
def test_a_column_is_found_however_its_letters_are_typed(tmp_path, there, asked):
    for stem in ("train", "val"):
        table = pd.DataFrame({"text": [f"{stem} {t}" for t in FILMS], there: FRAME.label.tolist()})
        predicting.write_predictions(table, tmp_path / f"{stem}.jsonl")
    data = f'[data]\ntrain = "train.jsonl"\nvalidation = "val.jsonl"\nlabel = "{asked}"\n'
    (tmp_path / "t.toml").write_text(HEAD + data)
    assert load_task(tmp_path / "t.toml").validation.labels == tuple(FRAME.label)
    assert predicting._table(table, "text", asked)[0][asked].tolist() == FRAME.label.tolist()
