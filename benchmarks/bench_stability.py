"""Stability (Eqs. 3-7): ours, exact and sampled, against the paper's method written plainly in PyTorch. One process,
one table.

    python benchmarks/bench_stability.py                    # the real pair and all synthetic sizes
    python benchmarks/bench_stability.py --quick            # the smallest synthetic size only, under a minute
    python benchmarks/bench_stability.py --real --c         # the real pair only
    python benchmarks/bench_stability.py --ann              # faiss indexes as well, where faiss-cpu is installed

Wall and processor seconds are given: on a machine with other work only the second says much. Start it with
GOMP_SPINCOUNT=0 then, so that threads waiting for each other do not count.
"""

import argparse
import ctypes
import gc
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from hpt_nb.neighbors import agreement, coarse_dtype, samples, stability
from hpt_nb.store import provenance, write_atomic

K, H, L = 64, 8192, 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# The plain reading: full block product in fp32, torch.topk, set intersection by comparing every member with every
# member.
def plain_sets(emb, anchors):
    w = F.normalize(emb, dim=1)
    right = w[anchors].T
    return torch.cat([anchors[(part @ right).topk(K).indices] for part in w.split(2048)])


def plain_pair(a, b):
    common = torch.cat(
        [(x[:, :, None] == y[:, None, :]).sum((1, 2)) for x, y in zip(a.split(512), b.split(512))]
    ).float()
    return common / (2 * K - common)


def plain(embs, picks):
    total = 0
    for anchors in picks:
        sets = [plain_sets(e, anchors.to(e.device)) for e in embs]
        pairs = [plain_pair(a, b) for i, a in enumerate(sets) for b in sets[:i]]
        total = total + sum(pairs) / len(pairs)
    return total / len(picks)


METHODS = {
    "exact": lambda embs: stability(embs, K, h=None),
    "exact, bf16 rows": lambda embs: stability(embs, K, h=None, dtype=torch.bfloat16),
    "sampled": lambda embs: stability(embs, K, H, L),
    "plain sampled": lambda embs: plain(embs, samples(len(embs[0]), min(H, len(embs[0]) - 1), L, 0)),
    "plain exact": lambda embs: plain(embs, [torch.arange(len(embs[0]))]),
}


def reset_peak():
    gc.collect()
    if DEVICE == "cuda":
        return torch.cuda.reset_peak_memory_stats() or torch.cuda.memory_allocated()
    try:  # Linux: give back what is free, so that none of it hides later use; then the peak starts anew
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return peak()


def peak():
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(call, embs):
    "One run: result, wall seconds, processor seconds, peak bytes above what was there."
    before, cpu, start = reset_peak(), time.process_time(), time.perf_counter()
    result = call(embs)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return result, dict(wall_s=time.perf_counter() - start, cpu_s=time.process_time() - cpu, peak_bytes=peak() - before)


def compare(data, embs, methods, times):
    "Every method `times` times, in turns; one row each, with its ratio to the plain sampled reading."
    runs, results = {m: [] for m in methods}, {}
    for _ in range(times):
        for m in methods:
            results[m], run = measure(METHODS[m], embs)
            runs[m].append(run)
            print(
                f"{data}: c={len(embs[0]):,} N={len(embs)} {m}: {run['wall_s']:.1f} s wall, "
                f"{run['cpu_s']:.1f} s processor, {run['peak_bytes'] / 2**20:.0f} MiB",
                flush=True,
            )
    median = {m: {x: statistics.median(r[x] for r in runs[m]) for x in ("wall_s", "cpu_s")} for m in methods}
    base = median.get("plain sampled")
    rows = [
        dict(
            data=data,
            c=len(embs[0]),
            N=len(embs),
            d=[e.shape[1] for e in embs],
            method=m,
            **median[m],
            walls_s=[r["wall_s"] for r in runs[m]],
            peak_bytes=max(r["peak_bytes"] for r in runs[m]),
            **({f"{x}_ratio": median[m][f"{x}_s"] / base[f"{x}_s"] for x in ("wall", "cpu")} if base else {}),
        )
        for m in methods
    ]
    for a, b in (("exact", "plain exact"), ("sampled", "plain sampled")):
        if a in results and b in results:
            moved = (results[a].cpu() - results[b].cpu()).abs()
            for row in rows:
                if row["method"] == a:
                    row["differs_from_plain"] = dict(tokens=int((moved > 1e-5).sum()), largest=moved.max().item())
    return rows


def real_pair():
    from hpt_nb.models import load_lm
    from hpt_nb.vocab import common_vocab

    lms = [load_lm(m, dtype="float32", device=DEVICE) for m in ("smollm2-135m", "gemma-3-270m")]
    return [lm.embeddings[ids.to(lm.device)].clone() for lm, ids in zip(lms, common_vocab(lms).ids)]


def synthetic(c, n, d):
    "n models that share a clustered space of 64 dimensions and add noise of their own."
    gen = torch.Generator().manual_seed(c)
    core = torch.randn(c // 50 + 1, 64, generator=gen)[
        torch.randint(0, c // 50 + 1, (c,), generator=gen)
    ] + torch.randn(c, 64, generator=gen)
    return [
        (core @ torch.randn(64, d, generator=gen) + 6 * torch.randn(c, d, generator=gen)).to(DEVICE) for _ in range(n)
    ]


def ann(embs, J):
    """faiss's approximate indexes in the place of the exact search: processor seconds, and how much of the stable
    vocabulary they find."""
    try:
        import faiss
    except ImportError:
        return print("faiss is not installed; approximate indexes are skipped") or []
    best, rows = lambda j: set(j.sort(descending=True, stable=True).indices[:H].tolist()), []

    def sets_of(emb, build):
        w = F.normalize(emb.cpu(), dim=1).numpy()
        index = build(w.shape[1])
        if not index.is_trained:
            index.train(w)
        index.add(w)
        return torch.from_numpy(index.search(w, K)[1]).sort(1).values.int()

    def ivf(probes):
        def build(d):
            index = faiss.index_factory(d, "IVF512,Flat", faiss.METRIC_INNER_PRODUCT)
            index.nprobe = probes
            return index

        return build

    def hnsw(ef):
        def build(d):
            index = faiss.index_factory(d, "HNSW32", faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction, index.hnsw.efSearch = 80, ef
            return index

        return build

    for name, build in {
        "flat": lambda d: faiss.IndexFlatIP(d),
        "IVF512, 16 probes": ivf(16),
        "IVF512, 64 probes": ivf(64),
        "HNSW32, ef 128": hnsw(128),
    }.items():
        got, run = measure(lambda e, build=build: agreement([sets_of(x, build) for x in e]), embs)
        rows.append(dict(index=name, c=len(embs[0]), overlap=len(best(got) & best(J)) / H, **run))
        print(rows[-1], flush=True)
    return rows


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument(
        "--real", action=argparse.BooleanOptionalAction, default=True, help="the pair SmolLM2-135M and Gemma-3-270M"
    )
    ask.add_argument("--c", type=int, nargs="*", default=[10_000, 50_000, 100_000], help="synthetic vocabulary sizes")
    ask.add_argument("--n", type=int, nargs="*", default=[2, 4, 8], help="synthetic numbers of models")
    ask.add_argument("--d", type=int, default=512, help="synthetic width")
    ask.add_argument("--times", type=int, default=3, help="runs of the real pair; the median is reported")
    ask.add_argument("--ann", action="store_true", help="faiss on the real pair too")
    ask.add_argument("--quick", action="store_true", help="--no-real --c 10000 --n 2 4 --times 1")
    ask.add_argument("--out", default="benchmarks/results/stability.json")
    args = ask.parse_args()
    if args.quick:
        args.real, args.c, args.n, args.times = False, [10_000], [2, 4], 1
    start, rows, found = time.perf_counter(), [], []
    coarse_dtype(DEVICE)
    if args.real:
        try:
            embs = real_pair()
        except Exception as e:
            print(f"the real pair is skipped: {e}")
        else:
            rows += compare("SmolLM2/Gemma", embs, list(METHODS), args.times)
            if args.ann:
                found = ann(embs, stability(embs, K, h=None))
            del embs
    for c in args.c:
        for n in args.n:
            # the plain reading costs a multiple of its two models' time; it is measured once a size
            rows += compare(
                "synthetic",
                synthetic(c, n, args.d),
                ["exact", "sampled", "plain sampled"] if n == min(args.n) else ["exact"],
                1,
            )
    note = dict(k=K, h=H, L=L, threads=torch.get_num_threads(), coarse=str(coarse_dtype(DEVICE)), load=os.getloadavg())
    write_atomic(
        args.out,
        json.dumps(
            dict(rows=rows, ann=found, **note, meta=provenance(DEVICE, "float32", [0], time.perf_counter() - start)),
            indent=1,
        ),
    )


if __name__ == "__main__":
    main()
