"Joint tuning on tiny models: the best token by enumeration, architectures, company, kill -9."

from dataclasses import replace

import pytest
import torch

from hpt_nb.joint import (
    JointConfig,
    JointPass,
    JointSwapConfig,
    JointSwapPass,
    nearest_together,
    tune_joint,
    tune_joint_swaps,
)
from hpt_nb.joint_swaps import _Round
from hpt_nb.pez import PezConfig, RunSpec, SearchSpace, tune_runs
from hpt_nb.scoring import evaluate
from hpt_nb.store import InputError
from hpt_nb.vocab import common_vocab
from test_swaps import doubled, plain_mean, toy_task
from tiny import tiny_lm

CFG = JointConfig(n_tokens=2, steps=6, batch=4, eval_every=2, holdout_n=8)


def specs(lm, vocab, method="joint", seeds=(0, 1)):
    return [RunSpec(SearchSpace(lm, vocab), method, s) for s in seeds]


@pytest.mark.parametrize("models", [("gpt2", "gemma3"), ("llama3", "opt-proj", "qwen2")])
@pytest.mark.parametrize("by_J", [False, True])
def test_each_step_takes_the_token_of_highest_sum(models, by_J):
    "20 tokens: every sum of cosines is computed one by one, for two and for three models of unlike widths."
    lms = [tiny_lm(a, seed=i) for i, a in enumerate(models)]
    vocab = common_vocab(lms).sample(20, seed=0)
    vocab = replace(vocab, J=torch.linspace(1, 0.2, 20))
    p = JointPass(lms[0], toy_task(), specs(lms[0], vocab), replace(CFG, by_J=by_J, init="random"), lms[1:])
    met = set()
    for _ in range(4):
        for r, prompt in enumerate(p.project().tolist()):
            for i, token in enumerate(prompt):
                sums = [
                    (vocab.J[v].item() if by_J else 1)
                    * sum(
                        1
                        + torch.cosine_similarity(
                            side.params[r].detach()[i],
                            side.lm.embeddings[vocab.ids_for(side.lm.name)[v]].float(),
                            dim=0,
                        ).item()
                        for side in p.sides
                    )
                    for v in range(20)
                ]
                assert sums[vocab.ids_for(lms[0].name).tolist().index(token)] == pytest.approx(max(sums), abs=1e-5)
                met.add(token)
        p.advance()
    assert len(met) > 2


def test_every_model_reads_the_same_tokens():
    lms = [tiny_lm("gpt2"), tiny_lm("gemma3", 1)]
    vocab = common_vocab(lms)
    p = JointPass(lms[0], toy_task(), specs(lms[0], vocab), CFG, lms[1])
    for _ in range(3):
        a, b = (p.ids(side, p.positions()).tolist() for side in p.sides)
        for x, y in zip(a, b):
            assert [lms[0].token_bytes[i] for i in x] == [lms[1].token_bytes[i] for i in y]
        p.advance()


@pytest.mark.parametrize("method", ["joint", "joint-choice"])
def test_a_run_is_the_same_alone_and_in_company(method):
    lms = [tiny_lm("llama3"), tiny_lm("opt-proj", 1)]
    wide = common_vocab(lms)
    both = specs(lms[0], wide, method) + specs(lms[0], wide.sample(40, seed=1), method, (3,))
    for spec, run in zip(both, tune_joint(lms[0], toy_task(), both, CFG, lms[1], progress=False)):
        (alone,) = tune_joint(lms[0], toy_task(), [spec], CFG, lms[1], progress=False)
        assert (alone.prompt_ids, alone.curve["holdout"]) == (run.prompt_ids, run.curve["holdout"])
        assert set(run.prompt_ids) <= set(spec.space.ids.tolist())


def test_a_model_that_is_not_asked_does_not_move_the_prompt():
    "joint-choice walks PEZ's own path, and only its choice is another."
    lms = [tiny_lm("gpt2"), tiny_lm("gemma3", 1)]
    vocab = common_vocab(lms)
    a = tune_joint(lms[0], toy_task(), specs(lms[0], vocab, "joint-choice"), CFG, lms[1], progress=False)
    b = tune_runs(
        lms[0],
        toy_task(),
        specs(lms[0], vocab, "pez"),
        PezConfig(n_tokens=2, steps=6, batch=4, eval_every=2, holdout_n=8),
        progress=False,
    )
    for x, y in zip(a, b):
        assert x.curve["loss"] == pytest.approx(y.curve["loss"], abs=1e-6)


def test_lengths_do_not_matter_and_ties_go_to_the_first():
    units = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 0], [0, 1]]), dim=-1)
    assert nearest_together([torch.tensor([[5.0, 0]]), torch.tensor([[0.1, 0]])], [units, units]).tolist() == [0]
    assert nearest_together([torch.tensor([[5.0, 0]])], [units], torch.tensor([0.5, 1, 1])).tolist() == [1]


SWAPS = JointSwapConfig(
    start="The film was great and the story café",
    steps=3,
    gradient_n=4,
    fresh_n=6,
    topk=8,
    n_candidates=5,
    finalists=2,
    eval_every=1,
    holdout_n=8,
)


def plain(lm, ids, pick, objective):
    "Loss of a prompt's ids on some training texts, in float64, one plain pass a text."
    exact, task = doubled(lm), toy_task()
    prefix = exact.embeddings[torch.tensor([*lm.bos_ids, *ids])][None]
    with torch.no_grad():
        return plain_mean(exact, task, prefix, pick, objective).item()


TWO, THREE = ("gpt2", "gemma3"), ("llama3", "llama", "gpt2")


@pytest.mark.parametrize(
    "models, objective, rule",
    [(TWO, "labels", "worse"), (TWO, "centred", "sum"), (THREE, "centred", "worse"), (THREE, "labels", "sum")]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            (TWO, "labels", "sum"),
            (TWO, "centred", "worse"),
            (THREE, "centred", "sum"),
            (THREE, "labels", "worse"),
        )
    ],
)
def test_every_round_of_joint_swaps_is_what_enumeration_says(models, objective, rule):
    "Every loss that a round saw, in float64; which swaps were tried again, and which was taken."
    lms = [tiny_lm(a, seed=i) for i, a in enumerate(models)]
    vocab, cfg = common_vocab(lms), replace(SWAPS, objective=objective, rule=rule)
    p = JointSwapPass(lms[0], toy_task(), specs(lms[0], vocab, "joint-swaps", (0, 3)), cfg, lms[1:])
    own = [m.encode(cfg.start) for m in lms]
    assert [list(p.ids(0, p.prompts[0], k)) for k in range(len(lms))] == own

    losses = {}

    def loss(k, ids, pick):
        key = (k, ids, tuple(pick))
        if key not in losses:
            losses[key] = plain(lms[k], ids, pick, objective)
        return losses[key]

    def change(new, now):
        return max(a - b for a, b in zip(new, now)) if rule == "worse" else sum(new) - sum(now)

    for _ in range(cfg.steps):
        was, turn = list(p.prompts), _Round(p)
        p.prompts = turn.play()
        for r in turn.runs:

            def exact(prompt, pick):
                return [loss(k, tuple(p.ids(r, prompt, k)), pick) for k in range(len(lms))]

            assert not {*turn.look[r]} & {*turn.fresh[r]}
            assert turn.now[r] == pytest.approx(exact(was[r], turn.look[r]), abs=1e-5)
            for prompt, seen in zip(turn.tried[r], turn.seen[r]):
                assert sum(a != b for a, b in zip(prompt, was[r])) == 1 and seen == pytest.approx(
                    exact(prompt, turn.look[r]), abs=1e-5
                )
                text = p.text(r, prompt)
                assert all(m.encode(text) == list(p.ids(r, prompt, k)) for k, m in enumerate(lms))
            for prompt, seen in zip(turn.final[r], turn.again[r]):
                assert seen == pytest.approx(exact(prompt, turn.fresh[r]), abs=1e-5)
            order = sorted(turn.tried[r], key=lambda c: change(exact(c, turn.look[r]), exact(was[r], turn.look[r])))
            assert turn.final[r] == [was[r], *order[: cfg.finalists]]
            best = min(turn.final[r][1:], key=lambda c: change(exact(c, turn.fresh[r]), exact(was[r], turn.fresh[r])))
            assert p.prompts[r] == (
                best if change(exact(best, turn.fresh[r]), exact(was[r], turn.fresh[r])) < 0 else was[r]
            )
            for k in range(len(lms)):  # what was not swapped is the start's own
                ids = [
                    i
                    for piece, v in zip(p.pieces[r], p.prompts[r])
                    for i in (piece[k] if v < 0 else [vocab.ids_for(lms[k].name)[v].item()])
                ]
                assert list(p.ids(r, p.prompts[r], k)) == ids
        p.step += 1


def test_candidates_are_the_swaps_of_greatest_joint_gain():
    lms = [tiny_lm("gpt2"), tiny_lm("gemma3", 1)]
    vocab = common_vocab(lms)
    p = JointSwapPass(
        lms[0],
        toy_task(),
        specs(lms[0], vocab, "joint-swaps", (0,)),
        replace(SWAPS, n_candidates=10_000, topk=3),
        lms[1],
    )
    turn = _Round(p)
    turn.now, grads = turn.gradients()
    starts = [[0], [0]]
    for k in (0, 1):
        for piece in p.pieces[0]:
            starts[k].append(starts[k][-1] + len(piece[k]))
    best = set()
    for j in p.open[0]:
        gain = sum(-(m.embeddings[vocab.ids_for(m.name)] @ grads[k][0][starts[k][j]]) for k, m in enumerate(lms))
        best |= {(j, v) for v in gain.topk(3).indices.tolist()}
    tried = turn.candidates(0, turn.gains(0, grads))
    swaps = {next((j, v) for j, v in enumerate(c) if v >= 0) for c in tried}
    every = {(j, v): p.prompts[0][:j] + (v,) + p.prompts[0][j + 1 :] for j, v in best}
    assert swaps == {s for s, c in every.items() if p.reads_back(0, c)} and len(swaps) > 3


@pytest.mark.parametrize("objective", ["labels", "centred"])
def test_joint_swaps_alone_in_company_and_cut(objective, tmp_path):
    lms = [tiny_lm("gpt2"), tiny_lm("gemma3", 1)]
    vocab, task, cfg = common_vocab(lms), toy_task(), replace(SWAPS, objective=objective, steps=5, eval_every=2)
    both = specs(lms[0], vocab, "joint-swaps") + specs(lms[0], vocab.sample(60, seed=1), "joint-swaps", (4,))
    together = tune_joint_swaps(lms[0], task, both, cfg, lms[1], progress=False)
    kept = lambda runs: [(r.prompt_ids, r.curve, r.best_step, r.best_holdout, r.start_ids) for r in runs]
    for spec, run in zip(both, together):
        (alone,) = tune_joint_swaps(lms[0], task, [spec], cfg, lms[1], progress=False)
        assert (alone.prompt_ids, alone.curve["ids"], alone.best_holdout) == (
            run.prompt_ids,
            run.curve["ids"],
            run.best_holdout,
        )
        assert run.start_text == cfg.start and lms[1].decode(lms[1].encode(run.prompt_text)) == run.prompt_text
    p = JointSwapPass(lms[0], task, both, cfg, lms[1])
    for _ in range(3):
        p.advance()
        if p.step % 2 == 0:
            p.judge()
    p.save(tmp_path / "c.safetensors")
    assert kept(
        tune_joint_swaps(lms[0], task, both, cfg, lms[1], progress=False, checkpoint=tmp_path / "c.safetensors")
    ) == kept(together)


@pytest.mark.parametrize("choose", ["mean", "worst"])
def test_the_round_is_chosen_over_the_models(choose):
    lms = [tiny_lm("gpt2"), tiny_lm("gemma3", 1)]
    task = toy_task()
    (run,) = tune_joint_swaps(
        lms[0],
        task,
        specs(lms[0], common_vocab(lms), "joint-swaps", (0,)),
        replace(SWAPS, choose=choose, rule="sum", steps=6),
        lms[1],
        progress=False,
    )
    held = task.subset("holdout", 8, 0)

    def over(text):
        each = [evaluate(m, task, held, text)["accuracy"] for m in lms]
        return min(each) if choose == "worst" else sum(each) / 2

    texts = [run.start_text, *map(lms[0].decode, run.curve["ids"])]
    assert run.best_holdout == pytest.approx(over(run.prompt_text)) == pytest.approx(max(map(over, texts)))


@pytest.mark.parametrize("method", ["joint", "joint-choice"])
@pytest.mark.parametrize("objective", ["labels", "centred"])
def test_joint_tuning_keeps_a_written_start_until_it_is_replaced(method, objective, tmp_path):
    lms, task = [tiny_lm("gpt2"), tiny_lm("llama3", 1)], toy_task()
    vocab, words = common_vocab(lms).sample(60, seed=2), " great film was bad"
    own = [m.encode(words) for m in lms]
    assert [lms[0].token_bytes[i] for i in own[0]] == [lms[1].token_bytes[i] for i in own[1]]
    cfg, allowed = (
        replace(CFG, start=words, objective=objective, steps=12, lr=0.1, batch=6),
        set(vocab.ids_for(lms[0].name).tolist()),
    )
    p = JointPass(lms[0], task, specs(lms[0], vocab, method), cfg, lms[1])
    gone, kept = [[False] * len(own[0]) for _ in range(2)], []
    assert [p.ids(side, p.positions()).tolist() for side in p.sides] == [[of] * 2 for of in own]
    for _ in range(12):
        p.advance()
        for r, prompt in enumerate(p.project().tolist()):
            for j, i in enumerate(prompt):
                assert i in allowed or i == own[0][j] and not gone[r][j]
                gone[r][j] = gone[r][j] or i != own[0][j]
        for a, b in zip(*(p.ids(side, p.positions()).tolist() for side in p.sides)):
            assert [lms[0].token_bytes[i] for i in a] == [lms[1].token_bytes[i] for i in b]
        kept.append(int(p.kept.sum()))
    assert kept[-1] < kept[0]
    unbroken = tune_joint(lms[0], task, specs(lms[0], vocab, method), cfg, lms[1], progress=False)
    p = JointPass(lms[0], task, specs(lms[0], vocab, method), cfg, lms[1])
    for _ in range(5):
        p.advance()
        if p.step % cfg.eval_every == 0:
            p.judge()
    p.save(tmp_path / "c.safetensors")
    resumed = tune_joint(
        lms[0], task, specs(lms[0], vocab, method), cfg, lms[1], progress=False, checkpoint=tmp_path / "c.safetensors"
    )
    assert [(r.prompt_ids, r.curve, r.start_text) for r in resumed] == [
        (r.prompt_ids, r.curve, words) for r in unbroken
    ]


def test_what_cannot_be_searched_is_one_line():
    lms, task = [tiny_lm("gpt2"), tiny_lm("gemma3", 1)], toy_task()
    vocab = common_vocab(lms)
    swaps = specs(lms[0], vocab, "joint-swaps")
    cases = [
        (
            lambda: tune_joint_swaps(lms[0], task, swaps, replace(SWAPS, fresh_n=1000), lms[1]),
            "need 1004 texts per round, but there are 24",
        ),
        (
            lambda: tune_joint_swaps(lms[0], task, specs(lms[0], vocab, "joint"), SWAPS, lms[1]),
            "unknown method 'joint'; known here: joint-swaps",
        ),
        (lambda: tune_joint_swaps(lms[0], task, swaps, SWAPS, lms[0]), "two different ones"),
        (
            lambda: tune_joint_swaps(
                lms[0], task, swaps, replace(SWAPS, gradient_n=1, objective="centred", fresh_n=0), lms[1]
            ),
            "fresh_n=0",
        ),
        (lambda: replace(SWAPS, rule="mean"), "rule='mean'"),
        (lambda: replace(SWAPS, choose="best"), "choose='best'"),
        (lambda: replace(SWAPS, init="text"), "init='text'"),
        (
            lambda: tune_joint(
                lms[0], task, specs(lms[0], vocab), replace(CFG, start="The film was unbelievable"), lms[1]
            ),
            "is cut differently by tiny-gpt2-0 and tiny-gemma3-1",
        ),
        (lambda: tune_joint(lms[0], task, specs(lms[0], vocab), replace(CFG, pad_row=True), lms[1]), "pad_row=True"),
    ]
    for make, said in cases:
        with pytest.raises(InputError) as e:
            make()
        assert said in str(e.value) and "\n" not in str(e.value)


def test_damaged_checkpoints_are_refused(tmp_path):
    lms = [tiny_lm("gpt2"), tiny_lm("gemma3", 1)]
    (tmp_path / "c.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="delete it to start this pass again"):
        tune_joint(
            lms[0],
            toy_task(),
            specs(lms[0], common_vocab(lms)),
            CFG,
            lms[1],
            progress=False,
            checkpoint=tmp_path / "c.safetensors",
        )
