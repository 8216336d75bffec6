"""Our GCG against nanogcg 0.3.0: loss reached and time, on the same model, start, objective and number of candidates.

The two need different versions of transformers, so each runs in an environment of its own and writes a JSON; nothing
but files passes between them:

    python -m venv nano && nano/bin/pip install nanogcg==0.3.0
    for m in random smollm2-135m; do
        .venv/bin/python benchmarks/bench_gcg.py --save job-$m --model $m
        nano/bin/python benchmarks/bench_gcg.py --nanogcg job-$m
        .venv/bin/python benchmarks/bench_gcg.py --ours job-$m
        .venv/bin/python benchmarks/bench_gcg.py --replay job-$m
    done
    .venv/bin/python benchmarks/bench_gcg.py --compare job-random job-smollm2-135m --out benchmarks/results/gcg.json

`random` is two layers of random weights under SmolLM2's tokenizer: small enough for seeds and steps from which the
losses can be compared. `smollm2-135m` is there for the time of a step.

The objective of both is -log p(target | prompt, text), the cross-entropy of one token over the whole vocabulary:
nanogcg's own, for a target of one token and a message that begins with the prompt. Our tasks compare label words
alone; so here the engine is given every token as a label. All rows of the vocabulary may be used, and candidates are
not filtered, so that both score exactly `width` candidates a step. Both go to the best candidate of each step,
better or not.

What differs: nanogcg draws its candidates with repetition, ours without; nanogcg computes the logits of every
position, ours of the last. Its cache of what stands before the prompt is off, since nothing does. Absolute seconds
belong to the machine.

Two questions are asked of the losses. `--replay` gives our search the candidates that nanogcg drew, step by step:
are they among the tokens that our gradient ranks highest, does ours go to the same one, with the same loss? Then
only the luck of the draws is left, and that is what the seeds are for: the best loss of each run, and the difference
of the means with Welch's 95 % interval (the two draw from unrelated streams, so equal seeds pair nothing).

Only the first seeds are timed. After them nanogcg's `gc.collect()` is left out, which changes no number and was more
than half of its time on the small model. A run that was stopped goes on with its next seed.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

TEXTS = dict(
    text=" a gripping story, told with warmth and wit. It was",
    target=" terrible",
    start="x x x x x x x x x x",
    topk=256,
)
JOBS = {
    "random": dict(TEXTS, model="random", steps=30, width=16, seeds=list(range(120)), timed=5),
    "smollm2-135m": dict(TEXTS, model="smollm2-135m", steps=5, width=32, seeds=list(range(8)), timed=2),
}


def save(folder, name):
    "The model in a form that old and new transformers read alike, and the job as ids."
    from transformers import LlamaConfig, LlamaForCausalLM
    from hpt_nb.models import load_lm

    lm, job = load_lm("smollm2-135m", dtype="float32"), JOBS[name]
    if name == "random":
        torch.manual_seed(0)
        lm.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=lm.n_rows,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                initializer_range=0.2,
                tie_word_embeddings=True,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]  # where transformers 4 looks for it
    path.write_text(json.dumps(config | dict(torch_dtype="float32"), indent=1))
    ids = {k: lm.encode(job[k]) for k in ("start", "text", "target")}
    if len(ids["target"]) != 1 or lm.bos_ids:
        raise SystemExit(
            f"the target has {len(ids['target'])} tokens and BOS is {lm.bos_ids}; need one token and no BOS"
        )
    Path(folder, "job.json").write_text(json.dumps(job | dict(ids=ids)))


def now():
    return time.perf_counter(), time.process_time()  # process time is the machine's other work left out


def read(folder):
    return json.loads(Path(folder, "job.json").read_text())


def note(folder, name, **found):
    Path(folder, f"{name}.json").write_text(
        json.dumps(dict(job=read(folder), threads=torch.get_num_threads(), torch=torch.__version__, **found))
    )


def search(folder):
    "(job, function of a seed that gives a pass of ours at the job's start) for the job in `folder`."
    from hpt_nb.models import load_lm
    from hpt_nb.pez import RunSpec, SearchSpace
    from hpt_nb.scoring import PrefixScorer
    from hpt_nb.swaps import GCG, SwapPass
    from hpt_nb.tasks import Split, Task

    job, lm = read(folder), load_lm(folder, dtype="float32")
    one = Split((job["text"],) * 2, (0, 1))
    task, space = Task("gcg", "", (" a", " b"), one, one, one), SearchSpace(lm, torch.arange(lm.n_rows))
    cfg = replace(
        GCG,
        n_tokens=len(job["ids"]["start"]),
        steps=job["steps"],
        batch=1,
        topk=job["topk"],
        n_candidates=job["width"],
        drop_unstable=False,
    )

    def begin(seed):
        p = SwapPass(lm, task, [RunSpec(space, "gcg", seed)], cfg)
        p.prompts, side = [tuple(job["ids"]["start"])], p.source
        side.scorer, side.train, side.labels = (
            PrefixScorer(lm, torch.arange(lm.n_rows)),
            [job["ids"]["text"]],
            job["ids"]["target"],
        )
        return p

    return job, begin


def loss_of(p):
    return p.source.losses(p.prompts, [[0]])[0]


def ours(folder):
    job, begin = search(folder)
    found = json.loads(Path(folder, "ours.json").read_text())["runs"] if Path(folder, "ours.json").exists() else []
    for seed in job["seeds"][len(found) :]:
        p = begin(seed)
        first, losses, spent = loss_of(p), [], [0.0, 0.0]
        for _ in range(job["steps"]):
            began = now()
            p.advance()
            spent = [s + b - a for s, a, b in zip(spent, began, now())]
            losses.append(loss_of(p))  # not timed: nanogcg has this number from its search
        found.append(dict(seed=seed, first=first, losses=losses, wall_s=spent[0], cpu_s=spent[1]))
        print(f"ours, seed {seed}: {first:.3f} -> {min(losses):.3f} in {spent[0]:.1f} s", flush=True)
        note(folder, "ours", runs=found)


def replay(folder):
    "Our search on the candidates that nanogcg drew."
    job, begin = search(folder)
    found = []
    for run in json.loads(Path(folder, "nanogcg.json").read_text())["runs"]:
        p, side = begin(run["seed"]), None
        at, drawn = [step["at"] for step in run["draws"]], [step["candidates"] for step in run["draws"]]
        for k in range(len(drawn)):
            assert p.prompts == [tuple(at[k])] or k, "another start"
            p.prompts, side = (
                [tuple(at[k])],
                p.source,
            )  # each step from where nanogcg stood, so that one near tie does not part them for good
            _, grad = side.gradient(p.prompts, [[0]])
            space = p.specs[0].space
            gain = -(grad[0].to(space.unit_vd) @ space.unit_vd.T) * p.norms[id(space)]
            top = [set(row) for row in space.ids[gain.topk(job["topk"], dim=-1).indices].tolist()]
            swaps = [(j, t) for c in drawn[k] for j, (t, was) in enumerate(zip(c, at[k])) if t != was]
            p.prompts = p.choose([[tuple(c) for c in drawn[k]]], [[0]])
            found.append(
                dict(
                    seed=run["seed"],
                    step=k,
                    swaps=len(swaps),
                    ranked=sum(t in top[j] for j, t in swaps),
                    gap=abs(loss_of(p) - run["losses"][k]),
                    same=k + 1 == len(at) or p.prompts == [tuple(at[k + 1])],
                )
            )
        print(f"replay, seed {run['seed']}: largest difference of loss {max(f['gap'] for f in found):.2g}", flush=True)
    note(
        folder,
        "replay",
        steps=len(found),
        swaps=sum(f["swaps"] for f in found),
        ranked=sum(f["ranked"] for f in found),
        same=sum(f["same"] for f in found),
        largest_gap=max(f["gap"] for f in found),
    )


def theirs(folder):
    import nanogcg
    import nanogcg.gcg
    import transformers

    job, found, draws, sample = read(folder), [], [], nanogcg.gcg.sample_ids_from_grad

    def noted(ids, *a, **kw):
        got = sample(ids, *a, **kw)
        draws.append(dict(at=ids.tolist(), candidates=got.tolist()))
        return got

    nanogcg.gcg.sample_ids_from_grad = noted
    if Path(folder, "nanogcg.json").exists():
        found = json.loads(Path(folder, "nanogcg.json").read_text())["runs"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(Path(folder, "tokenizer.json")))
    for name in ("start", "text", "target"):
        got = tokenizer(job[name], add_special_tokens=False)["input_ids"]
        if got != job["ids"][name]:
            raise SystemExit(f"{name}: this transformers reads {got}, not {job['ids'][name]}")
    for seed in job["seeds"][len(found) :]:
        if len(found) >= job["timed"]:
            nanogcg.gcg.gc.collect = lambda: 0
        cfg = nanogcg.GCGConfig(
            num_steps=job["steps"],
            optim_str_init=job["start"],
            search_width=job["width"],
            topk=job["topk"],
            seed=seed,
            use_prefix_cache=False,
            allow_non_ascii=True,
            filter_ids=False,
            verbosity="ERROR",
        )
        ids = torch.tensor([job["ids"]["start"] + job["ids"]["text"]])
        with torch.no_grad():
            first = -model(ids).logits[0, -1].log_softmax(-1)[job["ids"]["target"][0]].item()
        draws.clear()
        began = now()
        got = nanogcg.run(model, tokenizer, "{optim_str}" + job["text"], job["target"], cfg)
        wall, cpu = (b - a for a, b in zip(began, now()))
        found.append(dict(seed=seed, first=first, losses=got.losses, wall_s=wall, cpu_s=cpu, draws=list(draws)))
        print(f"nanogcg, seed {seed}: {first:.3f} -> {min(got.losses):.3f} in {wall:.1f} s", flush=True)
        note(folder, "nanogcg", runs=found, transformers=transformers.__version__)


def summary(runs, steps, timed):
    """Means over the seeds, and the best loss up to a quarter, a half and all of the steps; times of the first
    `timed` seeds."""
    best = {
        f"best after {k} steps": [min(r["losses"][:k]) for r in runs]
        for k in sorted({-(-steps // 4), -(-steps // 2), steps})
    }
    return dict(
        {k: dict(mean=statistics.mean(v), sd=statistics.stdev(v), each=v) for k, v in best.items()},
        s_per_step=statistics.median(r["wall_s"] for r in runs[:timed]) / steps,
        cpu_s_per_step=statistics.median(r["cpu_s"] for r in runs[:timed]) / steps,
    )


def welch(ours, theirs):
    "How much lower ours is on average, with Welch's 95 % interval."
    from hpt_nb.report import t_quantile

    u, v = (statistics.variance(x) / len(x) for x in (ours, theirs))
    nu = int(
        (u + v) ** 2 / (u**2 / (len(ours) - 1) + v**2 / (len(theirs) - 1))
    )  # rounded down: the interval is a little wide
    mean, half = statistics.mean(theirs) - statistics.mean(ours), t_quantile(nu) * (u + v) ** 0.5
    return dict(mean=mean, standard_error=(u + v) ** 0.5, low=mean - half, high=mean + half)


def compare(folder):
    "What one job's two runs found."
    a, b = (json.loads(Path(folder, f"{n}.json").read_text()) for n in ("ours", "nanogcg"))
    if a["job"] != b["job"]:
        raise SystemExit(f"{folder}: the two ran different jobs")
    if any(len(x["runs"]) < len(a["job"]["seeds"]) for x in (a, b)):
        raise SystemExit(f"{folder}: some seeds are missing; run it again")
    gap = max(abs(x["first"] - y["first"]) for x, y in zip(a["runs"], b["runs"]))
    if gap > 1e-3:
        raise SystemExit(f"{folder}: the losses at the start differ by {gap:.2g}: not the same model or objective")
    steps, width = a["job"]["steps"], a["job"]["width"]
    found = {
        n: dict(
            summary(x["runs"], steps, a["job"]["timed"]), losses=[[round(v, 5) for v in r["losses"]] for r in x["runs"]]
        )
        for n, x in (("ours", a), ("nanogcg 0.3.0", b))
    }
    for n, f in found.items():
        print(
            f"{a['job']['model']}, {n}: "
            + ", ".join(f"{k} {v['mean']:.3f} ± {v['sd']:.3f}" for k, v in f.items() if k.startswith("best"))
            + f"; {f['s_per_step']:.3f} s a step, {f['cpu_s_per_step']:.3f} s of processor time"
        )
    gain = welch(*(f[f"best after {steps} steps"]["each"] for f in found.values()))
    print(f"{a['job']['model']}: ours lower by {gain['mean']:.3f}, 95 % {gain['low']:.3f} to {gain['high']:.3f}")
    again = json.loads(Path(folder, "replay.json").read_text())
    if again["job"] != a["job"] or again["steps"] != steps * len(a["runs"]):
        raise SystemExit(f"{folder}: the replay is of another job, or unfinished")
    return dict(
        job={k: v for k, v in a["job"].items() if k != "ids"},
        start=a["runs"][0]["first"],
        start_gap=gap,
        candidates_a_run=steps * width,
        **found,
        lower_by=gain,
        replay={k: again[k] for k in ("steps", "swaps", "ranked", "same", "largest_gap")},
        speedup={k: found["nanogcg 0.3.0"][k] / found["ours"][k] for k in ("s_per_step", "cpu_s_per_step")},
        env=dict(
            threads=[a["threads"], b["threads"]], torch=[a["torch"], b["torch"]], nanogcg_transformers=b["transformers"]
        ),
        wall_s=sum(r["wall_s"] for x in (a, b) for r in x["runs"]),
    )


def compare_all(folders, out):
    from hpt_nb.store import provenance, write_atomic

    found = [compare(f) for f in folders]
    seeds, wall = max((f["job"]["seeds"] for f in found), key=len), sum(f.pop("wall_s") for f in found)
    if out:
        write_atomic(
            out,
            json.dumps(
                dict(
                    found={f["job"]["model"]: f for f in found},
                    meta=provenance("cpu", "float32", seeds, round(wall, 1)),
                ),
                indent=1,
            ),
        )


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, said in (
        ("save", "write model and job into FOLDER"),
        ("ours", "run ours"),
        ("nanogcg", "run nanogcg"),
        ("replay", "our search on nanogcg's candidates"),
    ):
        ap.add_argument(f"--{name}", metavar="FOLDER", help=said)
    ap.add_argument("--model", choices=JOBS, default="random", help="of the job to save (random)")
    ap.add_argument("--compare", metavar="FOLDER", nargs="+", help="compare the two")
    ap.add_argument("--out", help="JSON file of the comparison")
    a = ap.parse_args()
    if a.save:
        save(a.save, a.model)
    if a.ours:
        ours(a.ours)
    if a.nanogcg:
        theirs(a.nanogcg)
    if a.replay:
        replay(a.replay)
    if a.compare:
        compare_all(a.compare, a.out)


if __name__ == "__main__":
    main()
