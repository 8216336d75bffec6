"Faults of the results store: damaged files, killed and concurrent writers, packages that cannot be fetched."
import hashlib, io, json, multiprocessing, os, signal, subprocess, sys, tarfile, time, venv, zipfile
import pytest
from hypothesis import given, settings, strategies as st
from hpt_nb.store import InputError, Store, cache_dir, config_hash, fetch_package, keep, provenance, recall, write_atomic

CFG = {"task":"sst2", "lr":0.3, "seeds":(0, 1)}
json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                           lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(), x, max_size=4), max_leaves=12)

# -- hashes ------------------------------------------------------------------------------------------------------------
@given(st.dictionaries(st.text(), json_values, max_size=5), st.randoms())
def test_hash_ignores_key_order_and_nothing_else(config, rnd):
    items = list(config.items()); rnd.shuffle(items)
    assert config_hash(dict(items)) == config_hash(config) == config_hash(json.loads(json.dumps(config)))
    assert config_hash({**config, "one more":1}) != config_hash(config)

@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", object()])
def test_what_json_cannot_hold_is_refused_and_leaves_nothing(tmp_path, value):
    with pytest.raises(ValueError, match="cannot be stored"): config_hash({"x":value})
    with pytest.raises(ValueError): Store(tmp_path).put("toy", CFG, {"x":value}, {})
    assert list(tmp_path.rglob("*.json")) == []

# -- cells -------------------------------------------------------------------------------------------------------------
@settings(max_examples=50)
@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_put_then_get(tmp_path_factory, result):
    s = Store(tmp_path_factory.mktemp("s"))
    s.put("toy", CFG, result, provenance())
    assert s.get("toy", CFG) == result and s.has("toy", CFG)
    assert [c["result"] for c in s.cells()] == [result]

def test_reading_makes_no_folder(tmp_path):
    s = Store(tmp_path/"absent")
    assert s.get("toy", CFG) is None and s.cells() == [] and not (tmp_path/"absent").exists()
    s.file("a.parquet")
    assert not (tmp_path/"absent").exists()

def test_every_single_bit_flip_is_named_or_harmless(tmp_path):
    s = Store(tmp_path)
    path = s.put("toy", CFG, {"accuracy":0.8125, "text":"é 雪"}, {"device":"cpu"})
    whole, n_named = path.read_bytes(), 0
    for at in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at+1:])
            try: assert s.get("toy", CFG) == {"accuracy":0.8125, "text":"é 雪"}   # white space between fields
            except InputError as e:
                assert path.name in str(e) and "\n" not in str(e)
                n_named += 1
    assert n_named > 0.8 * 8 * len(whole)   # white space is the rest

def test_every_truncation_is_named(tmp_path):
    s = Store(tmp_path)
    path = s.put("toy", CFG, {"accuracy":0.8125}, {})
    whole = path.read_bytes()
    for n in range(len(whole.rstrip())):
        path.write_bytes(whole[:n])
        with pytest.raises(InputError, match=path.name): s.cells()
        with pytest.raises(InputError, match=path.name): s.has("toy", CFG)

@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]", b"3", b'{"schema": 1}', b"[" * 100_000, b'{"schema": NaN}', "ünïcödé".encode("utf-16")])
def test_foreign_content_is_named(tmp_path, content):
    path = write_atomic(tmp_path/"cells"/f"toy-{config_hash(CFG)}.json", content)
    with pytest.raises(InputError, match=path.name): Store(tmp_path).cells()

@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_named(tmp_path, schema):
    path = Store(tmp_path).put("toy", CFG, {}, {})
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema":schema}))
    with pytest.raises(InputError, match=f"{path.name}: schema {schema!r}, this version reads 1"): Store(tmp_path).cells()

def test_a_foreign_file_is_named_and_hidden_files_are_not(tmp_path):
    s = Store(tmp_path)
    s.put("toy", CFG, {}, {})
    for name in (".DS_Store", ".toy-0.json.abc.tmp"): (tmp_path/"cells"/name).write_text("{")
    assert len(s.cells()) == 1
    (tmp_path/"cells"/"notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt"): s.cells()

def test_cells_are_sorted_and_of_the_kind_asked(tmp_path):
    s = Store(tmp_path)
    for i in range(20): s.put("tune" if i % 2 else "eval", {"i":i}, {"i":i}, {})
    names = [f"{c['kind']}-{c['hash']}" for c in s.cells()]
    assert names == sorted(names) and len(names) == 20
    assert {c["result"]["i"] for c in s.cells("tune")} == set(range(1, 20, 2))

@pytest.mark.parametrize("name", ["../x", "..", ".", "", "a/b", "/abs", "a\\b", ".hidden", "a\0b", "a\nb", None])
def test_no_artefact_outside_the_folder(tmp_path, name):
    with pytest.raises(InputError, match="plain file name"): Store(tmp_path).file(name)

def test_a_link_that_leaves_the_folder_is_refused(tmp_path):
    (tmp_path/"s"/"files").mkdir(parents=True)
    (tmp_path/"s"/"files"/"out").symlink_to(tmp_path/"elsewhere")
    with pytest.raises(InputError, match="plain file name"): Store(tmp_path/"s").file("out")

@pytest.mark.parametrize("kind", ["../up", "a/b", "Tune", "", "a-b"])
def test_no_kind_outside_the_folder(tmp_path, kind):
    with pytest.raises(ValueError, match="kind"): Store(tmp_path).put(kind, CFG, {}, {})
    assert list(tmp_path.iterdir()) == []

def test_a_store_cannot_be_a_file(tmp_path):
    (tmp_path/"f").write_text("")
    with pytest.raises(InputError, match="is a file"): Store(tmp_path/"f")

def test_a_thousand_cells_are_read_in_a_second(tmp_path):
    s, meta = Store(tmp_path), provenance("cpu")
    for i in range(1000): s.put("eval", {"i":i, "prompt_ids":list(range(10))}, {"correct":600, "predictions":"01"*436}, meta)
    t0 = time.process_time()   # not the wall clock: other tests may share the processor
    assert len(s.cells()) == 1000
    assert time.process_time() - t0 < 1

# -- writers -----------------------------------------------------------------------------------------------------------
def _write_many(folder, who):
    for _ in range(100): Store(folder).put("toy", CFG, {"text":who * 20_000}, {})

def test_writers_of_one_cell_do_no_harm(tmp_path):
    jobs = [multiprocessing.get_context("spawn").Process(target=_write_many, args=(tmp_path, who)) for who in "ab"]
    for j in jobs: j.start()
    seen, s = set(), Store(tmp_path)
    while any(j.is_alive() for j in jobs):
        if (got := s.get("toy", CFG)) is not None: seen.add(got["text"])   # whole at every moment
    assert all(j.exitcode == 0 for j in jobs)
    assert seen <= {"a"*20_000, "b"*20_000} and len(s.cells()) == 1

def test_a_killed_writer_leaves_whole_cells(tmp_path):
    code = ("from hpt_nb.store import Store\nimport itertools, sys\n"
            "for i in itertools.count(): Store(sys.argv[1]).put('toy', {'i':i}, {'text':'x'*200_000}, {})")
    for delay in (.02, .05, .09):
        n = len(Store(tmp_path).cells())
        p = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        while len(Store(tmp_path).cells()) <= min(n, 3): time.sleep(.01)
        time.sleep(delay)
        p.send_signal(signal.SIGKILL); p.wait()
        assert all(c["result"]["text"] == "x"*200_000 for c in Store(tmp_path).cells())

def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path/"f", "old")
    def full(*_): raise OSError(28, "No space left on device")
    for call in ("fsync", "replace"):
        with monkeypatch.context() as m:
            m.setattr(os, call, full)
            with pytest.raises(OSError): write_atomic(path, "new")
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]

def test_files_have_the_permissions_that_the_user_chose(tmp_path):
    old = os.umask(0o027)
    try: assert write_atomic(tmp_path/"f", "x").stat().st_mode & 0o777 == 0o640
    finally: os.umask(old)

# -- provenance --------------------------------------------------------------------------------------------------------
def test_no_commit_outside_git(tmp_path):
    "An installed copy names no commit, even inside somebody's repository."
    pkg = tmp_path/"site"/"hpt_nb"; pkg.mkdir(parents=True)
    import hpt_nb.store as store
    (pkg/"store.py").write_bytes(open(store.__file__, "rb").read()); (pkg/"__init__.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True); subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    ask = [sys.executable, "-c", "from hpt_nb.store import provenance as p; print(p()['commit'], p()['dirty'])"]
    def answer(): return subprocess.run(ask, cwd=tmp_path/"site", env={**os.environ, "PYTHONPATH":str(tmp_path/"site"), "PYTHONDONTWRITEBYTECODE":"1"}, check=True, capture_output=True, text=True).stdout.split()
    assert answer() == ["None", "None"]
    subprocess.run([*git, "add", "site"], check=True); subprocess.run([*git, "commit", "-q", "-m", "y"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert answer() == [head, "False"]
    with open(pkg/"store.py", "a") as f: f.write("# changed\n")
    assert answer() == [head, "True"]

def test_provenance_names_no_person_and_no_host():
    import getpass, socket
    text = json.dumps(provenance("cpu", "float32", [0]))
    assert socket.gethostname() not in text.split('"') and getpass.getuser() not in text.split('"')

def test_store_imports_no_torch():
    subprocess.run([sys.executable, "-c", "import hpt_nb.store, sys; assert not {'torch','transformers','nbdev','fastcore'} & set(sys.modules)"], check=True)

# -- stored results ----------------------------------------------------------------------------------------------------
def test_keep_and_recall(tmp_path):
    path = tmp_path/"stored"/"00-x.json"
    keep(path, CFG, {"J":[1, .5]}, wall_s=2., device="cpu", dtype="float32", seeds=range(3))
    assert recall(path, dict(reversed(CFG.items())), "04_neighbors") == {"J":[1, .5]}
    meta = json.loads(path.read_text())["meta"]
    assert (meta["wall_s"], meta["device"], meta["dtype"], meta["seeds"]) == (2., "cpu", "float32", [0, 1, 2])
    for other, names in [({**CFG, "lr":.1}, "lr"), ({"task":"sst2"}, "lr, seeds"), ({**CFG, "new":1}, "new")]:
        with pytest.raises(InputError, match=rf"\({names} changed\); run the slow cells of 04_neighbors again"): recall(path, other, "04_neighbors")

# -- packages as files -------------------------------------------------------------------------------------------------
def _wheel(folder, name="toy_data", version="1.0"):
    "A minimal wheel, and its SHA-256."
    info, buf = f"{name}-{version}.dist-info", io.BytesIO()
    with zipfile.ZipFile(buf, "w") as z:
        z.writestr(f"{name}/words.txt", "a b c")
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")
    path = folder/f"{name}-{version}-py3-none-any.whl"
    path.write_bytes(buf.getvalue())
    return hashlib.sha256(buf.getvalue()).hexdigest()

def _sdist(folder, name="toy_data", version="1.0"):
    "A minimal source distribution whose build needs nothing, and its SHA-256."
    meta = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    backend = f"import os\ndef prepare_metadata_for_build_wheel(d, c=None):\n    i='{name}-{version}.dist-info'; os.mkdir(d+'/'+i); open(d+'/'+i+'/METADATA','w').write({meta!r}); return i\ndef build_wheel(*a, **k): 1/0\n"
    files = {"PKG-INFO":meta, "backend.py":backend, "words.txt":"from the source",
             "pyproject.toml":'[build-system]\nrequires=[]\nbuild-backend="backend"\nbackend-path=["."]\n'}
    path = folder/f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as t:
        for n,text in files.items():
            i = tarfile.TarInfo(f"{name}-{version}/{n}"); i.size = len(text)
            t.addfile(i, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()

@pytest.fixture
def local_index(tmp_path, monkeypatch):
    "pip sees one folder and no network; the cache is empty."
    for k in [k for k in os.environ if k.startswith("PIP_")]: monkeypatch.delenv(k)
    (tmp_path/"links").mkdir()
    for k,v in dict(PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path/"links"), HPT_CACHE=str(tmp_path/"cache")).items(): monkeypatch.setenv(k, v)
    return tmp_path/"links"

def test_fetch_from_wheel_once(local_index, capfd):
    sha = _wheel(local_index)
    pin = dict(name="toy_data", version="1.0", sha256=sha, member="toy_data/words.txt", dest=cache_dir()/"toy"/"words.txt")
    assert fetch_package(**pin).read_text() == "a b c"
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "fetching toy_data 1.0" in err
    for f in local_index.iterdir(): f.unlink()
    assert fetch_package(**pin).read_text() == "a b c" and capfd.readouterr() == ("", "")   # from the cache, in silence
    assert sorted(p.name for p in cache_dir().iterdir()) == ["toy"]                        # no temporary folder is left

def test_fetch_whole_archive_and_sdist(local_index):
    wheel, sdist = _wheel(local_index), _sdist(local_index)
    whole = fetch_package("toy_data", "1.0", wheel, None, cache_dir()/"toy.whl")
    assert hashlib.sha256(whole.read_bytes()).hexdigest() == wheel
    assert fetch_package("toy_data", "1.0", sdist, "toy_data-1.0/words.txt", cache_dir()/"w.txt", sdist=True).read_text() == "from the source"
    whole.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(InputError, match="delete it and run again"): fetch_package("toy_data", "1.0", wheel, None, whole)

def test_fetch_errors_are_one_line_and_leave_nothing(local_index, monkeypatch, tmp_path):
    sha, dest = _wheel(local_index), cache_dir()/"toy"/"words.txt"
    def says(match, sha=sha, version="1.0", member="toy_data/words.txt", **kw):
        with pytest.raises(InputError, match=match) as e: fetch_package("toy_data", version, sha, member, dest, **kw)
        assert "\n" not in str(e.value) and "http" not in str(e.value) and not dest.exists() and list(cache_dir().iterdir()) == []
    says("toy_data 1.0: what was downloaded does not have the pinned SHA-256", sha="0"*64)
    says("toy_data 2.0: pip's index does not offer it", version="2.0")
    says("no readable file 'toy_data/none'", member="toy_data/none")
    says("does not have the pinned SHA-256", member_sha256="0"*64)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple"); monkeypatch.setenv("PIP_FIND_LINKS", "")
    says("toy_data 1.0: its index cannot be reached")
    venv.create(tmp_path/"bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path/"bare"/"bin"/"python"))
    says("this Python has no pip")
