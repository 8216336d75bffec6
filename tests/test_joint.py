"Joint tuning on tiny models: the best token by enumeration, architectures, company, kill -9."
from dataclasses import replace

import pytest
import torch

from hpt_nb.joint import JointConfig, _JointPass, nearest_together, tune_joint
from hpt_nb.pez import PezConfig, RunSpec, SearchSpace, tune_runs
from hpt_nb.store import InputError
from hpt_nb.vocab import common_vocab
from test_swaps import toy_task
from tiny import tiny_lm

CFG = JointConfig(n_tokens=2, steps=6, batch=4, eval_every=2, holdout_n=8)


def specs(lm, vocab, method="joint", seeds=(0, 1)): return [RunSpec(SearchSpace(lm, vocab), method, s) for s in seeds]


@pytest.mark.parametrize("models", [("gpt2", "gemma3"), ("llama3", "opt-proj", "qwen2")])
@pytest.mark.parametrize("by_J", [False, True])
def test_each_step_takes_the_token_of_highest_sum(models, by_J):
    "20 tokens: every sum of cosines is computed one by one, for two and for three models of unlike widths."
    lms = [tiny_lm(a, seed=i) for i, a in enumerate(models)]
    vocab = common_vocab(lms).sample(20, seed=0)
    vocab = replace(vocab, J=torch.linspace(1, .2, 20))
    p = _JointPass(lms[0], toy_task(), specs(lms[0], vocab), replace(CFG, by_J=by_J, init="random"), lms[1:])
    met = set()
    for _ in range(4):
        for r, prompt in enumerate(p.project().tolist()):
            for i, token in enumerate(prompt):
                sums = [(vocab.J[v].item() if by_J else 1)*sum(1 + torch.cosine_similarity(side.params[r].detach()[i], side.lm.embeddings[vocab.ids_for(side.lm.name)[v]].float(), dim=0).item() for side in p.sides) for v in range(20)]
                assert sums[vocab.ids_for(lms[0].name).tolist().index(token)] == pytest.approx(max(sums), abs=1e-5)
                met.add(token)
        p.advance()
    assert len(met) > 2


def test_every_model_reads_the_same_tokens():
    lms = [tiny_lm("gpt2"), tiny_lm("gemma3", 1)]
    vocab = common_vocab(lms)
    p = _JointPass(lms[0], toy_task(), specs(lms[0], vocab), CFG, lms[1])
    for _ in range(3):
        a, b = (p.ids(side, p.positions()).tolist() for side in p.sides)
        for x, y in zip(a, b): assert [lms[0].token_bytes[i] for i in x] == [lms[1].token_bytes[i] for i in y]
        p.advance()


@pytest.mark.parametrize("method", ["joint", "joint-choice"])
def test_a_run_is_the_same_alone_and_in_company(method):
    lms = [tiny_lm("llama3"), tiny_lm("opt-proj", 1)]
    wide = common_vocab(lms)
    both = specs(lms[0], wide, method) + specs(lms[0], wide.sample(40, seed=1), method, (3,))
    for spec, run in zip(both, tune_joint(lms[0], toy_task(), both, CFG, lms[1], progress=False)):
        alone, = tune_joint(lms[0], toy_task(), [spec], CFG, lms[1], progress=False)
        assert (alone.prompt_ids, alone.curve["holdout"]) == (run.prompt_ids, run.curve["holdout"])
        assert set(run.prompt_ids) <= set(spec.space.ids.tolist())


def test_a_model_that_is_not_asked_does_not_move_the_prompt():
    "joint-choice walks PEZ's own path, and only its choice is another."
    lms = [tiny_lm("gpt2"), tiny_lm("gemma3", 1)]
    vocab = common_vocab(lms)
    a = tune_joint(lms[0], toy_task(), specs(lms[0], vocab, "joint-choice"), CFG, lms[1], progress=False)
    b = tune_runs(lms[0], toy_task(), specs(lms[0], vocab, "pez"), PezConfig(n_tokens=2, steps=6, batch=4, eval_every=2, holdout_n=8), progress=False)
    for x, y in zip(a, b): assert x.curve["loss"] == pytest.approx(y.curve["loss"], abs=1e-6)


def test_lengths_do_not_matter_and_ties_go_to_the_first():
    units = torch.nn.functional.normalize(torch.tensor([[1., 0], [1, 0], [0, 1]]), dim=-1)
    assert nearest_together([torch.tensor([[5., 0]]), torch.tensor([[.1, 0]])], [units, units]).tolist() == [0]
    assert nearest_together([torch.tensor([[5., 0]])], [units], torch.tensor([.5, 1, 1])).tolist() == [1]


def test_damaged_checkpoints_are_refused(tmp_path):
    lms = [tiny_lm("gpt2"), tiny_lm("gemma3", 1)]
    (tmp_path / "c.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="delete it to start this pass anew"): tune_joint(lms[0], toy_task(), specs(lms[0], common_vocab(lms)), CFG, lms[1], progress=False, checkpoint=tmp_path / "c.safetensors")
