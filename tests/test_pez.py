"PEZ on tiny models of several architectures: invariants of the search, company, checkpoints, kill -9."

import signal
from dataclasses import replace

import pytest
import torch
from transformers import Adafactor

from hpt_nb import scoring
from hpt_nb.pez import PezConfig, PezPass, RunSpec, SearchSpace, batch_at, facts, tune, tune_runs
from hpt_nb.models import pad_row
from hpt_nb.scoring import text_ids
from hpt_nb.store import InputError
from hpt_nb.tasks import Split, Task
from hpt_nb.transfer import certify, transfer
from forked import Program, run as run_program
from tiny import tiny_lm

ALLOWED = torch.arange(20, 120)


def toy_task(n=24):
    texts = [("good film " if i % 2 else "bad plot ") + str(i) for i in range(3 * n)]
    split = lambda k: Split(tuple(texts[k * n : (k + 1) * n]), tuple(i % 2 for i in range(k * n, (k + 1) * n)))
    return Task("toy", ". It was", (" bad", " great"), split(0), split(1), split(2))


CFG = PezConfig(n_tokens=4, steps=12, batch=4, eval_every=4, holdout_n=8)


# 64: alone, a run's rows carry the prefix; in company they share it
@pytest.mark.parametrize(
    "arch,joined", [*((a, 512) for a in ("gpt2", "opt-proj", "gemma3", "llama", "neox")), ("gpt2", 64), ("gemma3", 64)]
)
def test_a_run_is_the_same_alone_and_in_company(arch, joined, monkeypatch):
    monkeypatch.setitem(scoring.JOINED_TOKENS, "cpu", joined)
    lm, task = tiny_lm(arch), toy_task()
    lengths = list(map(len, text_ids(lm, task, task.train.texts)))
    if joined == 64:
        assert CFG.batch * max(lengths) <= 64 < 3 * CFG.batch * min(lengths) <= 3 * CFG.batch * max(lengths) <= 512
    specs = [
        RunSpec(SearchSpace(lm, ALLOWED), "pez", 0),
        RunSpec(SearchSpace(lm, range(40, 90)), "pez-reprojected", 1),
        RunSpec(SearchSpace(lm), "pez", 2),
    ]
    together = tune_runs(lm, task, specs, CFG, progress=False)
    for spec, run in zip(specs, together):
        (alone,) = tune_runs(lm, task, [spec], CFG, progress=False)
        assert (alone.prompt_ids, alone.curve["holdout"]) == (run.prompt_ids, run.curve["holdout"])


@pytest.mark.parametrize("method", ["pez", "pez-reprojected"])
def test_every_id_is_allowed_at_every_step(method):
    lm, allowed = tiny_lm("llama"), set(ALLOWED.tolist())
    p = PezPass(lm, toy_task(), [RunSpec(SearchSpace(lm, ALLOWED), method, 0)], CFG)
    for _ in range(6):
        ids = p.project()
        assert set(ids.flatten().tolist()) <= allowed
        p.advance()
        if method == "pez-reprojected":  # the stored iterate is an embedding
            rows = lm.embeddings[p.project()[0]].float()
            assert torch.equal(p.params[0].data, rows)


def test_seeds_differ_by_their_data_order_and_random_starts():
    lm = tiny_lm("llama")
    a, b = tune(
        lm,
        toy_task(),
        ALLOWED,
        steps=8,
        seeds=[0, 1],
        n_tokens=4,
        batch=4,
        eval_every=4,
        holdout_n=8,
        init="random",
        progress=False,
    )
    assert a.prompt_ids != b.prompt_ids or a.curve != b.curve


@pytest.mark.parametrize("seed", [-(2**63), 20250101, 2**63 - 1])
def test_a_seed_of_63_bits_is_a_seed(seed):
    from hpt_nb.batches import step_draws

    assert sorted(batch_at(6, 6, seed, 0)) == list(range(6)) and step_draws(seed, 3).initial_seed() is not None
    assert batch_at(1000, 8, seed, 0) != batch_at(1000, 8, seed - 1, 0)


@pytest.mark.parametrize("arch", ["gpt2", "llama3", "gemma3", "llama"])
def test_the_released_start_is_one_text_without_a_space_in_front(arch):
    "The names stripped and joined, tokenised as one text, the ids tiled: nothing of the seed in it."
    lm, task = tiny_lm(arch), toy_task()
    plain = lm.tokenizer("bad great", add_special_tokens=False)["input_ids"]
    p = PezPass(
        lm, task, [RunSpec(SearchSpace(lm), "pez-reprojected", s) for s in (0, 7)], PezConfig(n_tokens=7, init="names")
    )
    assert p.project().tolist() == [(plain * 7)[:7]] * 2 == p.start_ids
    if arch == "gpt2":
        assert (
            lm.decode(plain[:1]) != " bad"
            and p.project().tolist() != PezPass(lm, task, p.specs, PezConfig(n_tokens=7)).project().tolist()
        )
    (run,) = tune(lm, task, None, "pez-reprojected", steps=1, n_tokens=7, batch=4, holdout_n=8, progress=False)
    assert run.start_ids == (plain * 7)[:7] and run.config["init"] == "names"  # the method's own default
    assert (
        tune(lm, task, None, "pez", steps=1, n_tokens=7, batch=4, holdout_n=8, progress=False)[0].config["init"]
        == "labels"
    )


@pytest.mark.parametrize("method,lr", [("pez", 0.05), ("pez-reprojected", 0.3)])
@pytest.mark.parametrize("arch", ["gpt2", "gemma3", "llama"])
def test_a_written_start_stands_until_it_is_replaced(arch, method, lr):
    lm, allowed = tiny_lm(arch), set(ALLOWED.tolist())
    cfg = replace(
        CFG, start="The film was great, boring: 1980", lr=8 * lr if arch == "gemma3" else lr, steps=20
    )  # Gemma's vectors are longer
    specs = [RunSpec(SearchSpace(lm, ALLOWED), method, 0), RunSpec(SearchSpace(lm), method, 0)]
    p, own = PezPass(lm, toy_task(), specs, cfg), lm.encode(cfg.start)
    assert p.project().tolist() == [own, own]
    gone = [i in allowed for i in own]
    for _ in range(20):
        p.advance()
        now = p.project()[0].tolist()
        for j, i in enumerate(now):
            assert i in allowed or i == own[j] and not gone[j]
            gone[j] = gone[j] or i != own[j]
    assert any(gone)
    whole = PezPass(lm, toy_task(), specs[1:], replace(cfg))  # where all is allowed, that is plain PEZ
    assert not whole.kept.any()


@pytest.mark.parametrize(
    "way,max_tokens", [("packed", 4096), ("packed", 100), ("packed", 20), ("padded", 60), ("plain", 60)]
)
@pytest.mark.parametrize("arch", ["gpt2", "gemma3", "llama", "opt-proj"])
def test_the_centred_gradient_is_that_of_float64(arch, way, max_tokens):
    "Over all texts of a run's step, whether they fit one pass or not; three classes, drawn as often as can be."
    lm = tiny_lm(arch)
    exact, gen = lm.cast(torch.float64), torch.Generator().manual_seed(2)
    labels, targets = torch.tensor([30, 41, 52]), [0, 1, 2, 0, 1, 2, 0, 2, 1, 0, 0]
    seqs, runs = (
        [torch.randint(20, 120, (int(k),), generator=gen).tolist() for k in torch.randint(2, 12, (11,), generator=gen)],
        [0] * 6 + [1] * 5,
    )
    prefix = lm.embeddings[torch.randint(20, 120, (2, 4), generator=gen)]
    leaf, y, of = prefix.double().requires_grad_(), torch.tensor(targets), torch.tensor(runs)
    z = scoring.plain_logits(exact, labels, leaf, seqs, runs).double()
    centre = torch.stack([torch.stack([z[(of == r) & (y == c)].mean(0) for c in range(3)]).mean(0) for r in range(2)])
    each = torch.nn.functional.cross_entropy(z - centre[of], y, reduction="none")
    want = torch.stack([each[of == r].mean() for r in range(2)])
    (slope,) = torch.autograd.grad(want.sum(), leaf)
    loss, grad = scoring.PrefixScorer(lm, labels, way, max_tokens).loss_and_grad(prefix, seqs, targets, runs, "centred")
    assert torch.allclose(loss.double(), want.detach(), atol=1e-5)
    assert (grad - slope).norm() <= 2e-4 * slope.norm()


def test_the_centred_loss_feels_no_bias():
    lm, labels = tiny_lm("gpt2"), torch.tensor([30, 41])
    seqs, targets = [[50, 60 + i] for i in range(6)], [i % 2 for i in range(6)]
    prefix = lm.embeddings[torch.tensor([[30, 40, 50]])]
    loss, grad = scoring.PrefixScorer(lm, labels).loss_and_grad(prefix, seqs, targets, objective="centred")
    biased = torch.nn.Linear(32, lm.n_rows)
    biased.weight, biased.bias = (
        lm.model.get_output_embeddings().weight,
        torch.nn.Parameter(10.0 * (torch.arange(lm.n_rows) == 41)),
    )
    scorer = scoring.PrefixScorer(lm, labels)
    scorer.head = scoring.LabelHead(biased, labels)
    again, slope = scorer.loss_and_grad(prefix, seqs, targets, objective="centred")
    assert torch.allclose(loss, again, atol=1e-4) and torch.allclose(grad, slope, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(scorer.loss_and_grad(prefix, seqs, targets)[0], loss, atol=0.1)


@pytest.mark.parametrize("arch", ["gpt2", "gemma3"])
def test_company_and_cuts_change_nothing_of_the_new_settings(arch, tmp_path):
    lm, task, cfg = tiny_lm(arch), toy_task(), replace(CFG, start="The film was great", objective="centred", lr=0.05)
    specs = [RunSpec(SearchSpace(lm, ALLOWED), "pez", 0), RunSpec(SearchSpace(lm, range(40, 90)), "pez-reprojected", 1)]
    together = tune_runs(lm, task, specs, cfg, progress=False)
    for spec, run in zip(specs, together):
        (alone,) = tune_runs(lm, task, [spec], cfg, progress=False)
        assert (alone.prompt_ids, alone.curve["ids"], alone.curve["holdout"]) == (
            run.prompt_ids,
            run.curve["ids"],
            run.curve["holdout"],
        )
    p = PezPass(lm, task, specs, cfg)
    for _ in range(5):
        p.advance()
        if p.step % cfg.eval_every == 0:
            p.judge()
    p.save(tmp_path / "c.safetensors")
    resumed = tune_runs(lm, task, specs, cfg, progress=False, checkpoint=tmp_path / "c.safetensors")
    assert [(r.prompt_ids, r.curve, r.start_ids) for r in resumed] == [
        (r.prompt_ids, r.curve, r.start_ids) for r in together
    ]
    with pytest.raises(InputError, match="of another pass"):
        p.save(tmp_path / "c.safetensors")
        tune_runs(
            lm, task, specs, replace(cfg, objective="labels"), progress=False, checkpoint=tmp_path / "c.safetensors"
        )


def test_prompts_are_chosen_by_calibrated_accuracy():
    lm, task = tiny_lm("gpt2"), toy_task()
    p = PezPass(lm, task, [RunSpec(SearchSpace(lm, ALLOWED), "pez", 0)], replace(CFG, objective="centred"))
    p.advance(), p.judge()
    logp = scoring.label_logprobs(lm, task, task.subset("holdout", 8, 0).texts, p.project()[0].tolist())
    want = ((logp - logp.mean(0)).argmax(-1) == torch.tensor(task.subset("holdout", 8, 0).labels)).float().mean().item()
    assert p.best[0]["holdout"] == pytest.approx(want)


def released_path(lm, task, cfg, seed, pad=None):
    "The released pipeline's rule in plain lines: ids at each step. `pad`: a row at the end of the table."
    E, read = lm.embeddings.float(), lambda text: lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    if pad is not None:
        E = torch.cat([E, pad[None]])
    named = sorted(lm.token_bytes.keys() | lm.special_ids) + ([lm.n_rows] if pad is not None else [])
    end, path, words = read(task.suffix.rstrip() + " "), [], [read(word)[0] for word in task.labels]
    bos = E[torch.tensor(lm.bos_ids, dtype=torch.long)]
    p = torch.nn.Parameter(
        E[(read(" ".join(word.strip() for word in task.labels)) * cfg.n_tokens)[: cfg.n_tokens]].clone()
    )
    opt = Adafactor([p], lr=cfg.lr, relative_step=False, scale_parameter=False, warmup_init=False)
    for step in range(cfg.steps + 1):
        cos = torch.nn.functional.normalize(p.data, dim=-1) @ torch.nn.functional.normalize(E[named], dim=-1).T
        path.append([named[k] for k in cos.argmax(-1)])
        p.data = E[path[-1]].clone()
        for i in batch_at(len(task.train.texts), cfg.batch, seed, step):
            ids = read(task.train.texts[i])[: task.max_text_tokens - len(end) - len(bos)] + end
            z = lm.model(inputs_embeds=torch.cat([bos, p, E[ids]])[None]).logits[0, -1, words].float()
            (torch.nn.functional.cross_entropy(z, torch.tensor(task.train.labels[i])) / cfg.batch).backward()
        torch.nn.utils.clip_grad_norm_([p], cfg.clip)
        opt.step(), opt.zero_grad()
    return path


def glue_task(n=24):
    "Texts that end in a space, as GLUE's do, and some that are too long."
    texts = [("good film " if i % 2 else "bad plot ") * (1 + i % 7) + f"{i} " for i in range(3 * n)]
    split = lambda k: Split(tuple(texts[k * n : (k + 1) * n]), tuple(i % 2 for i in range(k * n, (k + 1) * n)))
    return Task(
        "glue", ". It was", (" bad", " great"), split(0), split(1), split(2), max_text_tokens=20, format="released"
    )


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("arch", ["gpt2", "llama3", "phi", "opt", "gemma3"])
def test_twelve_steps_as_released(arch, pad):
    """Start, format, the whole table with its specials, the added row, the stored projection: the same ids at every
    position and step."""
    lm, task, own_pad, seed = tiny_lm(arch), glue_task(), arch in ("opt", "gemma3"), 4
    n = 2 if pad and own_pad else 12  # a <pad> of their own: no row is added, and the rest was seen without `pad`
    cfg = PezConfig(n_tokens=10, steps=n, batch=16, init="names", lr=0.3, pad_row=pad)
    added = pad_row(lm, seed) if pad and lm.takes_pad else None
    assert (added is not None) == (pad and not own_pad)
    want = [[-1 - seed if i == lm.n_rows else i for i in ids] for ids in released_path(lm, task, cfg, seed, added)]
    p = PezPass(lm, task, [RunSpec(SearchSpace(lm), "pez-reprojected", s) for s in (seed, 0)], cfg)
    assert [p.project()[0].tolist()] + [p.advance() or p.project()[0].tolist() for _ in range(n)] == want
    if arch in ("gpt2", "phi"):
        assert want[0] != want[-1]


def padded_run(lm, task, seeds=range(12), **kw):
    "Runs over the whole vocabulary of which some meet the added row."
    cfg = replace(CFG, pad_row=True, steps=30, eval_every=3, **kw)
    return tune_runs(lm, task, [RunSpec(SearchSpace(lm), "pez", s) for s in seeds], cfg, progress=False), cfg


def test_the_added_row_alone_in_company_and_cut(tmp_path):
    lm, task = tiny_lm("gpt2"), toy_task()
    together, cfg = padded_run(lm, task)
    met = [r for r in together if any(min(ids) < 0 for ids in r.curve["ids"])]
    assert met and all(i == -1 - r.seed for r in together for ids in r.curve["ids"] for i in ids if i < 0)
    for run in met[:2]:
        (alone,), _ = padded_run(lm, task, [run.seed])
        assert (alone.prompt_ids, alone.curve["ids"]) == (run.prompt_ids, run.curve["ids"])
    p = PezPass(lm, task, [RunSpec(SearchSpace(lm), "pez", s) for s in range(12)], cfg)
    for _ in range(10):
        p.advance()
        if p.step % 3 == 0:
            p.judge()
    p.save(tmp_path / "c.safetensors")
    resumed = tune_runs(lm, task, p.specs, cfg, progress=False, checkpoint=tmp_path / "c.safetensors")
    assert [(r.prompt_ids, r.curve) for r in resumed] == [(r.prompt_ids, r.curve) for r in together]
    (few,) = tune_runs(lm, task, [RunSpec(SearchSpace(lm, ALLOWED), "pez", met[0].seed)], cfg, progress=False)
    assert min(min(ids) for ids in few.curve["ids"]) >= 0  # restricted vocabularies are of real tokens
    with pytest.raises(InputError, match="seed of at least 0"):
        padded_run(lm, task, [-3])


def test_a_prompt_with_the_added_row_is_scored_as_ids_and_read_as_text():
    lm, other, task = tiny_lm("gpt2"), tiny_lm("opt", 1), toy_task()
    ids = [40, -6, 50, -6, -6, 61]
    row = pad_row(lm, 5)
    prefix = torch.stack([lm.embeddings[40], row, lm.embeddings[50], row, row, lm.embeddings[61]])[None]
    want = scoring.plain_logits(
        lm, scoring.label_ids(lm, task), prefix, text_ids(lm, task, task.validation.texts)
    ).log_softmax(-1)
    assert torch.allclose(scoring.label_logprobs(lm, task, task.validation.texts, ids), want, atol=1e-5)
    assert torch.allclose(
        scoring.label_logprobs_many(lm, task, task.validation.texts, [ids, ids[:1] + [3] * 5])[0], want, atol=1e-5
    )
    cert = certify(lm, ids)
    assert cert["text"] == lm.decode([40]) + "<pad>" + lm.decode([50]) + "<pad><pad>" + lm.decode([61])
    assert (
        cert["added"] == 3
        and not cert["agrees"]
        and cert["reencoded_ids"] == lm.encode(cert["text"])
        and min(cert["reencoded_ids"]) >= 0
    )
    assert "added" not in certify(lm, [40, 50])
    rows = transfer(lm, ids, [other], task)
    assert rows[0]["prompt_ids"] == ids and min(min(r["prompt_ids"]) for r in rows[1:]) >= 0
    for bad in ([lm.n_rows], [-1]):
        with pytest.raises(InputError, match="outside"):
            scoring.label_logprobs(other if bad == [-1] else lm, task, ["a"], bad)  # OPT has a <pad> of its own


def test_old_settings_keep_their_identity():
    assert list(facts(PezConfig())) == ["n_tokens", "steps", "batch", "lr", "clip", "init", "eval_every", "holdout_n"]
    for new in (dict(start="a"), dict(objective="centred"), dict(pad_row=True)):
        assert facts(PezConfig(**new)) == facts(PezConfig()) | new


def test_bad_configurations_are_one_line():
    lm, task = tiny_lm("llama"), toy_task()
    for make in (
        lambda: PezConfig(batch=0),
        lambda: PezConfig(lr=-1.0),
        lambda: PezConfig(init="magic"),
        lambda: PezConfig(objective="vocabulary"),
        lambda: PezConfig(start=3),
        lambda: PezConfig(pad_row="yes"),
        lambda: tune(lm, task, ALLOWED, steps=1, batch=1, objective="centred", progress=False),
        lambda: tune(lm, task, ALLOWED, "pes", steps=1),
        lambda: SearchSpace(lm, [len(lm.embeddings)]),
        lambda: tune(lm, task, torch.empty(0), steps=1),
    ):
        with pytest.raises(InputError) as e:
            make()
        assert "\n" not in str(e.value)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    lm = tiny_lm("llama")
    ckpt = tmp_path / "c.safetensors"
    ckpt.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="delete it"):
        tune(lm, toy_task(), ALLOWED, steps=2, n_tokens=4, batch=4, progress=False, checkpoint=ckpt)


SCRIPT = """
import time
from test_pez import *
lm = tiny_lm("llama")
def slow(step): time.sleep(.05); print(step, flush=True)
specs = [RunSpec(SearchSpace(lm, ALLOWED), "pez", s) for s in (0, 1)]
runs = tune_runs(lm, toy_task(), specs, CFG, progress=False, checkpoint={ckpt!r}, every_s=0, on_step=slow)
print("END", [(r.prompt_ids, r.curve) for r in runs], flush=True)
"""


def test_kill_9_in_the_middle_changes_nothing(tmp_path):
    lm, task = tiny_lm("llama"), toy_task()
    want = [
        (r.prompt_ids, r.curve)
        for r in tune_runs(lm, task, [RunSpec(SearchSpace(lm, ALLOWED), "pez", s) for s in (0, 1)], CFG, progress=False)
    ]
    ckpt = tmp_path / "pass.safetensors"
    code = SCRIPT.format(ckpt=str(ckpt))
    first = Program(code)
    for line in first.stdout:
        if line.strip() == "7":
            break
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert ckpt.exists()
    again = run_program(code, check=True).stdout.splitlines()
    assert int(again[0]) >= 7  # it went on, not anew
    assert again[-1] == f"END {want}"


STOPPING = """
import sys, time
from test_pez import *
from test_swaps import CFGS
from hpt_nb import pez
from hpt_nb.swaps import tune_swaps
lm, where = tiny_lm("llama"), {where!r}
def told(what): print(what, flush=True); time.sleep(.4)
if where == "step":
    own = pez.PezPass.advance
    def advance(self):
        if self.step == 6: told(f"in {{self.step}}")
        return own(self)
    pez.PezPass.advance = advance
else:
    judge = pez.PezPass.accuracies
    def accuracies(self, prompts):
        if self.step == 8: told(f"in {{self.step}}")
        return judge(self, prompts)
    pez.PezPass.accuracies = accuracies
try:
    specs = [RunSpec(SearchSpace(lm, ALLOWED), "pez", s) for s in (0, 1)]
    said = lambda step: print(step, flush=True)
    runs = tune_runs(lm, toy_task(), specs, CFG, progress=False, checkpoint={ckpt!r}, every_s=1e9, on_step=said)
except pez.Stopped as e:
    print("STOPPED", e.signum, e.kept, flush=True)
    sys.exit(0)
print("END", [(r.prompt_ids, r.curve, r.forward_tokens) for r in runs], flush=True)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where,step", [("step", 7), ("judge", 8)])
def test_a_pass_that_is_told_to_stop_keeps_the_step_in_hand(sent, where, step, tmp_path):
    "In the middle of a step: it is finished. In the middle of judging: it is left, and judged when the pass goes on."
    lm, task = tiny_lm("llama"), toy_task()
    want = [
        (r.prompt_ids, r.curve, r.forward_tokens)
        for r in tune_runs(lm, task, [RunSpec(SearchSpace(lm, ALLOWED), "pez", s) for s in (0, 1)], CFG, progress=False)
    ]
    ckpt = tmp_path / "pass.safetensors"
    code = STOPPING.format(ckpt=str(ckpt), where=where)
    first = Program(code)
    for line in first.stdout:
        if line.startswith("in "):
            break
    first.send_signal(sent)
    rest = first.stdout.read().splitlines()
    assert first.wait() == 0 and rest[-1] == f"STOPPED {int(sent)} the pass up to step {step} of 12" and ckpt.exists()
    again = run_program(code, check=True).stdout.splitlines()
    assert (
        next(int(line) for line in again if line.isdigit()) == 8
    )  # step 8 is what follows step 7, and what is told again once it is judged
    assert again[-1] == f"END {want}"
