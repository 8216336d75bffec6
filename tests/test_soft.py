"""Soft prompts on tiny models of several architectures: company, checkpoints, PEFT's own logits both ways, transfer
onto a rotated model, faults."""

import copy
import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hpt_nb.models import LM
from hpt_nb.pez import Run, RunSpec, SearchSpace, batch_at, facts, tune
from hpt_nb.scoring import evaluate, label_ids, plain_logits, text_ids
from hpt_nb.soft import (
    SOFT_METHODS,
    SoftConfig,
    SoftPass,
    anchor_rows,
    encode_relative,
    evaluate_vectors,
    load_peft,
    prompt_vectors,
    reading,
    save_peft,
    transfer_soft,
    tune_soft,
    vector_prefix,
    vectors_from_text,
    vectors_to_text,
)
from hpt_nb.store import InputError
from hpt_nb.tasks import Split, Task
from hpt_nb.vocab import common_vocab
from forked import Program
from tiny import tiny_lm

ARCHS = ["gpt2", "opt-proj", "gemma2", "gemma3", "llama", "neox"]


def toy_task(n=16):
    texts = [("good film " if i % 2 else "bad plot ") + str(i) for i in range(3 * n)]
    split = lambda k: Split(tuple(texts[k * n : (k + 1) * n]), tuple(i % 2 for i in range(k * n, (k + 1) * n)))
    return Task("toy", ". It was", (" bad", " great"), split(0), split(1), split(2))


CFG = SoftConfig(n_tokens=4, steps=6, batch=4, eval_every=3, holdout_n=8, lr=0.03, init="The film was great")
PAIR = [("soft", 0), ("optiprompt", 1)]


def specs_of(lm, pairs=PAIR):
    return [RunSpec(SearchSpace(lm, torch.arange(20, 120)), m, s) for m, s in pairs]


def random_vectors(lm, p=3, seed=0):
    "Vectors of the size of the model's embeddings, of no token."
    return (
        torch.randn(p, lm.embeddings.shape[1], generator=torch.Generator().manual_seed(seed))
        * lm.embeddings.float().std()
    )


# ---- tuning ----


@pytest.mark.parametrize("arch", ARCHS)
def test_a_run_is_the_same_alone_and_in_company(arch):
    lm, task = tiny_lm(arch), toy_task()
    specs = specs_of(lm, [*PAIR, ("soft", 2)])
    for spec, run in zip(specs, tune_soft(lm, task, specs, CFG, progress=False)):
        (alone,) = tune_soft(lm, task, [spec], CFG, progress=False)
        assert torch.allclose(alone.vectors, run.vectors, atol=1e-3)
        assert alone.curve["holdout"] == run.curve["holdout"] and alone.prompt_ids == run.prompt_ids


def test_the_loss_falls_and_what_is_returned_is_the_best():
    lm, task = tiny_lm("llama"), toy_task()
    runs = tune_soft(lm, task, specs_of(lm), replace(CFG, steps=40, eval_every=10, adam_lr=0.02), progress=False)
    for run in runs:
        assert run.curve["loss"][-1] < run.curve["loss"][0]
        start = [0] if run.method == "optiprompt" else []  # OptiPrompt's start is a candidate
        assert run.curve["step"] == [*start, 10, 20, 30, 40]
        assert run.best_holdout == max(run.curve["holdout"])
        first_or_last = min if run.method == "optiprompt" else max  # of equal ones
        assert run.best_step == first_or_last(
            s for s, h in zip(run.curve["step"], run.curve["holdout"]) if h == run.best_holdout
        )
        held = task.subset("holdout", CFG.holdout_n)
        assert evaluate_vectors(lm, task, held, run.vectors)["accuracy"] == run.best_holdout
        assert evaluate(lm, task, held, run.prompt_ids)["accuracy"] == run.reading_holdout
        assert set(run.prompt_ids) <= set(range(20, 120))  # read inside the run's space
        assert run.prompt_text == lm.decode(run.prompt_ids) and len(run.cosines) == len(run.tokens) == 4


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("method", SOFT_METHODS)
def test_the_released_rules_step_by_step(arch, method):
    "The programs' updates from their formulas, on plain forward passes."
    lm, task, cfg = tiny_lm(arch), toy_task(), replace(CFG, steps=20, lr=0.1, adam_lr=0.01)
    p, train, labels = (
        SoftPass(lm, task, specs_of(lm, [(method, 1)]), cfg),
        text_ids(lm, task, toy_task().train.texts),
        label_ids(lm, task),
    )
    P, m, v = p.params[0].detach().clone(), 0.0, 0.0
    bos = lm.embeddings[torch.tensor(lm.bos_ids, dtype=torch.long)].float()
    for t in range(1, cfg.steps + 1):
        pick = batch_at(len(train), cfg.batch, 1, t - 1)
        P.requires_grad_()
        loss = torch.nn.functional.cross_entropy(
            plain_logits(lm, labels, torch.cat([bos, P])[None], [train[i] for i in pick]),
            torch.tensor([task.train.labels[i] for i in pick]),
        )
        g, P = torch.autograd.grad(loss, P)[0], P.detach()
        if method == "soft":
            v = (1 - t**-0.8) * v + t**-0.8 * (g**2 + 1e-30)
            u = g / v**0.5
            P = P * (1 - 1e-5) - 0.1 * u / max(1, (u**2).mean() ** 0.5)
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            P = P - 0.01 * ((t - 1) / 2 if t <= 2 else (21 - t) / 18) * m / (v**0.5 + 1e-6)
        p.advance()
        assert torch.allclose(p.params[0].detach(), P, atol=2e-3 if t > 5 else 1e-4), (
            t
        )  # rounding grows where a gradient is near nothing


def test_what_was_stored_before_keeps_its_identity():
    """Every setting that came later stands, in an old configuration, at what the old one was computed with, and is
    not named."""
    stored = dict(
        n_tokens=10,
        steps=80,
        batch=4,
        lr=0.3,
        weight_decay=1e-5,
        adam_lr=0.003,
        clip=1.0,
        init="labels",
        eval_every=20,
        holdout_n=48,
    )
    old = dict(adafactor="factored", adam="torch", start_counts=False, ties="later")
    assert facts(SoftConfig(**stored, **old)) == stored
    for name, value in (
        ("adafactor", "released"),
        ("adam", "released"),
        ("start_counts", True),
        ("ties", "earlier"),
        ("objective", "centred"),
    ):
        assert facts(SoftConfig(**stored, **(old | {name: value}))) == stored | {name: value}
    assert {k for k in facts(SoftConfig()) if k not in stored} == set(old)  # today's defaults are other runs


def test_the_start_may_win_and_equals_go_to_the_earlier():
    lm, task = tiny_lm("llama"), toy_task()
    (spec,) = specs_of(lm, [("optiprompt", 0)])
    (still,) = tune_soft(lm, task, [spec], replace(CFG, adam_lr=1e-9), progress=False)
    assert (still.best_step, still.curve["step"], still.curve["loss"][0] > 0) == (0, [0, 3, 6], True) and len(
        set(still.curve["holdout"])
    ) == 1
    assert torch.equal(still.vectors, lm.embeddings[lm.encode(CFG.init)][:4])
    (late,) = tune_soft(lm, task, [spec], replace(CFG, adam_lr=1e-9, ties="later"), progress=False)
    (no_start,) = tune_soft(lm, task, [spec], replace(CFG, adam_lr=1e-9, start_counts=False), progress=False)
    assert (late.best_step, no_start.best_step, no_start.curve["step"]) == (6, 3, [3, 6])


@pytest.mark.parametrize("objective", ["centred", "vocabulary"])
def test_other_objectives_go_through_the_engine(objective):
    lm, task = tiny_lm("gemma3"), toy_task()
    cfg = replace(CFG, objective=objective, steps=30, eval_every=10, lr=0.05, adam_lr=0.02)
    runs = tune_soft(lm, task, specs_of(lm), cfg, progress=False)
    assert all(r.curve["loss"][-1] < r.curve["loss"][0] and 0 <= r.best_holdout <= 1 for r in runs)
    usual = tune_soft(lm, task, specs_of(lm), replace(cfg, objective="labels"), progress=False)
    assert not any(torch.equal(a.vectors, b.vectors) for a, b in zip(runs, usual))


def test_a_result_is_json_and_keeps_the_vectors_bit_for_bit():
    lm = tiny_lm("gpt2")
    (run,) = tune_soft(lm, toy_task(), specs_of(lm)[:1], replace(CFG, steps=2), progress=False)
    kept = json.loads(json.dumps(run.result(), allow_nan=False))
    assert (
        torch.equal(vectors_from_text(kept["vectors"]), run.vectors) and kept["reading_holdout"] == run.reading_holdout
    )
    assert "config" not in kept and "seed" not in kept


@pytest.mark.parametrize("change", [dict(step=0), dict(seed=9), dict(batch=2)])
def test_seed_and_batch_change_the_run(change):
    lm, task = tiny_lm("llama"), toy_task()
    spec, cfg = specs_of(lm)[0], CFG
    other = (
        (replace(spec, seed=change["seed"]), cfg)
        if "seed" in change
        else (spec, replace(cfg, batch=change.get("batch", cfg.batch)))
    )
    a, b = (tune_soft(lm, task, [s], c, progress=False)[0] for s, c in ((spec, cfg), other))
    assert torch.equal(a.vectors, b.vectors) == ("step" in change)  # nothing changed: bit for bit the same


def test_starts():
    lm, task = tiny_lm("llama3"), toy_task()

    def start(**kw):
        p = SoftPass(
            lm, task, [RunSpec(SearchSpace(lm, range(30, 60)), kw.pop("method", "soft"), 1)], replace(CFG, **kw)
        )
        return SearchSpace(lm).project(p.params[0].detach()).tolist(), p.params[0].detach()

    manual = lm.encode("The film was great")
    ids, vectors = start(init="The film was great", n_tokens=None, method="optiprompt")
    assert ids == manual and torch.equal(vectors, lm.embeddings[manual])
    assert start(init="labels", n_tokens=5)[0] == (lm.encode(" bad") + lm.encode(" great")) * 2 + lm.encode(" bad")
    assert set(start(init="random", n_tokens=9)[0]) <= set(range(30, 60))
    assert torch.equal(lm.embeddings, tiny_lm("llama3").embeddings)  # the model's own table is not what is tuned


def test_the_model_stays_frozen():
    lm = tiny_lm("gemma3")
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    tune_soft(lm, toy_task(), specs_of(lm), replace(CFG, steps=3), progress=False)
    assert all(torch.equal(before[k], v) for k, v in lm.model.state_dict().items()) and all(
        p.grad is None for p in lm.model.parameters()
    )


def test_bf16_runs():
    lm = tiny_lm("llama").cast(torch.bfloat16)
    (run,) = tune_soft(lm, toy_task(), specs_of(lm)[:1], replace(CFG, steps=2), progress=False)
    assert run.vectors.dtype == torch.float32 and run.vectors.isfinite().all()


# ---- checkpoints ----

SCRIPT = """
import time
from test_soft import *
lm = tiny_lm("llama")
def slow(step): time.sleep(.05); print(step, flush=True)
runs = tune_soft(lm, toy_task(), specs_of(lm), CFG, progress=False, checkpoint={ckpt!r}, every_s=0, on_step=slow)
print("END", [(r.prompt_ids, r.curve, vectors_to_text(r.vectors)) for r in runs], flush=True)
"""


def test_kill_9_in_the_middle_changes_nothing(tmp_path):
    lm, ckpt = tiny_lm("llama"), tmp_path / "pass.safetensors"
    want = [
        (r.prompt_ids, r.curve, vectors_to_text(r.vectors))
        for r in tune_soft(lm, toy_task(), specs_of(lm), CFG, progress=False)
    ]
    code = SCRIPT.format(ckpt=str(ckpt))
    first = Program(code)
    for line in first.stdout:
        if line.strip() == "4":
            break
    first.send_signal(signal.SIGKILL)
    first.wait()
    steps = []
    again = tune_soft(lm, toy_task(), specs_of(lm), CFG, progress=False, checkpoint=ckpt, on_step=steps.append)
    assert 4 <= steps[0] <= 5 and [(r.prompt_ids, r.curve, vectors_to_text(r.vectors)) for r in again] == want
    done = tune_soft(lm, toy_task(), specs_of(lm), CFG, progress=False, checkpoint=ckpt, on_step=steps.append)
    assert steps[-1] == CFG.steps == len(steps) + steps[0] - 1  # a finished pass is read, not run
    assert [vectors_to_text(r.vectors) for r in done] == [w[2] for w in want] and ckpt.exists()


def test_a_checkpoint_of_another_pass_or_a_damaged_one_is_refused(tmp_path):
    lm, ckpt = tiny_lm("llama"), tmp_path / "c.safetensors"
    tune_soft(lm, toy_task(), specs_of(lm), replace(CFG, steps=1), progress=False, checkpoint=ckpt)
    whole = ckpt.read_bytes()
    for specs, cfg in (
        (specs_of(lm)[:1], replace(CFG, steps=1)),
        (specs_of(lm), replace(CFG, steps=2)),
        (specs_of(lm, [("soft", 0), ("soft", 1)]), replace(CFG, steps=1)),
    ):
        with pytest.raises(InputError, match="another pass"):
            tune_soft(lm, toy_task(), specs, cfg, progress=False, checkpoint=ckpt)
    ckpt.write_bytes(whole[:-40])
    with pytest.raises(InputError, match="delete it"):
        tune_soft(lm, toy_task(), specs_of(lm), replace(CFG, steps=1), progress=False, checkpoint=ckpt)


# ---- scores and readings ----


@pytest.mark.parametrize("arch", ARCHS)
def test_vectors_of_tokens_score_as_the_tokens(arch):
    lm, task = tiny_lm(arch), toy_task()
    ids = lm.encode("The film was")
    assert evaluate_vectors(lm, task, task.validation, lm.embeddings[ids]) == evaluate(lm, task, task.validation, ids)
    got = reading(lm, lm.embeddings[ids] * 3, SearchSpace(lm))
    assert torch.allclose(torch.tensor(got["cosines"]), torch.ones(len(ids)), atol=1e-5)
    assert torch.equal(lm.embeddings[got["ids"]], lm.embeddings[ids])


def test_reading_takes_the_nearest_of_the_space_alone():
    lm = tiny_lm("llama")
    v, space = random_vectors(lm), SearchSpace(lm, range(50, 80))
    got = reading(lm, v, space)
    cos = torch.cosine_similarity(v[:, None], lm.embeddings[50:80][None], dim=-1)
    assert got["ids"] == (50 + cos.argmax(-1)).tolist() and torch.allclose(
        torch.tensor(got["cosines"]), cos.amax(-1), atol=1e-6
    )


# ---- PEFT ----


def label_logits(model, lm, ids, labels):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1, labels]


@pytest.mark.parametrize("arch", ARCHS)
def test_peft_computes_what_was_tuned(arch, tmp_path):
    "Ours to PEFT: the adapter's logits are those of [BOS; vectors; text]."
    peft = pytest.importorskip("peft")
    lm, task = tiny_lm(arch), toy_task()
    labels, text = label_ids(lm, task), lm.encode("good film. It was")
    for name, prompt in (("vectors", random_vectors(lm)), ("ids", lm.encode("The film")), ("text", "The film")):
        save_peft(prompt, lm, tmp_path / name)
        want = lm.model(
            inputs_embeds=torch.cat([vector_prefix(lm, prompt_vectors(lm, prompt)), lm.embeddings[text][None]], 1)
        ).logits[0, -1, labels]
        adapted = peft.PeftModel.from_pretrained(copy.deepcopy(lm.model), tmp_path / name)
        assert torch.allclose(label_logits(adapted, lm, text, labels), want, atol=1e-5)
        if name != "vectors":
            assert torch.allclose(
                label_logits(adapted, lm, text, labels),
                label_logits(lm.model, lm, lm.bos_ids + lm.encode("The film") + text, labels),
                atol=1e-5,
            )


@pytest.mark.parametrize("arch", ARCHS)
def test_what_peft_saved_scores_the_same_here(arch, tmp_path):
    "PEFT's to ours: [vectors; BOS; text], with the vectors as PEFT wrote them."
    peft = pytest.importorskip("peft")
    lm, task = tiny_lm(arch), toy_task()
    labels, text = label_ids(lm, task), lm.encode("good film. It was")
    cfg = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=lm.embeddings.shape[1])
    adapted = peft.get_peft_model(copy.deepcopy(lm.model), cfg)
    adapted.prompt_encoder["default"].embedding.weight.data = random_vectors(lm)
    adapted.save_pretrained(tmp_path)
    v = load_peft(tmp_path)
    assert torch.equal(v, random_vectors(lm))
    ours = lm.model(inputs_embeds=torch.cat([vector_prefix(lm, v, bos="after"), lm.embeddings[text][None]], 1)).logits[
        0, -1, labels
    ]
    assert torch.allclose(label_logits(adapted, lm, lm.bos_ids + text, labels), ours, atol=1e-5)
    save_peft(v, lm, tmp_path / "again", bos="after")  # and back: the same tensor under the same name, the same fields
    assert torch.equal(
        load_file(tmp_path / "again/adapter_model.safetensors")["prompt_embeddings"],
        load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"],
    )
    theirs, mine = (json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in (".", "again"))
    assert mine.keys() <= theirs.keys()
    assert {k: v for k, v in mine.items() if k not in ("num_attention_heads", "num_layers")}.items() <= theirs.items()


@pytest.mark.parametrize("arch", ["gpt2", "gemma3"])
def test_adapters_come_back_bit_for_bit(arch, tmp_path):
    lm, task = tiny_lm(arch), toy_task()
    (run,) = tune_soft(lm, task, specs_of(lm)[:1], replace(CFG, steps=1), progress=False)
    assert torch.equal(load_peft(save_peft(run, lm, tmp_path / "a")), run.vectors)
    assert len(load_file(tmp_path / "a/adapter_model.safetensors")["prompt_embeddings"]) == len(lm.bos_ids) + 4
    assert torch.equal(load_peft(save_peft(run, lm, tmp_path / "b", bos="after")), run.vectors)
    (hard,) = tune(lm, task, torch.arange(20, 60), steps=1, n_tokens=3, batch=2, holdout_n=4, progress=False)
    assert isinstance(hard, Run) and torch.equal(
        load_peft(save_peft(hard, lm, tmp_path / "c")), lm.embeddings[hard.prompt_ids]
    )


def test_other_adapters_are_refused_in_one_line(tmp_path):
    lm = tiny_lm("gpt2")

    def spoil(**kw):
        save_peft("The film", lm, tmp_path)
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **kw}))

    for kw, match in (
        (dict(peft_type="LORA"), "'LORA'; need PROMPT_TUNING"),
        (dict(num_transformer_submodules=2), "an encoder and a decoder"),
        (dict(num_virtual_tokens=9), "num_virtual_tokens=9"),
    ):
        spoil(**kw)
        with pytest.raises(InputError, match=match):
            load_peft(tmp_path)
    spoil()
    save_file({"other": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match="does not hold the prompt"):
        load_peft(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="safe_serialization"):
        load_peft(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[1")
    with pytest.raises(InputError, match="not a JSON object"):
        load_peft(tmp_path)


# ---- transfer ----


def rotated(lm, Q):
    """An OPT with a projection behind its embeddings, its embeddings rotated and the projections turned back: the
    same function."""
    model = copy.deepcopy(lm.model)
    decoder = model.model.decoder
    with torch.no_grad():
        decoder.embed_tokens.weight.copy_(decoder.embed_tokens.weight @ Q)  # tied to the output layer
        decoder.project_in.weight.copy_(decoder.project_in.weight @ Q)
        decoder.project_out.weight.copy_(Q.T @ decoder.project_out.weight)
    return LM.wrap(model, lm.tokenizer, name="turned")


@pytest.fixture(scope="module")
def turned():
    lm = tiny_lm("opt-proj", word_embed_proj_dim=64)
    Q = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    twin = rotated(lm, Q)
    x = torch.tensor([lm.bos_ids + lm.encode("The film was great")])
    with torch.no_grad():
        assert torch.allclose(lm.model(x).logits, twin.model(x).logits, atol=1e-4)
    return lm, twin, Q


def test_transfer_onto_a_rotated_copy_recovers_the_prompt(turned):
    lm, twin, Q = turned
    task, vocab = toy_task(), common_vocab([lm, twin])
    (run,) = tune_soft(
        lm,
        task,
        specs_of(lm)[1:],
        replace(CFG, n_tokens=8, steps=40, batch=16, adam_lr=0.02, eval_every=40),
        progress=False,
    )
    there = transfer_soft(
        [run.vectors], [anchor_rows(lm, vocab)], anchor_rows(twin, vocab), twin.embeddings, steps=1000
    )
    assert there.shape == run.vectors.shape and torch.cosine_similarity(there, run.vectors @ Q, dim=-1).min() > 0.99
    assert torch.isclose(there.std(), twin.embeddings.std(), rtol=1e-4) and torch.isclose(
        there.mean(), twin.embeddings.mean(), atol=1e-5
    )
    score = lambda m, v: evaluate_vectors(m, task, task.train, v)
    home, empty = score(lm, run.vectors), evaluate(lm, task, task.train)
    assert home["accuracy"] == 1 and empty["accuracy"] < 0.6, "the prompt must be worth carrying"
    assert score(twin, there)["accuracy"] == 1
    assert score(twin, run.vectors)["accuracy"] < 0.6  # as they are, the vectors mean nothing there
    lengths = run.vectors.norm(dim=-1, keepdim=True)  # what a cosine cannot carry; given back, every answer is the same
    assert score(twin, torch.nn.functional.normalize(there, dim=-1) * lengths)["predictions"] == home["predictions"]


def test_several_sources_that_agree_give_what_one_gives(turned):
    lm, twin, Q = turned
    vocab, v = common_vocab([lm, twin]), random_vectors(lm, 4)
    a, b = anchor_rows(lm, vocab), anchor_rows(twin, vocab)
    assert torch.allclose(encode_relative(v, a), encode_relative(v @ Q, b), atol=1e-5)
    one, two = (
        transfer_soft(vs, anchors, b, twin.embeddings, steps=50) for vs, anchors in (([v], [a]), ([v, v @ Q], [a, b]))
    )
    assert torch.allclose(one, two, atol=1e-3)


def test_sources_may_differ_in_width_and_kept_anchors_are_the_nearest():
    wide, narrow, rng = tiny_lm("llama", seed=1), tiny_lm("opt-proj", seed=2), torch.Generator().manual_seed(0)
    rows = torch.arange(60, 160)
    vs, anchors = [random_vectors(wide), random_vectors(narrow)], [wide.embeddings[rows], narrow.embeddings[rows]]
    code = sum(encode_relative(v, a) for v, a in zip(vs, anchors)) / 2
    target = torch.randn(100, 24, generator=rng)
    full = transfer_soft(vs, anchors, target, target, keep=10, steps=300)
    kept = code.topk(10).indices  # anchors that are kept for no vector change nothing
    unused = [i for i in range(100) if i not in kept]
    changed = target.clone()
    changed[unused] = torch.randn(len(unused), 24, generator=rng)
    assert torch.allclose(transfer_soft(vs, anchors, changed, target, keep=10, steps=300), full, atol=1e-5)
    there = encode_relative(full, target)
    agree = torch.stack([torch.corrcoef(torch.stack([there[j, kept[j]], code[j, kept[j]]]))[0, 1] for j in range(3)])
    start = encode_relative(transfer_soft(vs, anchors, target, target, keep=10, steps=1), target)
    cosine = lambda x: torch.stack([torch.cosine_similarity(x[j, kept[j]], code[j, kept[j]], dim=0) for j in range(3)])
    assert (cosine(there) > 0.99).all() and (cosine(start) < 0.9).all() and agree.isfinite().all()


def test_the_best_candidate_is_kept_and_equals_go_to_the_earlier(turned):
    lm, twin, Q = turned
    vocab, v, seen = common_vocab([lm, twin]), random_vectors(lm, 4), []
    a, b = anchor_rows(lm, vocab), anchor_rows(twin, vocab)

    def judge(x):
        seen.append(x)
        return (1, 3, 2, 3)[len(seen) - 1]

    got = transfer_soft([v], [a], b, twin.embeddings, steps=45, judge=judge, every=10)
    assert len(seen) == 4 and torch.equal(got, seen[1])  # the second; the fourth is only as good
    assert torch.allclose(
        seen[3], transfer_soft([v], [a], b, twin.embeddings, steps=39), atol=1e-6
    )  # as it stood before its step
    assert not torch.allclose(got, transfer_soft([v], [a], b, twin.embeddings, steps=45, start="embeddings"), atol=1e-3)


# ---- faults ----


def test_bad_input_is_one_line():
    lm, task = tiny_lm("llama"), toy_task()
    other, v = tiny_lm("opt-proj"), random_vectors(tiny_lm("llama"))
    a = lm.embeddings[:9]
    faults = [
        lambda: SoftConfig(batch=0),
        lambda: SoftConfig(lr=-1.0),
        lambda: SoftConfig(adam_lr=float("nan")),
        lambda: SoftConfig(clip=-1.0),
        lambda: SoftConfig(adam="x"),
        lambda: SoftConfig(adafactor="x"),
        lambda: SoftConfig(ties="x"),
        lambda: SoftConfig(objective="x"),
        lambda: SoftConfig(start_counts="x"),
        lambda: SoftConfig(init=""),
        lambda: SoftConfig(init=None),
        lambda: SoftConfig(weight_decay=-1),
        lambda: SoftConfig(n_tokens=None),
        lambda: SoftConfig(steps=None),
        lambda: tune_soft(lm, task, specs_of(lm, [("pez", 0)]), CFG),
        lambda: tune_soft(lm, task, specs_of(lm, [("optiprompt", 0)]), replace(CFG, init="labels")),
        lambda: evaluate_vectors(other, task, task.validation, v),
        lambda: evaluate_vectors(lm, task, task.validation, v / 0),
        lambda: evaluate_vectors(lm, task, task.validation, v, bos="middle"),
        lambda: evaluate_vectors(lm, task, task.validation, v[:0]),
        lambda: save_peft(v, other, "nowhere"),
        lambda: save_peft(v, lm, "nowhere", bos="middle"),
        lambda: save_peft([], lm, "nowhere"),
        lambda: load_peft("nowhere"),
        lambda: vectors_from_text("*"),
        lambda: transfer_soft([], [], a, a),
        lambda: transfer_soft([v], [a[:, :3]], a, a),
        lambda: transfer_soft([v], [a], a[:5], a),
        lambda: transfer_soft([v, v[:1]], [a, a], a, a),
        lambda: transfer_soft([v], [a], a, a, keep=0),
        lambda: transfer_soft([v], [a], a, a, lr=0),
        lambda: transfer_soft([v], [a], a, a, start="x"),
        lambda: transfer_soft([v], [a], a, a, average="x"),
        lambda: transfer_soft([v], [a], a, a, steps=9, judge=len),
    ]
    for make in faults:
        with pytest.raises(InputError) as e:
            make()
        assert "\n" not in str(e.value)
    assert not Path("nowhere").exists()
    assert tune_soft(lm, task, []) == [] and set(SOFT_METHODS) == {"soft", "optiprompt"}
