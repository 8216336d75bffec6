"""Stability against a float64 oracle, its invariances, its bounds on error and memory, and its bad inputs."""

import itertools
import math
import subprocess
import sys
import textwrap
from functools import cache

import pytest
import torch
from hypothesis import given, settings, strategies as st

from hpt_nb import nearest, neighbors as nb
from hpt_nb.store import InputError


def unit64(emb):
    w = emb.double()
    return w / w.norm(dim=1, keepdim=True).clamp_min(1e-300)


def oracle_sets(emb, k, anchors=None, include_self=True):
    """The k nearest anchors of every row, one row and one sort at a time; cosines within 2**-40 tie, ties go to the
    lower row."""
    w, sets = unit64(emb), []
    anchors = range(len(w)) if anchors is None else anchors.tolist()
    for u in range(len(w)):
        ranked = sorted(
            (v for v in anchors if include_self or v != u), key=lambda v: (-round(float(w[u] @ w[v]) * 2**40), v)
        )
        sets.append(set(ranked[:k]))
    return sets


def oracle_J(embs, k, anchors=None, include_self=True):
    sets = [oracle_sets(e, k, anchors, include_self) for e in embs]
    pairs = list(itertools.combinations(sets, 2))
    return torch.tensor(
        [sum(len(a[u] & b[u]) / len(a[u] | b[u]) for a, b in pairs) / len(pairs) for u in range(len(sets[0]))]
    )


def random_embs(n, c, seed, shared=1.0):
    "n models of different widths that agree in part."
    gen = torch.Generator().manual_seed(seed)
    core = torch.randn(c, 12, generator=gen)
    return [
        torch.cat([shared * core, torch.randn(c, 3 + i, generator=gen)], 1)
        @ torch.randn(15 + i, 9 + 2 * i, generator=gen)
        for i in range(n)
    ]


def close(a, b):
    torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("include_self", [True, False])
def test_oracle_exact(n, include_self):
    embs = random_embs(n, 150, n)
    close(nb.stability(embs, k=7, h=None, include_self=include_self), oracle_J(embs, 7, None, include_self))


@pytest.mark.parametrize("include_self", [True, False])
def test_oracle_sampled(include_self):
    embs = random_embs(3, 160, 1)
    want = torch.stack([oracle_J(embs, 5, a, include_self) for a in nb.samples(160, 40, 3, 7)]).mean(0)
    close(nb.stability(embs, k=5, h=40, repeats=3, seed=7, include_self=include_self), want)


def awkward(kind, seed=0):
    emb = random_embs(1, 130, seed)[0]
    if kind == "ties":
        return torch.randint(-1, 2, (130, 4), generator=torch.Generator().manual_seed(seed)).float()
    if kind == "copies":
        emb[40:80] = emb[3]
    if kind == "scaled copies":
        emb[40:80] = emb[3] * torch.linspace(0.1, 7, 40)[:, None]
    if kind == "zero rows":
        emb[[0, 50, 129]] = 0
    if kind == "all equal":
        emb[:] = emb[0]
    if kind == "opposite":
        emb = torch.cat([-emb[:65], emb[:65]])
    if kind == "near":
        emb = emb[:1] + 1e-3 * emb
    return emb


@cache
def awkward_sets(kind, include_self):
    return oracle_sets(awkward(kind), 6, None, include_self)


@pytest.mark.parametrize("kind", ["ties", "copies", "scaled copies", "zero rows", "all equal", "opposite", "near"])
@pytest.mark.parametrize("coarse", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("path", ["anchors", "tiles"])
@pytest.mark.parametrize("include_self", [True, False])
def test_awkward_rows(kind, coarse, path, include_self):
    "Each way of computing, with each coarse product, gives the oracle's sets."
    emb = awkward(kind)
    rows, everyone = nb.Rows(emb, coarse=coarse), torch.arange(len(emb))
    got = (
        nb.top_all(rows, 6, include_self, tile=64)
        if path == "tiles"
        else nb.top_among(rows, everyone, everyone, 6, include_self, work=2**17)
    )
    assert [set(r) for r in got.tolist()] == awkward_sets(kind, include_self)


@pytest.mark.filterwarnings("ignore:.*are zero")
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), c=st.integers(2, 90), d=st.integers(1, 9), data=st.data())
def test_any_shape(seed, c, d, data):
    "Few tokens, one dimension, k up to all of them: small integers, so that ties are everywhere."
    k = data.draw(st.integers(1, c))
    gen = torch.Generator().manual_seed(seed)
    embs = [torch.randint(-2, 3, (c, d), generator=gen).float() for _ in range(2)]
    close(nb.stability(embs, k=k, h=None), oracle_J(embs, k))


def test_block_size_and_threads_change_nothing():
    emb = random_embs(1, 1500, 3)[0]
    rows, everyone = nb.Rows(emb), torch.arange(1500)
    want, threads = nb.top_among(rows, everyone, everyone, 16), torch.get_num_threads()
    for tile in (64, 192, 512):
        assert torch.equal(nb.top_all(rows, 16, tile=tile), want)
    for work in (2**20, 2**24):
        assert torch.equal(nb.top_among(rows, everyone, everyone, 16, work=work), want)
    try:
        torch.set_num_threads(1)
        assert torch.equal(nb.top_all(rows, 16, tile=256), want)
    finally:
        torch.set_num_threads(threads)


def test_tiles_are_used_and_agree(monkeypatch):
    "From `stability` down: the tiles' answer equals the straight one."
    embs = random_embs(2, 1200, 5)
    straight = nb.stability(embs, k=10, h=None)
    monkeypatch.setattr(nb, "tile_size", lambda *a: 256)
    called = []
    monkeypatch.setattr(nb, "top_all", lambda *a, real=nb.top_all: called.append(1) or real(*a))
    assert torch.equal(nb.stability(embs, k=10, h=None), straight) and len(called) == 2


def test_a_guess_too_high_costs_time_only(monkeypatch):
    "With cuts that leave most rows short of candidates, the proof fails for these and they are done again."
    rows = nb.Rows(random_embs(1, 1000, 6)[0])
    want = nb.top_all(rows, 12, tile=256)
    monkeypatch.setattr(nearest, "rank_wanted", lambda k, share: 1)
    redone = []
    monkeypatch.setattr(
        nearest, "top_among", lambda rows, left, *a, real=nb.top_among: redone.append(len(left)) or real(rows, left, *a)
    )
    assert torch.equal(nb.top_all(rows, 12, tile=256), want) and redone[0] > 100


@pytest.mark.parametrize("coarse", [torch.bfloat16, torch.float32])
def test_error_bound_holds(coarse):
    for d in (4, 64, 700):
        emb = torch.randn(300, d, generator=torch.Generator().manual_seed(d)) * torch.rand(300, 1).add(0.01) * 50
        rows = nb.Rows(emb, coarse=coarse)
        left, rho = rows.coarse(torch.arange(300))
        truth, cos = unit64(emb) @ unit64(emb).T, nb.product(left, left)[:300, :300].double()
        assert ((cos - truth).abs() <= rows.bound(rho, rho)[:, None] + cos.abs() * nb.STORED).all()


def test_a_bad_processor_is_found_out(monkeypatch):
    "A coarse product beyond its bound is an error, not a ranking."
    rows = nb.Rows(random_embs(1, 400, 2)[0])
    monkeypatch.setattr(nearest, "product", lambda a, b, real=nb.product: real(a, b) + 0.05)
    with pytest.raises(RuntimeError, match="more than its proven bound"):
        nb.top_all(rows, 8, tile=64)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_session_settings_do_not_matter(precision):
    embs = random_embs(2, 200, 9)
    want = nb.stability(embs, k=8, h=None)
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(nb.stability(embs, k=8, h=None), want)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_invariances():
    embs, gen = random_embs(3, 300, 4), torch.Generator().manual_seed(0)
    J = nb.stability(embs, k=9, h=None)
    turn = lambda e: (
        e.double() @ torch.linalg.qr(torch.randn(e.shape[1], e.shape[1], generator=gen, dtype=torch.float64)).Q
    )
    close(nb.stability([turn(e) for e in embs], k=9, h=None), J)
    close(nb.stability([e * torch.rand(300, 1, generator=gen).add(0.01) for e in embs], k=9, h=None), J)
    close(nb.stability([e * 2.0**s for e, s in zip(embs, (90, -90, 0))], k=9, h=None), J)
    order = torch.randperm(300, generator=gen)
    close(nb.stability([e[order] for e in embs], k=9, h=None), J[order])
    close(nb.stability(embs[::-1], k=9, h=None), J)
    close(nb.stability([embs[0], turn(embs[0])], k=9, h=None), torch.ones(300))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_embedding_types(dtype):
    embs = [e.to(dtype) for e in random_embs(2, 120, 8)]
    close(nb.stability(embs, k=6, h=None), oracle_J(embs, 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, "tf32"])
def test_rounded_rows(dtype):
    "Asked for rounded rows, the ranking is exactly that of the rounded unit rows' products."
    emb = random_embs(1, 140, 3)[0]
    unit = nb.rounded((emb * nb.Rows(emb).inv[:, None].float()), dtype).double()
    want = ((unit @ unit.T) * 2**40).round().sort(dim=1, descending=True, stable=True).indices[:, :6].sort(1).values
    assert torch.equal(nb.neighbor_ids(emb, 6, dtype=dtype).long(), want)


def test_sample_of_all_is_exact():
    embs = random_embs(2, 100, 0)
    exact = nb.stability(embs, k=5, h=None)
    for h in (100, 8192):
        assert torch.equal(nb.stability(embs, k=5, h=h), exact)


def test_samples_are_seeded():
    a, b, other = (nb.samples(500, 60, 2, s) for s in (3, 3, 4))
    assert (
        all(torch.equal(x, y) for x, y in zip(a, b)) and not torch.equal(a[0], other[0]) and not torch.equal(a[0], a[1])
    )
    assert all(len(x.unique()) == 60 and x.max() < 500 for x in a)


def test_progress_rises_to_one():
    seen = []
    nb.stability(random_embs(2, 100, 0), k=5, h=20, repeats=3, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1 and len(seen) >= 6


E2 = random_embs(2, 50, 0)


def with_value(x):
    bad = E2[1].clone()
    bad[7, 1] = x
    return [E2[0], bad]


@pytest.mark.parametrize(
    "embs,kw,says",
    [
        (E2[:1], {}, "at least two models"),
        ([], {}, "at least two models"),
        ([e[:0] for e in E2], {}, "no common token"),
        ([E2[0], E2[1][:-1]], {}, "49 rows"),
        ([E2[0], E2[1][:, 0]], {}, "shape"),
        ([E2[0], E2[1].long()], {}, "float matrix"),
        (with_value(math.nan), {}, "model 1 hold NaN or infinity, the first of them row 7"),
        (with_value(-math.inf), {}, "row 7"),
        (E2, dict(k=0), "k=0"),
        (E2, dict(k=51), "k=51 neighbours requested from 50 anchors"),
        (E2, dict(k=50, include_self=False), "from 49 anchors"),
        (E2, dict(k=6, h=5), "from 5 anchors"),
        (E2, dict(k=1, h=0), "h=0"),
        (E2, dict(k=1, h=-3), "h=-3"),
        (E2, dict(k=1, h=9, repeats=0), "repeats=0"),
        (E2, dict(k=1, dtype=torch.float16), "dtype"),
        (E2, dict(k=1, max_bytes=100), "max_bytes=100"),
    ],
)
def test_bad_input(embs, kw, says):
    with pytest.raises(InputError, match=says) as e:
        nb.stability(embs, **{"k": 5, "h": None, **kw})
    assert "\n" not in str(e.value)


def test_zero_rows_are_named():
    embs = [e.clone() for e in E2]
    embs[1][[4, 8]] = 0
    with pytest.warns(UserWarning, match="2 embedding row.* of model 1 are zero, the first of them row 4"):
        J = nb.stability(embs, k=5, h=None)
    close(J, oracle_J(embs, 5))


def test_input_is_left_alone():
    embs = random_embs(2, 80, 1)
    before = [e.clone() for e in embs]
    nb.stability([e.requires_grad_() for e in embs], k=4, h=None)
    assert all(torch.equal(a, b) for a, b in zip(embs, before))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from Linux's getrusage")
@pytest.mark.parametrize("max_bytes", [60_000_000, pytest.param(400_000_000, marks=pytest.mark.slow)])
def test_memory_bound_is_kept(max_bytes):
    """Peak resident memory above what was there before, in a process of its own; beyond the bound only what PyTorch
    sets up at its first product."""
    code = f"""
        import resource, torch
        from hpt_nb.neighbors import stability, tile_size, fixed_bytes, coarse_dtype
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024
        gen = torch.Generator().manual_seed(0)
        embs = [torch.randn(12_000, d, generator=gen) for d in (64,96)]
        coarse_dtype("cpu")
        stability([e[:300] for e in embs], k=8, h=None)
        before = peak()
        stability(embs, k=64, h=None, max_bytes={max_bytes})
        print(peak() - before, tile_size(12_000, 64, {max_bytes} - fixed_bytes(embs, 64, torch.float32), "cpu"))
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(out[0]) < max_bytes + 40_000_000
    assert (int(out[1]) > 0) == (max_bytes > 200_000_000)  # both ways of computing were tried
