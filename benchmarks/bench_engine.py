"""How long a tuning step and a scored text take, against peers, in one process on one machine.

    python benchmarks/bench_engine.py --task sst2.toml --out benchmarks/results/engine.json

On a GPU, with the whole run of 20 prompts by 5,000 steps, plain and compiled:

    python benchmarks/bench_engine.py --device cuda --task sst2.toml --whole 5000 \\
        --out benchmarks/results/engine-gpu.json

At the paper's size, on a GPU: the shape of Llama-2-7B with random weights and SmolLM2's tokenizer (time does not
depend on what the weights are):

    python benchmarks/bench_engine.py --models llama-2-7b --device cuda --task sst2.toml --dtypes bfloat16 \\
        --runs 5 --skip compile peft --out benchmarks/results/engine-7b.json

lm-eval is timed with 64 texts a pass, a choice that suits it on a CPU. Others, its own default (1) and its search
for one (auto) among them, are timed by

    python benchmarks/bench_engine.py --task sst2.toml --skip pez compile peft --batches 1 16 auto \\
        --out benchmarks/results/engine-batches.json

The peers are installed for this alone: pip install lm-eval==0.4.13 peft
Absolute seconds belong to the machine; the ratios and the share of the machine's own matrix-product rate are what to
read.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial

import pandas as pd
import torch

from hpt_nb.models import load_lm
from hpt_nb.pez import PezConfig, RunSpec, SearchSpace, PezPass, batch_at, tune_runs
from hpt_nb.scoring import PrefixScorer, compile_layers, label_ids, prefix_embeddings, text_ids
from hpt_nb.store import provenance, write_atomic
from hpt_nb.tasks import load_task

SHAPES = {  # (width, inner width, layers, heads), and the size of its vocabulary
    "llama-2-7b": (dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32), 32000)
}
PROMPT = " great movie plot bad boring story fun film dull true"  # ten tokens in SmolLM2 and Gemma


def random_model(shape, device):
    "A Llama of a published shape with random weights, in float32, and SmolLM2's tokenizer (ids below 49,152)."
    from transformers import LlamaConfig, LlamaForCausalLM

    from hpt_nb.models import LM

    small = load_lm("smollm2-135m", device="cpu")
    torch.manual_seed(0)
    sizes, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        **sizes, vocab_size=max(vocabulary, len(small.tokenizer)), bos_token_id=small.tokenizer.bos_token_id
    )
    with torch.device(device):
        model = LlamaForCausalLM(config)
    return LM(model.eval(), small.tokenizer, shape)


def once(work):
    "Wall time of `work()`, a GPU's own work included."
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    sync()
    began = time.perf_counter()
    work()
    sync()
    return time.perf_counter() - began


def seconds(work, repeats):
    "Median wall time of `work()` over `repeats` calls, after one that is not counted."
    work()
    return statistics.median(once(work) for _ in range(repeats))


def product_rate(dtype, device, repeats=5):
    "FLOP/s of an (n, n) matrix product: what the machine can do now."
    n = 2048 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / seconds(lambda: a @ a, repeats)


def weights(lm):
    "Parameters that every token passes through: all but the embedding tables."
    tables = {id(m.weight) for m in lm.model.modules() if isinstance(m, torch.nn.Embedding)} | {
        id(lm.model.get_output_embeddings().weight)
    }
    return sum(p.numel() for p in lm.model.parameters() if id(p) not in tables)


class ReleasedManner:
    """A PEZ step as the released language pipeline takes it: float32, the table normalised and searched anew each
    step (and once more after the update), every text padded to 128 tokens, the logits of all positions,
    cross-entropy over the label words at the last one."""

    def __init__(self, lm, task, batch, n_tokens=10, length=128):
        self.lm, self.task, self.batch, self.length = lm, task, batch, length
        self.labels, self.suffix = (
            label_ids(lm, task).to(lm.device),
            torch.tensor(lm.encode(task.suffix), device=lm.device),
        )
        self.texts = [lm.encode(t)[:length] for t in task.train.texts[:2000]]
        start = [i for w in task.labels for i in lm.encode(w)]
        self.prompt = torch.nn.Parameter(
            lm.embeddings[torch.tensor((start * n_tokens)[:n_tokens], device=lm.device)].clone()
        )
        from transformers import Adafactor

        self.adafactor = Adafactor([self.prompt], lr=0.3, relative_step=False, scale_parameter=False, warmup_init=False)
        self.at = 0

    def project(self):
        unit = torch.nn.functional.normalize(self.lm.embeddings, dim=-1)
        return self.lm.embeddings[(torch.nn.functional.normalize(self.prompt.detach(), dim=-1) @ unit.T).argmax(-1)]

    def step(self):
        pick = batch_at(len(self.texts), self.batch, 0, self.at)
        pad = self.lm.tokenizer.pad_token_id or 0

        def here(x):
            return torch.tensor(x, device=self.lm.device)

        ids = here([self.texts[i] + [pad] * (self.length - len(self.texts[i])) for i in pick])
        keep = here([[1] * len(self.texts[i]) + [0] * (self.length - len(self.texts[i])) for i in pick])
        hard = self.project().requires_grad_()
        b = len(pick)
        x = torch.cat(
            [hard.expand(b, -1, -1), self.lm.embeddings[ids], self.lm.embeddings[self.suffix].expand(b, -1, -1)], 1
        )
        mask = torch.cat([keep.new_ones(b, len(hard)), keep, keep.new_ones(b, len(self.suffix))], 1)
        logits = self.lm.model(inputs_embeds=x, attention_mask=mask, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, -1, self.labels], here([self.task.train.labels[i] for i in pick])
        )
        (self.prompt.grad,) = torch.autograd.grad(loss, hard)
        torch.nn.utils.clip_grad_norm_([self.prompt], 1.0)
        self.adafactor.step()
        self.prompt.data = self.project()
        self.at += 1


def our_pass(lm, task, runs, batch):
    "`runs` PEZ runs side by side in the engine, over the whole vocabulary, reprojected as in the released pipeline."
    few, space = (
        replace(task, train=type(task.train)(task.train.texts[:2000], task.train.labels[:2000])),
        SearchSpace(lm),
    )
    return PezPass(
        lm, few, [RunSpec(space, "pez-reprojected", s) for s in range(runs)], PezConfig(batch=batch, holdout_n=16)
    )


def compiled_step(lm, task, runs, steps):
    """A step with the layers compiled, against the same steps uncompiled, in turn: (seconds lost to compiling,
    median compiled step, median plain step). A step that meets a new shape or use of a layer stops to compile it, so
    what is lost is all that the steps took beyond their median. Programs that an earlier process left on disk are
    not used."""
    import torch._inductor.config

    torch._inductor.config.force_disable_caches = True
    plain, fast = our_pass(lm, task, runs, 16), our_pass(compile_layers(lm), task, runs, 16)
    took_plain, took_fast = zip(*((once(plain.advance), once(fast.advance)) for _ in range(steps)))
    return (
        sum(took_fast) - steps * statistics.median(took_fast),
        statistics.median(took_fast),
        statistics.median(took_plain),
    )


def whole_run(lm, task, runs, steps):
    "Seconds of `runs` whole PEZ runs side by side, with the choice by 512 holdout texts ten times on the way."
    return once(
        lambda: tune_runs(
            lm,
            task,
            [RunSpec(SearchSpace(lm), "pez-reprojected", s) for s in range(runs)],
            PezConfig(steps=steps, eval_every=max(1, steps // 10), holdout_n=512),
            progress=True,
        )
    )


def soft_step(lm, task, batch):
    "A prompt-tuning step of PEFT on the same texts: its own virtual tokens, padded to the batch's longest, all logits."
    import copy
    from peft import PromptTuningConfig, TaskType, get_peft_model

    model = get_peft_model(
        copy.deepcopy(lm.model), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=10)
    )
    seqs, labels = text_ids(lm, task, task.train.texts[:2000]), label_ids(lm, task).to(lm.device)
    opt, at = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3), [0]

    def step():
        pick = batch_at(len(seqs), batch, 0, at[0])
        t = max(len(seqs[i]) for i in pick)

        def here(x):
            return torch.tensor(x, device=lm.device)

        ids = here(
            [[0] * (t - len(seqs[i])) + seqs[i] for i in pick]
        )  # padded left, so that the last position is the answer's
        mask = here([[0] * (t - len(seqs[i])) + [1] * len(seqs[i]) for i in pick])
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -1, labels].float()
        torch.nn.functional.cross_entropy(logits, here([task.train.labels[i] for i in pick])).backward()
        opt.step(), opt.zero_grad()
        at[0] += 1

    return step


def lm_eval_run(lm, task, split, prompt, batch):
    """(seconds in its scoring of requests, predictions) of lm-eval with `batch` texts a pass (a number, or 'auto')
    on the same texts and format; building its data set and its bootstrap are not counted."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with tempfile.TemporaryDirectory() as tmp:
        pd.DataFrame(dict(text=[t.strip() for t in split.texts], label=list(split.labels))).to_json(
            f"{tmp}/d.jsonl", orient="records", lines=True
        )
        spec = dict(
            task="ours",
            dataset_path="json",
            dataset_kwargs=dict(data_files=dict(test=f"{tmp}/d.jsonl")),
            test_split="test",
            output_type="multiple_choice",
            doc_to_text=(prompt + " " if prompt else "") + "{{text}}" + task.suffix,
            doc_to_target="label",
            doc_to_choice=[w.strip() for w in task.labels],
            target_delimiter=" ",
            metric_list=[dict(metric="acc")],
        )
        model = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch, add_bos_token=bool(lm.bos_ids))
        own, took = model.loglikelihood, []

        def timed(requests, *args, **kw):
            began = time.perf_counter()
            try:
                return own(requests, *args, **kw)
            finally:
                took.append(time.perf_counter() - began)

        model.loglikelihood = timed
        out = simple_evaluate(model=model, tasks=[spec], bootstrap_iters=0, log_samples=True)
    samples = sorted(out["samples"]["ours"], key=lambda s: s["doc_id"])
    return sum(took), [max(range(len(task.labels)), key=lambda k: float(s["filtered_resps"][k][0])) for s in samples]


def our_run(lm, task, split, prompt):
    "(seconds, predictions, tokens) of the engine. A prompt is joined to the text by a space, as lm-eval joins them."
    scorer = PrefixScorer(lm, label_ids(lm, task))
    before, began = scorer.tokens, time.perf_counter()
    # lm-eval encodes prompt, text and template as one string; so do we here, to compare like with like
    prefix = prefix_embeddings(lm, prompt or None)
    seqs = [lm.encode((" " if prompt else "") + t.strip() + task.suffix) for t in split.texts]
    got = scorer.logits(prefix, seqs).argmax(-1).tolist()
    return time.perf_counter() - began, got, scorer.tokens - before


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--models", nargs="+", default=["smollm2-135m"])
    ap.add_argument("--task", default="movie_snippets", help="a task or task file; SST-2's numbers need SST-2's file")
    ap.add_argument("--limit", type=int, default=872, help="texts scored (872)")
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--runs", type=int, default=20, help="runs side by side (20)")
    ap.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    ap.add_argument("--skip", nargs="*", default=[], choices=["pez", "compile", "peft", "lm-eval"])
    ap.add_argument(
        "--batches",
        nargs="*",
        default=[],
        metavar="N",
        help="lm-eval with other numbers of texts a pass too; 1 is its default, 'auto' its own search",
    )
    ap.add_argument("--device", default="auto")
    ap.add_argument(
        "--whole",
        type=int,
        default=0,
        metavar="STEPS",
        help="time whole runs of so many steps too, plain and compiled, in the last of --dtypes",
    )
    ap.add_argument("--out", help="JSON file")
    a = ap.parse_args()
    task, found, began = load_task(a.task), {}, time.perf_counter()
    split = task.subset("validation", min(a.limit, len(task.validation)), seed=0)
    for name in a.models:
        if name in SHAPES:
            base = random_model(name, "cuda" if torch.cuda.is_available() else "cpu")
        else:
            base = load_lm(name, dtype="float32", device=a.device)
        forms, r = {d: base if d == "float32" else base.cast(d) for d in a.dtypes}, {}
        found[name] = r
        for dtype in forms:
            r[f"product {dtype}"] = product_rate(getattr(torch, dtype), base.device)
        if "pez" not in a.skip:
            r["step released"] = seconds(ReleasedManner(base, task, 16).step, a.repeats)
            for dtype, lm in forms.items():
                for runs in (1, a.runs):
                    p = our_pass(lm, task, runs, 16)
                    r[f"step {dtype} x{runs}"] = seconds(p.advance, a.repeats if runs == 1 else 1)
                    r[f"share {dtype} x{runs}"] = (
                        4
                        * weights(base)
                        * p.scorer.tokens
                        / p.step
                        / r[f"step {dtype} x{runs}"]
                        / r[f"product {dtype}"]
                    )  # forward and backward
            print(json.dumps(r, indent=1), flush=True)
            save(a, task, split, found, began, base.device)
        if "compile" not in a.skip:
            for dtype in a.dtypes:
                for runs in (1, a.runs):
                    r[f"compile {dtype} x{runs}"] = dict(
                        zip(
                            ("lost", "compiled", "plain"),
                            compiled_step(forms[dtype], task, runs, 15 if runs == 1 else 7),
                        )
                    )
                    print(dtype, runs, r[f"compile {dtype} x{runs}"], flush=True)
        if "peft" not in a.skip:
            r["soft peft float32"] = seconds(soft_step(base, task, 16), a.repeats)
        if "lm-eval" not in a.skip:
            for dtype, lm in ((d, forms[d]) for d in a.dtypes):
                fast = None if "compile" in a.skip else compile_layers(lm)
                for prompt in ("", PROMPT):
                    key = f"{dtype} {'prompt' if prompt else 'empty'}"
                    who = {
                        "ours": partial(our_run, lm, task, split, prompt),
                        "lm-eval": partial(lm_eval_run, lm, task, split, prompt, 64),
                    }
                    for batch in a.batches:
                        size = int(batch) if batch.isdecimal() else batch
                        who[f"lm-eval/{batch}"] = partial(lm_eval_run, lm, task, split, prompt, size)
                    if fast:
                        who["compiled"] = partial(our_run, fast, task, split, prompt)
                        our_run(
                            fast, task, task.subset("validation", min(64, len(split)), seed=1), prompt
                        )  # compiled before it is timed
                    got = {w: [] for w in who}
                    for _ in range(a.repeats):
                        for w, work in who.items():
                            got[w].append(work())  # in turn
                    for w, runs in got.items():
                        r[f"score {w} {key}"] = statistics.median(run[0] for run in runs)
                    for w in got.keys() - {"ours"}:
                        r[f"same answers {key}" if w == "lm-eval" else f"same answers {w} {key}"] = sum(
                            x == y for x, y in zip(got["ours"][0][1], got[w][0][1])
                        )
                    r[f"share score {key}"] = (
                        2 * weights(base) * got["ours"][0][2] / r[f"score ours {key}"] / r[f"product {dtype}"]
                    )
                    print({k: v for k, v in r.items() if key in k}, flush=True)
                    save(a, task, split, found, began, base.device)
        if a.whole:
            last = forms[a.dtypes[-1]]
            for how, lm in (("plain", last), ("compiled", compile_layers(last))):
                r[f"whole {how}"] = whole_run(lm, task, a.runs, a.whole)
                print(how, r[f"whole {how}"], flush=True)
                save(a, task, split, found, began, base.device)
        save(a, task, split, found, began, base.device)


def save(a, task, split, found, began, device):
    "Keep what has been measured so far."
    if not a.out:
        return
    config = dict(
        task=task.name,
        task_hash=task.hash,
        n=len(split),
        models=a.models,
        repeats=a.repeats,
        runs=a.runs,
        batch=16,
        threads=torch.get_num_threads(),
        skipped=a.skip,
        whole=a.whole,
        batches=a.batches,
    )
    write_atomic(
        a.out,
        json.dumps(
            dict(
                config=config,
                found=found,
                meta=provenance(device, ", ".join(a.dtypes), [0], round(time.perf_counter() - began, 1)),
            ),
            indent=1,
        ),
    )


if __name__ == "__main__":
    main()
