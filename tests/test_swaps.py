"""Swap search on tiny models: the best swap by enumeration, invariants of the three settings, a judge with another
tokenizer, company, checkpoints, kill -9."""

import signal
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch.nn.functional import cross_entropy

import hpt_nb.sides
from hpt_nb.batches import step_draws
from hpt_nb.pez import RunSpec, SearchSpace, batch_at, texts_at
from hpt_nb.scoring import evaluate, label_ids, plain_logits, prefix_embeddings, text_ids
from hpt_nb.sides import Side, text_stable
from hpt_nb.store import InputError
from hpt_nb.swaps import AUTOPROMPT, GCG, MIXED, SWAP_METHODS, SwapConfig, SwapPass, propose, tune_swaps
from hpt_nb.tasks import Split, Task
from forked import Program, run as run_program
from tiny import tiny_lm

ALLOWED = torch.arange(270, 330)  # whole pieces of text in every kind of tokenizer used here
SMALL = dict(n_tokens=4, steps=6, batch=4, eval_every=3, holdout_n=8)
CFGS = dict(
    autoprompt=replace(AUTOPROMPT, **SMALL, topk=8, n_candidates=8),
    mixed=replace(MIXED, **SMALL),
    gcg=replace(GCG, **SMALL, topk=8, n_candidates=16, drop_unstable=False),
)


def toy_task(n=24):
    texts = [("good film " if i % 2 else "bad plot ") + str(i) for i in range(3 * n)]
    split = lambda k: Split(tuple(texts[k * n : (k + 1) * n]), tuple(i % 2 for i in range(k * n, (k + 1) * n)))
    return Task("toy", ". It was", (" bad", " great"), split(0), split(1), split(2))


def plain_mean(lm, task, prefix, pick, over="vocabulary"):
    """Mean loss on some training texts, one plain pass a text: over the whole vocabulary, over the label words, or
    over these, centred."""
    seqs, y = (
        text_ids(lm, task, [task.train.texts[i] for i in pick]),
        torch.tensor([task.train.labels[i] for i in pick]),
    )
    words = label_ids(lm, task)
    if over == "vocabulary":
        return cross_entropy(
            plain_logits(lm, torch.arange(lm.model.get_output_embeddings().out_features), prefix, seqs).double(),
            words[y],
        )
    z = plain_logits(lm, words, prefix, seqs).double()
    if over == "centred":
        z = z - torch.stack([z[y == c].mean(0) for c in y.unique()]).mean(0)
    return cross_entropy(z, y)


@lru_cache(maxsize=8)
def doubled(lm):
    return lm.cast(torch.float64)


def plain_loss(lm, task, prompt, pick, over="vocabulary"):
    "Loss of a prompt (ids or text) in float64."
    with torch.no_grad():
        return plain_mean(doubled(lm), task, prefix_embeddings(doubled(lm), prompt), pick, over).item()


def judge_of(method):
    return tiny_lm("gpt2", 7) if method == "mixed" else None


def watched(p):
    "Have a pass note what it chose from, and on which texts: [(rivals of each run, texts of each run, chosen)]."
    seen, own = [], p.choose

    def choose(rivals, picks):
        got = own(rivals, picks)
        seen.append((rivals, picks, got))
        return got

    p.choose = choose
    return seen


@pytest.mark.parametrize(
    "accept,over", [("better", "vocabulary"), ("always", "vocabulary"), ("always", "labels"), ("always", "centred")]
)
def test_with_all_candidates_each_step_is_the_best_swap(accept, over):
    lm, task, allowed = tiny_lm("llama"), toy_task(), list(range(280, 300))
    kind = dict(loss="vocabulary") if over == "vocabulary" else dict(loss="labels", objective=over)
    cfg = SwapConfig(
        n_tokens=2, steps=3, batch=2, topk=20, n_candidates=40, accept=accept, init="random", draw="order", **kind
    )
    p, moves = SwapPass(lm, task, [RunSpec(SearchSpace(lm, allowed), "gcg", 1)], cfg), 0
    for step in range(cfg.steps):
        now, pick = p.prompts[0], texts_at(task.train.labels, cfg, 1, step)
        swaps = {(t, now[1]) for t in allowed} | {(now[0], t) for t in allowed}
        p.advance()
        assert p.prompts[0] == min(swaps, key=lambda s: plain_loss(lm, task, s, pick, over))
        moves += p.prompts[0] != now
    assert moves >= 2


@pytest.mark.parametrize("positions", ["one", "all"])
@pytest.mark.parametrize("n_candidates", [5, 1000])
def test_candidates_are_single_swaps_of_greatest_gain(positions, n_candidates):
    lm, ids = tiny_lm("gpt2"), ALLOWED
    lm.embeddings[ids] *= torch.linspace(0.1, 3, len(ids))[:, None]  # lengths matter: -E·g is no cosine
    gen = torch.Generator().manual_seed(3)
    grad, now, k = (
        torch.randn(6, lm.embeddings.shape[1], generator=gen),
        tuple(ids[torch.randint(len(ids), (6,), generator=gen)].tolist()),
        7,
    )
    cfg = SwapConfig(n_tokens=6, topk=k, n_candidates=n_candidates, positions=positions)
    best = [set(ids[(-(lm.embeddings[ids] @ g)).argsort(descending=True)[:k]].tolist()) for g in grad]
    got, drawn = propose(SearchSpace(lm, ids), now, grad, cfg, step_draws(0, 0)), set()
    for c in got:
        assert len(c) == 6
        at = [j for j in range(6) if c[j] != now[j]]
        assert len(at) <= 1 and all(c[j] in best[j] for j in at)
        drawn |= set(at)
    assert len(got) == min(n_candidates, k * (6 if positions == "all" else 1))
    assert len(drawn) == 1 if positions == "one" else len(drawn) > 1
    assert got == propose(SearchSpace(lm, ids), now, grad, cfg, step_draws(0, 0))
    if positions == "one" or n_candidates < 6 * k:  # something is drawn: by the step and by the seed
        for draws in ([(0, step) for step in range(1, 9)], [(seed, 0) for seed in range(1, 9)]):
            assert any(got != propose(SearchSpace(lm, ids), now, grad, cfg, step_draws(*d)) for d in draws)


@pytest.mark.parametrize("over", ["vocabulary", "labels", "centred"])
@pytest.mark.parametrize("arch", ["gpt2", "gemma3", "llama"])
def test_the_gradient_is_the_prompts_own(arch, over):
    lm, task = tiny_lm(arch), toy_task()  # two of these read a BOS before the prompt
    kind = dict(loss="vocabulary") if over == "vocabulary" else dict(loss="labels", objective=over)
    side, prompts, picks = (
        Side(lm, task, replace(CFGS["gcg"], **kind)),
        [(280, 290, 300), (275, 285, 295)],
        [[0, 1, 2], [5, 6, 7]],
    )
    loss, grad = side.gradient(prompts, picks)
    for r, (prompt, pick) in enumerate(zip(prompts, picks)):
        x = lm.embeddings[torch.tensor(prompt)].requires_grad_()
        bos = lm.embeddings[torch.tensor(lm.bos_ids, dtype=torch.long)]
        want = plain_mean(lm, task, torch.cat([bos, x])[None], pick, over)
        assert loss[r].item() == pytest.approx(want.item(), abs=1e-4)
        assert torch.allclose(grad[r], torch.autograd.grad(want, x)[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("arch", ["gpt2", "opt-proj", "gemma3", "llama"])
def test_a_run_is_the_same_alone_and_in_company(arch):
    lm, task, method = tiny_lm(arch), toy_task(), "mixed" if arch == "gemma3" else "gcg"
    specs = [
        RunSpec(SearchSpace(lm, ALLOWED), method, 0),
        RunSpec(SearchSpace(lm, range(290, 320)), method, 1),
        RunSpec(SearchSpace(lm), method, 2),
    ]
    together = tune_swaps(lm, task, specs, CFGS[method], judge_of(method), progress=False)
    for spec, run in zip(specs, together):
        (alone,) = tune_swaps(lm, task, [spec], CFGS[method], judge_of(method), progress=False)
        assert (alone.prompt_ids, alone.curve["holdout"]) == (run.prompt_ids, run.curve["holdout"])
    assert len({tuple(r.prompt_ids) for r in together}) == 3


@pytest.mark.parametrize("init", ["labels", "random"])
@pytest.mark.parametrize("method", SWAP_METHODS)
def test_every_id_is_allowed_at_every_step(method, init):
    lm, allowed = tiny_lm("llama").cast(torch.bfloat16), set(ALLOWED.tolist())
    p = SwapPass(
        lm,
        toy_task(),
        [RunSpec(SearchSpace(lm, ALLOWED), method, 3)],
        replace(CFGS[method], init=init),
        judge_of(method),
    )
    seen = watched(p)
    for _ in range(5):
        assert set(p.prompts[0]) <= allowed
        p.advance()
        assert {i for rival in seen[-1][0][0] for i in rival} <= allowed
    assert set(p.prompts[0]) <= allowed


def test_only_a_better_prompt_is_accepted_where_that_is_asked():
    lm, task = tiny_lm("gpt2"), toy_task(8)
    path = {}
    for accept in ("better", "always"):
        cfg = SwapConfig(n_tokens=3, batch=8, topk=2, n_candidates=3, accept=accept, draw="order")
        p = SwapPass(lm, task, [RunSpec(SearchSpace(lm, ALLOWED), "gcg", 0)], cfg)
        path[accept] = [plain_loss(lm, task, (p.prompts[0], p.advance())[0], range(8)) for _ in range(25)]
    falls = lambda x: all(b <= a + 1e-6 for a, b in zip(x, x[1:]))
    assert falls(path["better"]) and path["better"][-1] < path["better"][0]
    assert not falls(path["always"])  # the best of few candidates may be worse, and is taken


@pytest.mark.parametrize("fresh", [True, False])
def test_candidates_are_judged_on_new_texts_or_on_the_same(fresh):
    lm = tiny_lm("gpt2")
    p, looked = (
        SwapPass(
            lm,
            toy_task(),
            [RunSpec(SearchSpace(lm, ALLOWED), "gcg", s) for s in (0, 1)],
            replace(CFGS["gcg"], fresh=fresh, draw="order"),
        ),
        [],
    )
    seen, own = watched(p), p.source.gradient
    p.source.gradient = lambda prompts, picks: looked.append(picks) or own(prompts, picks)
    for _ in range(4):
        p.advance()
    for step in range(4):
        first, then = (2 * step, 2 * step + 1) if fresh else (step, step)
        assert looked[step] == [batch_at(24, 4, s, first) for s in (0, 1)]
        assert seen[step][1] == [batch_at(24, 4, s, then) for s in (0, 1)]


def test_a_judge_with_another_tokenizer_accepts_by_the_text():
    lm, judge, task = tiny_lm("llama"), tiny_lm("gpt2", 7), toy_task()
    p = SwapPass(
        lm, task, [RunSpec(SearchSpace(lm), "mixed", s) for s in (0, 1)], replace(CFGS["mixed"], n_tokens=5), judge
    )
    seen, lengths = watched(p), set()
    for _ in range(4):
        p.advance()
    p.judge()
    for rivals, picks, chosen in seen:
        for row, pick, got in zip(rivals, picks, chosen):
            loss = {lm.decode(c): plain_loss(judge, task, lm.decode(c), pick) for c in row}
            assert loss[lm.decode(got)] == min(loss.values())
            lengths |= {len(judge.encode(t)) for t in loss}
    assert len(lengths) > 1  # prefixes of several lengths went through
    assert any(chosen[r] != rivals[r][0] for rivals, _, chosen in seen for r in (0, 1))
    for run in p.finish():
        assert run.best_holdout == pytest.approx(
            evaluate(judge, task, task.subset("holdout", 8, 0), run.prompt_text)["accuracy"]
        )
        assert run.forward_tokens == p.source.scorer.tokens + p.judging.scorer.tokens > p.source.scorer.tokens
        assert run.backward_tokens == p.source.scorer.grad_tokens > 0
        assert run.config["judge"] == judge.name


def test_a_judge_that_reads_the_same_tokens_changes_nothing_but_the_reading():
    lm, task = tiny_lm("gpt2"), toy_task()
    word = [i for i in ALLOWED.tolist() if lm.decode([i])[0] == " "]  # words with their space never merge
    (alone,) = tune_swaps(lm, task, [RunSpec(SearchSpace(lm, word), "gcg")], CFGS["gcg"], progress=False)
    (twice,) = tune_swaps(
        lm, task, [RunSpec(SearchSpace(lm, word), "gcg")], CFGS["gcg"], judge=tiny_lm("gpt2"), progress=False
    )
    assert (alone.prompt_ids, alone.curve) == (twice.prompt_ids, twice.curve)


def test_unstable_candidates_never_reach_the_judge():
    lm, cfg = tiny_lm("gpt2"), replace(CFGS["gcg"], n_candidates=64, topk=64, ascii_only=False)
    dropped, kept = (
        SwapPass(lm, toy_task(), [RunSpec(SearchSpace(lm), "gcg", 0)], replace(cfg, drop_unstable=d))
        for d in (True, False)
    )
    seen, all_of_them = watched(dropped), watched(kept)
    for p in (dropped, kept):
        for _ in range(3):
            p.advance()
    assert all(text_stable(lm, c) for rivals, _, _ in seen for c in rivals[0])
    assert not all(text_stable(lm, c) for rivals, _, _ in all_of_them for c in rivals[0])
    assert seen[0][0][0] == [c for c in all_of_them[0][0][0] if text_stable(lm, c)]


def test_no_candidate_that_survives_is_an_error_unless_the_prompt_does():
    lm, cfg = tiny_lm("gpt2"), replace(CFGS["gcg"], topk=1, drop_unstable=True, ascii_only=False)
    broken = [i for i, b in lm.token_bytes.items() if lm.encode(lm.decode([i])) != [i]]
    good = lm.encode(" great")[0]
    with pytest.raises(
        InputError, match=r"gcg, seed 5, step 1: none of 4 candidates survives decoding and encoding on tiny-gpt2-0"
    ):
        tune_swaps(lm, toy_task(), [RunSpec(SearchSpace(lm, broken), "gcg", 5)], cfg, progress=False)
    p = SwapPass(lm, toy_task(), [RunSpec(SearchSpace(lm, [good, *broken[:20]]), "gcg")], cfg)
    p.prompts = [(good,) * 4]
    away = (lm.embeddings[good] * 100).expand(4, -1)  # the loss rises with the only stable token
    assert p.rivals(0, away) == [(good,) * 4]  # the run keeps its prompt for this step
    assert (good,) * 4 in p.rivals(0, -away)


@pytest.mark.parametrize(
    "arch", ["gpt2", "gemma3", "qwen2"]
)  # qwen2: rows beyond the tokenizer take part in the softmax
def test_candidates_over_the_whole_vocabulary_are_those_of_float64(arch):
    """Gradients, candidates and their losses, against plain passes in double precision; what the label words would
    propose is another list."""
    lm, task, prompts = tiny_lm(arch), toy_task(), [(280, 290, 300, 310), (275, 285, 295, 305)]
    exact, picks = doubled(lm), [[0, 1, 2, 3], [4, 5, 6, 7]]
    space, cfg, first = SearchSpace(lm, ALLOWED), replace(CFGS["gcg"], topk=10, n_candidates=1000), {}
    for over in ("vocabulary", "labels"):
        side = Side(lm, task, replace(cfg, loss=over))
        grad = side.gradient(prompts, picks)[1]
        for r, prompt in enumerate(prompts):
            x = exact.embeddings[torch.tensor(prompt)].requires_grad_()
            bos = exact.embeddings[torch.tensor(lm.bos_ids, dtype=torch.long)]
            (slope,) = torch.autograd.grad(plain_mean(exact, task, torch.cat([bos, x])[None], picks[r], over), x)
            want = [
                [*prompt[:j], ALLOWED[k].item(), *prompt[j + 1 :]]
                for j in range(4)
                for k in (-(exact.embeddings[ALLOWED] @ slope[j])).topk(10).indices.tolist()
            ]
            got = propose(space, prompt, grad[r], cfg, step_draws(0, 0))
            assert got == list(map(tuple, want))
            losses = side.losses(got, [picks[r]] * len(got))
            for c, loss in zip(got[::7], losses[::7]):
                assert loss == pytest.approx(plain_loss(lm, task, c, picks[r], over), abs=1e-5)
            first.setdefault(over, got)  # what is proposed for the first prompt
    assert not {*first["labels"]} <= {*first["vocabulary"]}


def test_only_printable_tokens_are_put_in_and_a_written_start_stays():
    lm, task = tiny_lm("gpt2"), toy_task()
    cfg = replace(CFGS["gcg"], start="caf\u00e9: a film", steps=5, topk=64, n_candidates=64)
    p = SwapPass(lm, task, [RunSpec(SearchSpace(lm), "gcg", 0), RunSpec(SearchSpace(lm, ALLOWED), "gcg", 1)], cfg)
    own = tuple(lm.encode(cfg.start))
    assert p.prompts == [own, own] and any(not lm.decode([i]).isascii() for i in own)
    seen = watched(p)
    for _ in range(5):
        p.advance()
        for r, row in enumerate(seen[-1][0]):
            for rival in row:
                new = [i for i, was in zip(rival, own) if i != was]
                assert all(
                    lm.decode([i]).isascii() and lm.decode([i]).isprintable() and i not in lm.special_ids for i in new
                )
                assert r == 0 or {*new} <= {*ALLOWED.tolist()}
    assert p.prompts[0] != own and len(p.prompts[0]) == len(own)
    run = (p.judge(), p)[1].finish()[0]
    assert run.start_text == cfg.start and run.start_ids == list(own) and run.curve["ids"] == [list(p.prompts[0])]


@pytest.mark.parametrize("ties,step", [("earlier", 3), ("later", 6)])
def test_ties_on_the_holdout(ties, step):
    lm = tiny_lm("gpt2")
    p = SwapPass(lm, toy_task(), [RunSpec(SearchSpace(lm, ALLOWED), "gcg", 0)], replace(CFGS["gcg"], ties=ties))
    p.judging.accuracies = lambda prompts: [0.5] * len(prompts)
    for _ in range(6):
        p.advance()
        if p.step % 3 == 0:
            p.judge()
    assert p.best[0]["step"] == step


def test_little_memory_changes_nothing(monkeypatch):
    lm, task = tiny_lm("llama"), toy_task()
    specs = [RunSpec(SearchSpace(lm, ALLOWED), "mixed", s) for s in (0, 1)]
    want = tune_swaps(lm, task, specs, CFGS["mixed"], tiny_lm("gpt2", 7), progress=False)
    monkeypatch.setattr(hpt_nb.sides, "fit_tokens", lambda lm, grad: 24)  # two prompts at once
    got = tune_swaps(lm, task, specs, CFGS["mixed"], tiny_lm("gpt2", 7), progress=False)
    assert [(r.prompt_ids, r.curve["holdout"]) for r in got] == [(r.prompt_ids, r.curve["holdout"]) for r in want]


def test_one_pass_gives_every_budget():
    lm, task, seen = tiny_lm("gpt2"), toy_task(), {}
    specs = [RunSpec(SearchSpace(lm, ALLOWED), "gcg", s) for s in (0, 1)]
    kept = lambda runs: [(r.prompt_ids, r.best_step, r.curve, r.forward_tokens) for r in runs]
    tune_swaps(
        lm,
        task,
        specs,
        CFGS["gcg"],
        progress=False,
        budgets=(3, 6),
        on_budget=lambda steps, runs: seen.update({steps: kept(runs)}),
    )
    for steps in (3, 6):
        assert seen[steps] == kept(tune_swaps(lm, task, specs, replace(CFGS["gcg"], steps=steps), progress=False))
    assert tune_swaps(lm, task, [], CFGS["gcg"]) == []


def test_bad_input_is_one_line(tmp_path):
    lm, task = tiny_lm("llama"), toy_task()
    specs = [RunSpec(SearchSpace(lm, ALLOWED), "gcg")]
    damaged = tmp_path / "c.safetensors"
    damaged.write_bytes(b"not a checkpoint")
    for make, said in (
        (lambda: SwapConfig(n_candidates=0), "n_candidates=0"),
        (lambda: SwapConfig(accept="worse"), "accept='worse'"),
        (lambda: SwapConfig(fresh="no"), "fresh='no'"),
        (lambda: SwapConfig(loss="labels", objective="bias-free"), "objective='bias-free'"),
        (lambda: SwapConfig(objective="centred"), "set loss=labels too"),
        (lambda: SwapConfig(loss="margin"), "loss='margin'"),
        (lambda: SwapConfig(init="Review"), "init='Review'"),
        (lambda: SwapConfig(draw="twice"), "draw='twice'"),
        (lambda: SwapConfig(ties="first"), "ties='first'"),
        (lambda: SwapConfig(ascii_only=2), "ascii_only=2"),
        (
            lambda: tune_swaps(lm, task, [RunSpec(SearchSpace(lm, ALLOWED), "pez")], CFGS["gcg"]),
            "unknown method 'pez'; known here: autoprompt, mixed, gcg",
        ),
        (lambda: tune_swaps(lm, task, [RunSpec(SearchSpace(lm, ALLOWED), "mixed")], CFGS["mixed"]), "give judge="),
        (lambda: tune_swaps(lm, task, specs, CFGS["gcg"], budgets=(4,)), "budget 4"),
        (lambda: tune_swaps(lm, task, specs, CFGS["gcg"], progress=False, checkpoint=damaged), "delete it"),
    ):
        with pytest.raises(InputError) as e:
            make()
        assert said in str(e.value) and "\n" not in str(e.value)


SCRIPT = """
import time
from test_swaps import *
lm = tiny_lm("llama")
def slow(step): time.sleep(.05); print(step, flush=True)
specs, cfg = [RunSpec(SearchSpace(lm, ALLOWED), "mixed", s) for s in (0, 1)], replace(CFGS["mixed"], steps=12)
loop = dict(progress=False, checkpoint={ckpt!r}, every_s=0, on_step=slow)
runs = tune_swaps(lm, toy_task(), specs, cfg, tiny_lm("gpt2", 7), **loop)
print("END", [(r.prompt_ids, r.curve, r.forward_tokens) for r in runs], flush=True)
"""


def test_kill_9_in_the_middle_changes_nothing(tmp_path):
    lm, task = tiny_lm("llama"), toy_task()
    runs = tune_swaps(
        lm,
        task,
        [RunSpec(SearchSpace(lm, ALLOWED), "mixed", s) for s in (0, 1)],
        replace(CFGS["mixed"], steps=12),
        tiny_lm("gpt2", 7),
        progress=False,
    )
    want = [(r.prompt_ids, r.curve, r.forward_tokens) for r in runs]
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
